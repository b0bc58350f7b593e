package probe_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// What a listener turns away, or answers with a SYN cookie, is counted for its namespace.
func TestUnseen(t *testing.T) {
	need.Kernel(t)
	for name, test := range map[string]struct {
		cookies string // net.ipv4.tcp_syncookies
		backlog int
		defers  bool // a connection stays half open until data comes
		connect int
		where   string
		least   uint64 // a SYN that is sent again counts again
		most    uint64
	}{
		"all accepted":       {cookies: "1", backlog: 8, connect: 3},
		"cookies":            {cookies: "2", backlog: 8, connect: 3, where: tcp.WhereCookie, least: 3, most: 3},
		"accept queue full":  {cookies: "1", backlog: 0, connect: 3, where: tcp.WhereAcceptQueue, least: 2, most: 20},
		"SYN queue full":     {cookies: "0", backlog: 1, connect: 4, defers: true, where: tcp.WhereSYNQueue, least: 1, most: 20},
		"SYN queue, cookies": {cookies: "1", backlog: 1, connect: 4, defers: true, where: tcp.WhereCookie, least: 1, most: 20},
	} {
		t.Run(name, func(t *testing.T) {
			inNewNamespace(t, func() {
				check(os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(test.cookies), 0), "set tcp_syncookies")
				l := listenOnLoopback()
				defer unix.Close(l)
				p, inode := probeHere()
				defer p.Close()
				if test.defers {
					check(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 100), "set TCP_DEFER_ACCEPT")
				}
				check(unix.Listen(l, test.backlog), "make the backlog shorter")
				for range test.connect {
					defer unix.Close(beginToConnect(l))
				}
				got := unseenOf(p, inode, test.where, test.least)
				if len(got) > 1 || got[test.where] < test.least || got[test.where] > test.most || test.least == 0 && len(got) > 0 {
					t.Errorf("got %v, want %d of %q", got, test.least, test.where)
				}
				for where, packets := range got {
					losses := p.Losses()
					if len(losses.Unseen) != 1 || losses.Unseen[0].NetNS != inode || losses.Unseen[0].Packets[where] != packets {
						t.Errorf("losses are %+v, want %d of %s", losses, packets, where)
					}
				}
			})
		})
	}
}

// probeHere traces the network namespace that the thread is in.
func probeHere() (*probe.Probe, uint32) {
	var st unix.Stat_t
	check(unix.Stat("/proc/thread-self/ns/net", &st), "stat the network namespace")
	p := must(probe.Open(probe.Config{NetNS: uint32(st.Ino), OwnerRefresh: -1}))
	check(p.Seed(func(*tcp.Event) error { return nil }), "seed the probe")
	return p, uint32(st.Ino)
}

// beginToConnect does not wait for the answer.
func beginToConnect(listener int) int {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	if err := unix.Connect(fd, must(unix.Getsockname(listener))); err != unix.EINPROGRESS {
		check(err, "connect")
	}
	return fd
}

// unseenOf waits until there are so many packets of one kind, and returns what there is of all.
func unseenOf(p *probe.Probe, netns uint32, where string, least uint64) map[string]uint64 {
	got := map[string]uint64{}
	for ended := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		check(p.Unseen(func(e *tcp.Event) error {
			if e.Kind != tcp.Unseen || e.NetNS != netns || e.BootNS == 0 || e.Time == 0 {
				fail("got %+v", *e)
			}
			got[e.Where] += e.Lost
			return nil
		}), "read what is not seen")
		if got[where] >= least {
			return got
		}
		if time.Now().After(ended) {
			fail("got %v, want %d of %q", got, least, where)
		}
	}
}

// A trace does not keep a namespace alive, and tells when it no longer knows what was counted
// there; it says the same of one that began later.
func TestUnseenInNamespacesThatComeAndGo(t *testing.T) {
	need.Kernel(t)
	var p *probe.Probe
	var inode uint32
	report(t, onOwnThread(func() { // it ends, and leaves the namespace
		check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
		p, inode = probeHere()
		if losses := p.Losses(); losses.UnknownUnseen != nil {
			t.Errorf("%v are not known", losses.UnknownUnseen)
		}
	}))
	defer p.Close()
	for ended := time.Now().Add(patience); !slices.Contains(p.Losses().UnknownUnseen, inode); time.Sleep(time.Millisecond) {
		check(p.Unseen(func(*tcp.Event) error { return nil }), "read what is not seen")
		if time.Now().After(ended) {
			t.Fatal("the namespace is still there")
		}
	}

	all := must(probe.Open(probe.Config{OwnerRefresh: -1}))
	defer all.Close()
	check(all.Seed(func(*tcp.Event) error { return nil }), "seed the probe")
	later := inNewNamespace(t, func() { unix.Close(listenOnLoopback()) })
	readUntil(all, "the listener", func(e *tcp.Event) bool { return e.NetNS == later })
	if unknown := all.Losses().UnknownUnseen; !slices.Contains(unknown, later) {
		t.Errorf("%v are not known, want %d", unknown, later)
	}
}

package probe_test

import (
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// TrackedSockets shows a socket that Seed has shown already, with the age that the trace
// knows, and with the code that opened it.
func TestTrackedSockets(t *testing.T) {
	need.Kernel(t)
	p, err := probe.Open(probe.Config{Tracked: true, Stacks: true, OwnerRefresh: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Seed(func(*tcp.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Nobody listens there, but a listener of our own is a socket to find.
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		row := findRow(t, p, tcp.Listen, cookie)
		if row.PID != uint32(os.Getpid()) || row.DurationKind != tcp.Exact || row.Duration > uint64(time.Since(before)) {
			t.Errorf("got pid %d, %s duration %d ns, want %d, exact, at most %v", row.PID, row.DurationKind, row.Duration, os.Getpid(), time.Since(before))
		}
	}
	if row := findRow(t, p, tcp.CloseWait, cookie); row != nil {
		t.Errorf("a listener is among the sockets in CLOSE_WAIT: %+v", row)
	}
}

func findRow(t *testing.T, p *probe.Probe, state tcp.State, cookie uint64) (found *tcp.Event) {
	t.Helper()
	err := p.TrackedSockets([]tcp.State{state}, func(e *tcp.Event) error {
		if e.New != state || e.Kind != tcp.Socket {
			t.Errorf("got a row in %v, want %v", e.New, state)
		}
		if e.Cookie == cookie {
			row := *e
			found = &row
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The stack of connect() leads here.
func TestStack(t *testing.T) {
	need.Kernel(t)
	p, err := probe.Open(probe.Config{Stacks: true, OwnerRefresh: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	// Port 1 of loopback refuses; that it was tried is enough.
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1}); err != unix.ECONNREFUSED {
		t.Fatalf("connect to a port without listener: %v", err)
	}
	p.SetDeadline(time.Now().Add(10 * time.Second))
	var ev tcp.Event
	for ev.Cookie != cookie {
		if err := p.Read(&ev); err != nil {
			t.Fatal(err)
		}
	}
	addrs, err := p.Stack(ev.Stack)
	if err != nil {
		t.Fatal(err)
	}
	var functions []string
	for _, a := range addrs {
		functions = append(functions, runtime.FuncForPC(uintptr(a)).Name())
	}
	if !slices.ContainsFunc(functions, func(f string) bool { return strings.HasSuffix(f, ".TestStack") }) {
		t.Errorf("the stack of connect() is %q, want TestStack in it", functions)
	}
	t.Run("top", func(t *testing.T) {
		if len(p.StackTop(ev.Stack)) > 0 {
			return
		}
		if kernelBefore(5, 15) {
			report(t, notHere("programs do not see the registers of a process (bpf_task_pt_regs, since 5.15)"))
		}
		if os.Getenv("TCPTRACE_TEST_LOCKDOWN") == "confidentiality" {
			report(t, notHere("the library cannot load what reads the stack where bpf_probe_read_kernel is refused"))
		}
		t.Error("the top of the stack is not kept")
	})
}

// A deadline ends a Read that has nothing to tell, and leaves the probe usable.
func TestReadDeadline(t *testing.T) {
	need.Kernel(t)
	p, err := probe.Open(probe.Config{NetNS: 1, OwnerRefresh: -1}) // no such namespace: silence
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var ev tcp.Event
	for range 2 {
		p.SetDeadline(time.Now().Add(30 * time.Millisecond))
		if err := p.Read(&ev); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
		}
	}
}

// Seed has one row for each socket of each kind, also where the kernel's page for rows
// is full in the middle of them. A half-open connection whose SYN-ACK is sent again before
// Seed gets to it comes as an event instead, which wins over a row.
func TestSeedIsComplete(t *testing.T) {
	need.Kernel(t)
	const each = 500 // some 195 rows fill a page
	report(t, onOwnThread(func() {
		plain, deferring := listenOnLoopback(), listenOnLoopback()
		defer unix.Close(plain)
		defer unix.Close(deferring)
		// Its handshakes end with the first data, so connections stay half open.
		check(unix.SetsockoptInt(deferring, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 100), "set TCP_DEFER_ACCEPT")
		for range each {
			client := connectTo(plain)
			server, _, err := unix.Accept4(plain, unix.SOCK_CLOEXEC)
			check(err, "accept")
			closeInOrder(client, server)
		}
		for range each { // nobody accepts them
			defer unix.Close(connectTo(plain))
			defer unix.Close(connectTo(deferring))
		}
		ports := []uint16{addrPort(must(unix.Getsockname(plain))).Port(), addrPort(must(unix.Getsockname(deferring))).Port()}

		p := must(probe.Open(probe.Config{OwnerRefresh: -1}))
		defer p.Close()
		got, seen := map[tcp.State]int{}, map[string]bool{}
		check(p.Seed(func(e *tcp.Event) error {
			if !slices.Contains(ports, e.Local.Port()) && !slices.Contains(ports, e.Remote.Port()) {
				return nil
			}
			got[e.New]++
			if ends := e.Local.String() + e.Remote.String(); seen[ends] {
				t.Errorf("a second row of %v > %v in %v", e.Local, e.Remote, e.New)
			} else {
				seen[ends] = true
			}
			return nil
		}), "seed")
		if got[tcp.SynRecv] < each {
			readUntil(p, "the other half-open connections", func(e *tcp.Event) bool {
				ends := e.Local.String() + e.Remote.String()
				if e.New == tcp.SynRecv && slices.Contains(ports, e.Local.Port()) && !seen[ends] {
					seen[ends] = true
					got[tcp.SynRecv]++
				}
				return got[tcp.SynRecv] == each
			})
		}
		want := map[tcp.State]int{tcp.Listen: 2, tcp.Established: 3 * each, tcp.SynRecv: each, tcp.TimeWait: each}
		if !maps.Equal(got, want) {
			t.Errorf("got rows %v, want %v", got, want)
		}
	}))
}

// A child of a listener that Seed knows from its file, and has not reached in its namespace yet,
// inherits all that is known of it: the owner, the cgroup and the user.
func TestSeedChildBeforeRow(t *testing.T) {
	need.Kernel(t)
	type end struct {
		listener, client int
		to               unix.Sockaddr
	}
	ends := map[uint32]end{}
	for range 2 {
		var e end
		inode := inNewNamespace(t, func() {
			e.listener = listenOnLoopback()
			e.to = must(unix.Getsockname(e.listener))
			e.client = must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		})
		defer unix.Close(e.listener)
		defer unix.Close(e.client)
		ends[inode] = e
	}
	report(t, onOwnThread(func() {
		p := must(probe.Open(probe.Config{OwnerRefresh: -1}))
		defer p.Close()
		var listener tcp.Event
		var first, second uint32
		check(p.Seed(func(e *tcp.Event) error {
			if _, ours := ends[e.NetNS]; !ours || e.New != tcp.Listen {
				return nil
			}
			if listener = *e; first != 0 {
				return nil
			}
			first = e.NetNS
			for inode, other := range ends { // its row is yet to come
				if inode != first {
					second = inode
					check(unix.Connect(other.client, other.to), "connect")
				}
			}
			return nil
		}), "seed")
		if listener.NetNS != second || second == 0 {
			fail("the row of the second listener is missing: %s", describe(&listener))
		}
		var child tcp.Event
		readUntil(p, "the child's connection", func(e *tcp.Event) bool {
			child = *e
			return e.NetNS == second && e.Old == tcp.Listen && e.New == tcp.SynRecv
		})
		if child.PID != listener.PID || child.OwnerSource != tcp.FromInherited || child.CgroupID != listener.CgroupID ||
			child.UID != listener.UID || child.CgroupID == 0 {
			t.Errorf("child of process %d (%q), cgroup %d, user %d; want process %d (inherited), cgroup %d, user %d", child.PID, child.OwnerSource,
				child.CgroupID, child.UID, listener.PID, listener.CgroupID, listener.UID)
		}
	}))
}

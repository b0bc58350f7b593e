package probe_test

import (
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// waysToRead are the two ways, each by the helper that the kernel lacks then. The first is the
// one before Linux 6.2, where the whole walk runs, see internal/test/kernels.
var waysToRead = [][]string{{"bpf_rdonly_cast"}, {"bpf_probe_read_kernel"}}

// A connection looks the same through bpf_probe_read_kernel and through direct reads.
func TestDirectReads(t *testing.T) {
	need.Kernel(t)
	needDirectReads(t)
	var seen [2][]tcp.Event
	err := onOwnThread(func() {
		for i, without := range waysToRead {
			seen[i] = lifeOfConnection(probe.Config{OwnerRefresh: -1, Stacks: true, Tracked: true, Without: without})
		}
	})
	report(t, err)
	if len(seen[0]) != len(seen[1]) {
		t.Fatalf("%d events by probe, and %d directly", len(seen[0]), len(seen[1]))
	}
	for i, probed := range seen[0] {
		direct := seen[1][i]
		if probed.Old != direct.Old || probed.New != direct.New || probed.Reason != direct.Reason || probed.Role != direct.Role ||
			probed.PID != direct.PID || probed.Comm != direct.Comm || probed.NetNS != direct.NetNS || probed.UID != direct.UID ||
			probed.Local.Addr() != direct.Local.Addr() || probed.Remote.Addr() != direct.Remote.Addr() {
			t.Errorf("event %d is\n%+v by probe, and directly\n%+v", i, probed, direct)
		}
	}
}

// A list is followed to its end: here that of the connections which nobody has accepted.
func TestDirectReadsOfQueue(t *testing.T) {
	need.Kernel(t)
	needDirectReads(t)
	err := onOwnThread(func() {
		listener := listenOnLoopback()
		defer unix.Close(listener)
		const queued = 130 // more than seed_chunk takes at a time
		for range queued {
			defer unix.Close(connectTo(listener))
		}
		port := must(unix.Getsockname(listener)).(*unix.SockaddrInet4).Port
		for _, without := range waysToRead {
			inherited := 0
			check(probe.Sockets(probe.Config{Without: without}, func(e *tcp.Event) error {
				if int(e.Local.Port()) == port && e.Remote.Port() != 0 && e.OwnerSource == tcp.FromInherited {
					inherited++
				}
				return nil
			}), "list the sockets")
			if inherited != queued {
				t.Errorf("without %q %d connections in the accept queue have the listener's owner, want %d", without, inherited, queued)
			}
		}
	})
	report(t, err)
}

func needDirectReads(t *testing.T) {
	t.Helper()
	if version := must(features.LinuxVersionCode()); version < 6<<16|2<<8 {
		t.Skip("this kernel has no bpf_rdonly_cast (since 6.2)")
	}
	if os.Getenv("TCPTRACE_TEST_LOCKDOWN") == "confidentiality" {
		t.Skip("this kernel refuses bpf_probe_read_kernel (lockdown=confidentiality), with which the test compares")
	}
}

// lifeOfConnection returns the events of a connection over loopback: those of the client,
// then those of the server.
func lifeOfConnection(cfg probe.Config) []tcp.Event {
	listener := listenOnLoopback()
	defer unix.Close(listener)
	p := must(probe.Open(cfg))
	defer p.Close()
	for _, l := range p.Limitations() {
		fail("%v", l)
	}
	check(p.Seed(func(*tcp.Event) error { return nil }), "seed the probe")
	port := must(unix.Getsockname(listener)).(*unix.SockaddrInet4).Port
	client := connectTo(listener)
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	check(err, "accept")
	closeInOrder(client, server)

	var clients, servers []tcp.Event
	readUntil(p, "the client's TIME_WAIT and the server's end", func(e *tcp.Event) bool {
		switch {
		case e.Kind != tcp.Transition:
		case int(e.Remote.Port()) == port:
			clients = append(clients, *e)
		case int(e.Local.Port()) == port:
			servers = append(servers, *e)
		}
		return has(clients, tcp.TimeWait) && has(servers, tcp.Close)
	})
	return append(clients, servers...)
}

func has(events []tcp.Event, state tcp.State) bool {
	return slices.ContainsFunc(events, func(e tcp.Event) bool { return e.New == state })
}

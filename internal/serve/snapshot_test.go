package serve

import (
	"cmp"
	"slices"
	"testing"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Groups that leak are summed up by service and state; a service without series of its own is
// in ~other, and what does not leak is in none.
func TestCountLeaks(t *testing.T) {
	const a, b = "/system.slice/a.service", "/system.slice/b.service"
	m := newMeter(1, 10)
	m.event(move(1, a, 0, tcp.Close, tcp.SynSent))
	group := func(cgroup string, state tcp.State, verdict leak.Verdict, count int, growth float64) *leak.Group {
		return &leak.Group{
			Cgroup: cgroup, State: state, Verdict: verdict, Count: count, Oldest: uint64(count) * 1e9, Growth: growth, GrowthKnown: growth != 0,
		}
	}
	soon, later := group(a, tcp.CloseWait, leak.Leak, 3, 60), group(a, tcp.CloseWait, leak.Leak, 2, 30)
	soon.Left, soon.LeftKnown, later.Left, later.LeftKnown = 5e9, true, 9e9, true
	var s snapshot
	s.countLeaks(&leak.Report{Groups: []*leak.Group{
		later, soon, group(a, tcp.Close, leak.Leak, 1, 0), group(a, tcp.CloseWait, leak.Slow, 50, 10),
		group(b, tcp.CloseWait, leak.Leak, 7, 0), group("", tcp.CloseWait, leak.Leak, 4, 0), group(b, tcp.CloseWait, leak.Undecided, 9, 0),
	}}, m)
	slices.SortFunc(s.leaks, func(a, b leaks) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.sockets, b.sockets))
	})
	want := []leaks{
		{"a.service", tcp.Close, 1, 1e9, 0, false},
		{"a.service", tcp.CloseWait, 5, 3e9, 90, true},
		{otherService, tcp.CloseWait, 7, 7e9, 0, false},
		{unknownService, tcp.CloseWait, 4, 4e9, 0, false},
	}
	if !slices.Equal(s.leaks, want) {
		t.Errorf("got  %v\nwant %v", s.leaks, want)
	}
	if len(s.exhausted) != 1 || s.exhausted[0] != (exhausted{"a.service", 5e9}) {
		t.Errorf("descriptors run out: %v", s.exhausted)
	}
}

// The worst destination counts; one whose ports are not known is counted apart, and a server
// takes none.
func TestCountPorts(t *testing.T) {
	var s snapshot
	s.countPorts(&leak.Report{Destinations: []*leak.Destination{
		{Ports: 100, Held: 20}, {Ports: 100, Held: 75}, {}, {LocalPort: 80, Ports: 100, Held: 90},
	}})
	if !s.portsKnown || s.ports != 0.75 || s.portsUnknown != 1 {
		t.Errorf("got %v %v, %d unknown", s.portsKnown, s.ports, s.portsUnknown)
	}
	var none snapshot
	if none.countPorts(&leak.Report{}); none.portsKnown {
		t.Error("without a destination the share is not known")
	}
}

package main

import (
	"io"
	"net/netip"
	"testing"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// BenchmarkStream is the hot path behind the probe, for a user who filters.
func BenchmarkStream(b *testing.B) {
	s, life := filteredStream()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := s.handle(&life[i%len(life)]); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStreamAllocatesNothing(t *testing.T) {
	s, life := filteredStream()
	live := func() {
		for i := range life {
			if err := s.handle(&life[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	live() // the first cgroup is looked up
	// The selector may note one socket per life.
	if got := testing.AllocsPerRun(1000, live); got > 1 {
		t.Errorf("%v allocations per connection, want at most 1", got)
	}
}

// filteredStream returns a stream and the life of a client that it shows.
func filteredStream() (*stream, []tcp.Event) {
	s := newStream(tcp.Filter{Comm: []string{"curl"}}, output.NewJSON(io.Discard))
	s.enrich = enrich.New("/proc", "")
	states := []tcp.State{tcp.Close, tcp.SynSent, tcp.Established, tcp.FinWait1, tcp.FinWait2, tcp.TimeWait, tcp.Close}
	var life []tcp.Event
	for i := range states[1:] {
		life = append(life, tcp.Event{
			Time: 1795350000e9, BootNS: 86400e9, Cookie: 0x2001, NetNS: 4026531840,
			Local: netip.MustParseAddrPort("10.0.0.7:40312"), Remote: netip.MustParseAddrPort("10.0.0.1:80"),
			Old: states[i], New: states[i+1], Duration: 251000, DurationKind: tcp.Exact, Reason: tcp.LocalClose,
			Role: tcp.Client, PID: 4242, Comm: "curl", UID: 1000, FD: tcp.NoFD, OwnerSource: tcp.FromConnect, CgroupID: 1,
		})
	}
	return s, life
}

package main

import (
	"context"
	"io"
	"net/netip"
	"testing"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// BenchmarkStream is the hot path behind the probe, for a user who filters.
func BenchmarkStream(b *testing.B) {
	b.ReportAllocs()
	b.ResetTimer()
	runFilteredStream(b, b.N)
}

func TestStreamAllocatesNothing(t *testing.T) {
	const events = 60_000
	few := testing.AllocsPerRun(3, func() { runFilteredStream(t, 6) })
	many := testing.AllocsPerRun(3, func() { runFilteredStream(t, events) })
	// The selector may note one socket per life, which has six events.
	if perEvent := (many - few) / events; perEvent > 1.0/6 {
		t.Errorf("%v allocations per event, want at most one per connection", perEvent)
	}
}

// lives is a source of the life of one client, again and again.
type lives struct {
	pipeline.Ended
	life []tcp.Event
	left int
}

func (l *lives) Read(e *tcp.Event) error {
	if l.left == 0 {
		return io.EOF
	}
	l.left--
	*e = l.life[len(l.life)-1-l.left%len(l.life)]
	return nil
}

func (l *lives) More() bool { return l.left%64 != 0 }

// runFilteredStream prints n events of a client that the filter asks for.
func runFilteredStream(tb testing.TB, n int) {
	config := pipeline.Config{
		Enrich:   enrich.New("/proc", "").Fill,
		Selector: tcp.NewSelector(tcp.Filter{Comm: []string{"curl"}}),
	}
	s := &stream{writer: output.NewJSON(io.Discard)}
	if _, err := pipeline.Run(context.Background(), config, &lives{life: clientLife(), left: n}, s); err != nil {
		tb.Fatal(err)
	}
	if s.events != uint64(n) {
		tb.Fatalf("%d events are printed, want %d", s.events, n)
	}
}

// clientLife is the life of a client that closes first.
func clientLife() []tcp.Event {
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
	return life
}

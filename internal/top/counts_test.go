package top

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// rowOf is the row of a process.
func (r *rig) rowOf(comm string) Row {
	r.t.Helper()
	rows := r.c.groups(stats.ByComm, r.now)
	i := slices.IndexFunc(rows, func(row Row) bool { return row.Name == comm })
	if i < 0 {
		r.t.Fatalf("there is no group %s", comm)
	}
	return rows[i]
}

func TestCounts(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	for comm, want := range map[string][5]uint64{ // opened, closed, reset, failed, retransmits
		"nginx": {2, 2, 0, 0, 2}, "curl": {1, 1, 0, 1, 0}, "job": {2, 0, 2, 0, 1}, "sync": {1, 1, 0, 0, 0}, "billing": {1, 0, 0, 0, 3},
	} {
		if got := r.rowOf(comm).Events; got != want {
			t.Errorf("%s: %v, want %v", comm, got, want)
		}
	}
	billing, nginx := r.rowOf("billing"), r.rowOf("nginx")
	if billing.OldestCloseWait != 30e9-12.0005e9 || billing.AtLeast || billing.Open != 2 {
		t.Errorf("billing: %+v", billing)
	}
	if nginx.States[tcp.Listen] != 1 || nginx.States[tcp.TimeWait] != 1 || nginx.States[tcp.SynRecv] != 1 || nginx.Open != 1 {
		t.Errorf("nginx: %+v", nginx)
	}
	if nginx.Handshakes != 2 || nginx.Handshake99 != 223000 {
		t.Errorf("nginx: %d handshakes, %d ns", nginx.Handshakes, nginx.Handshake99)
	}
}

// Rates are those of the last interval.
func TestRates(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	for _, step := range []struct {
		until time.Duration
		comm  string
		want  [5]float64
	}{
		{2 * time.Second, "nginx", [5]float64{1, 0, 0, 0, 0}},
		{3 * time.Second, "nginx", [5]float64{0, 1, 0, 0, 0}}, // at 2.5 s
		{4 * time.Second, "nginx", [5]float64{1, 1, 0, 0, 2}}, // the handshake at 3.0001 s
		{5 * time.Second, "nginx", [5]float64{}},
		{6 * time.Second, "job", [5]float64{1, 0, 1, 0, 1}},
	} {
		r.play(step.until)
		if got := r.rowOf(step.comm).Rates; got != step.want {
			t.Errorf("%v: %s: %v, want %v", step.until, step.comm, got, step.want)
		}
	}
}

// CLOSE_WAIT that piles up has an age and a growth.
func TestCloseWaitGrows(t *testing.T) {
	text := ""
	for i := range 60 {
		pair := fmt.Sprintf("10.0.0.1:80 10.0.0.2:%d", 1000+i)
		text += fmt.Sprintf("%ds s%d SYN_RECV>ESTABLISHED %s role=server pid=1/web\n", i, i, pair)
		text += fmt.Sprintf("%ds s%d ESTABLISHED>CLOSE_WAIT %s fin_received role=server pid=1/web\n", i, i, pair)
	}
	r := newRig(t, text, Options{})
	r.play(8 * time.Second)
	if row := r.rowOf("web"); row.GrowthKnown {
		t.Errorf("after 8 s its growth is known: %v", row.Growth)
	}
	r.play(60 * time.Second)
	row := r.rowOf("web")
	if row.States[tcp.CloseWait] != 60 || row.OldestCloseWait != 60e9 || !row.GrowthKnown || row.Growth < 50 || row.Growth > 70 {
		t.Errorf("%d sockets, the oldest %v, growth %v", row.States[tcp.CloseWait], time.Duration(row.OldestCloseWait), row.Growth)
	}
}

// A socket counts for the process that has accepted it.
func TestOwnerMoves(t *testing.T) {
	r := newRig(t, `
		1s s LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.2:1000 role=server pid=1/master
		1s s SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.2:1000 role=server pid=1/master
		2s s ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.2:1000 fin_received role=server pid=2/worker
	`, Options{})
	r.play(3 * time.Second)
	if rows := r.c.groups(stats.ByComm, r.now); len(rows) != 1 || rows[0].Name != "worker" || rows[0].Events[0] != 1 || rows[0].States[tcp.CloseWait] != 1 {
		t.Errorf("the groups are %+v", rows)
	}
}

// In every way to group, each socket is in one group, whatever comes and whatever is lost.
func TestGroupsAddUp(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	c := newCounts(50, true)
	all := capture.Events(t, capture.Mixed)
	states := tcp.States()
	for i := range 20000 {
		e := all[random.IntN(len(all))]
		if !e.Kind.OfSocket() {
			continue
		}
		e.Cookie = uint64(random.IntN(80))
		e.Comm = fmt.Sprint(random.IntN(5))
		if random.IntN(4) == 0 {
			e.Old, e.New = states[random.IntN(len(states))], states[random.IntN(len(states))]
		}
		e.Remote = netip.AddrPortFrom(e.Remote.Addr(), uint16(random.IntN(3000)))
		c.event(&e)
		if i%20 == 0 {
			addUp(t, c)
		}
	}
	addUp(t, c)
	c.sample(capture.BootNS + 100e9)
}

// All together they are what stats counts, also where events were lost.
func TestTotalsAreThoseOfStats(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	c, tally := newCounts(50, true), stats.NewTally(stats.Config{By: stats.ByHost, Max: 50})
	all := capture.Events(t, capture.Mixed)
	for range 20000 {
		e := all[random.IntN(len(all))]
		if !e.Kind.OfSocket() {
			continue
		}
		e.Cookie = uint64(random.IntN(80))
		c.event(&e)
		if err := tally.Event(&e); err != nil {
			t.Fatal(err)
		}
	}
	want, got := tally.Report(capture.BootNS).Total, c.all.total
	if got.opened != want.Opened || got.closed != want.Closed || got.reset != want.Reset || got.failed != want.Failed+want.Broken {
		t.Errorf("counted are %+v, stats has %+v", got, want)
	}
}

func addUp(t *testing.T, c *counts) {
	t.Helper()
	if c.all.sockets != c.lives.Len() {
		t.Fatalf("%d sockets are counted, there are %d", c.all.sockets, c.lives.Len())
	}
	for i := range c.by {
		var sum group
		for g := range c.by[i].Counts() {
			sum.sockets += g.sockets
			sum.total.opened += g.total.opened
			sum.total.closed += g.total.closed
			for s, n := range g.states {
				sum.states[s] += n
				if n < 0 {
					t.Fatalf("by %s: %d sockets in %v", stats.Bys[i], n, tcp.State(s))
				}
			}
		}
		if sum.sockets != c.all.sockets || sum.states != c.all.states || sum.total.opened != c.all.total.opened || sum.total.closed != c.all.total.closed {
			t.Fatalf("by %s: %+v, want %+v", stats.Bys[i], sum, c.all)
		}
	}
}

// There are no more groups than there is room for, and room comes back.
func TestGroupsAreBounded(t *testing.T) {
	c := newCounts(10, false)
	at := capture.Events(t, "0s a SYN_SENT>ESTABLISHED 10.0.0.1:1 10.0.0.2:2 role=client pid=1/x\n1s a ESTABLISHED>CLOSE 10.0.0.1:1 10.0.0.2:2 rst_received role=client pid=1/x")
	comms := func(from, to int) (groups, other int) {
		for i := from; i < to; i++ {
			for _, e := range at {
				e.Comm, e.BootNS = fmt.Sprint(i), e.BootNS+uint64(i)*1e6
				c.event(&e)
			}
		}
		for name, g := range c.by[0].All() {
			if name.Other {
				other = int(g.total.opened)
			} else {
				groups++
			}
		}
		return groups, other
	}
	if groups, other := comms(0, 3000); groups != stats.MaxGroups || other != 3000-stats.MaxGroups {
		t.Errorf("%d groups, %d in the one for all others", groups, other)
	}
	c.sample(capture.BootNS + 10e9)
	c.sample(capture.BootNS + uint64(time.Hour))
	if groups, _ := comms(5000, 5010); groups != 10 {
		t.Errorf("after an hour %d groups are left", groups)
	}
}

func TestCountsAllocateNothing(t *testing.T) {
	c := newCounts(100, false)
	events := slices.DeleteFunc(capture.Events(t, capture.Mixed), func(e tcp.Event) bool { return !e.Kind.OfSocket() })
	again := func() {
		for i := range events {
			c.event(&events[i])
		}
	}
	again()
	if n := testing.AllocsPerRun(10, again); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestGroupings9(t *testing.T) {
	if len(stats.Bys) != groupings {
		t.Errorf("there are %d ways to group, and room for %d", len(stats.Bys), groupings)
	}
}

func BenchmarkCounts(b *testing.B) {
	c := newCounts(100, false)
	events := slices.DeleteFunc(capture.Events(b, capture.Mixed), func(e tcp.Event) bool { return !e.Kind.OfSocket() })
	for b.Loop() {
		for i := range events {
			c.event(&events[i])
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}

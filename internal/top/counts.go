package top

import (
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// groupings is how many ways there are to group sockets; group says for each of them.
const groupings = 12

// events counts what happens: since the start, or per second.
type events[N uint64 | float64] struct {
	opened, closed, reset, failed, retransmits N
}

// group counts the sockets that have something in common.
type group struct {
	total, before events[uint64] // since the start; up to the last sample
	rate          events[float64]
	states        [tcp.NewSynRecv + 1]int
	sockets       int
	handshake     *stats.Histogram // nil: there was none

	first, active uint64 // when it was first and last seen to do something, of CLOCK_BOOTTIME in ns
	// Of CLOSE_WAIT.
	since       uint64 // when the oldest came into it; 0: there is none
	sinceBound  bool   // or before
	growth      float64
	growthKnown bool
	history     leak.History
}

// life is what is kept of a socket.
type life struct {
	groups      [groupings]*group // by the order of stats.Bys; nil: it has none yet
	since       uint64            // when its state began, or a later time
	bound       bool              // since is a later time
	opened      bool              // it is counted in the opened of its groups
	retransmits uint32
}

// counts counts sockets by group, for all ways to group them at once, so that one can be
// looked at after the other. It allocates nothing once it has grown.
type counts struct {
	all     group
	by      [groupings]stats.Groups[group]
	lives   *tcp.Tracker[life]
	over    uint64 // sockets that left without their last event
	sampled uint64 // when rates were computed last
	keep    bool   // groups that have nothing any more stay
}

func newCounts(max int, keep bool) *counts {
	c := &counts{keep: keep}
	for i, by := range stats.Bys {
		c.by[i] = stats.NewGroups[group](by)
	}
	c.lives = tcp.NewTracker(max, c.gone)
	return c
}

// gone is called by the Tracker for a socket whose end was not seen.
func (c *counts) gone(l *tcp.Life[life]) {
	c.over++
	c.add(l, l.State, -1)
}

// event counts an event of a socket.
func (c *counts) event(e *tcp.Event) {
	step := c.lives.Observe(e)
	l := step.Life
	if step.Began {
		c.add(l, e.New, 1)
	} else if step.From != e.New {
		c.add(l, step.From, -1)
		c.add(l, e.New, 1)
	}
	if step.Began || e.Opens() || e.Finishes() || e.New == tcp.CloseWait {
		c.place(l, e)
	}
	if step.Ended {
		c.add(l, e.New, -1)
	}
	c.age(l, e, step.From)
	if e.Kind == tcp.Transition {
		c.transition(l, e, step.From)
	}
	c.retransmits(l, e, step.Began)
}

// each calls do for all groups of a socket.
func (c *counts) each(l *tcp.Life[life], do func(*group)) {
	do(&c.all)
	for _, g := range l.Value.groups {
		if g != nil {
			do(g)
		}
	}
}

// add changes the number of sockets in a state.
func (c *counts) add(l *tcp.Life[life], s tcp.State, change int) {
	c.all.add(s, change)
	for _, g := range l.Value.groups {
		if g != nil {
			g.add(s, change)
		}
	}
}

func (g *group) add(s tcp.State, change int) {
	if s < tcp.State(len(g.states)) {
		g.states[s] += change
	}
	g.sockets += change
}

// place puts a socket into the groups of its latest known owner.
func (c *counts) place(l *tcp.Life[life], e *tcp.Event) {
	if e.New == tcp.Listen || e.Old == tcp.Listen && e.New == tcp.Close {
		row := *e // a listener is the server of its port, and has no remote end
		row.Role, row.Remote = tcp.Server, netip.AddrPort{}
		e = &row
	}
	v := &l.Value
	for i := range c.by {
		to, known := c.by[i].Of(e)
		from := v.groups[i]
		if from == to || from != nil && !known {
			continue
		}
		if from != nil {
			from.add(e.New, -1)
			if v.opened {
				from.total.opened--
				from.before.opened = min(from.before.opened, from.total.opened)
				to.total.opened++
			}
		}
		if to.first == 0 {
			to.first = e.BootNS
		}
		to.add(e.New, 1)
		v.groups[i] = to
	}
}

// age notes since when a socket is in its state.
func (c *counts) age(l *tcp.Life[life], e *tcp.Event, from tcp.State) {
	v := &l.Value
	switch {
	case e.Kind == tcp.Transition:
		v.since, v.bound = e.BootNS, false
	case e.DurationKind.Known():
		v.since, v.bound = e.BootNS-min(e.Duration, e.BootNS), e.DurationKind == tcp.AtLeast
	case from != e.New:
		v.since, v.bound = e.BootNS, true
	}
}

// transition counts what a change of state means to a connection. The end of a TIME_WAIT that was
// not seen to begin proves that it was closed.
func (c *counts) transition(l *tcp.Life[life], e *tcp.Event, from tcp.State) {
	opens, outcome := e.Opens(), tcp.Outcome("")
	if e.Finishes() {
		outcome = e.Outcome()
	} else if e.Old == tcp.TimeWait && isOpen(from) {
		outcome = tcp.Closed
	}
	c.all.transition(e, opens, outcome)
	for _, g := range l.Value.groups {
		if g != nil {
			g.transition(e, opens, outcome)
		}
	}
	l.Value.opened = l.Value.opened || opens
}

// isOpen reports whether a socket in this state is a connection that is not over.
func isOpen(s tcp.State) bool {
	return s != 0 && s != tcp.Close && s != tcp.Listen && s != tcp.TimeWait
}

func (g *group) transition(e *tcp.Event, opens bool, outcome tcp.Outcome) {
	g.active = e.BootNS
	if opens {
		g.total.opened++
		if e.DurationKind == tcp.Exact {
			if g.handshake == nil {
				g.handshake = new(stats.Histogram)
			}
			g.handshake.Add(e.Duration)
		}
	}
	switch outcome {
	case tcp.Closed:
		g.total.closed++
	case tcp.Reset:
		g.total.reset++
	case tcp.Failed, tcp.Broken:
		g.total.failed++
	}
}

// retransmits counts those that the socket has made since its last event. Those from before
// the first one that was seen are not counted, unless it was its first.
func (c *counts) retransmits(l *tcp.Life[life], e *tcp.Event, began bool) {
	v := &l.Value
	if !e.HasCounters || e.Retransmits == v.retransmits {
		return
	}
	more := uint64(e.Retransmits - min(v.retransmits, e.Retransmits))
	v.retransmits = e.Retransmits
	if began && (e.Kind == tcp.Socket || e.Old != tcp.Close && e.Old != tcp.Listen) {
		return
	}
	c.all.total.retransmits += more
	for _, g := range v.groups {
		if g != nil {
			g.total.retransmits += more
		}
	}
}

// idleLimit is how long a group stays that has no sockets and in which nothing happens.
const idleLimit = uint64(time.Minute)

// sample computes the rates since the last sample, and the ages of CLOSE_WAIT.
func (c *counts) sample(now uint64) {
	elapsed := now - min(c.sampled, now)
	c.sampled = max(c.sampled, now)
	for i := range c.by {
		for g := range c.by[i].Counts() {
			g.since = 0
		}
	}
	c.all.since = 0
	for l := range c.lives.All() {
		if l.State == tcp.CloseWait {
			v := &l.Value
			c.each(l, func(g *group) {
				if g.since == 0 || v.since < g.since {
					g.since, g.sinceBound = v.since, v.bound
				}
			})
		}
	}
	c.all.sample(now, elapsed)
	for i := range c.by {
		for g := range c.by[i].Counts() {
			g.sample(now, elapsed)
		}
		if !c.keep {
			c.by[i].Drop(func(g *group) bool { return g.sockets == 0 && now-min(g.active, now) > idleLimit })
		}
	}
}

func (g *group) sample(now, elapsed uint64) {
	if elapsed > 0 {
		t, b, per := &g.total, &g.before, 1e9/float64(elapsed)
		g.rate = events[float64]{
			float64(t.opened-b.opened) * per, float64(t.closed-b.closed) * per, float64(t.reset-b.reset) * per,
			float64(t.failed-b.failed) * per, float64(t.retransmits-b.retransmits) * per,
		}
		g.before = g.total
	}
	n := g.states[tcp.CloseWait]
	if n == 0 && !g.growthKnown && g.history == (leak.History{}) {
		return
	}
	if g.first == 0 {
		g.first = now
	}
	g.growth, g.growthKnown = g.history.Growth(now, now-min(g.first, now), n)
}

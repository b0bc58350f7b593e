// Package stats counts what sockets do: how long they are in each state, as distributions,
// how often they take each edge of the state diagram and why, and who opens, closes and
// resets connections. It makes a Report; that of single connections is package connection.
package stats

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Config says what a Tally counts, and where its reports go.
type Config struct {
	By By
	// Max is how many sockets are followed at once, 1 or more, for the counts of what is there
	// now. A socket takes LifeBytes and an entry in the table of a tcp.Tracker, 20 to 130 bytes.
	Max      int
	Interval uint64              // ns from one report to the next; 0: only the last
	Show     func(*Report) error // takes each report
	Offset   int64               // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells
}

// LifeBytes is what a Tally keeps of one socket.
const LifeBytes = 112

// A Tally counts. It is a pipeline.Consumer, and allocates nothing once it has grown to what
// it follows at a time: its size depends neither on how many events there are nor on how long
// it runs.
type Tally struct {
	cfg    Config
	begun  bool
	first  uint64
	next   uint64 // when the next report is due
	offset int64

	transitions, lost, over uint64
	states                  [tcp.NewSynRecv + 1]node
	edges                   [tcp.NewSynRecv + 1][tcp.NewSynRecv + 1]edge
	total                   Counts
	groups                  Groups[Counts]
	lives                   *tcp.Tracker[life]
}

// node counts what happens to a state.
type node struct {
	now            int
	entered        uint64
	exact, atLeast Histogram
	unknown        uint64
}

// edge counts how often it is taken.
type edge struct {
	count, client, server uint64
	reasons               []Reason // in the order in which they came first
}

// life is what is kept of a socket.
type life struct {
	group  *Counts // nil: not a connection
	open   bool    // counted in its Open
	opened bool    // ... and in its Opened
}

var _ pipeline.Consumer = (*Tally)(nil)

// NewTally returns a Tally, which begins with its first event or tick.
func NewTally(cfg Config) *Tally {
	t := &Tally{cfg: cfg, offset: cfg.Offset, groups: NewGroups[Counts](cfg.By)}
	t.lives = tcp.NewTracker(cfg.Max, t.gone)
	return t
}

func (t *Tally) begin(now uint64) {
	if !t.begun {
		t.begun, t.first = true, now
	}
}

// Event counts an event.
func (t *Tally) Event(e *tcp.Event) error {
	t.begin(e.BootNS)
	switch e.Kind {
	case tcp.Lost:
		t.lost += e.Lost
		return nil
	case tcp.Transition:
		t.count(e)
	case tcp.Socket:
	default:
		return nil
	}
	t.offset = e.Time - int64(e.BootNS)
	step := t.lives.Observe(e)
	if !step.Began {
		t.state(step.From).now--
	}
	if !step.Ended {
		t.state(e.New).now++
	}
	t.connection(e, step.Life)
	return nil
}

// state returns the node of a state. What is not one, as a later kernel may have it, shares
// that of number 0.
func (t *Tally) state(s tcp.State) *node { return &t.states[index(s)] }

func index(s tcp.State) tcp.State {
	if s > tcp.NewSynRecv {
		return 0
	}
	return s
}

// count counts a transition.
func (t *Tally) count(e *tcp.Event) {
	t.transitions++
	t.state(e.New).entered++
	was := t.state(e.Old)
	switch e.DurationKind {
	case tcp.Exact:
		was.exact.Add(e.Duration)
	case tcp.AtLeast:
		was.atLeast.Add(e.Duration)
	case tcp.Unknown:
		was.unknown++
	}
	taken := &t.edges[index(e.Old)][index(e.New)]
	taken.count++
	switch e.Role {
	case tcp.Client:
		taken.client++
	case tcp.Server:
		taken.server++
	}
	taken.because(e.Reason)
}

// because counts a reason. There are few, and the first is the usual one.
func (t *edge) because(why tcp.Reason) {
	for i := range t.reasons {
		if t.reasons[i].Reason == why {
			t.reasons[i].Count++
			return
		}
	}
	t.reasons = append(t.reasons, Reason{why, 1})
}

// connection counts what the event means to a connection.
func (t *Tally) connection(e *tcp.Event, l *tcp.Life[life]) {
	v := &l.Value
	if v.group != nil && !e.Opens() && e.New != tcp.Close && e.New != tcp.TimeWait {
		return
	}
	if e.New == tcp.Listen || e.Old == tcp.Listen && e.New != tcp.SynRecv || e.Old == tcp.Close && e.New == tcp.Close {
		return
	}
	g, known := t.groups.Of(e)
	if v.group == nil || known {
		t.move(v, g)
	}
	isOpen := e.New != tcp.Close && e.New != tcp.TimeWait
	if e.Opens() {
		v.opened = true
		v.group.Opened++
		t.total.Opened++
	}
	// A TIME_WAIT that was not seen to begin proves as well that the connection was closed.
	if finished := tcp.Closed; e.Finishes() || v.open && e.Old == tcp.TimeWait {
		if e.Finishes() {
			finished = e.Outcome()
		}
		*v.group.outcome(finished)++
		*t.total.outcome(finished)++
	}
	if v.open != isOpen {
		change := -1
		if isOpen {
			change = 1
		}
		v.group.Open += change
		t.total.Open += change
		v.open = isOpen
	}
}

// move puts a connection in the group of its latest owner.
func (t *Tally) move(v *life, to *Counts) {
	if from := v.group; from != nil && from != to {
		if v.open {
			from.Open--
			to.Open++
		}
		if v.opened {
			from.Opened--
			to.Opened++
		}
	}
	v.group = to
}

// gone is called by the Tracker for a life whose end was not seen.
func (t *Tally) gone(l *tcp.Life[life]) {
	t.over++
	t.state(l.State).now--
	if v := &l.Value; v.open {
		v.group.Open--
		t.total.Open--
	}
}

// Idle has nothing to do.
func (t *Tally) Idle() error { return nil }

// Tick shows a report where one is due.
func (t *Tally) Tick(now uint64) error {
	if t.cfg.Interval == 0 || now < t.next {
		return nil
	}
	t.next = now + t.cfg.Interval
	return t.cfg.Show(t.Report(now))
}

// Close shows the last report.
func (t *Tally) Close(now uint64) error {
	r := t.Report(now)
	r.Last = true
	return t.cfg.Show(r)
}

// Report returns what has been counted up to the time now, of CLOCK_BOOTTIME in ns.
func (t *Tally) Report(now uint64) *Report {
	t.begin(now)
	r := &Report{
		Time: int64(now) + t.offset, BootNS: now, Watched: now - min(t.first, now),
		Transitions: t.transitions, Lost: t.lost, Forgotten: t.lives.Forgotten(), Unended: t.over - t.lives.Forgotten(),
		Edges: t.reportEdges(), Total: t.total, By: t.cfg.By, Groups: reportGroups(&t.groups),
	}
	for _, s := range diagram {
		n := &t.states[s]
		r.States = append(r.States, State{
			State: s, Now: n.now, NowKnown: s != tcp.Close, Entered: n.entered,
			Exact: &n.exact, AtLeast: &n.atLeast, Unknown: n.unknown,
		})
	}
	return r
}

// reportEdges returns all edges, and what was taken without being one.
func (t *Tally) reportEdges() (all []Edge) {
	for _, e := range tcp.Edges {
		all = append(all, t.edges[e.From][e.To].report(e, true))
	}
	for from := range t.edges {
		for to := range t.edges[from] {
			e := tcp.Edge{From: tcp.State(from), To: tcp.State(to)}
			if _, legal := tcp.FindEdge(e.From, e.To); !legal && t.edges[from][to].count > 0 {
				all = append(all, t.edges[from][to].report(e, false))
			}
		}
	}
	return all
}

func (t *edge) report(e tcp.Edge, legal bool) Edge {
	reasons := slices.Clone(t.reasons)
	slices.SortStableFunc(reasons, func(a, b Reason) int {
		switch {
		case a.Count > b.Count:
			return -1
		case a.Count < b.Count:
			return 1
		}
		return 0
	})
	return Edge{Edge: e, Legal: legal, Count: t.count, Client: t.client, Server: t.server, Reasons: reasons}
}

package top

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Config says what a Collector follows.
type Config struct {
	Desk     *Desk
	Now      func() uint64         // of the source
	Interval time.Duration         // from one Snapshot to the next, of the time of the source
	Max      int                   // so many sockets are counted at once
	MaxEnds  int                   // ... and so many can be looked at: each takes up to 1.5 KB
	Offset   int64                 // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells
	Keep     bool                  // groups in which nothing happens any more stay: a recording ends
	Leaks    leak.Config           // Show is not used
	ASCII    bool                  // nothing else, in the text of the program itself
	Styled   bool                  // with styles of package terminal
	Report   func(*Snapshot) error // takes each Snapshot that is due; nil: it is put on the Desk
	Last     func(*Snapshot) error // takes the last one
}

// The bounds of what a Snapshot lists, and of the sockets that are over and still listed.
const (
	maxRows   = 2000
	maxRecent = 500
	MaxLeaks  = 64 // groups of leaks
)

// Wake is how soon a request is answered when nothing else happens.
const Wake = 100 * time.Millisecond

// leaksInterval is how often sockets are looked at that may leak.
const leaksInterval = uint64(2 * time.Second)

// A Collector gathers what a Model shows. It is a pipeline.Consumer.
type Collector struct {
	cfg       Config
	counts    *counts
	tally     *stats.Tally
	stories   *timeline.Collector
	suspects  leakLook
	leaks     *LeakReport // the last
	leaksNext uint64

	listenersFor  Request // what the listeners were looked for, which were found
	listenersNext uint64
	listeners     []ListenerRow
	moreListeners int

	recent      [maxRecent]*timeline.Story // over, from ended-maxRecent on
	ended       int                        // how many are over
	begun       bool
	first       uint64
	next        uint64   // when the next Snapshot is due
	last        uint64   // when rates were computed
	answered    *Request // by the last Snapshot
	transitions uint64
	lost        uint64
	offset      int64
}

var _ pipeline.Consumer = (*Collector)(nil)

// NewCollector returns a Collector.
func NewCollector(cfg Config) *Collector {
	c := &Collector{cfg: cfg, counts: newCounts(cfg.Max, cfg.Keep), offset: cfg.Offset, suspects: leakLook{leak.NewWatch(cfg.Leaks), MaxLeaks}}
	nothing := func() error { return nil }
	c.tally = stats.NewTally(stats.Config{By: stats.ByHost, Max: cfg.Max, Offset: cfg.Offset})
	c.stories = timeline.NewCollector(timeline.Config{Max: cfg.MaxEnds, Offset: cfg.Offset, Show: c.over, Flush: nothing})
	return c
}

// over keeps the story of a connection that is over.
func (c *Collector) over(s *timeline.Story) error {
	c.recent[c.ended%maxRecent] = s
	c.ended++
	return nil
}

func (c *Collector) begin(now uint64) {
	if !c.begun {
		c.begun, c.first, c.last, c.counts.sampled = true, now, now, now
	}
}

// Event takes an event.
func (c *Collector) Event(e *tcp.Event) error {
	c.begin(e.BootNS)
	if err := c.suspects.watch.Event(e); err != nil {
		return err
	}
	if err := c.tally.Event(e); err != nil {
		return err
	}
	switch e.Kind {
	case tcp.Lost:
		c.lost += e.Lost
		return nil
	case tcp.Transition:
		c.transitions++
	case tcp.Socket:
	default:
		return nil
	}
	c.offset = e.Time - int64(e.BootNS)
	c.counts.event(e)
	return c.stories.Event(e)
}

// Idle answers a request for which no tick is due.
func (c *Collector) Idle() error {
	if !c.begun || c.cfg.Desk.request.Load() == c.answered {
		return nil
	}
	now := max(c.cfg.Now(), c.last)
	if c.leaks != nil { // the first look is that of the first tick
		if err := c.look(now); err != nil {
			return err
		}
	}
	c.cfg.Desk.put(c.snapshot(now))
	return nil
}

// Tick makes a Snapshot where one is due or asked for.
func (c *Collector) Tick(now uint64) error {
	c.begin(now)
	if err := c.look(now); err != nil {
		return err
	}
	due := now >= c.next
	if due {
		c.next = now + uint64(c.cfg.Interval)
		c.sample(now)
	}
	if due && c.cfg.Report != nil {
		return c.cfg.Report(c.snapshot(now))
	}
	if due || c.cfg.Desk.request.Load() != c.answered {
		c.cfg.Desk.put(c.snapshot(now))
	}
	return nil
}

func (c *Collector) sample(now uint64) {
	c.counts.sample(now)
	c.last = now
}

// Close makes the last Snapshot.
func (c *Collector) Close(now uint64) error {
	c.begin(now)
	if now > c.last {
		c.sample(now)
	}
	c.leaksNext, c.listenersNext = 0, 0
	if err := c.look(now); err != nil {
		return err
	}
	return c.cfg.Last(c.snapshot(now))
}

// look lists sockets anew, as the kernel has them now, where that is due or asked for.
func (c *Collector) look(now uint64) error {
	if err := c.lookAtLeaks(now); err != nil {
		return err
	}
	return c.listenersOf(c.cfg.Desk.request.Load(), now)
}

// lookAtLeaks refreshes the report of leaks, also if the sockets of another group are asked for.
func (c *Collector) lookAtLeaks(now uint64) (err error) {
	of := c.cfg.Desk.request.Load().Leak
	if now < c.leaksNext && (of == LeakName{} || of == c.leaks.Of) {
		return nil
	}
	c.leaksNext = now + leaksInterval
	_, c.leaks, err = c.suspects.look(now, of)
	return err
}

// Forgotten returns how many sockets are missing because there was no room.
func (c *Collector) Forgotten() uint64 { return c.counts.lives.Forgotten() }

// snapshot makes what is asked for.
func (c *Collector) snapshot(now uint64) *Snapshot {
	c.answered = c.cfg.Desk.request.Load()
	r := *c.answered
	s := &Snapshot{
		Request: r, Time: int64(now) + c.offset, Watched: now - min(c.first, now),
		Transitions: c.transitions, Lost: c.lost, Forgotten: c.Forgotten(), Unlisted: c.stories.Forgotten(),
		All: c.counts.all.row(now),
	}
	switch r.Kind {
	case Groups:
		s.Groups = c.groups(r.By, now)
	case Sockets:
		s.Sockets, s.More = c.sockets(&r, now)
		if r == c.listenersFor {
			s.Listeners, s.MoreListeners = c.listeners, c.moreListeners
		}
	case Story:
		s.Text = c.story(r.End, now)
	case Diagram:
		s.Text = c.diagram(now)
	case Leaks, Leak:
		s.Leaks = c.leaks
	}
	return s
}

// groups are those that have or had something, in the order of their names.
func (c *Collector) groups(by stats.By, now uint64) (rows []Row) {
	at := max(slices.Index(stats.Bys, by), 0)
	for name, g := range c.counts.by[at].All() {
		if g.sockets == 0 && g.total == (events[uint64]{}) {
			continue
		}
		row := g.row(now)
		row.GroupName = name
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Comm, b.Comm)) })
	return rows
}

func (g *group) row(now uint64) Row {
	t, per := &g.total, &g.rate
	r := Row{
		Events: [5]uint64{t.opened, t.closed, t.reset, t.failed, t.retransmits},
		Rates:  [5]float64{per.opened, per.closed, per.reset, per.failed, per.retransmits},
		States: g.states, Open: g.sockets - g.states[tcp.Listen] - g.states[tcp.TimeWait] - g.states[tcp.Close],
		Growth: g.growth, GrowthKnown: g.growthKnown,
	}
	if g.handshake != nil {
		r.Handshakes, r.Handshake99 = g.handshake.Count, g.handshake.Quantile(0.99)
	}
	if g.since != 0 {
		r.OldestCloseWait, r.AtLeast = now-min(g.since, now), g.sinceBound
	}
	return r
}

// sockets are those of a group, the ones that exist first.
func (c *Collector) sockets(r *Request, now uint64) (rows []SocketRow, more int) {
	for e := range c.stories.Ends() {
		if !r.Group.Other && r.By.KeyOf(&e.Event) == r.Group.Key {
			rows = append(rows, socketRow(e, now))
		}
	}
	slices.SortStableFunc(rows, func(a, b SocketRow) int { return cmp.Compare(b.Age, a.Age) })
	more = max(0, len(rows)-maxRows)
	rows = rows[:len(rows)-more]
	for i := c.ended; i > 0 && i+maxRecent > c.ended; i-- { // the latest first
		for _, e := range c.recent[(i-1)%maxRecent].Ends() {
			if len(rows) < maxRows && !r.Group.Other && r.By.KeyOf(&e.Event) == r.Group.Key {
				rows = append(rows, socketRow(e, now))
			}
		}
	}
	return rows, more
}

func socketRow(e *timeline.End, now uint64) SocketRow {
	last := &e.Stays[len(e.Stays)-1]
	row := SocketRow{
		End: e, State: last.State, Local: e.Local, Remote: e.Remote, Comm: e.Comm,
		HasCounters: e.HasCounters, Retransmits: e.Retransmits, SRTT: e.SRTT, AgeKind: last.Kind,
	}
	if e.OwnerSource != "" {
		row.PID = e.PID
	}
	if last.Next != 0 || e.Lost {
		row.Over, row.Reason = true, last.Reason
		row.Age, row.AgeKind = now-min(last.End, now), tcp.Exact
	} else if last.Kind.Known() {
		row.Age = now - min(last.Begin, now)
	}
	return row
}

// story tells the story of an end, which is kept as long as it is asked for.
func (c *Collector) story(e *timeline.End, now uint64) string {
	if e == nil {
		return ""
	}
	var b strings.Builder
	w := output.NewTimeline(&b, c.cfg.ASCII, [2]string{})
	if err := w.Write(c.stories.Peek(e, now)); err != nil {
		return err.Error() // a Builder returns none
	}
	return b.String()
}

func (c *Collector) diagram(now uint64) string {
	var b strings.Builder
	w := output.NewDiagram(&b, output.DiagramOptions{ASCII: c.cfg.ASCII, Styled: c.cfg.Styled})
	if err := w.Write(c.tally.Report(now)); err != nil {
		return err.Error() // a Builder returns none
	}
	return b.String()
}

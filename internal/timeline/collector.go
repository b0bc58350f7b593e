package timeline

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Config says which stories a Collector tells, and where they go.
type Config struct {
	// Max is how many ends are followed at once, 1 or more. When one more comes, the oldest is
	// forgotten. An end takes up to 1.5 KB, and one that is over is kept until its other end is.
	Max    int
	Filter tcp.Filter         // a connection is told if it selects either end
	Limit  uint64             // so many stories; 0: no limit
	Show   func(*Story) error // takes each story, as soon as its ends are over
	Flush  func() error       // nothing else waits: what comes before the stories can be written
	Offset int64              // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells

	recording int
	all       bool // what the filter selects is decided later
}

// maxStays bounds what is kept of one end. The states of a connection are fewer, and none
// comes twice.
const maxStays = 16

// addresses are those of a connection as one of its ends has them.
type addresses struct{ local, remote netip.AddrPort }

func (a addresses) reversed() addresses { return addresses{a.remote, a.local} }

// A Collector follows connections and tells each when it is over. It is a pipeline.Consumer.
type Collector struct {
	cfg    Config
	lives  *tcp.Tracker[*End]
	ends   map[addresses][]*End // those that may be somebody's other end
	told   uint64
	offset int64
	err    error // of a story that was told while the Tracker was at work

	forgotten uint64
	unjudged  tcp.Unjudged
}

var _ pipeline.Consumer = (*Collector)(nil)

// NewCollector returns a Collector.
func NewCollector(cfg Config) *Collector {
	c := &Collector{cfg: cfg, ends: make(map[addresses][]*End), offset: cfg.Offset}
	c.lives = tcp.NewTracker(cfg.Max, c.gone)
	return c
}

// Forgotten returns how many ends had to make room for others.
func (c *Collector) Forgotten() uint64 { return c.forgotten }

// Unjudged returns how many ends the filter could not judge.
func (c *Collector) Unjudged() tcp.Unjudged { return c.unjudged }

// gone is called by the Tracker for an end that is not followed any more. One that is over,
// as events of others prove, is told; one that had to make room is not.
func (c *Collector) gone(l *tcp.Life[*End]) {
	e := l.Value
	if e == nil {
		return
	}
	if c.forgotten < c.lives.Forgotten() {
		c.forgotten++
		c.unlist(e)
		c.err = cmp.Or(c.err, c.part(e))
		return
	}
	e.lose()
	c.err = cmp.Or(c.err, c.ended(e))
}

// part separates an end, which may be nil, from its other end, and tells that if it has waited.
func (c *Collector) part(e *End) error {
	if e == nil || e.peer == nil {
		return nil
	}
	p := e.peer
	p.peer, e.peer = nil, nil
	if p.over {
		return c.tell(p, nil)
	}
	return nil
}

// Event takes an event. Those of listeners are of interest for what they prove alone.
func (c *Collector) Event(ev *tcp.Event) error {
	if !ev.Kind.OfSocket() {
		return nil
	}
	c.offset = ev.Time - int64(ev.BootNS)
	step := c.lives.Observe(ev)
	if c.err != nil {
		return c.err
	}
	if ofNoConnection(ev) {
		if !step.Ended {
			c.lives.Drop(step.Life)
		}
		return nil
	}
	e := step.Life.Value
	if e == nil {
		e = &End{Recording: c.cfg.recording}
		e.UID, e.FD = tcp.NoUID, tcp.NoFD
		step.Life.Value = e
	}
	moved := e.Local != ev.Local || e.Remote != ev.Remote
	if moved && e.Local.IsValid() {
		c.unlist(e)
	}
	e.take(ev, step.Missing)
	if moved && ev.Local.Port() != 0 {
		c.ends[e.addresses()] = append(c.ends[e.addresses()], e)
	}
	c.judge(e, ev)
	if step.Ended {
		e.over = true
		return c.ended(e)
	}
	return nil
}

// ofNoConnection reports whether the event is of a listener, or of a descriptor that is no
// longer connected.
func ofNoConnection(ev *tcp.Event) bool {
	return ev.New == tcp.Listen || ev.Old == tcp.Listen && ev.New != tcp.SynRecv ||
		ev.New == tcp.Close && (ev.Old == tcp.Close || ev.Kind == tcp.Socket)
}

// judge notes whether the filter selects the end by this event.
func (c *Collector) judge(e *End, ev *tcp.Event) {
	if e.matched {
		return
	}
	if e.matched = c.cfg.Filter.Match(ev); !e.matched {
		e.missing = c.cfg.Filter.Missing(ev)
	}
}

// ended tells the story of an end that is over, unless it waits for its other end. Whether that
// is the only one is asked again when both are over: a client's port may be known only when it
// leaves SYN_SENT.
func (c *Collector) ended(e *End) error {
	p := c.match(e)
	if e.peer != p {
		if err := cmp.Or(c.part(e), c.part(p)); err != nil {
			return err
		}
	}
	if p != nil && !p.over {
		e.peer, p.peer = p, e
		return nil
	}
	return c.tell(e, p)
}

// match returns the one end that is the other one of e: neither has a second that fits. The
// addresses of a connection are unique within a network namespace alone.
func (c *Collector) match(e *End) *End {
	p := c.only(e)
	if p == nil || c.only(p) != e {
		return nil
	}
	return p
}

// only returns the one end that fits e: of the same namespace, or else the only one of
// another, to which the loopback interface does not lead. Where several fit, none of them is
// ever joined: which it was cannot be told later, when some are gone.
func (c *Collector) only(e *End) *End {
	if e.ambiguous {
		return nil
	}
	here, all := []*End(nil), []*End(nil)
	for _, p := range c.ends[e.addresses().reversed()] {
		elsewhere := p.NetNS != e.NetNS
		if p == e || p.told || elsewhere && e.Local.Addr().IsLoopback() || !fit(e, p, 0) {
			continue
		}
		all = append(all, p)
		if !elsewhere {
			here = append(here, p)
		}
	}
	if len(here) > 0 {
		all = here
	}
	if len(all) > 1 {
		e.ambiguous = true
		for _, p := range all {
			p.ambiguous = true
		}
	}
	if len(all) != 1 || all[0].ambiguous {
		return nil
	}
	return all[0]
}

// fit reports whether two ends with each other's addresses can be of one connection, if offset
// is to be added to times of a to have those of b: they lived at the same time, and the client
// was there first.
func fit(a, b *End, offset int64) bool {
	if a.Role == tcp.Server && b.Role != tcp.Server {
		return fit(b, a, -offset)
	}
	begunA, exactA := a.Begin()
	begunB, exactB := b.Begin()
	aBegin, bBegin := int64(begunA)+offset, int64(begunB)
	switch {
	case a.Role == tcp.Server, aBegin > int64(b.until()), bBegin > int64(a.until())+offset:
		return false
	case a.Role == tcp.Client && b.Role == tcp.Server && exactA && exactB:
		return aBegin <= bBegin
	}
	return true
}

// tell hands on the story of two ends that are over, p may be nil.
func (c *Collector) tell(e, p *End) error {
	c.unlist(e)
	e.told = true
	if p != nil {
		c.unlist(p)
		p.told = true
	}
	story := storyOf(e, p)
	if !c.cfg.all && !selected(story) {
		for _, end := range story.Ends() {
			c.unjudged.Add(end.missing)
		}
		return nil
	}
	if err := c.cfg.Show(story); err != nil {
		return err
	}
	if c.told++; c.told == c.cfg.Limit {
		return pipeline.Enough
	}
	return nil
}

// selected reports whether the filter selects either end.
func selected(s *Story) bool {
	return slices.ContainsFunc(s.Ends(), func(e *End) bool { return e.matched })
}

// storyOf puts the client first.
func storyOf(e, p *End) *Story {
	s := &Story{Client: e, Server: p}
	if e.Role == tcp.Server || p != nil && e.Role != tcp.Client && p.Role == tcp.Client {
		s.Client, s.Server = p, e
	}
	s.Ambiguous = p == nil && e.ambiguous
	return s
}

func (c *Collector) unlist(e *End) {
	key := e.addresses()
	rest := slices.DeleteFunc(c.ends[key], func(other *End) bool { return other == e })
	if len(rest) == 0 {
		delete(c.ends, key)
		return
	}
	c.ends[key] = rest
}

// Idle writes what is buffered.
func (c *Collector) Idle() error { return c.cfg.Flush() }

// Tick has nothing to do: a story depends on events alone.
func (c *Collector) Tick(uint64) error { return nil }

// Close tells the stories of connections that are open, the oldest first.
func (c *Collector) Close(now uint64) error {
	if c.told == c.cfg.Limit && c.told != 0 {
		return nil
	}
	var open []*End
	for l := range c.lives.All() {
		if l.Value != nil && !l.Value.told {
			l.Value.close(now)
			c.judgeOpen(l.Value)
			open = append(open, l.Value)
		}
	}
	for _, e := range open {
		e.over = true // as far as it is told
	}
	for _, e := range open {
		if e.told {
			continue
		}
		if err := c.ended(e); err == pipeline.Enough {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// judgeOpen selects an end that has been in its state for long enough.
func (c *Collector) judgeOpen(e *End) {
	last := &e.Stays[len(e.Stays)-1]
	if e.matched || c.cfg.Filter.MinDuration == 0 || !last.Kind.Known() {
		return
	}
	row := e.Event
	row.Kind, row.Old, row.New, row.Reason, row.Errno = tcp.Socket, 0, last.State, "", 0
	row.Duration, row.DurationKind = last.End-last.Begin, tcp.AtLeast
	c.judge(e, &row)
}

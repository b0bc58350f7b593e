package connection

import (
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Config says which records a Collector makes, and where they go.
type Config struct {
	// Max is how many connections are followed at once, 1 or more. When one more comes, the
	// oldest is forgotten: if its end comes later it has a record, which does not know how
	// the connection began. A connection takes LifeBytes and an entry in the table of a
	// tcp.Tracker, 20 to 130 bytes.
	Max      int
	TimeWait bool                // a connection is over when its TIME_WAIT is
	Open     bool                // a record too for each that is not over at the end
	Limit    uint64              // so many records; 0: no limit
	Show     func(*Record) error // takes each record, as soon as the connection is over
	Flush    func() error        // nothing else waits: what Show has buffered can be written
	Offset   int64               // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells
}

// LifeBytes is what a Collector keeps of one connection.
const LifeBytes = 640

// A Collector makes a Record of each connection that ends. It is a pipeline.Consumer, and
// allocates nothing once it has grown to what it follows at a time.
type Collector struct {
	cfg    Config
	lives  *tcp.Tracker[life]
	record Record
	made   uint64
	offset int64

	forgotten, unended uint64
	err                error // of a record that was made while the Tracker was at work
}

var _ pipeline.Consumer = (*Collector)(nil)

// NewCollector returns a Collector.
func NewCollector(cfg Config) *Collector {
	c := &Collector{cfg: cfg, offset: cfg.Offset}
	c.lives = tcp.NewTracker(cfg.Max, c.gone)
	return c
}

// gone is called by the Tracker for a life whose end was not seen. One that was in TIME_WAIT
// and is proved to be over has a record all the same. (That which is forgotten has one when
// its end comes.)
func (c *Collector) gone(l *tcp.Life[life]) {
	switch {
	case c.forgotten < c.lives.Forgotten():
		c.forgotten++
	case l.Value.over:
		l.Value.add(tcp.TimeWait, 0, unknown)
		l.Value.fill(&c.record)
		c.err = c.show()
	default:
		c.unended++
	}
}

// Made returns how many records there were.
func (c *Collector) Made() uint64 { return c.made }

// Forgotten returns how many connections had to make room for others.
func (c *Collector) Forgotten() uint64 { return c.forgotten }

// Unended returns how many connections are over without a record, as events of others
// prove: their end was not seen.
func (c *Collector) Unended() uint64 { return c.unended }

// Event takes an event. Those of listeners are of interest for what they prove alone.
func (c *Collector) Event(e *tcp.Event) error {
	if e.Kind != tcp.Transition && e.Kind != tcp.Socket {
		return nil
	}
	c.offset = e.Time - int64(e.BootNS)
	step := c.lives.Observe(e)
	if c.err != nil {
		return c.err
	}
	if c.ignored(e, step) {
		if !step.Ended {
			c.lives.Drop(step.Life)
		}
		return nil
	}
	l := &step.Life.Value
	if step.Began {
		l.begin(e)
	}
	l.take(e, step.From, step.Missing)
	switch {
	case e.New == tcp.TimeWait && c.cfg.TimeWait:
		l.over, l.reason, l.errno = true, e.Reason, e.Errno
	case e.New == tcp.TimeWait:
		l.fill(&c.record)
		c.lives.Drop(step.Life)
		return c.show()
	case step.Ended:
		l.fill(&c.record)
		return c.show()
	}
	return nil
}

// ignored reports whether the event is not of a connection that is to have a record: it is of
// a listener, of a descriptor that is no longer connected, or of a TIME_WAIT before which
// nothing was seen.
func (c *Collector) ignored(e *tcp.Event, step tcp.Step[life]) bool {
	switch {
	case e.New == tcp.Listen, e.Old == tcp.Listen && e.New != tcp.SynRecv:
		return true
	case e.New == tcp.Close && (e.Old == tcp.Close || e.Kind == tcp.Socket):
		return true
	}
	inTimeWait := e.Old == tcp.TimeWait || e.Kind == tcp.Socket && e.New == tcp.TimeWait
	return inTimeWait && step.Began && !c.cfg.TimeWait
}

func (c *Collector) show() error {
	if err := c.cfg.Show(&c.record); err != nil {
		return err
	}
	if c.made++; c.made == c.cfg.Limit {
		return pipeline.Enough
	}
	return nil
}

// Idle writes what is buffered.
func (c *Collector) Idle() error { return c.cfg.Flush() }

// Tick has nothing to do: a record depends on events alone.
func (c *Collector) Tick(uint64) error { return nil }

// Close makes records of what is left: of connections that are over but for their TIME_WAIT,
// and of those that are open if that is asked for; the oldest first.
func (c *Collector) Close(now uint64) error {
	for l := range c.lives.All() {
		if !l.Value.over && !c.cfg.Open || c.made == c.cfg.Limit && c.made != 0 {
			continue
		}
		l.Value.fillOpen(&c.record, now, int64(now)+c.offset)
		if err := c.show(); err != nil && err != pipeline.Enough {
			return err
		}
	}
	return c.cfg.Flush()
}

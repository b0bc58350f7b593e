package top

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// LeakConfig says what a LeakCollector looks at.
type LeakConfig struct {
	Desk     *Desk
	Now      func() uint64         // of the source
	Interval time.Duration         // from one look to the next
	Leaks    leak.Config           // Show is not used
	Seen     func(*leak.Report)    // is told of each report
	Last     func(*Snapshot) error // takes the last Snapshot
}

// A LeakCollector gathers what a Model of leaks alone shows. It is a pipeline.Consumer.
type LeakCollector struct {
	cfg      LeakConfig
	look     leakLook
	found    *LeakReport // nil: there was no look yet
	at       uint64      // when found was
	first    uint64
	next     uint64 // when the next look is due
	offset   int64
	answered *Request // by the last Snapshot
}

var _ pipeline.Consumer = (*LeakCollector)(nil)

// NewLeakCollector returns a LeakCollector.
func NewLeakCollector(cfg LeakConfig) *LeakCollector {
	return &LeakCollector{cfg: cfg, look: leakLook{leak.NewWatch(cfg.Leaks), cfg.Leaks.Detailed}, offset: cfg.Leaks.Offset}
}

// Event takes an event.
func (c *LeakCollector) Event(e *tcp.Event) error {
	c.offset = e.Time - int64(e.BootNS)
	return c.look.watch.Event(e)
}

// Idle answers a request for which no tick is due.
func (c *LeakCollector) Idle() error {
	if c.found == nil || c.cfg.Desk.request.Load() == c.answered {
		return nil
	}
	return c.answer(max(c.cfg.Now(), c.at))
}

// Tick looks where that is due, or asked for.
func (c *LeakCollector) Tick(now uint64) error {
	if now < c.next {
		return c.Idle()
	}
	c.next = now + uint64(c.cfg.Interval)
	c.found = nil // answer looks anew
	return c.answer(now)
}

// Close makes the last Snapshot.
func (c *LeakCollector) Close(now uint64) error {
	if now > c.at {
		c.found = nil
	}
	s, err := c.snapshot(now)
	if err != nil {
		return err
	}
	return c.cfg.Last(s)
}

func (c *LeakCollector) answer(now uint64) error {
	s, err := c.snapshot(now)
	if err == nil {
		c.cfg.Desk.put(s)
	}
	return err
}

// snapshot makes what is asked for. It looks anew if the sockets of another group are.
func (c *LeakCollector) snapshot(now uint64) (*Snapshot, error) {
	c.answered = c.cfg.Desk.request.Load()
	r := *c.answered
	if c.found == nil || r.Leak != (LeakName{}) && r.Leak != c.found.Of {
		if c.first == 0 {
			c.first = now
		}
		report, found, err := c.look.look(now, r.Leak)
		if err != nil {
			return nil, err
		}
		c.found, c.at = found, now
		c.cfg.Seen(report)
	}
	return &Snapshot{Request: r, Time: int64(c.at) + c.offset, Watched: c.at - min(c.first, c.at), Leaks: c.found}, nil
}

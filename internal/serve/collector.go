package serve

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// tickInterval is how soon a question of a client is answered.
const tickInterval = 250 * time.Millisecond

// The bounds of an answer, and of what waits for one.
const (
	maxRows        = 10_000 // sockets
	maxGroups      = 1_000  // of leaks
	maxConnections = 1 << 15
	maxStories     = 8 // questions for a story
)

// collector takes the events, and answers what clients ask. It is a pipeline.Consumer: all that
// is not an exchange, a channel, a topic or atomic belongs to its goroutine.
type collector struct {
	source    pipeline.Source
	look      uint64 // ns from one look at the sockets to the next
	started   chan struct{}
	stop      chan struct{} // closed by closeOnce, when the capture ends
	closeOnce func()
	ticked    atomic.Int64    // wall clock of the last tick, ns since the Unix epoch; 0: none yet
	conns     connectionRelay // for those that take connections
	push      push

	meter         *meter
	tally         *stats.Tally
	leaks, waits  *leak.Watch
	nextLook      uint64
	leaked        *leak.Report // of the last look; nil: it failed, or there was none yet
	waiting       *leak.Report // likewise, of TIME_WAIT
	seen          look
	skipped       func() string
	lookFailed    error
	failedLooks   uint64
	history       *history
	lost, unseen  map[string]uint64
	hub           *hub
	events        topic
	lines         *output.JSON // into events
	snapshots     exchange[*snapshot]
	statsAsked    exchange[[]byte]
	leaksAsked    exchange[[]byte]
	socketsAsked  exchange[*socketRows]
	storiesWanted chan storyQuestion
}

// storyQuestion asks for what is known of one socket.
type storyQuestion struct {
	cookie uint64
	reply  chan<- storyAnswer // has room
}

type storyAnswer struct {
	events []tcp.Event
	now    uint64
}

// collectorConfig says what a collector keeps.
type collectorConfig struct {
	source      pipeline.Source
	facts       leak.Facts
	maxServices int
	maxSockets  int
	look        time.Duration
	offset      int64 // of the wall clock to CLOCK_BOOTTIME in ns
	skipped     func() string
}

func newCollector(cfg collectorConfig) *collector {
	c := &collector{
		source: cfg.source, look: uint64(cfg.look), started: make(chan struct{}), stop: make(chan struct{}),
		meter: newMeter(cfg.maxServices, cfg.maxSockets), history: newHistory(maxHistory),
		tally: stats.NewTally(stats.Config{By: stats.ByUnit, Max: cfg.maxSockets, Offset: cfg.offset}),
		lost:  make(map[string]uint64), unseen: make(map[string]uint64),
		storiesWanted: make(chan storyQuestion, maxStories),
	}
	watch := leak.Config{
		Rule:     leak.DefaultRule(false),
		Existing: c.source.Existing, Facts: cfg.facts, Detailed: maxGroups, Offset: cfg.offset,
	}
	c.leaks = leak.NewWatch(watch)
	watch.Rule = leak.Rule{States: []tcp.State{tcp.TimeWait}}
	c.waits = leak.NewWatch(watch)
	c.hub = &hub{stop: c.stop}
	c.events.hub, c.events.name = c.hub, topicTransition
	c.lines = output.NewJSON(&c.events.lines)
	c.events.flush = c.lines.Flush
	c.closeOnce = sync.OnceFunc(func() { close(c.stop) })
	c.conns.init(c, cfg.offset)
	return c
}

// The topics of /events.
const (
	topicConnection = "connection"
	topicTransition = "transition"
)

// Event counts an event. It allocates nothing as long as nobody reads events.
func (c *collector) Event(e *tcp.Event) error {
	err := c.tally.Event(e)
	switch e.Kind {
	case tcp.Lost:
		c.lost[e.Where] += e.Lost
	case tcp.Unseen:
		c.unseen[e.Where] += e.Lost
	default:
		c.meter.event(e)
		if e.Kind == tcp.Transition {
			err = errors.Join(err, c.watch(e))
			c.history.add(e)
			c.push.transition(e, c.meter)
		}
	}
	if c.conns.wanted() {
		err = errors.Join(err, c.conns.event(e))
	}
	if c.events.wanted() {
		err = errors.Join(err, c.lines.Write(e), c.events.wrote())
	}
	return err
}

// watch hands on what matters between two looks at the sockets.
func (c *collector) watch(e *tcp.Event) error {
	switch {
	case e.Old == tcp.CloseWait:
		return c.leaks.Event(e)
	case e.Old == tcp.TimeWait, e.New == tcp.TimeWait, e.Reason == tcp.TimewaitOverflow:
		return c.waits.Event(e)
	}
	return nil
}

// Idle hands what was written to those who read.
func (c *collector) Idle() error {
	return errors.Join(c.events.send(), c.conns.topic.send())
}

// Tick looks at the sockets when that is due, and answers.
func (c *collector) Tick(now uint64) error {
	if c.ticked.Swap(time.Now().UnixNano()) == 0 {
		close(c.started)
	}
	c.meter.mark(now)
	c.meter.expire(now)
	if now >= c.nextLook {
		c.lookAround(now)
		c.nextLook = now + c.look
	}
	c.answer(now)
	c.push.tick(now)
	return c.Idle()
}

// lookAround refreshes what is said about leaks and ports. Where that fails, all else goes on.
func (c *collector) lookAround(now uint64) {
	c.lookFailed = nil
	c.leaked = c.report(c.leaks, now)
	c.push.verdicts(c.leaked, c.meter)
	c.seen = c.seen.next(now, c.leaked, c.lookFailed, c.meter)
	if c.skipped != nil {
		c.seen.skipped = c.skipped()
	}
	c.waiting = c.report(c.waits, now)
}

func (c *collector) report(w *leak.Watch, now uint64) *leak.Report {
	r, err := w.Report(now, nil)
	if err != nil {
		c.lookFailed = fmt.Errorf("look at the sockets: %w", err)
		c.failedLooks++
		return nil
	}
	return r
}

// answer answers what was asked since the last tick.
func (c *collector) answer(now uint64) {
	c.snapshots.answer(func() (*snapshot, error) { return c.snapshot(now), nil })
	c.statsAsked.answer(func() ([]byte, error) {
		var b bytes.Buffer
		err := output.NewStatsJSON(&b).Write(c.tally.Report(now))
		return b.Bytes(), err
	})
	c.leaksAsked.answer(c.leaksJSON)
	c.socketsAsked.answer(c.sockets)
	for {
		select {
		case q := <-c.storiesWanted:
			q.reply <- storyAnswer{c.story(q.cookie), now}
			continue
		default:
		}
		return
	}
}

// leaksJSON writes the groups of the last look, the worst first.
func (c *collector) leaksJSON() ([]byte, error) {
	if c.leaked == nil {
		return nil, c.lookFailed
	}
	var b bytes.Buffer
	r := *c.leaked
	r.Groups = r.Groups[:min(len(r.Groups), maxGroups)]
	err := output.NewReportJSON(&b).Write(&r)
	return appendLeftOut(b.Bytes(), len(c.leaked.Groups)-len(r.Groups)), err
}

// sockets lists those that exist.
func (c *collector) sockets() (*socketRows, error) {
	all := new(socketRows)
	err := c.source.Existing(tcp.States(), func(e *tcp.Event) error {
		if len(all.rows) == maxRows {
			all.leftOut++
			return nil
		}
		all.rows = append(all.rows, socketRow{*e, c.meter.nameOf(serviceOf(e))})
		return nil
	})
	return all, err
}

// appendLeftOut adds a line that says how many there are beyond those that were written.
func appendLeftOut(lines []byte, n int) []byte {
	if n <= 0 {
		return lines
	}
	return fmt.Appendf(lines, `{"v":%d,"type":"left_out","left_out":%d}`+"\n", tcp.SchemaVersion, n)
}

// story returns what is known of a socket: what it did, or else what it is.
func (c *collector) story(cookie uint64) []tcp.Event {
	events := c.history.of(cookie)
	if events != nil {
		return events
	}
	_ = c.source.Existing(tcp.States(), func(e *tcp.Event) error { // an error: it is not known
		if e.Cookie == cookie {
			events = append(events, *e)
		}
		return nil
	})
	return events
}

// Close lets clients go.
func (c *collector) Close(uint64) error {
	err := c.Idle()
	c.closeOnce()
	return err
}

// connectionRelay makes records of connections as long as somebody takes them: one that began
// before has a record that does not know its beginning.
type connectionRelay struct {
	topic     topic
	push      *push
	meter     *meter
	collector *connection.Collector // nil: nobody takes any
	lines     *output.ConnectionJSON
	offset    int64
}

func (r *connectionRelay) init(c *collector, offset int64) {
	r.push, r.meter = &c.push, c.meter
	r.topic.hub, r.topic.name, r.offset = c.hub, topicConnection, offset
	r.lines = output.NewConnectionJSON(&r.topic.lines)
	r.topic.flush = r.lines.Flush
}

// wanted reports whether somebody takes records, and forgets all if not.
func (r *connectionRelay) wanted() bool {
	if r.topic.wanted() || r.push.connections() {
		return true
	}
	r.collector = nil
	return false
}

func (r *connectionRelay) event(e *tcp.Event) error {
	if r.collector == nil {
		r.collector = connection.NewCollector(connection.Config{
			Max: maxConnections, Offset: r.offset, Flush: func() error { return nil },
			Show: r.show,
		})
	}
	return r.collector.Event(e)
}

// show hands a record to those who take it.
func (r *connectionRelay) show(record *connection.Record) error {
	if r.push.connections() {
		r.push.to.Connection(record, r.meter.nameOf(serviceOf(&record.Event)))
	}
	if !r.topic.wanted() {
		return nil
	}
	return errors.Join(r.lines.Write(record), r.topic.wrote())
}

// parseCookie understands a cookie as JSON shows it.
func parseCookie(text string) (cookie uint64, err error) {
	if cookie, err = strconv.ParseUint(text, 16, 64); err != nil || len(text) > 16 {
		return 0, fmt.Errorf("%q is not a cookie: give the field cookie of the JSON, such as 2001", text)
	}
	return cookie, nil
}

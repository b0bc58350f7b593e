package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// watch takes one look after the other, until the user has enough.
func (c *socketsCmd) watch(e *env, config probe.Config, where *enrich.Enricher, rows *lookConsumer, show *socketsShow) error {
	table, err := probe.OpenTable(config)
	if err != nil {
		return err
	}
	defer table.Close()
	e.sayLimits(where)
	clock := &waiting{stopped: make(chan struct{})}
	w := &socketsWatch{lookConsumer: rows, cmd: c, env: e, table: table, where: where, clock: clock}
	if show.onScreen() {
		if show.screen, err = openScreen(e, clock.Stop); err != nil {
			return err
		}
		defer show.close()
	}
	_, err = pipeline.Run(e.ctx, pipeline.Config{
		Existing: func(func(*tcp.Event) error) error { return nil }, // the first tick looks
		Confine:  confined(needs(where, probe.ReadTrace, probe.EnterNamespaces)),
		Interval: time.Duration(c.Watch),
		Output:   e.stdout.File(),
	}, clock, w)
	show.close()
	if err == nil {
		err = e.saySkipped(w.skipped)
		c.conclude(e, where, rows)
	}
	return err
}

// close gives the terminal back, and leaves on it what was shown last.
func (s *socketsShow) close() {
	if s.screen == nil {
		return
	}
	s.screen.close()
	s.screen = nil
	_, _ = io.WriteString(s.env.stdout, s.last) // a terminal that takes nothing has nobody to tell
}

// socketsWatch is the consumer that looks at each tick.
type socketsWatch struct {
	*lookConsumer
	cmd     *socketsCmd
	env     *env
	table   *probe.Table
	where   *enrich.Enricher
	clock   *waiting
	looked  bool
	skipped error // by the last look
}

// errStopped ends a look that nobody waits for any more.
var errStopped = errors.New("stopped")

func (w *socketsWatch) Tick(uint64) error {
	w.again()
	err := w.table.Sockets(func(e *tcp.Event) error {
		if w.clock.isStopped() {
			return errStopped
		}
		w.where.Fill(e)
		return w.Event(e)
	})
	if _, skipped := errors.AsType[*probe.SkippedError](err); skipped {
		w.skipped, err = err, nil
	}
	if errors.Is(err, errStopped) {
		return pipeline.Enough
	}
	if err != nil {
		return err
	}
	if !w.looked && !w.any {
		census := census{where: w.where, sockets: w.table.Sockets, unjudged: w.unjudged}
		if mistake := census.nothing(w.filter); mistake != nil {
			w.env.say(mistake.Error())
		}
	}
	w.looked = true
	return w.to.end(true)
}

// Close leaves out a look that was not finished.
func (w *socketsWatch) Close(uint64) error { return nil }

// waiting is a pipeline.Source without events: its time is the clock's.
type waiting struct {
	once     sync.Once
	stopped  chan struct{}
	deadline uint64 // 0: none
}

func (w *waiting) Read(*tcp.Event) error {
	var timer <-chan time.Time
	if w.deadline != 0 {
		timer = time.After(time.Duration(w.deadline - min(w.deadline, w.Now())))
	}
	select {
	case <-w.stopped:
		return io.EOF
	case <-timer:
		return os.ErrDeadlineExceeded
	}
}

func (w *waiting) isStopped() bool {
	select {
	case <-w.stopped:
		return true
	default:
		return false
	}
}

func (w *waiting) More() bool              { return false }
func (w *waiting) SetDeadline(boot uint64) { w.deadline = boot }
func (w *waiting) Now() uint64             { return bootTime() }
func (w *waiting) Stop()                   { w.once.Do(func() { close(w.stopped) }) }

func (w *waiting) Existing([]tcp.State, func(*tcp.Event) error) error { return nil }

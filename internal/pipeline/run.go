package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Config says how Run goes about it. The zero value hands every event on until the source
// ends.
type Config struct {
	// Existing hands a row for each socket that exists at the start to emit, before the
	// first event. nil: a recording has these rows among its events.
	Existing func(emit func(*tcp.Event) error) error
	// Last hands on what the source has counted and not yet said, when the run ends in
	// order; nil: nothing.
	Last func(emit func(*tcp.Event) error) error
	// Confine gives up what nothing after Existing needs; nil: nothing to do.
	Confine func() error
	// Enrich fills in what the source does not know; nil: it knows everything.
	Enrich func(*tcp.Event)
	// Selector picks the events that the Consumer gets; nil: all.
	Selector *tcp.Selector
	// Interval is the time of the source from one tick to the next; 0: no ticks. After a
	// tick that took long the next comes later, so that at least half the time is left
	// for events.
	Interval time.Duration
	// Silence is how many ticks in a row come without an event in between; after them the
	// next tick comes with the next event. It keeps a recording in which nothing happens
	// for a year from ticking all the year. 0: no limit, for a source that really waits.
	Silence int
	// Duration is the time of the source after which the run ends; 0: when the source ends.
	Duration time.Duration
	// Output is watched: when nobody reads it any more the run ends with EPIPE. nil: not
	// watched.
	Output *os.File
	// IgnoreHangup says that SIGHUP does not end the run: it means something else to the caller.
	IgnoreHangup bool
	// Whole makes an interrupted run an error, for an answer that must not be given early.
	Whole bool
}

// Counts says what a Consumer was given.
type Counts struct {
	Events  uint64 // transitions
	Unknown uint64 // of these, how many without a duration
	Lost    uint64 // events that the source reported as lost
}

// grace is how long a step may take after a signal. With what a command does afterwards,
// which is to detach from the kernel, the whole end stays within a second.
const grace = 500 * time.Millisecond

// never is later than any event.
const never = math.MaxUint64

// Run takes what the source yields to the consumer, until the source ends, the time is
// up, the consumer has Enough, nobody reads Output (the error is EPIPE) or a signal comes:
// SIGINT, SIGTERM, SIGHUP (see IgnoreHangup) or SIGQUIT. A Consumer or Source that hangs when a signal comes
// is left behind after half a second, with ErrBlocked or ErrUnfinished; the process is to
// exit then.
func Run(ctx context.Context, c Config, s Source, to Consumer) (Counts, error) {
	ctx, restore := signal.NotifyContext(ctx, endings(c.IgnoreHangup)...)
	defer restore()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	output := -1
	if c.Output != nil {
		output = int(c.Output.Fd())
		go func() {
			if abandoned(ctx, output) {
				cancel(syscall.EPIPE)
			}
		}()
	}
	r := &run{Config: c, source: s, to: to, ctx: ctx}
	r.hand = r.count
	done := make(chan error, 1)
	go r.guarded(done)
	select {
	case err := <-done:
		return r.result(err)
	case <-ctx.Done():
	}
	s.Stop()
	select {
	case err := <-done:
		return r.result(err)
	case <-time.After(grace):
		return Counts{}, stuck(ctx, output)
	}
}

// endings are the signals that end a run. SIGHUP does not where it is ignored, which is
// what nohup(1) does; SIGINT always does, although a shell ignores it for background jobs.
func endings(ignoreHangup bool) []os.Signal {
	signals := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGQUIT}
	if !ignoreHangup && !signal.Ignored(unix.SIGHUP) {
		signals = append(signals, unix.SIGHUP)
	}
	return signals
}

// stuck says why a run did not end.
func stuck(ctx context.Context, output int) error {
	switch {
	case context.Cause(ctx) == syscall.EPIPE:
		return syscall.EPIPE
	case output >= 0 && !Writable(output):
		return ErrBlocked
	}
	return ErrUnfinished
}

// run is the state of Run. It is the hot path: one goroutine, one event that is used
// again and again, nothing allocated.
type run struct {
	Config
	source Source
	to     Consumer
	ctx    context.Context
	hand   func(*tcp.Event) error // count, bound once: binding allocates

	event     tcp.Event
	begun     bool
	next, end uint64 // times of the source: of the next tick, of the end
	silent    int    // ticks since the last event
	counts    Counts
	cutOff    bool  // the source has ended before its end
	rowErr    error // what ended Config.Existing, which may have wrapped it
	panicked  any
}

// guarded takes a panic to the goroutine that called Run, whose deferred functions put a
// terminal back in order.
func (r *run) guarded(done chan<- error) {
	defer func() {
		if p := recover(); p != nil {
			r.panicked = fmt.Sprintf("%v\n\n%s", p, debug.Stack())
			done <- nil
		}
	}()
	done <- r.all()
}

func (r *run) result(err error) (Counts, error) {
	if r.panicked != nil {
		panic(r.panicked)
	}
	if context.Cause(r.ctx) == syscall.EPIPE {
		err = syscall.EPIPE // also where the consumer has not tried to write again
	}
	return r.counts, err
}

// all is the whole run. What came before an error of the source is shown. A source that is
// cut off was right up to there, so what the consumer makes of it is shown, too.
func (r *run) all() error {
	err := r.start()
	for err == nil {
		err = r.step()
	}
	switch {
	case r.cutOff:
		return errors.Join(err, r.to.Close(r.source.Now()))
	case err == io.EOF && r.Whole && r.ctx.Err() != nil:
		return ErrInterrupted
	case err == io.EOF, err == Enough:
		if r.Last != nil {
			if err := r.Last(r.handle); err != nil && err != Enough {
				return err
			}
		}
		return r.to.Close(r.source.Now())
	}
	return err
}

// start hands on the sockets that exist.
func (r *run) start() error {
	if r.Existing != nil {
		if err := r.Existing(r.row); r.rowErr != nil {
			return r.rowErr
		} else if err != nil {
			return err
		}
	}
	if r.Confine != nil {
		if err := r.Confine(); err != nil {
			return err
		}
	}
	if r.Existing == nil {
		return nil
	}
	r.begin()
	if r.Interval != 0 {
		if err := r.tick(0); err != nil {
			return err
		}
	}
	return r.to.Idle() // a header shows at once that the trace is on
}

// row hands on a row of Existing, which does not know of signals.
func (r *run) row(e *tcp.Event) error {
	if r.rowErr = r.handle(e); r.rowErr == nil && r.ctx.Err() != nil {
		r.rowErr = io.EOF
	}
	return r.rowErr
}

// begin sets the times of the first tick and of the end.
func (r *run) begin() {
	r.begun = true
	now := r.source.Now()
	r.next, r.end = never, never
	if r.Interval != 0 {
		r.next = add(now, r.Interval)
	}
	if r.Duration != 0 {
		r.end = add(now, r.Duration)
	}
	r.setDeadline()
}

func (r *run) setDeadline() {
	deadline := min(r.next, r.end)
	if r.Silence != 0 && r.silent >= r.Silence {
		deadline = r.end
	}
	if deadline == never {
		deadline = 0
	}
	r.source.SetDeadline(deadline)
}

// step takes one event to the consumer, or notices that its time has come.
func (r *run) step() error {
	err := r.source.Read(&r.event)
	switch {
	case err == nil:
		err = r.take(&r.event)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = r.wait()
	case errors.Is(err, io.ErrUnexpectedEOF):
		r.cutOff = true
	case err != io.EOF && r.begun:
		err = errors.Join(err, r.to.Idle())
	}
	if err == nil && !r.source.More() {
		err = r.to.Idle()
	}
	return err
}

// take hands on an event, and ticks after it if that was due. An event carries its time,
// so that no clock is read for it.
func (r *run) take(e *tcp.Event) error {
	if !r.begun {
		r.begin()
	}
	if e.BootNS > r.end {
		return Enough
	}
	if err := r.handle(e); err != nil {
		return err
	}
	due := e.BootNS >= r.next
	if r.silent != 0 {
		r.silent = 0
		r.setDeadline()
	}
	if due {
		return r.tick(e.BootNS)
	}
	return nil
}

// wait is called when the source has reached the deadline.
func (r *run) wait() error {
	now := r.source.Now()
	if now >= r.end {
		return Enough
	}
	if now < r.next { // the source gave up early, or has slept with its clock going on
		r.setDeadline()
		return nil
	}
	r.silent++
	return r.tick(now)
}

// tick is called when all events from before the time read were taken. The selector must
// not go by a later one: it would show sockets as still waiting whose next event is in the
// ring.
func (r *run) tick(read uint64) error {
	now := r.source.Now()
	if r.Selector != nil {
		if err := r.Selector.Tick(read, r.hand); err != nil {
			return err
		}
	}
	if err := r.to.Tick(now); err != nil {
		return err
	}
	took := r.source.Now() - now
	r.next = add(now, max(r.Interval, time.Duration(2*took)))
	r.setDeadline()
	return nil
}

// handle takes one event to the consumer, if it is asked for.
func (r *run) handle(e *tcp.Event) error {
	if r.Enrich != nil {
		r.Enrich(e)
	}
	if r.Selector == nil {
		return r.hand(e)
	}
	return r.Selector.Select(e, r.hand)
}

func (r *run) count(e *tcp.Event) error {
	err := r.to.Event(e)
	if err != nil && err != Enough {
		return err
	}
	switch e.Kind {
	case tcp.Lost:
		r.counts.Lost += e.Lost
	case tcp.Transition:
		r.counts.Events++
		if e.DurationKind == tcp.Unknown {
			r.counts.Unknown++
		}
	}
	return err
}

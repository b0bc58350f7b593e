// Package pipeline moves events from a Source to a Consumer. It is the one loop of every
// command, live or over a recording: ticks, the time limit, signals, a reader that goes
// away or blocks, confinement and counting are handled here and nowhere else.
//
// What a command shows is a Consumer; how it prints is the Consumer's business. This
// package does not know where events come from, and prints nothing.
package pipeline

import (
	"errors"
	"io"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Source yields events: the kernel, or a recording. Its time is CLOCK_BOOTTIME in ns: of
// the clock for the kernel, of the events for a recording. Its methods belong to the
// goroutine of Run, except Stop.
type Source interface {
	// Read fills in the next event. io.EOF says that there are no more, io.ErrUnexpectedEOF
	// that there should be more, and os.ErrDeadlineExceeded that there is none before the
	// deadline: it can be called again.
	Read(*tcp.Event) error
	// More reports whether the next event waits already, so that Read does not block.
	More() bool
	// SetDeadline makes Read give up when the source has reached that time and no event
	// from before it is left; 0 means never. It may give up early. A recording gives up
	// instead of going past the deadline, so that Now and Existing speak of the deadline.
	SetDeadline(boot uint64)
	// Now is the time that the source has reached; of a recording, 0 before its first event.
	Now() uint64
	// Existing hands a row of kind Socket for each socket that is in one of the states
	// Now, of which tracing knows, to emit.
	Existing(states []tcp.State, emit func(*tcp.Event) error) error
	// Stop makes Read return what is left, then io.EOF. Any goroutine may call it.
	Stop()
}

// Consumer takes what a Source yields. All its methods are called from one goroutine.
// An error ends the run and is what Run returns; Enough ends it in order.
type Consumer interface {
	// Event takes an event, which is valid until it returns.
	Event(*tcp.Event) error
	// Idle is called when no other event waits: what is buffered can be shown.
	Idle() error
	// Tick is called when the rows of Config.Existing are through, and then every
	// Config.Interval.
	Tick(now uint64) error
	// Close is called once, when the run ends in order: the source has ended, is cut off or
	// was stopped, the time is up, or there is Enough.
	Close(now uint64) error
}

// Enough is what a Consumer returns to end the run in order.
var Enough = errors.New("enough") //nolint:staticcheck // ST1012: no more an error than io.EOF

// What else Run returns.
var (
	// ErrBlocked: a signal came while a write to the output hung, because nobody reads.
	ErrBlocked = errors.New("the standard output is blocked: what was not written is lost")
	// ErrUnfinished: a signal came during a step that did not end in time.
	ErrUnfinished = errors.New("interrupted before the current step was done: its result is lost")
	// ErrInterrupted: a signal came, and Config.Whole.
	ErrInterrupted = errors.New("interrupted before the end of the watch")
)

// Ended is a Source that has ended. It is for a command that shows nothing but the rows
// of Config.Existing.
type Ended struct{}

// Read returns io.EOF.
func (Ended) Read(*tcp.Event) error { return io.EOF }

// More returns false.
func (Ended) More() bool { return false }

// SetDeadline has nothing to do: Read does not wait.
func (Ended) SetDeadline(uint64) {}

// Now returns 0.
func (Ended) Now() uint64 { return 0 }

// Existing knows no sockets.
func (Ended) Existing([]tcp.State, func(*tcp.Event) error) error { return nil }

// Stop has nothing to do.
func (Ended) Stop() {}

// add is a + d, and the end of time where that would pass it.
func add(a uint64, d time.Duration) uint64 {
	if sum := a + uint64(d); sum >= a {
		return sum
	}
	return never
}

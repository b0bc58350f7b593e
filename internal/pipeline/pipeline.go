// Package pipeline moves events from a Source to a Consumer. It is the one loop of every
// command, live or over a recording: ticks, the time limit, signals, a reader that goes
// away or blocks, and the account at the end are handled here and nowhere else.
//
// What a command shows is a Consumer; how it prints is the Consumer's business. This
// package does not know where events come from, and prints nothing.
package pipeline

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Source yields events: the kernel, or a recording. Its methods belong to the goroutine
// of Run, but for Stop.
type Source interface {
	// Read fills in the next event. io.EOF says that there are no more, and
	// os.ErrDeadlineExceeded that none came before the deadline: it can be called again.
	Read(*tcp.Event) error
	// More reports whether the next event waits already, so that Read does not block.
	More() bool
	// SetDeadline makes Read give up at t; the zero Time means never. A recording, which
	// never waits, ignores it.
	SetDeadline(t time.Time)
	// Now is the time of CLOCK_BOOTTIME in ns up to which the source has been read: that
	// of the clock for the kernel, that of the last event for a recording.
	Now() uint64
	// Existing hands a row of kind Socket for each socket that is in one of the states
	// now, of which tracing knows, to emit.
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
	// Tick is called every Config.Interval of event time.
	Tick(now uint64) error
	// Close is called once, when the source has ended in order.
	Close(now uint64) error
}

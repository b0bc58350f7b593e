// Package connection makes one record of each connection: how long it was in each state,
// who closed first, and why it ended. It is not for statistics over many of them; that is
// package stats.
package connection

import "github.com/tcptrace/tcptrace/internal/tcp"

// Closer says which end closed a connection first. Empty: it was never established, or
// neither end closed it, as where it timed out.
type Closer string

// The closers. Evidence is the path of states; where a reset took the place of a FIN, it is
// the reason.
const (
	Local        Closer = "local"
	Remote       Closer = "remote"
	Simultaneous Closer = "simultaneous" // both FINs were on their way
	Unknown      Closer = "unknown"      // what would tell was not seen
)

// States are those that a connection can be in, in the order in which it goes through them.
var States = []tcp.State{
	tcp.SynSent, tcp.SynRecv, tcp.Established, tcp.FinWait1, tcp.FinWait2, tcp.Closing, tcp.TimeWait,
	tcp.CloseWait, tcp.LastAck,
}

// Stay is the time that a connection spent in one state.
type Stay struct {
	NS   uint64           // applies if Kind is exact or at least
	Kind tcp.DurationKind // empty: it was never in that state, for all that was seen
}

// Record is one connection. It is plain data, valid until the next one is made.
//
// The Event is what is known of it last: its ends, owner and counters. Time and BootNS are
// those of the end, or of the report where it is Open; Old is where it ended, New the state
// that it is in: CLOSE, or TIME_WAIT where that is not included and goes on after the
// end. Reason and Errno are why it ended. Duration is the time from the start to the end,
// without TIME_WAIT unless that has a Stay; of a connection that is older than the trace it
// is at least that.
type Record struct {
	tcp.Event
	Open bool // it was not over when the record was made: the time in New is that so far

	// Start is when it began or, if DurationKind is not exact, the earliest time at which it
	// is known to have existed.
	Start     int64  // wall clock, ns since the Unix epoch
	StartBoot uint64 // CLOCK_BOOTTIME, ns

	Stays       [tcp.NewSynRecv + 1]Stay // by state
	ClosedFirst Closer
	Outcome     tcp.Outcome // empty if Open
	TimeWaitEnd tcp.Reason  // why its TIME_WAIT ended, where that is included
	Missing     bool        // some of its transitions were not seen
}

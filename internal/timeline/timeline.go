// Package timeline tells the story of single connections: every state of both ends, in order,
// as far as both are known. It joins the ends that one host sees, and those of two recordings
// of two hosts whose clocks differ. It is not for many connections at once; that is what
// packages connection and stats are for.
package timeline

import (
	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Stay is the time that an end spent in one state.
type Stay struct {
	State tcp.State
	// Begin is CLOCK_BOOTTIME in ns of the host of the end: when the state began if Kind is
	// exact, the latest time at which it can have begun if it is at least, and otherwise when
	// the end was first seen in it.
	Begin uint64
	End   uint64           // likewise when it ended, or the end of the run if Next is 0
	Kind  tcp.DurationKind // of End - Begin
	// Next is the state that came after it; 0: it was not seen to end. Reason, Errno and Owner
	// are those of the change to it.
	Next   tcp.State
	Reason tcp.Reason
	Errno  uint32
	Owner  Owner
}

// Owner is the process that had an end, Source empty if it is not known.
type Owner struct {
	PID    uint32
	Comm   string // raw
	Source tcp.OwnerSource
}

// End is one end of a connection. The Event is what is known of it last: its addresses, its
// owner, its counters; what says how a state ended is in the Stays.
type End struct {
	tcp.Event
	Stays  []Stay     // in order, one or more
	Begun  bool       // the first of them was seen to begin
	Opened tcp.Reason // why it began, if that was seen and is known
	Open   bool       // it was not over when the story was told
	Lost   bool       // its end was not seen: it is over, as events of others prove
	// Missing says that some of its changes of state were not seen.
	Missing bool
	// Recording is which recording it is of: 0, or 1 for the second of two.
	Recording int

	wall      int64 // of the wall clock to CLOCK_BOOTTIME in ns, at its first event
	half      bool  // it began as a half-open connection, when the SYN arrived
	over      bool
	ambiguous bool // more than one could be its other end
	told      bool
	matched   bool // the filter selects it
	missing   tcp.Fact
	peer      *End
}

// Story is one connection. It is plain data.
type Story struct {
	// Client is the end that opened it, or, where that is not known, the first one seen. Server
	// is the other one, nil if it was not seen or it is not certain which it is. A Server
	// alone has Client nil.
	Client, Server *End
	// Ambiguous says that several could be the other end, so that none is shown.
	Ambiguous bool
	// Offset is what has to be added to times of the Client to have those of the Server, give
	// or take Error, both in ns. They are 0 if the same host saw both.
	Offset int64
	Error  uint64
}

// Ends are the ends that are known, the client first.
func (s *Story) Ends() (ends []*End) {
	for _, e := range []*End{s.Client, s.Server} {
		if e != nil {
			ends = append(ends, e)
		}
	}
	return ends
}

// At returns when something happened to an end, as the clock of the first of Ends has it.
func (s *Story) At(e *End, boot uint64) int64 {
	if e == s.Server && s.Client != nil {
		return int64(boot) - s.Offset
	}
	return int64(boot)
}

// Begin is when the first of the states began that are known, as At has it, and whether that
// is exact.
func (s *Story) Begin() (at int64, exact bool) {
	for i, e := range s.Ends() {
		if begin := s.At(e, e.Stays[0].Begin); i == 0 || begin < at {
			at = begin
			_, exact = e.Begin()
		}
	}
	return at, exact
}

// Finish is when the last end was over but for its TIME_WAIT, as At has it.
func (s *Story) Finish() (at int64) {
	for i, e := range s.Ends() {
		last, _ := e.Last()
		if end := s.At(e, last.End); i == 0 || end > at {
			at = end
		}
	}
	return at
}

// Wall is the wall clock of its host at a CLOCK_BOOTTIME, in ns since the Unix epoch, if it was
// not set since the end was first seen.
func (e *End) Wall(boot uint64) int64 { return int64(boot) + e.wall }

// Last returns the last state but for TIME_WAIT, and whether it was seen to end. If nothing
// but a TIME_WAIT was seen, it is that.
func (e *End) Last() (stay *Stay, ended bool) {
	stay = &e.Stays[len(e.Stays)-1]
	if stay.State == tcp.TimeWait && len(e.Stays) > 1 {
		stay = &e.Stays[len(e.Stays)-2]
	}
	return stay, stay.Next != 0
}

// ClosedFirst says which end closed first, as this end has seen it.
func (e *End) ClosedFirst() connection.Closer {
	been := func(s tcp.State) bool {
		for i := range e.Stays {
			if e.Stays[i].State == s || e.Stays[i].Next == s {
				return true
			}
		}
		return false
	}
	last, _ := e.Last()
	return connection.ClosedFirst(been, last.State, last.Next, last.Reason)
}

// handshake is when the steps of the handshake happened that this end took part in.
type handshake struct{ began, done uint64 }

// handshake returns that of an end which was in the state of its role from the beginning to
// ESTABLISHED, every step of it seen.
func (e *End) handshake(state tcp.State) (h handshake, known bool) {
	first := &e.Stays[0]
	if e.Missing || first.State != state || first.Kind != tcp.Exact || first.Next != tcp.Established {
		return h, false
	}
	return handshake{first.Begin, first.End}, true
}

// Begin is when the connection began for this end, and whether that is known: it was seen, or
// no other state can have come before its first one.
func (e *End) Begin() (at uint64, exact bool) {
	first := &e.Stays[0]
	isFirst := first.State == tcp.SynSent || first.State == tcp.SynRecv && e.Role == tcp.Server
	return first.Begin, first.Kind == tcp.Exact && (e.Begun || isFirst)
}

// until is when the end was over, its TIME_WAIT left aside, or a time that never comes.
func (e *End) until() uint64 {
	last, ended := e.Last()
	if !ended {
		return 1 << 62
	}
	return last.End
}

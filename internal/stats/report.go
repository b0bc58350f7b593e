package stats

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Report is what a Tally has counted. It is plain data, enough to draw the state diagram
// with; its histograms are valid until the next event.
type Report struct {
	Time    int64  // wall clock, ns since the Unix epoch
	BootNS  uint64 // CLOCK_BOOTTIME, ns since the boot
	Watched uint64 // ns since the first event
	Last    bool   // the run has ended

	Transitions uint64
	Lost        uint64 // events that are missing in all counts
	Forgotten   uint64 // sockets that had to make room for others: Now and Open are too low
	Unended     uint64 // sockets that are over, and whose end was not seen

	States []State // the eleven, in the order of the diagram
	Edges  []Edge  // tcp.Edges, in that order; then transitions that are not one of them
	Total  Counts
	By     By
	Groups []Group // most connections first, then Other
}

// State is one node of the diagram.
type State struct {
	State    tcp.State
	Now      int    // sockets in it
	NowKnown bool   // false for CLOSE: what has no connection is not followed
	Entered  uint64 // transitions into it
	// The times that sockets spent in it: exact ones, those that are older than the trace, and
	// how many are not known. Those that are in it now are in none of these.
	Exact, AtLeast *Histogram
	Unknown        uint64
}

// Edge is one edge of the diagram.
type Edge struct {
	tcp.Edge
	Legal          bool // false: not an edge, which no kernel makes
	Count          uint64
	Client, Server uint64 // of Count, those of sockets that are known to be one
	Reasons        []Reason
}

// PerSecond is how often it was taken; false: no time has passed.
func (e *Edge) PerSecond(watched uint64) (float64, bool) {
	return float64(e.Count) * 1e9 / float64(max(watched, 1)), watched > 0
}

// CountOf is how often sockets with a role took it, as far as that is known; "" is all of them.
// A listener is a server.
func (e *Edge) CountOf(role tcp.Role) uint64 {
	switch role {
	case tcp.Client:
		return e.Client
	case tcp.Server:
		if e.From == tcp.Listen || e.To == tcp.Listen {
			return e.Count
		}
		return e.Server
	}
	return e.Count
}

// OnPath reports whether the edge is on the usual path of a role; all are on that of "".
func (e *Edge) OnPath(role tcp.Role) bool {
	switch role {
	case tcp.Client:
		return e.Path&tcp.ClientPath != 0
	case tcp.Server:
		return e.Path&tcp.ServerPath != 0
	}
	return true
}

// Unusual reports whether the edge is one that figure 5 of RFC 9293 does not have, or was
// taken because a connection was reset, failed or was given up: once is enough.
func (e *Edge) Unusual() bool {
	if !e.Legal || e.Extension != "" {
		return true
	}
	return slices.ContainsFunc(e.Reasons, func(why Reason) bool {
		end := tcp.Event{Kind: tcp.Transition, Old: e.From, New: e.To, Reason: why.Reason}
		return end.Breaks()
	})
}

// Reason is why an edge was taken: so many times. Empty: not known.
type Reason struct {
	Reason tcp.Reason
	Count  uint64
}

// Counts are about connections. Those that are not followed to their end have no outcome.
type Counts struct {
	Opened                        uint64 // handshakes that were completed
	Closed, Reset, Failed, Broken uint64 // by outcome, see tcp.Outcome
	Unknown                       uint64 // ended, nobody knows why
	Open                          int    // not over now, handshakes included
}

// Ended is how many connections ended.
func (c *Counts) Ended() uint64 { return c.Closed + c.Reset + c.Failed + c.Broken + c.Unknown }

// outcome returns the count of an outcome.
func (c *Counts) outcome(o tcp.Outcome) *uint64 {
	switch o {
	case tcp.Closed:
		return &c.Closed
	case tcp.Reset:
		return &c.Reset
	case tcp.Failed:
		return &c.Failed
	case tcp.Broken:
		return &c.Broken
	}
	return &c.Unknown
}

// Group counts the connections that have something in common. Each is in the group of its
// latest known owner.
type Group struct {
	GroupName
	Counts
}

// OtherGroup is the name of the group for all that comes when there are MaxGroups.
const (
	OtherGroup = "~other"
	MaxGroups  = 1024
)

// diagram is the order of the states, from top to bottom.
var diagram = []tcp.State{
	tcp.Close, tcp.Listen, tcp.SynSent, tcp.SynRecv, tcp.Established, tcp.FinWait1, tcp.FinWait2,
	tcp.Closing, tcp.TimeWait, tcp.CloseWait, tcp.LastAck,
}

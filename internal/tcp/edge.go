package tcp

import "slices"

// Path is a usual way through the state diagram, as bits: an edge may lie on both.
type Path uint8

// The paths.
const (
	ClientPath Path = 1 << iota // connect(), and it closes first
	ServerPath                  // listen(), and it closes second
)

// Edge is a transition that a socket may make.
type Edge struct {
	From, To State
	Name     string // what happens, in the words of RFC 9293
	Path     Path   // 0: on neither of the usual ones
	// Extension says where an edge comes from that the diagram does not show: another place
	// of RFC 9293, or Linux. Empty: figure 5 of RFC 9293 has it.
	Extension string
	Untaken   bool // no socket of Linux takes it
}

// Where the edges come from that figure 5 leaves out.
const (
	note2     = "RFC 9293, figure 5, note 2"
	segments  = "RFC 9293, 3.10.7.4" // a FIN or RST arrives
	abandoned = "RFC 9293, 3.10.5, 3.10.7.4 and 3.10.8: ABORT, RST, user timeout"
	request   = "Linux: a half-open connection is not its listener, to which RFC 9293 returns"
)

// Edges are all of them: figure 5 from top to bottom, then what it leaves out. That a new
// connection takes over the addresses of a TIME_WAIT (ReusedByConnect, ReopenedBySyn) is
// the end of one socket, TimeWait to Close, and the beginning of another.
var Edges = []Edge{
	{From: Close, To: Listen, Name: "passive open", Path: ServerPath},
	{From: Listen, To: Close, Name: "close"},
	{From: Close, To: SynSent, Name: "active open", Path: ClientPath},
	{From: SynSent, To: Close, Name: "close"},
	{From: Listen, To: SynRecv, Name: "SYN received", Path: ServerPath},
	{From: Listen, To: SynSent, Name: "send", Untaken: true},
	{From: SynSent, To: SynRecv, Name: "SYN received"}, // a simultaneous open
	{From: SynSent, To: Established, Name: "SYN,ACK received", Path: ClientPath},
	{From: SynRecv, To: Established, Name: "ACK of SYN received", Path: ServerPath},
	{From: SynRecv, To: Listen, Name: "RST received", Untaken: true},
	{From: SynRecv, To: FinWait1, Name: "close"},
	{From: Established, To: FinWait1, Name: "close", Path: ClientPath},
	{From: Established, To: CloseWait, Name: "FIN received", Path: ServerPath},
	{From: FinWait1, To: FinWait2, Name: "ACK of FIN received", Path: ClientPath},
	{From: FinWait1, To: Closing, Name: "FIN received"}, // a simultaneous close
	{From: CloseWait, To: LastAck, Name: "close", Path: ServerPath},
	{From: FinWait2, To: TimeWait, Name: "FIN received", Path: ClientPath},
	{From: Closing, To: TimeWait, Name: "ACK of FIN received"},
	{From: LastAck, To: Close, Name: "ACK of FIN received", Path: ServerPath},
	{From: TimeWait, To: Close, Name: "timeout", Path: ClientPath},

	// Linux goes by FIN_WAIT2 (tcp_rcv_state_process).
	{From: FinWait1, To: TimeWait, Name: "FIN and ACK of FIN received", Extension: note2, Untaken: true},
	{From: SynRecv, To: CloseWait, Name: "FIN received", Extension: segments}, // Fast Open, tcp_fin
	{From: SynRecv, To: Close, Name: "abort", Extension: request},
	{From: Established, To: Close, Name: "abort", Extension: abandoned},
	{From: FinWait1, To: Close, Name: "abort", Extension: abandoned},
	{From: FinWait2, To: Close, Name: "abort", Extension: abandoned},
	{From: CloseWait, To: Close, Name: "abort", Extension: abandoned},
	{From: Closing, To: Close, Name: "abort", Extension: abandoned},
}

// FindEdge returns the edge from one state to another, false if there is none.
func FindEdge(from, to State) (Edge, bool) {
	i := slices.IndexFunc(Edges, func(e Edge) bool { return e.From == from && e.To == to })
	if i < 0 {
		return Edge{}, false
	}
	return Edges[i], true
}

// opening reports whether a connection in this state has not been established yet.
func opening(s State) bool { return s == SynSent || s == SynRecv || s == NewSynRecv }

// Opens reports whether the event completes a handshake. (One with Fast Open may close
// before it is ESTABLISHED.)
func (e *Event) Opens() bool {
	return e.Kind == Transition && opening(e.Old) && !opening(e.New) && e.New != Close && e.New != Listen
}

// Finishes reports whether the event is the end of a connection, or of an attempt at one:
// it enters TIME_WAIT, or CLOSE from another state than that. A listener is neither.
func (e *Event) Finishes() bool {
	return e.Kind == Transition && (e.New == Close || e.New == TimeWait) &&
		e.Old != Close && e.Old != Listen && e.Old != TimeWait
}

// Outcome says how a connection ended. Empty: the cause is not known.
type Outcome string

// The outcomes.
const (
	Closed Outcome = "closed" // both ends closed it, and the FIN of each was acknowledged
	Reset  Outcome = "reset"  // an RST of either end
	Failed Outcome = "failed" // it was never established
	Broken Outcome = "broken" // it was given up: a timeout, an ICMP error, too many orphans
)

// Outcome returns how the connection ended that the event finishes.
func (e *Event) Outcome() Outcome {
	switch {
	case opening(e.Old):
		return Failed
	case e.New == TimeWait:
		return Closed
	}
	switch e.Reason {
	case FinAcked, FinReceived, TimewaitOverflow:
		return Closed
	case RSTReceived, RSTSent, Aborted, AbortedLinger, Disconnected, Killed, ListenerClosed, BacklogFull:
		return Reset
	case "":
		return ""
	}
	return Broken
}

// Breaks reports whether a connection, or an attempt at one, was reset, failed or was given up
// by the event. A reset ends a TIME_WAIT as well.
func (e *Event) Breaks() bool {
	switch e.Outcome() {
	case Reset:
		return true
	case Failed, Broken:
		return e.Finishes()
	}
	return false
}

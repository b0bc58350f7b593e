package connection

import "github.com/tcptrace/tcptrace/internal/tcp"

// life is what is kept of a connection until it is over.
type life struct {
	last       tcp.Event // with what earlier events knew better
	start      int64
	startBoot  uint64
	since      uint64 // when the present state began, as exactly as sinceKind says
	spent      [tcp.NewSynRecv + 1]uint64
	kinds      [tcp.NewSynRecv + 1]kind
	sinceKind  kind
	exactStart bool
	missing    bool
	over       bool // it is in a TIME_WAIT that is included
	reason     tcp.Reason
	errno      uint32
}

// kind is a tcp.DurationKind that takes a byte. Of two the higher one holds for the sum.
type kind uint8

const (
	none kind = iota
	exact
	atLeast
	unknown
)

var kindNames = [...]tcp.DurationKind{none: "", exact: tcp.Exact, atLeast: tcp.AtLeast, unknown: tcp.Unknown}

func kindOf(k tcp.DurationKind) kind {
	switch k {
	case tcp.Exact:
		return exact
	case tcp.AtLeast:
		return atLeast
	}
	return unknown
}

// begin takes the first event that was seen of a connection.
func (l *life) begin(e *tcp.Event) {
	l.last.UID, l.last.FD = tcp.NoUID, tcp.NoFD
	was, before := e.Old, uint64(0)
	if e.Kind == tcp.Socket {
		was = e.New
	}
	if e.DurationKind.Known() {
		before = min(e.Duration, e.BootNS)
	}
	l.start, l.startBoot = e.Time-int64(before), e.BootNS-before
	l.exactStart = begins(e) || isFirst(was, e.Role) && e.DurationKind == tcp.Exact
}

// begins reports whether the event is the beginning of a connection.
func begins(e *tcp.Event) bool {
	return e.Kind == tcp.Transition && (e.Old == tcp.Close || e.Old == tcp.Listen)
}

// isFirst reports whether no state of the connection can have come before this one. A
// client is in SYN_RECV after a simultaneous open.
func isFirst(s tcp.State, role tcp.Role) bool {
	return s == tcp.SynSent || s == tcp.SynRecv && role == tcp.Server
}

// take takes an event; missing says that the connection left the state from unseen.
func (l *life) take(e *tcp.Event, from tcp.State, missing bool) {
	if missing {
		l.missing = true
		l.add(from, 0, unknown)
	}
	if e.Kind == tcp.Socket {
		l.setSince(e)
	} else {
		if !begins(e) {
			l.add(e.Old, e.Duration, kindOf(e.DurationKind))
		}
		l.since, l.sinceKind = e.BootNS, exact
	}
	was := l.last
	l.last = *e
	l.last.Inherit(&was)
}

// setSince notes what a row says of the present state. What is known already still holds.
func (l *life) setSince(e *tcp.Event) {
	k, since := kindOf(e.DurationKind), e.BootNS
	if k != unknown {
		since -= min(e.Duration, e.BootNS)
	}
	if l.last.New == e.New && l.sinceKind != none {
		if l.sinceKind <= k {
			return
		}
		since = min(since, l.since) // it was in it at the row before
	}
	l.since, l.sinceKind = since, k
	if !l.exactStart && since < l.startBoot {
		l.start -= int64(l.startBoot - since)
		l.startBoot = since
	}
}

func (l *life) add(s tcp.State, ns uint64, k kind) {
	if int(s) >= len(l.spent) {
		return
	}
	if k != unknown {
		l.spent[s] += ns
	}
	l.kinds[s] = max(l.kinds[s], k)
}

// fill makes the record of a connection that is over.
func (l *life) fill(r *Record) {
	r.Event, r.Kind, r.Open = l.last, tcp.Transition, false
	r.Start, r.StartBoot, r.Missing, r.TimeWaitEnd = l.start, l.startBoot, l.missing, ""
	for s, k := range l.kinds {
		r.Stays[s] = Stay{l.spent[s], kindNames[k]}
	}
	r.Outcome = l.last.Outcome()
	if l.last.Old == tcp.TimeWait {
		r.TimeWaitEnd = l.last.Reason
	}
	if l.over || l.last.Old == tcp.TimeWait {
		r.Reason, r.Errno, r.Outcome = l.reason, l.errno, tcp.Closed
	}
	r.ClosedFirst = l.closer()
	l.measure(r)
}

// fillOpen makes the record of one that is not over at the time now, at wall clock wall; or
// of one whose TIME_WAIT is not, although it is to be included.
func (l *life) fillOpen(r *Record, now uint64, wall int64) {
	l.fill(r)
	r.BootNS, r.Time = now, wall
	stay := &r.Stays[r.New]
	stay.Kind = max(l.kinds[r.New], l.sinceKind).name()
	if l.sinceKind != unknown {
		stay.NS += now - min(l.since, now)
	}
	if r.Open = !l.over; r.Open {
		r.Outcome, r.Reason, r.Errno = "", "", 0
	}
	l.measure(r)
}

func (k kind) name() tcp.DurationKind { return kindNames[k] }

// measure sets the time from the start to the end.
func (l *life) measure(r *Record) {
	r.Duration, r.DurationKind = r.BootNS-min(l.startBoot, r.BootNS), tcp.AtLeast
	if l.exactStart {
		r.DurationKind = tcp.Exact
	}
}

// closer says who closed first.
func (l *life) closer() Closer {
	been := func(s tcp.State) bool { return l.kinds[s] != none || l.last.New == s }
	return ClosedFirst(been, l.last.Old, l.last.New, l.last.Reason)
}

// ClosedFirst says who closed a connection first, by the states that it has been in and by its
// last change of state, TIME_WAIT left aside.
func ClosedFirst(been func(tcp.State) bool, from, to tcp.State, why tcp.Reason) Closer {
	switch {
	case been(tcp.Closing):
		return Simultaneous
	case been(tcp.FinWait2):
		return Local
	case been(tcp.CloseWait), been(tcp.LastAck):
		return Remote
	case been(tcp.TimeWait): // by way of FIN_WAIT2, or of CLOSING
		return Unknown
	case been(tcp.FinWait1) && from == tcp.FinWait1 && to == tcp.Close:
		return Local // we closed, and that the peer had not done so before is known
	case been(tcp.FinWait1):
		return Unknown
	case to != tcp.Close, from != tcp.Established: // open, or never established
		return ""
	}
	return resetter(why)
}

// resetter says which end ended an established connection without a FIN.
func resetter(why tcp.Reason) Closer {
	switch why {
	case tcp.RSTReceived:
		return Remote
	case tcp.LocalClose, tcp.LocalShutdown, tcp.RSTSent, tcp.Aborted, tcp.AbortedLinger, tcp.Disconnected,
		tcp.Killed, tcp.ListenerClosed, tcp.BacklogFull, tcp.NetnsExit:
		return Local
	case "":
		return Unknown
	}
	return ""
}

package timeline

import "github.com/tcptrace/tcptrace/internal/tcp"

func (e *End) addresses() addresses { return addresses{e.Local, e.Remote} }

// take applies an event of the end; missing says that it left its state unseen.
func (e *End) take(ev *tcp.Event, missing bool) {
	if len(e.Stays) == 0 {
		e.wall = ev.Time - int64(ev.BootNS)
	}
	if len(e.Stays) == 0 && ev.Kind == tcp.Transition && (ev.Old == tcp.Close || ev.Old == tcp.Listen) {
		e.Begun, e.Opened = true, ev.Reason
		e.half = ev.Old == tcp.Listen && ev.Cookie == 0
	} else {
		e.leave(ev, missing)
	}
	if ev.New != tcp.Close {
		e.enter(ev)
	}
	e.carry(ev)
}

// leave ends the state that the event is the end of, which may not have been seen before.
func (e *End) leave(ev *tcp.Event, missing bool) {
	if missing && len(e.Stays) > 0 {
		e.Missing = true
		last := &e.Stays[len(e.Stays)-1]
		last.End, last.Kind = ev.BootNS, tcp.Unknown
	}
	if ev.Kind != tcp.Transition {
		return
	}
	if len(e.Stays) == 0 || e.Stays[len(e.Stays)-1].State != ev.Old {
		e.add(Stay{State: ev.Old, Begin: ev.BootNS, Kind: tcp.Unknown})
	}
	last := &e.Stays[len(e.Stays)-1]
	last.End, last.Next, last.Reason, last.Errno = ev.BootNS, ev.New, ev.Reason, ev.Errno
	last.Owner = Owner{ev.PID, ev.Comm, ev.OwnerSource}
	last.Kind = tcp.Unknown
	if ev.DurationKind.Known() {
		last.Kind, last.Begin = ev.DurationKind, ev.BootNS-min(ev.Duration, ev.BootNS)
	}
}

// enter begins the state that the event leads to. A row of a state that is known already adds
// nothing to it.
func (e *End) enter(ev *tcp.Event) {
	if ev.Kind == tcp.Transition {
		e.add(Stay{State: ev.New, Begin: ev.BootNS, End: ev.BootNS, Kind: tcp.Exact})
		return
	}
	if len(e.Stays) > 0 && e.Stays[len(e.Stays)-1].State == ev.New {
		return
	}
	stay := Stay{State: ev.New, Begin: ev.BootNS, End: ev.BootNS, Kind: tcp.Unknown}
	if ev.DurationKind.Known() {
		stay.Kind, stay.Begin = ev.DurationKind, ev.BootNS-min(ev.Duration, ev.BootNS)
	}
	e.add(stay)
}

// add adds a state, or replaces the last one where a recording has more than there can be.
func (e *End) add(s Stay) {
	if len(e.Stays) == maxStays {
		e.Missing = true
		e.Stays[maxStays-1] = s
		return
	}
	e.Stays = append(e.Stays, s)
}

// lose notes that the end is over, as events of others prove, and nobody knows since when.
func (e *End) lose() {
	e.Lost, e.over = true, true
	if last := &e.Stays[len(e.Stays)-1]; last.Next == 0 {
		last.Kind = tcp.Unknown
	}
}

// close ends what is known of an end that is not over, at the time now.
func (e *End) close(now uint64) {
	e.Open = true
	last := &e.Stays[len(e.Stays)-1]
	if last.Next == 0 {
		last.End = max(now, last.Begin)
	}
}

// carry keeps the event, and of the one before what this one does not know.
func (e *End) carry(ev *tcp.Event) {
	was := e.Event
	e.Event = *ev
	e.Inherit(&was)
	if e.FD == tcp.NoFD && e.PID == was.PID {
		e.FD = was.FD
	}
}

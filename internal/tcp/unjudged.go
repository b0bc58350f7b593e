package tcp

// Fact is what a Filter asks for and an event may not know.
type Fact uint8

// The facts.
const (
	NoFact Fact = iota
	Age         // how long the socket has been in its state
	Owner       // the process
	User
	Place     // the cgroup, and so the container
	Forgotten // one of these three, of a TIME_WAIT: the kernel does not keep them
	facts
)

// Unjudged counts sockets that a filter left out although they may be among those that it
// asks for, by the Fact that is not known of them.
type Unjudged [facts]int

// Add counts a socket, unless fact is NoFact.
func (u *Unjudged) Add(fact Fact) {
	if fact != NoFact {
		u[fact]++
	}
}

// Missing returns the fact for want of which the event does not match: all that is known
// of it fits. NoFact: it matches, or something that is known of it does not fit.
func (f *Filter) Missing(ev *Event) Fact {
	missing, rest := NoFact, *f // without what cannot be judged
	if len(f.Cgroups)+len(f.Containers) > 0 && ev.Cgroup == "" && (ev.ContainerID == "" || len(f.Containers) == 0) {
		missing, rest.Cgroups, rest.Containers = Place, nil, nil
	}
	if len(f.UIDs) > 0 && ev.UID == NoUID {
		missing, rest.UIDs = User, nil
	}
	if len(f.PIDs)+len(f.Comm) > 0 && ev.OwnerSource == "" {
		missing, rest.PIDs, rest.Comm = Owner, nil, nil
	}
	if missing != NoFact && (ev.New == TimeWait || ev.Old == TimeWait) {
		missing = Forgotten
	}
	if ev.mayBeOlder() && ev.Duration < f.MinDuration && among(f.States, ev.lived()) {
		missing, rest.MinDuration, rest.States = Age, 0, nil
	}
	if missing != NoFact && !rest.Match(ev) {
		return NoFact
	}
	return missing
}

// mayBeOlder reports whether Duration is not the whole of it. In a transition, a duration
// that does not apply is one.
func (e *Event) mayBeOlder() bool {
	return e.DurationKind != Exact && (e.DurationKind != "" || e.Kind == Socket)
}

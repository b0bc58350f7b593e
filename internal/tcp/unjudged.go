package tcp

// Fact is what a Filter asks for and an event may not know.
type Fact uint8

// The facts.
const (
	NoFact Fact = iota
	Age         // how long the socket has been in its state
	Owner       // the process
	User
	Place     // the cgroup, and so the container, or what it is called
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
	var missing Fact
	var rest Filter // without what cannot be judged
	missing, rest = f.missingPlace(ev)
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

// missingPlace leaves out what the filter asks of a place that is not known. A name that was not
// found is not known either: the container has one.
func (f *Filter) missingPlace(ev *Event) (missing Fact, rest Filter) {
	rest = *f
	byPath := len(f.Cgroups)+len(f.Units) > 0
	byContainer := len(f.Containers)+len(f.ContainerNames)+len(f.Pods) > 0
	switch {
	case !byPath && !byContainer:
	case ev.Cgroup == "" && (byPath || ev.ContainerID == ""):
		missing, rest.Cgroups, rest.Units, rest.Containers, rest.ContainerNames, rest.Pods = Place, nil, nil, nil, nil, nil
	case len(f.ContainerNames) > 0 && ev.ContainerID != "" && ev.Named().Container == "" && !f.container(ev):
		missing, rest.Containers, rest.ContainerNames = Place, nil, nil
	case len(f.Pods) > 0 && ev.Named().PodUID != "" && ev.Named().Pod == "":
		missing, rest.Pods = Place, nil
	}
	return missing, rest
}

// mayBeOlder reports whether Duration is not the whole of it. In a transition, a duration
// that does not apply is one.
func (e *Event) mayBeOlder() bool {
	return e.DurationKind != Exact && (e.DurationKind != "" || e.Kind == Socket)
}

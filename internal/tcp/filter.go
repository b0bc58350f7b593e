package tcp

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Filter says which sockets the user asked for. An empty field asks for
// nothing; the values of one field are alternatives; all fields that are set
// have to hold, and for the same event of the socket. The zero Filter matches
// every socket. Set it up once: it is not to be changed while in use.
type Filter struct {
	Family      int      // 4 or 6; 0: both
	NetNS       []uint32 // inodes of network namespaces
	LocalPorts  Ports
	RemotePorts Ports
	EitherPort  Ports
	Local       []netip.Prefix // IPv4 as IPv4, not mapped
	Remote      []netip.Prefix
	States      []State // the socket enters or leaves one of them
	MinDuration uint64  // ns that it stayed in a state, in one of States if set
	Reasons     []Reason
	Errnos      []uint32
	Cookies     []uint64
	PIDs        []uint32
	UIDs        []uint32
	Comm        []string // process names, or globs as in path.Match
	Cgroups     []string // cgroup paths, all below included, or globs as in path.Match
	Containers  []string // ids of containers, or their beginnings; of an outer one too
	// ContainerNames are names of containers, Pods are POD or NAMESPACE/POD, Units are units of systemd,
	// of services also without .service; all of them may be globs as in path.Match. A container may be
	// given by either id or name.
	ContainerNames, Pods, Units []string

	Where func(*Event) bool // what else has to hold; nil: nothing
}

// verdict is what is known of a socket after one of its events. The order
// matters: of several fields the lowest verdict counts.
type verdict uint8

const (
	never     verdict = iota // nothing that comes can make it match
	undecided                // what does not match yet may still change
	match
)

// Validate returns an error for a filter that could not match what its author
// meant: a malformed glob, a relative cgroup, an empty name.
func (f *Filter) Validate() error {
	if f.Family != 0 && f.Family != 4 && f.Family != 6 {
		return fmt.Errorf("unknown address family %d: it is 4 or 6", f.Family)
	}
	for _, glob := range slices.Concat(f.Comm, f.Cgroups, f.ContainerNames, f.Units, f.Pods) {
		if _, err := path.Match(glob, ""); err != nil {
			return fmt.Errorf(`malformed pattern %q: write \[ for a bracket that is meant as such: %w`, glob, err)
		}
	}
	for _, cgroup := range f.Cgroups {
		if !strings.HasPrefix(cgroup, "/") {
			return fmt.Errorf("cgroup %q is not a path: write one that starts with /, such as /system.slice", cgroup)
		}
	}
	if slices.Contains(slices.Concat(f.Comm, f.Containers, f.ContainerNames, f.Pods, f.Units), "") {
		return fmt.Errorf("empty name or container id: nothing would match it")
	}
	return nil
}

// Match reports whether the event matches by itself. This suits a table of
// sockets; a stream goes through a Selector.
func (f *Filter) Match(ev *Event) bool { return f.judge(ev) == match }

// lasting reports whether one event of a socket tells all: the filter has only
// fields that are the same in every event.
func (f *Filter) lasting() bool {
	return f.LocalPorts.All() && f.EitherPort.All() && len(f.Local) == 0 && len(f.States) == 0 && f.MinDuration == 0 &&
		len(f.Reasons) == 0 && len(f.Errnos) == 0 && len(f.Cookies) == 0 && f.Where == nil &&
		len(f.PIDs) == 0 && len(f.UIDs) == 0 && len(f.Comm) == 0 && len(f.Cgroups) == 0 &&
		len(f.Containers)+len(f.ContainerNames)+len(f.Pods)+len(f.Units) == 0
}

func (f *Filter) judge(ev *Event) verdict {
	if !f.remoteEnd(ev) {
		return never
	}
	v := min(f.localEnd(ev), f.identity(ev))
	if v == match && !(f.reached(ev) && f.owner(ev) && f.place(ev) && (f.Where == nil || f.Where(ev))) {
		// A state and an age can be reached as long as the socket lives, and
		// the owner can change: it is inherited first, learned later, and a
		// descriptor can be passed on.
		return undecided
	}
	return v
}

func (f *Filter) remoteEnd(ev *Event) bool {
	addr := ev.Local.Addr()
	return (f.Family == 0 || f.Family == 4 && addr.Is4() || f.Family == 6 && addr.Is6()) &&
		among(f.NetNS, ev.NetNS) &&
		f.RemotePorts.Has(ev.Remote.Port()) &&
		within(f.Remote, ev.Remote.Addr())
}

// localEnd is undecided before connect() has picked a port and an address.
func (f *Filter) localEnd(ev *Event) verdict {
	v := f.EitherPort.either(ev.Local.Port(), ev.Remote.Port())
	switch {
	case f.LocalPorts.All():
	case ev.Local.Port() == 0:
		v = min(v, undecided)
	case !f.LocalPorts.Has(ev.Local.Port()):
		return never
	}
	if !within(f.Local, ev.Local.Addr()) {
		if !ev.Local.Addr().IsUnspecified() {
			return never
		}
		v = min(v, undecided)
	}
	return v
}

// identity is undecided as long as a half-open connection has no cookie.
func (f *Filter) identity(ev *Event) verdict {
	switch {
	case among(f.Cookies, ev.Cookie):
		return match
	case ev.Cookie == 0:
		return undecided
	}
	return never
}

func (f *Filter) reached(ev *Event) bool {
	if !among(f.Reasons, ev.Reason) || !among(f.Errnos, ev.Errno) {
		return false
	}
	if f.MinDuration == 0 {
		return among(f.States, ev.New) || among(f.States, ev.lived())
	}
	return ev.DurationKind.Known() && ev.Duration >= f.MinDuration && among(f.States, ev.lived())
}

// lived returns the state that the duration is of.
func (e *Event) lived() State {
	if e.Kind == Socket {
		return e.New
	}
	return e.Old
}

func (f *Filter) owner(ev *Event) bool {
	if (len(f.PIDs) > 0 || len(f.Comm) > 0) && ev.OwnerSource == "" {
		return false
	}
	return among(f.PIDs, ev.PID) && among(f.UIDs, ev.UID) &&
		anyOf(f.Comm, ev.Comm, glob)
}

func (f *Filter) place(ev *Event) bool {
	return anyOf(f.Cgroups, ev.Cgroup, contains) && f.container(ev) &&
		anyOf(f.Pods, ev.Names, inPod) && anyOf(f.Units, ev, inUnit)
}

func (f *Filter) container(ev *Event) bool {
	if len(f.Containers)+len(f.ContainerNames) == 0 {
		return true
	}
	for _, want := range f.Containers {
		if strings.HasPrefix(ev.ContainerID, want) || inContainer(ev.Cgroup, want) {
			return true
		}
	}
	name := ev.Named().Container
	return name != "" && len(f.ContainerNames) > 0 && anyOf(f.ContainerNames, name, glob)
}

// inPod reports whether names are of a pod that is called POD or NAMESPACE/POD.
func inPod(want string, names *Names) bool {
	if names == nil || names.Pod == "" {
		return false
	}
	namespace, pod, both := strings.Cut(want, "/")
	if !both {
		return glob(want, names.Pod)
	}
	return glob(namespace, names.Namespace) && glob(pod, names.Pod)
}

func inUnit(want string, ev *Event) bool {
	unit := Unit(ev.Cgroup)
	return unit != "" && (glob(want, unit) || glob(want, strings.TrimSuffix(unit, ".service")))
}

func among[T comparable](wanted []T, v T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, v)
}

func within(wanted []netip.Prefix, addr netip.Addr) bool {
	for _, p := range wanted {
		if p.Contains(addr) {
			return true
		}
	}
	return len(wanted) == 0
}

func anyOf[T any](wanted []string, v T, fits func(want string, v T) bool) bool {
	for _, want := range wanted {
		if fits(want, v) {
			return true
		}
	}
	return len(wanted) == 0
}

// glob also takes a name literally: one that holds a bracket or a backslash, as
// systemd's do, need not be escaped to be found.
func glob(pattern, name string) bool {
	if pattern == name {
		return true
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// contains matches a cgroup and all below it: as many components of the path
// are looked at as the pattern has.
func contains(pattern, cgroup string) bool {
	pattern = strings.TrimRight(pattern, "/")
	end, components := 0, strings.Count(pattern, "/")
	for ; end < len(cgroup); end++ {
		if cgroup[end] == '/' {
			if components == 0 {
				break
			}
			components--
		}
	}
	return cgroup != "" && glob(pattern, cgroup[:end])
}

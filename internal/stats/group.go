package stats

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// By names what connections are grouped by.
type By string

// What connections can be grouped by.
const (
	ByComm      By = "comm"
	ByHost      By = "host" // all are one group
	ByPID       By = "pid"
	ByUnit      By = "unit" // see tcp.Unit
	ByContainer By = "container"
	ByPod       By = "pod"
	ByNamespace By = "namespace"
	ByImage     By = "image"
	ByRemote    By = "remote" // see tcp.Event.RemoteEnd
	ByLocalPort By = "lport"  // of servers: that of a client means nothing
	ByNetNS     By = "netns"
	ByCgroup    By = "cgroup"
)

// Bys lists them, the default first.
var Bys = []By{ByComm, ByHost, ByPID, ByUnit, ByContainer, ByRemote, ByLocalPort, ByNetNS, ByCgroup, ByPod, ByNamespace, ByImage}

// Key names a group. The zero Key is that of what is not known.
type Key struct {
	text   string
	space  string // of a pod, its namespace
	remote netip.AddrPort
	number uint32
}

// KeyOf returns the group of an event. It allocates nothing.
func (by By) KeyOf(e *tcp.Event) (k Key) {
	switch by {
	case ByHost:
		k.text = string(ByHost)
	case ByPID:
		if e.OwnerSource != "" { // the same number is another process later on
			k.number, k.text = e.PID, e.Comm
		}
	case ByUnit:
		k.text = tcp.Unit(e.Cgroup)
	case ByContainer: // by its id: pods call theirs alike
		k.text = e.ContainerID
	case ByPod:
		if e.Names != nil {
			k.text, k.space = e.Names.Pod, e.Names.Namespace
		}
	case ByNamespace:
		if e.Names != nil {
			k.text = e.Names.Namespace
		}
	case ByImage:
		if e.Names != nil {
			k.text = e.Names.Image
		}
	case ByRemote:
		k.remote = e.RemoteEnd()
	case ByLocalPort:
		if e.Role == tcp.Server {
			k.number = uint32(e.Local.Port())
		}
	case ByNetNS:
		k.number = e.NetNS
	case ByCgroup:
		k.text = e.Cgroup
	default:
		k.text = e.Comm
	}
	return k
}

// Name is what the group is called.
func (by By) Name(k Key) string {
	switch {
	case k == Key{}:
		return ""
	case by == ByRemote && k.remote.Port() == 0:
		return k.remote.Addr().String()
	case by == ByRemote:
		return k.remote.String()
	case by == ByPID, by == ByLocalPort, by == ByNetNS:
		return strconv.FormatUint(uint64(k.number), 10)
	case k.space != "":
		return k.space + "/" + k.text
	}
	return k.text
}

// Groups keeps counts for each group, MaxGroups of them and one for all others.
type Groups[C any] struct {
	by    By
	known map[Key]*C
	other *C // nil: there is none

	// What containers are called, of those in known that have a name.
	called   map[Key]*tcp.Names
	lastCall *tcp.Names // of the last event that had one
}

// NewGroups returns none yet.
func NewGroups[C any](by By) Groups[C] {
	return Groups[C]{by: by, known: make(map[Key]*C), called: make(map[Key]*tcp.Names)}
}

// Of returns the group of an event, and whether that is known.
func (g *Groups[C]) Of(e *tcp.Event) (counts *C, known bool) {
	k := g.by.KeyOf(e)
	if counts = g.known[k]; counts == nil {
		counts = g.add(k)
	}
	if g.by == ByContainer && e.Names != nil && e.Names != g.lastCall {
		g.call(k, e.Names)
	}
	return counts, k != Key{}
}

func (g *Groups[C]) call(k Key, names *tcp.Names) {
	if g.lastCall = names; g.known[k] == nil || g.called[k] == names {
		return
	}
	k.text = strings.Clone(k.text)
	g.called[k] = names
}

// nameOf is what a group is called: a container by its name, in its pod if it has one.
func (g *Groups[C]) nameOf(k Key) string {
	names := g.called[k]
	switch {
	case names == nil || names.Container == "":
		return g.by.Name(k)
	case names.Pod != "":
		return names.Namespace + "/" + names.Pod + "/" + names.Container
	}
	return names.Container
}

func (g *Groups[C]) add(k Key) *C {
	if len(g.known) == MaxGroups {
		if g.other == nil {
			g.other = new(C)
		}
		return g.other
	}
	k.text, k.space = strings.Clone(k.text), strings.Clone(k.space) // it may be part of a longer one
	g.known[k] = new(C)
	return g.known[k]
}

// Counts yields those of every group, that of all others last.
func (g *Groups[C]) Counts() iter.Seq[*C] {
	return func(yield func(*C) bool) {
		for _, counts := range g.known {
			if !yield(counts) {
				return
			}
		}
		if g.other != nil {
			yield(g.other)
		}
	}
}

// All yields every group with its name, that of all others last.
func (g *Groups[C]) All() iter.Seq2[GroupName, *C] {
	return func(yield func(GroupName, *C) bool) {
		for k, counts := range g.known {
			name := GroupName{Key: k, Name: g.nameOf(k)}
			if g.by == ByPID {
				name.Comm = k.text
			}
			if !yield(name, counts) {
				return
			}
		}
		if g.other != nil {
			yield(GroupName{Name: OtherGroup, Other: true}, g.other)
		}
	}
}

// GroupName says which group it is.
type GroupName struct {
	Key   Key    // not of Other
	Name  string // empty: not known; raw
	Comm  string // of a process, with ByPID; raw
	Other bool   // all that found no room in a group
}

// compareOther puts the group of all others last.
func compareOther(a, b *GroupName) int {
	switch {
	case a.Other == b.Other:
		return 0
	case a.Other:
		return 1
	}
	return -1
}

func compareNames(a, b *GroupName) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Comm, b.Comm))
}

// Drop forgets the groups of which drop says so, to make room. Nobody may count in one of them
// any more.
func (g *Groups[C]) Drop(drop func(*C) bool) {
	maps.DeleteFunc(g.known, func(_ Key, counts *C) bool { return drop(counts) })
	maps.DeleteFunc(g.called, func(k Key, _ *tcp.Names) bool { return g.known[k] == nil })
	g.lastCall = nil
}

// reportGroups returns the groups that have or had connections.
func reportGroups(g *Groups[Counts]) (all []Group) {
	for name, counts := range g.All() {
		if *counts == (Counts{}) && !name.Other { // its connections turned out to be another one's
			continue
		}
		all = append(all, Group{name, *counts})
	}
	slices.SortFunc(all, func(a, b Group) int {
		return cmp.Or(compareOther(&a.GroupName, &b.GroupName), cmp.Compare(b.Opened+b.Ended(), a.Opened+a.Ended()),
			cmp.Compare(b.Open, a.Open), compareNames(&a.GroupName, &b.GroupName))
	})
	return all
}

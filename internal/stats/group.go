package stats

import (
	"cmp"
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
	ByRemote    By = "remote" // see tcp.Event.RemoteEnd
	ByLocalPort By = "lport"  // of servers: that of a client means nothing
	ByNetNS     By = "netns"
	ByCgroup    By = "cgroup"
)

// Bys lists them, the default first.
var Bys = []By{ByComm, ByHost, ByPID, ByUnit, ByContainer, ByRemote, ByLocalPort, ByNetNS, ByCgroup}

// key names a group. The zero key is that of what is not known.
type key struct {
	text   string
	remote netip.AddrPort
	number uint32
}

// keyOf returns the group of an event. It allocates nothing.
func (by By) keyOf(e *tcp.Event) (k key) {
	switch by {
	case ByHost:
		k.text = string(ByHost)
	case ByPID:
		if e.OwnerSource != "" { // the same number is another process later on
			k.number, k.text = e.PID, e.Comm
		}
	case ByUnit:
		k.text = tcp.Unit(e.Cgroup)
	case ByContainer:
		k.text = e.ContainerID
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

// name is what the group is called.
func (by By) name(k key) string {
	switch {
	case k == key{}:
		return ""
	case by == ByRemote && k.remote.Port() == 0:
		return k.remote.Addr().String()
	case by == ByRemote:
		return k.remote.String()
	case by == ByPID, by == ByLocalPort, by == ByNetNS:
		return strconv.FormatUint(uint64(k.number), 10)
	}
	return k.text
}

// groups keeps counts for each group.
type groups[C any] struct {
	by    By
	known map[key]*C
	other *C // nil: there is none
}

func newGroups[C any](by By) groups[C] { return groups[C]{by: by, known: make(map[key]*C)} }

// of returns the group of an event, and whether that is known.
func (g *groups[C]) of(e *tcp.Event) (counts *C, known bool) {
	k := g.by.keyOf(e)
	if counts = g.known[k]; counts == nil {
		counts = g.add(k)
	}
	return counts, k != key{}
}

func (g *groups[C]) add(k key) *C {
	if len(g.known) == MaxGroups {
		if g.other == nil {
			g.other = new(C)
		}
		return g.other
	}
	k.text = strings.Clone(k.text) // it may be part of a longer one
	g.known[k] = new(C)
	return g.known[k]
}

// reportGroups returns the groups that have or had connections.
func reportGroups(g *groups[Counts]) (all []Group) {
	for k, counts := range g.known {
		if *counts == (Counts{}) { // its connections turned out to be another one's
			continue
		}
		group := Group{Name: g.by.name(k), Counts: *counts}
		if g.by == ByPID {
			group.Comm = k.text
		}
		all = append(all, group)
	}
	slices.SortFunc(all, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Opened+b.Ended(), a.Opened+a.Ended()), cmp.Compare(b.Open, a.Open),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Comm, b.Comm))
	})
	if g.other != nil {
		all = append(all, Group{Name: OtherGroup, Other: true, Counts: *g.other})
	}
	return all
}

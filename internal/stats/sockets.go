package stats

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// SocketCounts are of the sockets that exist: all, and by state.
type SocketCounts struct {
	Total  uint64
	States [tcp.NewSynRecv]uint64 // by tcp.State
}

func (c *SocketCounts) add(s tcp.State) {
	c.Total++
	if int(s) < len(c.States) {
		c.States[s]++
	}
}

// SocketGroup is a group of sockets that exist.
type SocketGroup struct {
	GroupName
	SocketCounts
}

// SocketReport says how many sockets of each group are in each state. It is plain data.
type SocketReport struct {
	Time   int64  // wall clock, ns since the Unix epoch
	BootNS uint64 // CLOCK_BOOTTIME, ns since the boot
	By     By
	Total  SocketCounts
	Groups []SocketGroup // most sockets first, then Other
}

// SocketTally counts the sockets of one look by group. It keeps MaxGroups groups and
// maxListeners listeners, whatever comes.
type SocketTally struct {
	by     Groups[SocketCounts]
	total  SocketCounts
	listen Listeners
}

// NewSocketTally returns an empty one.
func NewSocketTally(by By) *SocketTally {
	return &SocketTally{by: NewGroups[SocketCounts](by), listen: NewListeners()}
}

// Listeners are those that the tally goes by.
func (t *SocketTally) Listeners() Listeners { return t.listen }

// Add counts a row. Rows of listeners come before those of their connections.
func (t *SocketTally) Add(e *tcp.Event) {
	row := *e
	t.listen.complete(&row)
	counts, _ := t.by.Of(&row)
	counts.add(row.New)
	t.total.add(row.New)
}

// Report returns what was counted, at these times.
func (t *SocketTally) Report(wall int64, boot uint64) *SocketReport {
	r := &SocketReport{Time: wall, BootNS: boot, By: t.by.by, Total: t.total}
	for name, counts := range t.by.All() {
		r.Groups = append(r.Groups, SocketGroup{name, *counts})
	}
	slices.SortFunc(r.Groups, func(a, b SocketGroup) int {
		return cmp.Or(compareOther(&a.GroupName, &b.GroupName), cmp.Compare(b.Total, a.Total), compareNames(&a.GroupName, &b.GroupName))
	})
	return r
}

// Listeners are the ports that something listens on. They tell the server's end of a
// TIME_WAIT from the client's: the kernel keeps no role there.
type Listeners map[portOf]struct{}

type portOf struct {
	netns uint32
	port  uint16
}

// maxListeners bounds Listeners, to 4 MB. Whoever comes later tells no end.
const maxListeners = 1 << 16

// NewListeners returns an empty set.
func NewListeners() Listeners { return make(Listeners) }

// Note takes a row in.
func (l Listeners) Note(e *tcp.Event) {
	if e.New == tcp.Listen && len(l) < maxListeners {
		l[portOf{e.NetNS, e.Local.Port()}] = struct{}{}
	}
}

func (l Listeners) have(netns uint32, port uint16) bool {
	_, have := l[portOf{netns, port}]
	return have
}

// complete adds the role that a row without one has as far as listeners tell it. A listener is
// the server of its port, and has no remote end.
func (l Listeners) complete(row *tcp.Event) {
	switch {
	case row.New == tcp.Listen:
		row.Role, row.Remote = tcp.Server, netip.AddrPort{}
	case row.Role != "":
	case l.have(row.NetNS, row.Local.Port()):
		row.Role = tcp.Server
	case l.have(row.NetNS, row.Remote.Port()):
		row.Role = tcp.Client
	}
}

// TimeWaitGroup is what a client or a server has in TIME_WAIT: of a client, all that compete
// for the same local ports; of a server, what its port left behind.
type TimeWaitGroup struct {
	NetNS  uint32
	Local  netip.AddrPort // of a client, whose ports differ: without a port
	Remote netip.AddrPort // of a server: none
	Count  uint64
	Oldest uint64 // age of the oldest in ns, at least; 0: not known
}

// Server reports whether these sockets take no port from the local range.
func (g *TimeWaitGroup) Server() bool { return g.Local.Port() != 0 }

// timeWaits sums up sockets in TIME_WAIT.
type timeWaits struct {
	groups map[timeWaitKey]*TimeWaitGroup
	rest   uint64 // sockets that found no room in a group
}

type timeWaitKey struct {
	netns         uint32
	local, remote netip.AddrPort
}

// maxTimeWaits bounds the groups, to 4 MB.
const maxTimeWaits = 1 << 14

func newTimeWaits() *timeWaits { return &timeWaits{groups: make(map[timeWaitKey]*TimeWaitGroup)} }

// add counts a row whose role is complete.
func (t *timeWaits) add(row *tcp.Event) {
	k := timeWaitKey{row.NetNS, netip.AddrPortFrom(row.Local.Addr(), 0), row.Remote}
	if row.RemoteEnd().Port() == 0 { // a server's
		k.local, k.remote = row.Local, netip.AddrPort{}
	}
	g := t.groups[k]
	if g == nil {
		if len(t.groups) == maxTimeWaits {
			t.rest++
			return
		}
		g = &TimeWaitGroup{NetNS: k.netns, Local: k.local, Remote: k.remote}
		t.groups[k] = g
	}
	g.Count++
	g.Oldest = max(g.Oldest, age(row))
}

// list returns the groups: clients first, as only they use up local ports, and of them those
// with most sockets.
func (t *timeWaits) list() (all []TimeWaitGroup) {
	for _, g := range t.groups {
		all = append(all, *g)
	}
	server := func(g *TimeWaitGroup) int { return int(min(g.Local.Port(), 1)) }
	slices.SortFunc(all, func(a, b TimeWaitGroup) int {
		return cmp.Or(cmp.Compare(server(&a), server(&b)), cmp.Compare(b.Count, a.Count), a.Remote.Compare(b.Remote),
			a.Local.Compare(b.Local), cmp.Compare(a.NetNS, b.NetNS))
	})
	return all
}

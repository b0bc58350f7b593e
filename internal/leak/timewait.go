package leak

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// timeWaitSeconds is TCP_TIMEWAIT_LEN: how long the kernel keeps a TIME_WAIT.
const timeWaitSeconds = 60

// The bounds of a TimeWaitTable. A group takes about 700 bytes: 12 MB at most.
const (
	maxTimeWaitGroups  = 1 << 14
	maxTimeWaitClosers = 8
)

// TimeWaitGroup is what a TimeWaitTable tells of the TIME_WAITs of one destination:
// all that compete for the same local ports. Those of a server, which take no port
// from the range, are grouped by its port and the client's address.
type TimeWaitGroup struct {
	NetNS     uint32
	Local     netip.Addr
	LocalPort uint16         // of a server; 0: a client, whose ports differ
	Remote    netip.AddrPort // port 0: the clients of a server

	Count   int    // TIME_WAITs now
	Watched uint64 // ns since the watch began

	// Seen while watching.
	New      uint64
	Expired  uint64
	Reused   uint64 // by connect(), or by a SYN
	Other    uint64 // reset, killed, gone with the namespace
	Overflow uint64 // never entered: tcp_max_tw_buckets
	Closers  []Closer
}

// Closer is a process that closed connections first.
type Closer struct {
	PID   uint32
	Comm  string
	Count uint64
}

// PerSecond is how many came per second; false: not watched for long enough.
func (g *TimeWaitGroup) PerSecond() (float64, bool) {
	return float64(g.New) / (float64(max(g.Watched, 1)) / 1e9), g.Watched >= minTimeWaitWatch
}

const minTimeWaitWatch = 1e9

// Settles is how many TIME_WAITs there will be at the present rate, when as many
// expire as come, if ports do not run out before; false: not known. One that takes
// the port of another adds none.
func (g *TimeWaitGroup) Settles() (float64, bool) {
	_, known := g.PerSecond()
	added := float64(g.New) - float64(min(g.Reused, g.New))
	return added / (float64(max(g.Watched, 1)) / 1e9) * timeWaitSeconds, known
}

// Left is how long, in ns, until a range of so many ports is used up; false: never
// at this rate, or not known.
func (g *TimeWaitGroup) Left(ports int) (uint64, bool) {
	rate, known := g.PerSecond()
	settles, _ := g.Settles()
	if !known || settles <= float64(ports) || g.LocalPort != 0 {
		return 0, false
	}
	net := rate - float64(g.Expired+g.Reused+g.Other)/(float64(g.Watched)/1e9)
	if net <= 0 {
		return 0, false
	}
	return uint64(float64(max(0, ports-g.Count)) / net * 1e9), true
}

type timeWaitKey struct {
	netns  uint32
	lport  uint16
	local  netip.Addr
	remote netip.AddrPort
}

// TimeWaitTable groups TIME_WAITs by destination. Events go to tcp.Event as they come,
// the rows of a refresh to Begin, Add and End. It belongs to one goroutine.
type TimeWaitTable struct {
	first, now uint64
	groups     map[timeWaitKey]*TimeWaitGroup
	order      []*TimeWaitGroup
	unplaced   int
}

// NewTimeWaitTable returns an empty table of a watch that begins at first, of
// CLOCK_BOOTTIME in ns.
func NewTimeWaitTable(first uint64) *TimeWaitTable {
	return &TimeWaitTable{first: first, groups: make(map[timeWaitKey]*TimeWaitGroup)}
}

func (t *TimeWaitTable) group(e *tcp.Event) *TimeWaitGroup {
	key := timeWaitKey{netns: e.NetNS, local: e.Local.Addr(), remote: e.Remote}
	g := t.groups[key] // where the role is not known: the service that others went to
	if remote := remoteEnd(e); remote.Port() == 0 && (g == nil || e.Role != "") {
		key.remote, key.lport = remote, e.Local.Port()
		g = t.groups[key]
	}
	if g == nil && len(t.groups) < maxTimeWaitGroups {
		g = &TimeWaitGroup{NetNS: key.netns, Local: key.local, LocalPort: key.lport, Remote: key.remote}
		t.groups[key] = g
	}
	return g
}

// tcp.Event counts beginnings and ends of TIME_WAIT. Other events do not matter.
func (t *TimeWaitTable) Event(e *tcp.Event) {
	if e.Kind != tcp.Transition || e.New != tcp.TimeWait && e.Old != tcp.TimeWait && e.Reason != tcp.TimewaitOverflow {
		return
	}
	g := t.group(e)
	switch {
	case g == nil:
	case e.Reason == tcp.TimewaitOverflow:
		g.Overflow++
		g.closer(e)
	case e.New == tcp.TimeWait:
		g.New++
		g.closer(e)
	case e.Reason == tcp.Expired:
		g.Expired++
	case e.Reason == tcp.ReusedByConnect, e.Reason == tcp.ReopenedBySyn:
		g.Reused++
	default:
		g.Other++
	}
}

// closer notes the owner of a socket that came into TIME_WAIT: whoever closes first
// gets it.
func (g *TimeWaitGroup) closer(e *tcp.Event) {
	if e.OwnerSource == "" {
		return
	}
	for i := range g.Closers {
		if g.Closers[i].PID == e.PID && g.Closers[i].Comm == e.Comm {
			g.Closers[i].Count++
			return
		}
	}
	if len(g.Closers) < maxTimeWaitClosers {
		g.Closers = append(g.Closers, Closer{e.PID, e.Comm, 1})
	}
}

// Begin starts a refresh at the time now.
func (t *TimeWaitTable) Begin(now uint64) {
	t.now, t.unplaced = now, 0
	for _, g := range t.groups {
		g.Count = 0
	}
}

// Add counts a row of the refresh.
func (t *TimeWaitTable) Add(row *tcp.Event) {
	if row.New != tcp.TimeWait {
		return
	}
	if g := t.group(row); g != nil {
		g.Count++
	} else {
		t.unplaced++
	}
}

// Unplaced is how many sockets of the refresh found no room in a group.
func (t *TimeWaitTable) Unplaced() int { return t.unplaced }

// End returns the groups, those that eat most ports first.
func (t *TimeWaitTable) End() []*TimeWaitGroup {
	t.order = t.order[:0]
	for key, g := range t.groups {
		if g.Count == 0 && g.Overflow == 0 {
			delete(t.groups, key) // all it had to tell is over
			continue
		}
		g.Watched = t.now - min(t.first, t.now)
		slices.SortStableFunc(g.Closers, func(a, b Closer) int { return cmp.Compare(b.Count, a.Count) })
		t.order = append(t.order, g)
	}
	slices.SortFunc(t.order, func(a, b *TimeWaitGroup) int {
		return cmp.Or(
			cmp.Compare(min(a.LocalPort, 1), min(b.LocalPort, 1)), // clients first: only they eat the range
			cmp.Compare(b.Count, a.Count),
			a.Remote.Compare(b.Remote), a.Local.Compare(b.Local), cmp.Compare(a.LocalPort, b.LocalPort),
		)
	})
	return t.order
}

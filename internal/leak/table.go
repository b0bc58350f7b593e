package leak

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// LeakBy names what sockets are grouped by.
type LeakBy string

// What sockets can be grouped by.
const (
	ByOwner     LeakBy = "owner" // process and remote end
	ByPID       LeakBy = "pid"
	ByComm      LeakBy = "comm"
	ByContainer LeakBy = "container"
	ByRemote    LeakBy = "remote"
	ByLocalPort LeakBy = "lport"
	ByStack     LeakBy = "stack"
)

// LeakBys are all of them, the default first.
var LeakBys = []LeakBy{ByOwner, ByPID, ByComm, ByContainer, ByRemote, ByLocalPort, ByStack}

// ParseLeakBy understands the names of LeakBys.
func ParseLeakBy(name string) (LeakBy, error) {
	if by := LeakBy(name); slices.Contains(LeakBys, by) {
		return by, nil
	}
	names := make([]string, len(LeakBys))
	for i, by := range LeakBys {
		names[i] = string(by)
	}
	return "", fmt.Errorf("%q is nothing to group by: give %s", name, strings.Join(names, ", "))
}

// LeakRule says which sockets a LeakTable counts, and into which group.
type LeakRule struct {
	State     tcp.State
	OlderThan uint64 // ns in State from which on a socket counts
	By        LeakBy
	NoQueues  bool // the queues of the rows are not those of now, as in a recording
}

// The bounds of a LeakTable. A group takes about 600 bytes, its stacks 640 and its
// ages 4 KiB at most: typically under 20 MB in all, 90 MB at the very most, however
// many sockets there are.
const (
	maxLeakGroups = 1 << 14 // past it a new remote end joins the group of its process
	maxLeakFolds  = 1 << 10 // such groups on top of that; past it sockets are counted in Unplaced
	maxLeakAges   = 512     // up to so many sockets the median is exact; then it is that of an even sample
	maxLeakStacks = 32      // distinct stacks of a group; sockets of others count in none
	maxLeakFDs    = 8

	leakMemory = 600e9 // ns that a group is remembered without a socket, if some were reset
)

// LeakGroup is what a LeakTable tells of sockets that belong together. A field
// that is not the same for all of them is zero.
type LeakGroup struct {
	PID       uint32 // 0: several, or not known
	Comm      string
	UID       uint32 // tcp.NoUID: several, or not known
	Container string
	Cgroup    string
	Role      tcp.Role
	NetNS     uint32
	Remote    netip.AddrPort // port 0 for the clients of a server
	LocalPort uint16

	Count   int
	Oldest  uint64 // ns in the state
	AtLeast bool   // Oldest is a lower bound: the socket is older than the trace
	Median  uint64 // ns, see maxLeakAges

	Growth      float64 // sockets per minute since the group was first seen, Reset included; may be negative
	GrowthKnown bool    // watched for minLeakWatch at least
	Watched     uint64  // ns since the group was first seen
	Stayed      int     // of the sockets that it had when the judgement began, those still there or in Reset
	Reset       int     // sockets that the peer reset, or that timed out, while we watched: nobody closed them
	Closing     bool    // most of those were closed while we watched

	FDs       []int32 // the lowest, sorted
	Unread    uint64  // bytes, without the end of file
	Read      int     // sockets whose application has read all there is, the end of file included
	FinUnread int     // sockets where only the end of file waits
	Data      int     // sockets where bytes wait
	Sending   int     // sockets that have bytes to send or to be acknowledged

	Stacks  []LeakStack // most frequent first
	Verdict Verdict
	Cause   Cause

	rule   *LeakRule
	ages   []uint64
	stride int // every stride-th age is in ages
	watch  leakWatch
}

// LeakStack is where sockets of a group were opened.
type LeakStack struct {
	ID    uint32
	PID   uint32 // whose addresses these are
	Count int
}

// leakWatch is what a group remembers from one refresh to the next.
type leakWatch struct {
	first      uint64 // when the group was first seen
	seen       uint64 // and last
	firstCount int
	base       uint64 // from when on it is judged who stays
	baseCount  int
	span       uint64 // for how long, before anybody is accused
	closing    bool
	reset      int // since first
	resetBase  int // of these, how many were there at base
}

// leakKey names a group. It holds neither pointers nor padding that matters, so
// that a hundred thousand look-ups per refresh are cheap.
type leakKey struct {
	pid, netns, stack, text uint32 // text: see LeakTable.texts
	lport, rport            uint16
	raddr                   [16]byte
}

// LeakTable groups the sockets that sit in a state, refresh by refresh, and judges
// each group. It is fed with Begin, Add for each row, End, and so on. It belongs to
// one goroutine and its memory is bounded.
type LeakTable struct {
	rule     LeakRule
	now      uint64
	groups   map[leakKey]*LeakGroup
	texts    map[string]uint32 // numbers of names, of no more than there are groups
	folds    int
	unplaced int
	order    []*LeakGroup
}

// NewLeakTable returns an empty table.
func NewLeakTable(rule LeakRule) *LeakTable {
	return &LeakTable{rule: rule, groups: make(map[leakKey]*LeakGroup), texts: make(map[string]uint32)}
}

// Begin starts a refresh at the time now, of CLOCK_BOOTTIME in ns.
func (t *LeakTable) Begin(now uint64) {
	t.now, t.unplaced = now, 0
	for _, g := range t.groups {
		*g = LeakGroup{
			rule: g.rule, watch: g.watch, ages: g.ages[:0], stride: 1,
			FDs: g.FDs[:0], Stacks: g.Stacks[:0],
		}
	}
}

// Counts reports whether a row is one of those that the table counts.
func (t *LeakTable) Counts(row *tcp.Event) bool {
	return row.New == t.rule.State && row.DurationKind.Known() && row.Duration >= t.rule.OlderThan
}

// Add counts a row of the refresh, if it is one to count. It keeps nothing of it
// but its strings. The group that it went to stays the same as long as it is not
// empty; nil: the row was not counted.
func (t *LeakTable) Add(row *tcp.Event) *LeakGroup {
	if !t.Counts(row) {
		return nil
	}
	g := t.group(row)
	if g == nil {
		t.unplaced++
		return nil
	}
	g.describe(row)
	g.measure(row)
	return g
}

// tcp.Event takes what happens between refreshes. It matters what becomes of the sockets:
// one that a reset or a keepalive takes out of its state leaves the kernel's tables,
// and its descriptor stays as open as it was. Only LAST_ACK proves a close().
func (t *LeakTable) Event(e *tcp.Event) {
	if e.Kind != tcp.Transition || e.Old != t.rule.State || e.New != tcp.Close || t.rule.State != tcp.CloseWait ||
		e.Reason != tcp.RSTReceived && e.Reason != tcp.Timeout {
		return
	}
	g := t.groups[t.key(e)]
	if g == nil || e.Duration < t.rule.OlderThan {
		return
	}
	g.watch.reset++
	if e.BootNS-min(e.Duration, e.BootNS)+t.rule.OlderThan <= g.watch.base {
		g.watch.resetBase++
	}
}

// Unplaced is how many sockets of the refresh found no room in a group.
func (t *LeakTable) Unplaced() int { return t.unplaced }

// End judges the groups of the refresh and returns them, worst first. They are
// valid until the next Begin.
func (t *LeakTable) End() []*LeakGroup {
	t.order = t.order[:0]
	for key, g := range t.groups {
		if g.Count == 0 {
			// What was reset is remembered for a while: a slow leak may have no other socket.
			if g.watch.reset == 0 || t.now-g.watch.seen > leakMemory {
				delete(t.groups, key)
			}
			continue
		}
		g.finish(t.now)
		t.order = append(t.order, g)
	}
	t.folds = max(0, len(t.groups)-maxLeakGroups)
	slices.SortFunc(t.order, worse)
	return t.order
}

// worse puts leaks first, then what is many, then what is old. The rest only makes
// the order the same each time; it is seldom needed, and dear.
func worse(a, b *LeakGroup) int {
	if c := cmp.Compare(b.Verdict.weight(), a.Verdict.weight()); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Count, a.Count); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Oldest, a.Oldest); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.PID, b.PID), a.Remote.Compare(b.Remote), cmp.Compare(a.Comm, b.Comm))
}

// group finds the group of a row, or makes it.
func (t *LeakTable) group(row *tcp.Event) *LeakGroup {
	key := t.key(row)
	if g := t.groups[key]; g != nil {
		return g
	}
	if len(t.groups) >= maxLeakGroups {
		key = leakKey{pid: row.PID}
		if g := t.groups[key]; g != nil {
			return g
		}
		if t.folds == maxLeakFolds {
			return nil
		}
		t.folds++
	}
	g := &LeakGroup{rule: &t.rule, stride: 1}
	t.groups[key] = g
	return g
}

func (t *LeakTable) key(row *tcp.Event) (k leakKey) {
	switch t.rule.By {
	case ByPID:
		k.pid = row.PID
	case ByComm:
		k.text = t.number(row.Comm)
	case ByContainer:
		k.text = t.number(row.ContainerID)
	case ByRemote:
		k.setRemote(remoteEnd(row))
	case ByLocalPort:
		k.lport, k.netns = row.Local.Port(), row.NetNS
	case ByStack:
		k.stack, k.pid = row.Stack, row.PID
	default:
		k.pid, k.netns = row.PID, row.NetNS
		k.setRemote(remoteEnd(row))
		if k.rport == 0 {
			k.lport = row.Local.Port()
		}
	}
	return k
}

func (k *leakKey) setRemote(remote netip.AddrPort) {
	k.raddr, k.rport = remote.Addr().As16(), remote.Port()
}

// number gives a name a number. Past the bound names share one.
func (t *LeakTable) number(name string) uint32 {
	n, known := t.texts[name]
	if !known && len(t.texts) < maxLeakGroups {
		n = uint32(len(t.texts) + 1)
		t.texts[name] = n
	}
	return n
}

// remoteEnd is what a user calls the other end: the service of a client, and the
// host, not the port of the moment, of whoever came to a server.
func remoteEnd(row *tcp.Event) netip.AddrPort {
	if row.Role == tcp.Server || row.Role == "" && row.Local.Port() < row.Remote.Port() {
		return netip.AddrPortFrom(row.Remote.Addr(), 0)
	}
	return row.Remote
}

// describe keeps of what the group says what holds for this row too.
func (g *LeakGroup) describe(row *tcp.Event) {
	remote := remoteEnd(row)
	if g.Count == 0 {
		g.PID, g.Comm, g.UID, g.Container, g.Cgroup = row.PID, row.Comm, row.UID, row.ContainerID, row.Cgroup
		g.Role, g.NetNS, g.Remote, g.LocalPort = row.Role, row.NetNS, remote, row.Local.Port()
		return
	}
	same(&g.PID, row.PID, 0)
	same(&g.Comm, row.Comm, "")
	same(&g.UID, row.UID, tcp.NoUID)
	same(&g.Container, row.ContainerID, "")
	same(&g.Cgroup, row.Cgroup, "")
	same(&g.Role, row.Role, "")
	same(&g.NetNS, row.NetNS, 0)
	same(&g.LocalPort, row.Local.Port(), 0)
	if g.Remote != remote {
		if g.Remote.Addr() != remote.Addr() {
			g.Remote = netip.AddrPort{}
		} else {
			g.Remote = netip.AddrPortFrom(remote.Addr(), 0)
		}
	}
}

func same[T comparable](all *T, one, several T) {
	if *all != one {
		*all = several
	}
}

// measure counts a row.
func (g *LeakGroup) measure(row *tcp.Event) {
	g.Count++
	if row.Duration > g.Oldest {
		g.Oldest, g.AtLeast = row.Duration, row.DurationKind == tcp.AtLeast
	}
	g.sample(row.Duration)
	g.addFD(row.FD)
	g.addStack(row)
	// Those that were in the group when the judgement began. The row is younger
	// than the refresh by the time that reading took; a socket that is missed for
	// it makes no difference.
	if since := row.BootNS - min(row.Duration, row.BootNS); since+g.rule.OlderThan <= g.watch.base {
		g.Stayed++
	}
	if !row.HasQueues || g.rule.NoQueues {
		return
	}
	if row.TxQueue > 0 {
		g.Sending++
	}
	switch fin := finArrived(g.rule.State); {
	case row.RxQueue > fin:
		g.Data++
		g.Unread += uint64(row.RxQueue - fin)
	case row.RxQueue == 0:
		g.Read++
	default:
		g.FinUnread++
	}
}

// finArrived is what the peer's FIN adds to the unread bytes as the kernel counts
// them, rcv_nxt - copied_seq: it takes one place in the sequence.
func finArrived(s tcp.State) uint32 {
	if s == tcp.CloseWait || s == tcp.LastAck || s == tcp.Closing {
		return 1
	}
	return 0
}

// sample keeps every stride-th age. Rows come in the order of a hash table, which
// has nothing to do with age, so these are an even sample.
func (g *LeakGroup) sample(age uint64) {
	if (g.Count-1)%g.stride != 0 {
		return
	}
	if len(g.ages) == maxLeakAges {
		for i := range maxLeakAges / 2 {
			g.ages[i] = g.ages[2*i]
		}
		g.ages = g.ages[:maxLeakAges/2]
		g.stride *= 2
		if (g.Count-1)%g.stride != 0 {
			return
		}
	}
	g.ages = append(g.ages, age)
}

func (g *LeakGroup) addFD(fd int32) {
	if fd == tcp.NoFD || len(g.FDs) == maxLeakFDs && fd >= g.FDs[maxLeakFDs-1] {
		return
	}
	at, known := slices.BinarySearch(g.FDs, fd)
	if known {
		return
	}
	if len(g.FDs) == maxLeakFDs {
		g.FDs = g.FDs[:maxLeakFDs-1]
	}
	g.FDs = slices.Insert(g.FDs, at, fd)
}

func (g *LeakGroup) addStack(row *tcp.Event) {
	if row.Stack == 0 {
		return
	}
	for i := range g.Stacks {
		if g.Stacks[i].ID == row.Stack && g.Stacks[i].PID == row.PID {
			g.Stacks[i].Count++
			return
		}
	}
	if len(g.Stacks) < maxLeakStacks {
		g.Stacks = append(g.Stacks, LeakStack{row.Stack, row.PID, 1})
	}
}

// finish computes what needs all rows of the refresh, and judges.
func (g *LeakGroup) finish(now uint64) {
	slices.Sort(g.ages)
	g.Median = g.ages[len(g.ages)/2]
	slices.SortStableFunc(g.Stacks, func(a, b LeakStack) int { return cmp.Compare(b.Count, a.Count) })
	w := &g.watch
	w.seen = now
	if w.first == 0 {
		*w = leakWatch{first: now, seen: now, firstCount: g.Count, base: now, baseCount: g.Count, span: minLeakWatch}
		g.Stayed = g.Count
	}
	g.Watched, g.Reset = now-w.first, w.reset
	g.Stayed += w.resetBase
	if g.Watched >= minLeakWatch {
		g.GrowthKnown = true
		g.Growth = float64(g.Count+w.reset-w.firstCount) / (float64(g.Watched) / 60e9)
	}
	g.judge(now)
}

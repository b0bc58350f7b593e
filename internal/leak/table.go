package leak

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds of a Table. A group takes about 900 bytes, its stacks 500 and its ages
// 4 KiB at most: typically under 25 MB in all, 95 MB at the very most, however many
// sockets there are.
const (
	maxGroups    = 1 << 14 // past it a new remote end joins the group of its process
	maxFolds     = 1 << 10 // such groups on top of that; past it sockets are counted in Unplaced
	maxListeners = 1 << 14 // of which the accept queues are known
)

// key names a group. It holds neither pointers nor padding that matters, so that a
// hundred thousand look-ups per refresh are cheap.
type key struct {
	pid, netns, stack, text uint32 // text: see Table.texts
	lport, rport            uint16
	state                   tcp.State
	raddr                   [16]byte
}

// Table groups the sockets that sit in a state, refresh by refresh, and judges each
// group. It is fed with Begin, AddListener, Add for each row, End, and so on. It
// belongs to one goroutine and its memory is bounded.
type Table struct {
	rule       Rule
	now        uint64
	groups     map[key]*Group
	texts      map[string]uint32 // numbers of names, of no more than there are groups
	listeners  map[listenerKey]queues
	folds      int
	unplaced   int
	unknownAge int
	holders    bool // the kernel says who holds a socket
	order      []*Group
}

// NewTable returns an empty table.
func NewTable(rule Rule) *Table {
	return &Table{
		rule: rule, groups: make(map[key]*Group), texts: make(map[string]uint32),
		listeners: make(map[listenerKey]queues),
	}
}

// Begin starts a refresh at the time now, of CLOCK_BOOTTIME in ns.
func (t *Table) Begin(now uint64) {
	t.now, t.unplaced, t.unknownAge = now, 0, 0
	clear(t.listeners)
	for _, g := range t.groups {
		*g = Group{
			rule: g.rule, watch: g.watch, ages: g.ages[:0], stride: 1,
			FDs: g.FDs[:0], openers: g.openers[:0], Stacks: g.Stacks[:0],
		}
	}
}

// listenerKey is where connections come in.
type listenerKey struct {
	netns uint32
	local netip.AddrPort
}

// queues counts listeners with one address, as SO_REUSEPORT allows them.
type queues struct{ all, full int }

// AddListener takes a row of a listener, for its accept queue: whether there is room
// for a half-open connection. It comes before the rows that need it.
func (t *Table) AddListener(row *tcp.Event) {
	if !row.HasQueues || t.rule.Recorded {
		return
	}
	at := listenerKey{row.NetNS, row.Local}
	q, known := t.listeners[at]
	if !known && len(t.listeners) == maxListeners {
		return
	}
	q.all++
	if row.RxQueue > row.TxQueue { // sk_acceptq_is_full in include/net/sock.h
		q.full++
	}
	t.listeners[at] = q
}

// queueFull reports whether every listener that a half-open connection can belong to
// has no room.
func (t *Table) queueFull(row *tcp.Event) bool {
	port := row.Local.Port()
	for _, addr := range []netip.Addr{row.Local.Addr(), netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if q, known := t.listeners[listenerKey{row.NetNS, netip.AddrPortFrom(addr, port)}]; known {
			return q.full == q.all
		}
	}
	return false
}

// wants reports whether the row is of a state that the table looks at. A socket in
// CLOSE is of interest as long as a process holds it; else it is about to vanish.
func (t *Table) wants(row *tcp.Event) bool {
	return slices.Contains(t.rule.States, row.New) &&
		(row.New != tcp.Close || row.Holder == tcp.Held && !t.rule.Recorded)
}

// young reports whether the row is known not to be old enough.
func (t *Table) young(row *tcp.Event) bool {
	return row.DurationKind == tcp.Exact && row.Duration < t.rule.OlderThan
}

// Add counts a row of the refresh, if it is one to count. It keeps nothing of it
// but its strings. The group that it went to stays the same as long as it is not
// empty; nil: the row was not counted.
func (t *Table) Add(row *tcp.Event) *Group {
	t.holders = t.holders || row.Holder != ""
	if !t.wants(row) {
		return nil
	}
	if !row.DurationKind.Known() || row.Duration < t.rule.OlderThan {
		t.tooYoung(row)
		return nil
	}
	g := t.group(row)
	if g == nil {
		t.unplaced++
		return nil
	}
	g.describe(row)
	g.measure(row)
	if half(row.New) && t.queueFull(row) {
		g.QueueFull++
	}
	return g
}

// tooYoung notes a row that does not count, or not yet.
func (t *Table) tooYoung(row *tcp.Event) {
	if !t.young(row) {
		t.unknownAge++ // old enough, for all that is known
	}
	if g := t.groups[t.key(row, row.New)]; g != nil && row.DurationKind.Known() {
		g.sawArrival(row)
	}
}

func half(s tcp.State) bool { return s == tcp.SynRecv || s == tcp.NewSynRecv }

// Event takes what happens between refreshes: a reset or a timeout that takes a
// socket out of CLOSE_WAIT does not say whether its descriptor was closed.
func (t *Table) Event(e *tcp.Event) {
	if e.Kind != tcp.Transition || e.Old != tcp.CloseWait || e.New != tcp.Close ||
		e.Reason != tcp.RSTReceived && e.Reason != tcp.Timeout {
		return
	}
	g := t.groups[t.key(e, e.Old)]
	if g == nil || e.Duration < t.rule.OlderThan {
		return
	}
	g.watch.reset++
	if e.BootNS-min(e.Duration, e.BootNS)+t.rule.OlderThan <= g.watch.base {
		g.watch.resetBase++
	}
}

// Unplaced is how many sockets of the refresh found no room in a group.
func (t *Table) Unplaced() int { return t.unplaced }

// UnknownAge is how many sockets of the refresh are in one of the states, nobody knows
// whether for long enough.
func (t *Table) UnknownAge() int { return t.unknownAge }

// End judges the groups of the refresh and returns them, worst first. They are
// valid until the next Begin.
func (t *Table) End() []*Group {
	t.order = t.order[:0]
	closeVisible := t.holders && slices.Contains(t.rule.States, tcp.Close)
	for key, g := range t.groups {
		if g.Count == 0 {
			delete(t.groups, key)
			continue
		}
		g.finish(t.now, closeVisible)
		t.order = append(t.order, g)
	}
	t.folds = max(0, len(t.groups)-maxGroups)
	slices.SortFunc(t.order, worse)
	return t.order
}

// worse puts leaks first, then what is many, then what is old. The rest only makes
// the order the same each time; it rarely decides, and costs more.
func worse(a, b *Group) int {
	if c := cmp.Compare(b.Verdict.weight(), a.Verdict.weight()); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Count, a.Count); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Oldest, a.Oldest); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.PID, b.PID), a.Remote.Compare(b.Remote), cmp.Compare(a.Comm, b.Comm), cmp.Compare(a.State, b.State))
}

// group finds the group of a row, or makes it.
func (t *Table) group(row *tcp.Event) *Group {
	k := t.key(row, row.New)
	if g := t.groups[k]; g != nil {
		return g
	}
	if len(t.groups) >= maxGroups {
		k = key{pid: row.PID, state: row.New}
		if g := t.groups[k]; g != nil {
			return g
		}
		if t.folds == maxFolds {
			return nil
		}
		t.folds++
	}
	g := &Group{rule: &t.rule, stride: 1}
	t.groups[k] = g
	return g
}

func (t *Table) key(row *tcp.Event, state tcp.State) key {
	k := key{state: state}
	switch t.rule.By {
	case ByPID:
		k.pid = row.PID
	case ByComm:
		k.text = t.number(row.Comm)
	case ByContainer:
		k.text = t.number(row.ContainerID)
	case ByPod:
		k.text = t.number(row.Named().PodUID)
	case ByUnit:
		k.text = t.number(tcp.Unit(row.Cgroup))
	case ByRemote:
		k.setRemote(row.RemoteEnd())
	case ByLocalPort:
		k.lport, k.netns = row.Local.Port(), row.NetNS
	case ByStack:
		k.stack, k.pid = row.Stack, row.PID
	default:
		k.pid, k.netns = row.PID, row.NetNS
		k.setRemote(row.RemoteEnd())
		if k.rport == 0 {
			k.lport = row.Local.Port()
		}
	}
	return k
}

func (k *key) setRemote(remote netip.AddrPort) {
	k.raddr, k.rport = remote.Addr().As16(), remote.Port()
}

// number gives a name a number. Past the bound names share one.
func (t *Table) number(name string) uint32 {
	n, known := t.texts[name]
	if !known && len(t.texts) < maxGroups {
		n = uint32(len(t.texts) + 1)
		t.texts[name] = n
	}
	return n
}

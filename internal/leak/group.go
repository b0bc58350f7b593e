package leak

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

const (
	maxAges   = 512 // up to so many sockets the median is exact; then it is that of an even sample
	maxStacks = 32  // distinct stacks of a group; sockets of others count in none
	maxFDs    = 8
)

// Group is what is known of sockets that belong together. A fact that is not the same
// for all of them is zero.
type Group struct {
	State     tcp.State
	PID       uint32 // 0: several, or not known
	Comm      string
	UID       uint32 // tcp.NoUID: several, or not known
	Container string
	Cgroup    string
	Names     tcp.Names
	Role      tcp.Role
	Holder    tcp.Holder
	Reason    tcp.Reason // of CLOSE: why the connection ended
	NetNS     uint32
	Remote    netip.AddrPort // port 0 for the clients of a server
	LocalPort uint16

	Count   int
	Oldest  uint64 // ns in the state
	AtLeast bool   // Oldest is a lower bound: the socket is older than the trace
	Median  uint64 // ns, see maxAges

	Growth      float64 // sockets per minute of late, see History; may be negative
	GrowthKnown bool    // watched for MinWatch at least
	Watched     uint64  // ns since the group was first seen
	Stayed      int     // of the sockets that it had when the judgement began, those still there
	Reset       int     // sockets that left CLOSE_WAIT by a reset or a timeout while we watched
	Leaving     bool    // most of those that it had left while we watched

	FDs        []int32 // the lowest, sorted
	Unread     uint64  // bytes, without the end of file
	Read       int     // sockets whose application has read all there is, the end of file included
	FinUnread  int     // sockets where only the end of file waits
	Data       int     // sockets where bytes wait
	Sending    int     // sockets that have bytes to send or to be acknowledged
	Unaccepted int     // sockets that wait in an accept queue
	Acked      int     // half-open connections whose peer has completed the handshake
	NotAcked   int     // and those whose peer has not
	QueueFull  int     // half-open connections whose listener has no room

	// Resolved for the Report.
	Files      Files
	FilesKnown bool
	Left       uint64 // ns until the process of the group runs out of descriptors
	LeftKnown  bool
	Stacks     []Stack // where the sockets were opened, the most frequent first

	Verdict   Verdict
	Cause     Cause
	Diagnosis string // in a sentence or two

	rule    *Rule
	ages    []uint64
	stride  int    // every stride-th age is in ages
	forgot  int    // sockets in CLOSE that have forgotten their peer, see disconnected
	unseen  int    // sockets of which it is not known whether a process has accepted them
	newest  uint64 // when the last one came into the state, those that do not count yet included
	openers []opener
	watch   watch
}

// Files says how many files a process has open, and how many it may.
type Files struct{ Open, Limit uint64 } // Limit: MaxUint64: none

// Stack is code that opened sockets of a group, the innermost frame first.
type Stack struct {
	Count  int
	Frames []symbolize.Frame
}

// opener counts the sockets that one stack of one process opened.
type opener struct {
	id, pid uint32 // the same addresses are other code in another process
	count   int
}

// watch is what a group remembers from one refresh to the next.
type watch struct {
	first     uint64 // when the group was first seen
	base      uint64 // from when on it is judged who stays
	baseCount int
	span      uint64 // ns from base on before anybody is accused
	leaving   bool
	doubtful  bool // whether those that left were closed is not known
	reset     int  // since first
	resetBase int  // of these, how many were there at base
	history   History
}

// describe keeps of what the group says what holds for this row too.
func (g *Group) describe(row *tcp.Event) {
	remote := row.RemoteEnd()
	if g.Count == 0 {
		g.PID, g.Comm, g.UID, g.Container, g.Cgroup = row.PID, row.Comm, row.UID, row.ContainerID, row.Cgroup
		g.Names = row.Named()
		g.Role, g.NetNS, g.Remote, g.LocalPort = row.Role, row.NetNS, remote, row.Local.Port()
		g.State, g.Holder, g.Reason = row.New, row.Holder, row.Reason
		return
	}
	same(&g.PID, row.PID, 0)
	same(&g.Comm, row.Comm, "")
	same(&g.UID, row.UID, tcp.NoUID)
	same(&g.Container, row.ContainerID, "")
	same(&g.Cgroup, row.Cgroup, "")
	g.describeNames(row)
	same(&g.Role, row.Role, "")
	same(&g.Holder, row.Holder, "")
	same(&g.Reason, row.Reason, "")
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

// describeNames keeps what all sockets of the group have in common. Those of one container have all.
func (g *Group) describeNames(row *tcp.Event) {
	names := row.Named()
	if names == g.Names {
		return
	}
	same(&g.Names.Container, names.Container, "")
	same(&g.Names.Image, names.Image, "")
	same(&g.Names.Pod, names.Pod, "")
	same(&g.Names.PodUID, names.PodUID, "")
	same(&g.Names.Namespace, names.Namespace, "")
}

func same[T comparable](all *T, one, several T) {
	if *all != one {
		*all = several
	}
}

// measure counts a row.
func (g *Group) measure(row *tcp.Event) {
	g.Count++
	if row.Duration > g.Oldest {
		g.Oldest, g.AtLeast = row.Duration, row.DurationKind == tcp.AtLeast
	}
	g.sawArrival(row)
	g.sample(row.Duration)
	g.addFD(row.FD)
	g.addOpener(row)
	// Those that were in the group when the judgement began. The row is younger
	// than the refresh by the time that reading took; a socket that is missed for
	// it makes no difference.
	if since := began(row); since+g.rule.OlderThan <= g.watch.base {
		g.Stayed++
	}
	if row.Acked {
		g.Acked++
	} else if !g.rule.Recorded { // the ACK is not an event: in a recording it may have come since
		g.NotAcked++
	}
	if row.Unaccepted {
		g.Unaccepted++
	}
	if row.New == tcp.Close && row.Remote.Port() == 0 {
		g.forgot++
	}
	if row.HasQueues && !g.rule.Recorded {
		g.measureQueues(row)
	}
}

// began is when the socket came into its state, or a later time.
func began(row *tcp.Event) uint64 { return row.BootNS - min(row.Duration, row.BootNS) }

func (g *Group) sawArrival(row *tcp.Event) { g.newest = max(g.newest, began(row)) }

// hasReader reports whether there is a peer's data that an application can read or
// leave. In CLOSE the kernel does not say whether what waits is data or the end of file.
func hasReader(s tcp.State) bool { return s != tcp.Close && s != tcp.SynSent && !half(s) }

func (g *Group) measureQueues(row *tcp.Event) {
	if row.TxQueue > 0 {
		g.Sending++
	}
	if !hasReader(row.New) {
		return
	}
	switch fin := finArrived(row.New); {
	case row.RxQueue > fin:
		g.Data++
		g.Unread += uint64(row.RxQueue - fin)
	case fin == 0: // there is no end of file yet
		return
	case row.RxQueue == 0:
		g.Read++
		return
	default:
		g.FinUnread++
	}
	if !row.Unaccepted && !usedByProcess(row) {
		g.unseen++
	}
}

// usedByProcess reports whether a process is known to have the socket, not only the
// listener that it came from.
func usedByProcess(row *tcp.Event) bool {
	return row.FD != tcp.NoFD || row.Holder == tcp.Held || row.OwnerSource != "" && row.OwnerSource != tcp.FromInherited
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
func (g *Group) sample(age uint64) {
	if (g.Count-1)%g.stride != 0 {
		return
	}
	if len(g.ages) == maxAges {
		for i := range maxAges / 2 {
			g.ages[i] = g.ages[2*i]
		}
		g.ages = g.ages[:maxAges/2]
		g.stride *= 2
		if (g.Count-1)%g.stride != 0 {
			return
		}
	}
	g.ages = append(g.ages, age)
}

func (g *Group) addFD(fd int32) {
	if fd == tcp.NoFD || len(g.FDs) == maxFDs && fd >= g.FDs[maxFDs-1] {
		return
	}
	at, known := slices.BinarySearch(g.FDs, fd)
	if known {
		return
	}
	if len(g.FDs) == maxFDs {
		g.FDs = g.FDs[:maxFDs-1]
	}
	g.FDs = slices.Insert(g.FDs, at, fd)
}

func (g *Group) addOpener(row *tcp.Event) {
	if row.Stack == 0 {
		return
	}
	for i := range g.openers {
		if g.openers[i].id == row.Stack && g.openers[i].pid == row.PID {
			g.openers[i].count++
			return
		}
	}
	if len(g.openers) < maxStacks {
		g.openers = append(g.openers, opener{row.Stack, row.PID, 1})
	}
}

// finish computes what needs all rows of the refresh, and judges. closeVisible says
// that sockets whose connection is over are counted as long as they are held.
func (g *Group) finish(now uint64, closeVisible bool) {
	slices.Sort(g.ages)
	g.Median = g.ages[len(g.ages)/2]
	slices.SortStableFunc(g.openers, func(a, b opener) int { return cmp.Compare(b.count, a.count) })
	w := &g.watch
	if w.first == 0 {
		*w = watch{first: now, base: now, baseCount: g.Count, span: MinWatch}
		g.Stayed = g.Count
	}
	g.Watched, g.Reset = now-w.first, w.reset
	g.Growth, g.GrowthKnown = w.history.Growth(now, g.Watched, g.Count)
	if g.growthEnded(now) {
		g.Growth = 0
	}
	g.judge(now, closeVisible)
	g.Diagnosis = g.diagnose()
}

// growthEnded reports whether no socket has come for three times as long as it took from
// one to the next, nor was it ever as quiet while we watched: sockets may come in bursts.
// The count, by which growth is measured, lags behind by Rule.OlderThan.
func (g *Group) growthEnded(now uint64) bool {
	quiet := now - min(g.newest, now)
	if g.Growth <= 0 || float64(quiet) <= 3*60e9/g.Growth {
		return false
	}
	for i := 1; i < len(g.ages) && g.ages[i] <= g.Watched; i++ {
		if g.ages[i]-g.ages[i-1] >= quiet {
			return false
		}
	}
	return true
}

// Package top is the live view of groups of sockets: what they do per second, what they have
// now, and from a group to its sockets to the story of one. A Collector gathers and makes
// Snapshots; a Model shows them and answers keys. They share a Desk alone, so that events never
// wait for a screen: whoever is late sees the latest Snapshot, and none before. It does not
// know of a terminal.
package top

import (
	"net/netip"
	"sync/atomic"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Kind is what a Snapshot shows.
type Kind uint8

// The kinds.
const (
	Groups  Kind = iota
	Sockets      // of a group
	Story        // of a socket
	Diagram      // of states
	Leaks
	Leak // one group of them
)

// Request is what a Snapshot is to show.
type Request struct {
	Kind  Kind
	By    stats.By        // how to group
	Group stats.GroupName // of Sockets: which
	End   *timeline.End   // of Story: which; a name, not to be looked into
	Leak  LeakName        // of Leak: which
}

// Row is what is known of a group.
type Row struct {
	stats.GroupName
	Events [5]uint64 // since the start, see the columns
	Rates  [5]float64

	States [tcp.NewSynRecv + 1]int // sockets now
	Open   int                     // of these, how many are neither listeners nor over

	Handshakes  uint64 // how many of them were timed
	Handshake99 uint64 // ns; applies if there were

	OldestCloseWait uint64 // ns, 0: there is none
	AtLeast         bool   // or more
	Growth          float64
	GrowthKnown     bool
}

// SocketRow is one socket.
type SocketRow struct {
	End           *timeline.End // a name, not to be looked into
	State         tcp.State
	Over          bool       // it has ended, by Reason
	Reason        tcp.Reason // may be empty
	Age           uint64     // ns in State, or since the end
	AgeKind       tcp.DurationKind
	Local, Remote netip.AddrPort
	PID           uint32 // 0: not known
	Comm          string // raw
	HasCounters   bool   // Retransmits and SRTT apply
	Retransmits   uint32
	SRTT          uint32 // µs
}

// Snapshot is what a Collector found at one time. Nothing changes it later.
type Snapshot struct {
	Request Request
	Time    int64  // wall clock, ns since the Unix epoch
	Watched uint64 // ns since the first event

	Transitions, Lost uint64
	Forgotten         uint64 // sockets that had to make room for others
	Unlisted          uint64 // ... and sockets that are counted, and have no row and no story

	All     Row
	Groups  []Row
	Sockets []SocketRow
	More    int    // sockets that are not among them
	Text    string // of Story and Diagram

	Listeners     []ListenerRow // of Sockets: of the same group
	MoreListeners int           // that are not among them

	Leaks *LeakReport // of Leaks and Leak
}

// A Desk is where a Collector and a Model meet. Each side takes the latest that the other has
// put there, and waits for nothing.
type Desk struct {
	request  atomic.Pointer[Request]
	snapshot atomic.Pointer[Snapshot]
	ready    chan struct{}
	asked    chan struct{}
}

// NewDesk returns a desk on which lies a request.
func NewDesk(first Request) *Desk {
	d := &Desk{ready: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
	d.request.Store(&first)
	return d
}

// Ask puts a request in the place of the one before.
func (d *Desk) Ask(r Request) {
	d.request.Store(&r)
	signal(d.asked)
}

// Asked tells that there is another request.
func (d *Desk) Asked() <-chan struct{} { return d.asked }

// Ready tells that there is another Snapshot to Take.
func (d *Desk) Ready() <-chan struct{} { return d.ready }

// Take returns the latest Snapshot; nil: it was taken.
func (d *Desk) Take() *Snapshot { return d.snapshot.Swap(nil) }

// put puts a Snapshot in the place of one that nobody took.
func (d *Desk) put(s *Snapshot) {
	d.snapshot.Store(s)
	signal(d.ready)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it tells already
	}
}

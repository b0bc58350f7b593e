package leak

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// timeWaitSeconds is TCP_TIMEWAIT_LEN: how long the kernel keeps a TIME_WAIT.
const timeWaitSeconds = 60

// The bounds of a TimeWaitTable. A group takes about 700 bytes: 12 MB at most.
const (
	maxDestinations = 1 << 14
	maxClosers      = 8
)

// Destination is what is known of the TIME_WAITs of one destination: all that compete
// for the same local ports. Those of a server, which take no port from the range, are
// grouped by its port and the client's address.
type Destination struct {
	NetNS     uint32
	Local     netip.Addr
	LocalPort uint16         // of a server; 0: a client, whose ports differ
	Remote    netip.AddrPort // port 0: the clients of a server

	Count   int    // TIME_WAITs now
	Held    int    // local ports of the range that no new connection to the destination can have
	Ports   int    // size of the range that connect() picks from; 0: not known
	Watched uint64 // ns since the watch began

	// Seen while watching.
	New      uint64
	Expired  uint64
	Reused   uint64 // by connect(), or by a SYN
	Other    uint64 // reset, killed, gone with the namespace
	Overflow uint64 // never entered: tcp_max_tw_buckets
	Closers  []Closer

	Diagnosis string

	ports PortRange
}

// PortRange is the range of local ports that connect() picks from; the zero value: not
// known.
type PortRange struct {
	First, Last uint16
	Reserved    [][2]uint16 // the first and the last of those that it leaves out, apart from each other
}

func (r PortRange) size() int {
	if r.Last == 0 || r.Last < r.First {
		return 0
	}
	n := int(r.Last) - int(r.First) + 1
	for _, left := range r.Reserved {
		n -= max(0, int(min(left[1], r.Last))-int(max(left[0], r.First))+1)
	}
	return n
}

func (r PortRange) contains(port uint16) bool {
	return port >= r.First && port <= r.Last && !slices.ContainsFunc(r.Reserved, func(left [2]uint16) bool {
		return port >= left[0] && port <= left[1]
	})
}

// portOf is a local port of a network namespace.
type portOf struct {
	netns uint32
	port  uint16
}

// Closer is a process that closed connections first.
type Closer struct {
	PID   uint32
	Comm  string
	Count uint64
}

// Server reports whether the sockets are those of a server: they take no port from the range.
func (d *Destination) Server() bool { return d.LocalPort != 0 }

// PerSecond is how many came per second; false: not watched for long enough.
func (d *Destination) PerSecond() (float64, bool) {
	return float64(d.New) / (float64(max(d.Watched, 1)) / 1e9), d.Watched >= minTimeWaitWatch
}

const minTimeWaitWatch = 1e9

// Settles is how many TIME_WAITs there will be at the present rate, when as many
// expire as come, if ports do not run out before; false: not known. One that takes
// the port of another adds none.
func (d *Destination) Settles() (float64, bool) {
	_, known := d.PerSecond()
	added := float64(d.New) - float64(min(d.Reused, d.New))
	return added / (float64(max(d.Watched, 1)) / 1e9) * timeWaitSeconds, known
}

// others is how many sockets that are not in TIME_WAIT hold a port.
func (d *Destination) others() int { return max(0, d.Held-d.Count) }

// Left is how long, in ns, until the range is used up; false: never at this rate, or
// not known.
func (d *Destination) Left() (uint64, bool) {
	rate, known := d.PerSecond()
	settles, _ := d.Settles()
	if !known || d.Ports == 0 || settles+float64(d.others()) <= float64(d.Ports) || d.Server() {
		return 0, false
	}
	net := rate - float64(d.Expired+d.Reused+d.Other)/(float64(d.Watched)/1e9)
	if net <= 0 {
		return 0, false
	}
	return uint64(float64(max(0, d.Ports-d.Held)) / net * 1e9), true
}

// Share is how much of the range is taken; false: none, as by a server, or not known.
func (d *Destination) Share() (float64, bool) {
	if d.Ports == 0 || d.Server() {
		return 0, false
	}
	return float64(d.Held) / float64(d.Ports), true
}

// Exhausts reports whether the range is used up, now or in the end, at the rate seen.
func (d *Destination) Exhausts() bool {
	if d.Ports == 0 || d.Server() {
		return false
	}
	settles, known := d.Settles()
	return d.Held >= d.Ports || known && settles+float64(d.others()) > float64(d.Ports)
}

func (d *Destination) diagnose() string {
	settles, known := d.Settles()
	left, runsOut := d.Left()
	switch {
	case d.Server():
		return "A server that closes first: it takes memory, no ports."
	case d.Ports == 0:
		return "The range of local ports is not known."
	case d.Held >= d.Ports:
		return fmt.Sprintf("All %d local ports are taken: connect() fails with EADDRNOTAVAIL or has to reuse.", d.Ports)
	case runsOut:
		return fmt.Sprintf("At this rate the %d local ports run out in %s: keep connections open and use them again.", d.Ports, Span(left))
	case !known:
		return "Watch for longer to see the rate."
	}
	settles += float64(d.others())
	return fmt.Sprintf("At this rate it settles at about %.0f of %d local ports (%.0f%%).", settles, d.Ports, 100*settles/float64(d.Ports))
}

type destinationKey struct {
	netns  uint32
	lport  uint16
	local  netip.Addr
	remote netip.AddrPort
}

// TimeWaitTable groups TIME_WAITs by destination. Events go to Event as they come, the
// rows of a refresh to Begin, Add, AddOther and End. It belongs to one goroutine.
type TimeWaitTable struct {
	first, now   uint64
	destinations map[destinationKey]*Destination
	order        []*Destination
	ports        func(netns uint32) (PortRange, error) // nil: not known
	ranges       map[uint32]PortRange                  // read once per refresh
	bound        map[portOf]struct{}                   // of the refresh: ports that servers have, see AddOther
	unplaced     int
	unread       bool // a row was of a namespace whose range is not in ranges
}

// NewTimeWaitTable returns an empty table of a watch that begins at first, of
// CLOCK_BOOTTIME in ns. Once per namespace and refresh it asks ports for the range of
// local ports, in Begin and Event alone: rows may come from a walk that holds the source.
// Nil: it is not known.
func NewTimeWaitTable(first uint64, ports func(netns uint32) (PortRange, error)) *TimeWaitTable {
	return &TimeWaitTable{
		first: first, ports: ports,
		destinations: make(map[destinationKey]*Destination), ranges: make(map[uint32]PortRange), bound: make(map[portOf]struct{}),
	}
}

// find returns the destination of a socket and its key; nil if it is new.
func (t *TimeWaitTable) find(e *tcp.Event) (destinationKey, *Destination) {
	key := destinationKey{netns: e.NetNS, local: e.Local.Addr(), remote: e.Remote}
	d := t.destinations[key] // where the role is not known: the service that others went to
	if remote := e.RemoteEnd(); remote.Port() == 0 && (d == nil || e.Role != "") {
		key.remote, key.lport = remote, e.Local.Port()
		d = t.destinations[key]
	}
	return key, d
}

func (t *TimeWaitTable) destination(e *tcp.Event) *Destination {
	key, d := t.find(e)
	if d == nil && len(t.destinations) < maxDestinations {
		d = &Destination{NetNS: key.netns, Local: key.local, LocalPort: key.lport, Remote: key.remote}
		d.ports = t.ranges[key.netns]
		d.Ports = d.ports.size()
		t.destinations[key] = d
	}
	return d
}

// Again reports whether the refresh has met a network namespace for the first time, so
// that its range of ports is not known before the next Begin.
func (t *TimeWaitTable) Again() bool { return t.unread }

func (t *TimeWaitTable) portsOf(netns uint32) PortRange {
	r, known := t.ranges[netns]
	if !known && t.ports != nil {
		r, _ = t.ports(netns) // unknown: the namespace is gone, or cannot be entered
		t.ranges[netns] = r
	}
	return r
}

// Event counts beginnings and ends of TIME_WAIT. Other events do not matter.
func (t *TimeWaitTable) Event(e *tcp.Event) {
	if e.Kind != tcp.Transition || e.New != tcp.TimeWait && e.Old != tcp.TimeWait && e.Reason != tcp.TimewaitOverflow {
		return
	}
	t.portsOf(e.NetNS)
	d := t.destination(e)
	switch {
	case d == nil:
	case e.Reason == tcp.TimewaitOverflow:
		d.Overflow++
		d.closer(e)
	case e.New == tcp.TimeWait:
		d.New++
		d.closer(e)
	case e.Reason == tcp.Expired:
		d.Expired++
	case e.Reason == tcp.ReusedByConnect, e.Reason == tcp.ReopenedBySyn:
		d.Reused++
	default:
		d.Other++
	}
}

// closer notes the owner of a socket that came into TIME_WAIT: whoever closes first
// gets it.
func (d *Destination) closer(e *tcp.Event) {
	if e.OwnerSource == "" {
		return
	}
	for i := range d.Closers {
		if d.Closers[i].PID == e.PID && d.Closers[i].Comm == e.Comm {
			d.Closers[i].Count++
			return
		}
	}
	if len(d.Closers) < maxClosers {
		d.Closers = append(d.Closers, Closer{e.PID, e.Comm, 1})
	}
}

// Begin starts a refresh at the time now.
func (t *TimeWaitTable) Begin(now uint64) {
	t.now, t.unplaced, t.unread = now, 0, false
	clear(t.ranges)
	clear(t.bound)
	for _, d := range t.destinations {
		d.Count, d.Held = 0, 0
		d.ports = t.portsOf(d.NetNS)
		d.Ports = d.ports.size()
	}
}

// Add counts a TIME_WAIT of the refresh.
func (t *TimeWaitTable) Add(row *tcp.Event) {
	if _, known := t.ranges[row.NetNS]; !known && t.ports != nil {
		t.unread = true
	}
	if d := t.destination(row); d != nil {
		d.Count++
		d.hold(row)
	} else {
		t.unplaced++
	}
}

// AddOther counts a socket in another state, which holds its port just as well. It
// comes after the TIME_WAITs. connect() passes over the port of a server, whatever the
// destination and the address (__inet_hash_connect in net/ipv4/inet_hashtables.c).
func (t *TimeWaitTable) AddOther(row *tcp.Event) {
	if row.New == tcp.Listen || row.Role == tcp.Server {
		if port := row.Local.Port(); t.ranges[row.NetNS].contains(port) {
			t.bound[portOf{row.NetNS, port}] = struct{}{}
		}
		return
	}
	if _, d := t.find(row); d != nil {
		d.hold(row)
	}
}

func (d *Destination) hold(row *tcp.Event) {
	if !d.Server() && d.ports.contains(row.Local.Port()) {
		d.Held++
	}
}

// holdBound adds the ports of servers to what is held of each destination.
func (t *TimeWaitTable) holdBound() {
	perNetns := make(map[uint32]int)
	for at := range t.bound {
		perNetns[at.netns]++
	}
	for _, d := range t.destinations {
		if !d.Server() {
			d.Held += perNetns[d.NetNS]
		}
	}
}

// Unplaced is how many sockets of the refresh found no room in a group.
func (t *TimeWaitTable) Unplaced() int { return t.unplaced }

// End returns the destinations, those that eat most ports first. They are valid until
// the next Begin.
func (t *TimeWaitTable) End() []*Destination {
	t.order = t.order[:0]
	t.holdBound()
	for key, d := range t.destinations {
		if d.Count == 0 && d.Overflow == 0 {
			delete(t.destinations, key) // all there was to say is over
			continue
		}
		d.Watched = t.now - min(t.first, t.now)
		d.Diagnosis = d.diagnose()
		slices.SortStableFunc(d.Closers, func(a, b Closer) int { return cmp.Compare(b.Count, a.Count) })
		t.order = append(t.order, d)
	}
	slices.SortFunc(t.order, func(a, b *Destination) int {
		return cmp.Or(
			cmp.Compare(min(a.LocalPort, 1), min(b.LocalPort, 1)), // clients first: only they eat the range
			cmp.Compare(b.Count, a.Count),
			a.Remote.Compare(b.Remote), a.Local.Compare(b.Local), cmp.Compare(a.LocalPort, b.LocalPort),
		)
	})
	return t.order
}

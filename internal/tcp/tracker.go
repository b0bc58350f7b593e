package tcp

import (
	"iter"
	"net/netip"
)

// A Tracker is the one answer to the question which socket an event belongs to. It maps
// each event to a Life: one connection (or one listener) of one socket, from the first
// event of it that was seen to its last.
//
//   - A full socket is its cookie.
//   - A half-open connection, which has no cookie, is its address pair with the network
//     namespace and the device. Its child, the first socket with a cookie that leaves
//     SYN_RECV there, carries the same Life on.
//   - A TIME_WAIT is its address pair too: the kernel has one per pair, and the socket
//     may connect() again, with the same cookie, while its TIME_WAIT lasts. That is another
//     Life. (A FIN_WAIT2 in a mini-socket keeps the cookie: it is made for orphans alone,
//     which nobody can connect again; tcp_time_wait's callers.)
//   - A full socket without a cookie (before Linux 5.12 most have none) is its address
//     pair until it has one. Before the kernel has chosen a local port, connections to one
//     destination cannot be told apart; such a Life is continued only if it was alone.
//
// Where events were lost, a Life is never continued with an event that cannot follow its
// state, and what an event proves to be over leaves the table.
//
// A Tracker holds no more than its maximum, allocates only until it has grown to what it
// holds at a time, and belongs to one goroutine. A Life takes 88 bytes and its Value, its
// table entry 20 to 40 bytes by cookie and 60 to 130 by address pair.
type Tracker[T any] struct {
	max       int
	forget    func(*Life[T])
	cookies   map[uint64]*Life[T]
	pairs     [addressed]map[pair]*Life[T]
	order     Life[T] // head of a ring: all that are in the table, oldest first
	alive     int
	ended     *Life[T] // returned by the last call, out of the table
	spare     *Life[T] // used again, chained by next
	pair      pair     // of the event that was resolved last: as costly as a look-up to make
	forgotten uint64
}

// A Life is one connection, or one listener, of one socket. What is not exported names the
// place in the Tracker.
type Life[T any] struct {
	Value  T      // the consumer's; zero when the Life begins
	Cookie uint64 // 0: half-open, or unknown
	State  State  // after the last event

	place place
	pair  pair   // of the last event
	crowd uint32 // how many share this place, see shares(); 0: it is alone

	prev, next *Life[T]
}

// Identify fills in what identifies the socket in *ev, as of its last event: Cookie, NetNS,
// Device, Local and Remote.
func (l *Life[T]) Identify(ev *Event) {
	ev.Cookie, ev.NetNS, ev.Device = l.Cookie, l.pair.netns, l.pair.device
	ev.Local = netip.AddrPortFrom(netip.AddrFrom16(l.pair.local).Unmap(), l.pair.lport)
	ev.Remote = netip.AddrPortFrom(netip.AddrFrom16(l.pair.remote).Unmap(), l.pair.rport)
}

// A Step is what one event did.
type Step[T any] struct {
	Life    *Life[T]
	From    State // the state that was known before the event; 0: none, the Life began
	Began   bool  // this is the first event of the Life that was seen
	Ended   bool  // this is its last: it is out of the table, and valid until the next call
	Missing bool  // transitions between the last event and this one were not seen
}

// place says which table a Life is found in.
type place uint8

const (
	halfOpen  place = iota // a request sock
	paired                 // a full socket without a cookie
	timeWait               // a mini-socket in TIME_WAIT
	addressed              // the places up to here are found by address pair
	byCookie               // a full socket
	nowhere                // not in the table
)

// pair is what identifies a socket that has no cookie of its own. It has neither
// pointers nor padding, so that it is hashed in one go and not looked at by the GC.
type pair struct {
	local, remote [16]byte
	netns, device uint32
	lport, rport  uint16
}

func pairOf(ev *Event) pair {
	return pair{
		ev.Local.Addr().As16(), ev.Remote.Addr().As16(), ev.NetNS, ev.Device,
		ev.Local.Port(), ev.Remote.Port(),
	}
}

// NewTracker returns a Tracker of at most max lives, which is 1 or more. forget, which may
// be nil, is called with each Life that leaves the table without its last event: the
// oldest, when another one needs its place, or one that is proved to be over by an event
// of another. The Life is valid until forget returns, which must not call the Tracker.
func NewTracker[T any](max int, forget func(*Life[T])) *Tracker[T] {
	t := &Tracker[T]{max: max, forget: forget, cookies: make(map[uint64]*Life[T])}
	for i := range t.pairs {
		t.pairs[i] = make(map[pair]*Life[T])
	}
	t.order.prev, t.order.next = &t.order, &t.order
	return t
}

// Observe applies an event that is not Lost to its Life, which begins here if it is not
// known. A row of kind Socket sets the state; one in CLOSE, a descriptor whose connection
// is over, does not end the Life.
func (t *Tracker[T]) Observe(ev *Event) Step[T] { return t.apply(t.resolve(ev), ev) }

// Find returns the Life that Observe would continue with the event; nil: it would begin
// one. It changes nothing.
func (t *Tracker[T]) Find(ev *Event) *Life[T] {
	p := pairOf(ev)
	return t.find(ev, &p)
}

// Drop removes a Life, which is not valid any more then. forget is not called.
func (t *Tracker[T]) Drop(l *Life[T]) {
	if l.place != nowhere {
		t.remove(l)
		t.recycle(l)
	}
}

// All yields every Life, the oldest first. The one that was yielded last may be dropped.
func (t *Tracker[T]) All() iter.Seq[*Life[T]] {
	return func(yield func(*Life[T]) bool) {
		for l := t.order.next; l != &t.order; {
			next := l.next
			if !yield(l) {
				return
			}
			l = next
		}
	}
}

// Len returns how many lives there are.
func (t *Tracker[T]) Len() int { return t.alive }

// Forgotten returns how many lives had to make room for others.
func (t *Tracker[T]) Forgotten() uint64 { return t.forgotten }

// before is the state that a socket must have been in for the event to be its next.
func before(ev *Event) State {
	if ev.Kind == Socket {
		return ev.New
	}
	return ev.Old
}

// begins reports whether the event is the first of a Life, whatever was seen before.
func begins(ev *Event) bool {
	return ev.Kind == Transition && (ev.Old == Close || ev.Old == Listen && ev.New == SynRecv)
}

// ends reports whether the event is the last of a Life.
func ends(ev *Event) bool { return ev.Kind == Transition && ev.New == Close }

// resolve returns the Life that the event continues, nil if there is none, and takes out
// of the table what the event proves to be over.
func (t *Tracker[T]) resolve(ev *Event) *Life[T] {
	if t.ended != nil {
		t.recycle(t.ended)
		t.ended = nil
	}
	t.pair = pairOf(ev)
	l := t.find(ev, &t.pair)
	if l == nil || l.pair != t.pair {
		t.clear(ev, &t.pair, l)
	}
	return l
}

func (t *Tracker[T]) find(ev *Event, p *pair) *Life[T] {
	state := before(ev)
	switch {
	case begins(ev):
		return nil
	case state == TimeWait:
		return t.findTimeWait(ev, p)
	case ev.Cookie == 0:
		return t.findWithoutCookie(state, p)
	}
	if l := t.cookies[ev.Cookie]; l != nil {
		if !follows(l.State, state) {
			return nil
		}
		return l
	}
	// The child of a half-open connection, or a socket that was given a cookie meanwhile.
	if l := t.findWithoutCookie(state, p); l != nil && l.State == state {
		return l
	}
	return nil
}

// findTimeWait also finds the socket whose transition to TIME_WAIT was lost: the one with
// that cookie, unless it has another address pair by now.
func (t *Tracker[T]) findTimeWait(ev *Event, p *pair) *Life[T] {
	if l := t.pairs[timeWait][*p]; l != nil && (l.Cookie == ev.Cookie || l.Cookie == 0 || ev.Cookie == 0) {
		return l
	}
	l := t.pairs[paired][*p]
	if ev.Cookie != 0 {
		l = t.cookies[ev.Cookie]
	}
	if l == nil || l.pair != *p || l.State == SynSent || !follows(l.State, TimeWait) {
		return nil
	}
	return l
}

func (t *Tracker[T]) findWithoutCookie(state State, p *pair) *Life[T] {
	if state == SynRecv {
		if l := t.pairs[halfOpen][*p]; l != nil {
			return l
		}
	}
	l := t.pairs[paired][*p]
	if l == nil && state == SynSent {
		l = t.pairs[paired][withoutPort(p)]
	}
	if l == nil || l.crowd > 0 || !follows(l.State, state) {
		return nil
	}
	return l
}

// withoutPort is the pair of a connect() that has not chosen its port yet.
func withoutPort(p *pair) pair {
	unbound := *p
	unbound.lport = 0
	return unbound
}

// clear takes out of the table what the event, which belongs to the Life l, proves to be
// over: an earlier connection of the same socket, and all else at the same address pair.
func (t *Tracker[T]) clear(ev *Event, p *pair, l *Life[T]) {
	state := before(ev)
	if l == nil && state != TimeWait {
		t.over(t.cookies[ev.Cookie]) // there is no cookie 0
	}
	if l == nil && ev.Kind == Transition {
		t.disperse(state, p)
	}
	if !owns(ev) {
		return
	}
	for _, table := range t.pairs {
		if other := table[*p]; other != nil && other != l {
			t.over(other)
		}
	}
}

// owns reports whether the event proves that its socket is the only one at its address
// pair. A connect() may still find the pair taken, and gives up then; see
// __inet_check_established. A TIME_WAIT ends when its successor is there already.
func owns(ev *Event) bool {
	switch before(ev) {
	case Close, TimeWait:
		return false
	case Listen:
		return begins(ev)
	case SynSent:
		return ev.New == Established || ev.New == SynRecv
	}
	return true
}

// shares reports whether sockets without a cookie may have the same address pair: those
// that connect() and have no port yet, and listeners with SO_REUSEPORT.
func shares(state State, p *pair) bool {
	return state == SynSent && p.lport == 0 || state == Listen
}

// disperse notes that one of several sockets that share a place leaves it.
func (t *Tracker[T]) disperse(state State, p *pair) {
	key := *p
	if state == SynSent {
		key = withoutPort(p)
	}
	l := t.pairs[paired][key]
	if l == nil || l.crowd == 0 || l.State != state {
		return
	}
	if l.crowd--; l.crowd == 0 {
		t.over(l)
	}
}

// over takes a Life, if there is one, out of the table before its time.
func (t *Tracker[T]) over(l *Life[T]) {
	if l == nil {
		return
	}
	t.remove(l)
	if t.forget != nil {
		t.forget(l)
	}
	t.recycle(l)
}

// apply lets the event happen to what resolve, called last with the same event, returned for it.
func (t *Tracker[T]) apply(l *Life[T], ev *Event) Step[T] {
	step := Step[T]{Life: l, Ended: ends(ev)}
	if l == nil {
		l = t.begin(step.Ended)
		step.Life, step.Began = l, true
	} else {
		step.From = l.State
		step.Missing = l.State != before(ev)
	}
	if step.Ended {
		t.remove(l)
		t.ended = l
	}
	if ev.Cookie != 0 {
		l.Cookie = ev.Cookie
	}
	l.State = ev.New
	if !step.Ended {
		t.put(l, placeOf(l, ev), &t.pair)
	}
	l.pair = t.pair
	return step
}

// begin returns a Life that is in the ring, but in no table yet. One that ends at once
// needs no room.
func (t *Tracker[T]) begin(ends bool) *Life[T] {
	if !ends && t.alive >= t.max && t.alive > 0 {
		t.forgotten++
		t.over(t.order.next)
	}
	l := t.spare
	if l == nil {
		l = new(Life[T])
	} else {
		t.spare = l.next
	}
	l.place = nowhere
	l.prev, l.next = t.order.prev, &t.order
	l.prev.next, l.next.prev = l, l
	t.alive++
	return l
}

// placeOf is where a Life is found after the event.
func placeOf[T any](l *Life[T], ev *Event) place {
	switch {
	case l.State == TimeWait:
		return timeWait
	case l.Cookie != 0:
		return byCookie
	case l.State == SynRecv && ev.Old != SynSent && l.place != paired:
		return halfOpen
	}
	return paired
}

// put enters a Life in the table where it belongs, and out of that where it was.
func (t *Tracker[T]) put(l *Life[T], to place, p *pair) {
	switch {
	case to == byCookie:
		if l.place == byCookie {
			return
		}
		t.unlist(l)
		t.over(t.cookies[l.Cookie])
		t.cookies[l.Cookie] = l
	case to == l.place && *p == l.pair:
		return
	default:
		t.unlist(l)
		l.crowd = 0
		if other := t.pairs[to][*p]; other != nil {
			if to == paired && l.State == other.State && shares(l.State, p) {
				l.crowd = max(other.crowd, 1) + 1
			}
			t.over(other)
		}
		t.pairs[to][*p] = l
	}
	l.place = to
}

// unlist takes a Life out of the table that it is found in.
func (t *Tracker[T]) unlist(l *Life[T]) {
	if l.place == byCookie {
		delete(t.cookies, l.Cookie)
	} else if l.place < addressed {
		delete(t.pairs[l.place], l.pair)
	}
	l.place = nowhere
}

func (t *Tracker[T]) remove(l *Life[T]) {
	t.unlist(l)
	l.prev.next, l.next.prev = l.next, l.prev
	t.alive--
}

func (t *Tracker[T]) recycle(l *Life[T]) {
	*l = Life[T]{place: nowhere, next: t.spare}
	t.spare = l
}

// follows reports whether a connection that was in one state can be in another later on,
// whatever lies between. A socket that cannot has been connected again meanwhile.
func follows(earlier, later State) bool {
	if earlier == later {
		return true
	}
	return int(earlier) < len(laterStates) && laterStates[earlier]>>later&1 != 0
}

// laterStates are the states that can follow each in one connection, as bits: where its
// Edges lead. A listener stays one, and no connection becomes one.
var laterStates = func() (later [NewSynRecv + 1]uint16) {
	later[NewSynRecv] = 1 << SynRecv
	for _, e := range Edges {
		if e.From != Close && e.To != Listen && (e.From != Listen || e.To == Close) {
			later[e.From] |= 1 << e.To
		}
	}
	for range later { // no path is longer
		for from := range later {
			for to := range later {
				if later[from]>>to&1 != 0 {
					later[from] |= later[to]
				}
			}
		}
	}
	return later
}()

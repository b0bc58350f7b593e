package tcp

import "net/netip"

// The bounds of a Selector. A held event takes 352 bytes and a socket, with its
// entry in the map, some 300: 23 MB and 100 MB at most. Nothing is taken before
// a filter needs it.
const (
	maxHeld    = 1 << 16 // events held, of all sockets
	maxHeldPer = 16      // events held of one socket: more than a life has
	maxMatched = 1 << 18 // sockets known to match and still alive
)

// A Selector picks the events of the sockets that match a Filter. A filter
// selects sockets, not lines: as long as it is open whether a socket matches, its
// events are held; when it does, they come out first, in order, then all that
// follow up to the one into CLOSE. Events of one socket keep their order;
// held ones come out behind later events of others.
//
// A socket is known by its cookie, a half-open connection, which has none yet, by
// its namespace and addresses until the handshake gives it one. What a socket
// does after CLOSE, as a reconnect, is judged afresh.
//
// A Selector belongs to one goroutine. Its memory is bounded; see Dropped.
type Selector struct {
	filter  Filter
	lasting bool // no state is kept
	sockets map[identity]*socket
	waiting socket // head of a ring: the undecided, oldest first
	matched socket // head of a ring: the matching, oldest first
	alive   int    // sockets in matched
	held    int    // events in all holds
	spare   *held  // used again, so that holding does not allocate either
	dropped uint64
}

type identity struct {
	cookie        uint64 // when it is not 0, the rest is empty
	netns         uint32
	local, remote netip.AddrPort
}

type socket struct {
	id          identity
	matches     bool
	first, last *held // the hold
	count       int
	prev, next  *socket
}

type held struct {
	event Event
	next  *held
}

// NewSelector returns a Selector for a filter, which is not to be changed any more.
func NewSelector(f Filter) *Selector {
	s := &Selector{filter: f, lasting: f.lasting(), sockets: make(map[identity]*socket)}
	s.waiting.prev, s.waiting.next = &s.waiting, &s.waiting
	s.matched.prev, s.matched.next = &s.matched, &s.matched
	return s
}

// Dropped returns how many sockets were given up at one of the bounds: of these,
// events may be missing that the filter asked for. Their later events are judged
// like those of a new socket.
func (s *Selector) Dropped() uint64 { return s.dropped }

// Select calls emit for the events that are to be shown now: none, ev, or ev
// after the held ones of its socket. An Event given to emit, like ev itself, is
// valid until emit returns. Events come in order; a Lost one always passes. The
// first error of emit is returned.
func (s *Selector) Select(ev *Event, emit func(*Event) error) error {
	if ev.Kind == Lost {
		return emit(ev)
	}
	if s.lasting {
		if s.filter.Match(ev) {
			return emit(ev)
		}
		return nil
	}
	sock := s.find(ev)
	if sock != nil && sock.matches {
		if ev.New == Close {
			s.forget(sock)
		}
		return emit(ev)
	}
	switch s.filter.judge(ev) {
	case match:
		return s.release(sock, ev, emit)
	case undecided:
		if ev.New != Close {
			s.hold(sock, ev)
			return nil
		}
	}
	s.forget(sock)
	return nil
}

// find returns what is known of the event's socket, nil for nothing.
func (s *Selector) find(ev *Event) *socket {
	sock := s.sockets[identify(ev)]
	if sock == nil && ev.Cookie != 0 && ev.Old == SynRecv {
		if sock = s.sockets[addresses(ev)]; sock != nil { // the handshake gave it a cookie
			delete(s.sockets, sock.id)
			sock.id = identify(ev)
			s.sockets[sock.id] = sock
		}
	}
	if sock != nil && (ev.Old == Close || ev.Old == Listen && ev.Cookie == 0) {
		s.forget(sock) // a new life; the event that ended the old one was lost
		return nil
	}
	return sock
}

func identify(ev *Event) identity {
	if ev.Cookie != 0 {
		return identity{cookie: ev.Cookie}
	}
	return addresses(ev)
}

func addresses(ev *Event) identity {
	return identity{netns: ev.NetNS, local: ev.Local, remote: ev.Remote}
}

// release emits what was held of a socket that matches by this event, and the event.
func (s *Selector) release(sock *socket, ev *Event, emit func(*Event) error) error {
	var err error
	if sock != nil {
		for h := sock.first; h != nil && err == nil; h = h.next {
			err = emit(&h.event)
		}
	}
	s.forget(sock)
	if err != nil {
		return err
	}
	if ev.New != Close {
		if s.alive == maxMatched {
			s.drop(s.matched.next)
		}
		s.add(ev, &s.matched).matches = true
		s.alive++
	}
	return emit(ev)
}

// hold keeps a copy of the event until its socket is decided.
func (s *Selector) hold(sock *socket, ev *Event) {
	if sock != nil && sock.count == maxHeldPer {
		s.drop(sock)
		sock = nil
	}
	if s.held == maxHeld {
		oldest := s.waiting.next // the least likely to match yet
		s.drop(oldest)
		if sock == oldest {
			sock = nil
		}
	}
	if sock == nil {
		sock = s.add(ev, &s.waiting)
	}
	h := s.spare
	if h == nil {
		h = new(held)
	} else {
		s.spare = h.next
	}
	h.event, h.next = *ev, nil
	if sock.last == nil {
		sock.first = h
	} else {
		sock.last.next = h
	}
	sock.last = h
	sock.count++
	s.held++
}

func (s *Selector) add(ev *Event, ring *socket) *socket {
	sock := &socket{id: identify(ev), prev: ring.prev, next: ring}
	ring.prev.next, ring.prev = sock, sock
	s.sockets[sock.id] = sock
	return sock
}

func (s *Selector) drop(sock *socket) {
	s.dropped++
	s.forget(sock)
}

// forget removes a socket, if there is one, with its hold.
func (s *Selector) forget(sock *socket) {
	if sock == nil {
		return
	}
	delete(s.sockets, sock.id)
	sock.prev.next, sock.next.prev = sock.next, sock.prev
	if sock.matches {
		s.alive--
	}
	if sock.last != nil {
		sock.last.next, s.spare = s.spare, sock.first
		s.held -= sock.count
	}
}

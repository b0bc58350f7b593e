package tcp

import "reflect"

// The bounds of a Selector. A held event takes 384 bytes and a Life, with its entry in
// the table, 150 to 260: 25 MB and 68 MB at most. Nothing is taken before a filter needs
// it.
const (
	maxHeld    = 1 << 16 // events held, of all sockets
	maxHeldPer = 16      // events held of one socket: more than a life has
	maxChosen  = 1 << 18 // sockets that match and are still alive, and those undecided
)

// A Selector picks the events of the sockets that match a Filter. A filter
// selects sockets, not lines: as long as it is open whether a socket matches, its
// events are held; when it does, they come out first, in order, then all that
// follow up to the last one. Events of one socket keep their order; held ones come
// out behind later events of others.
//
// What a socket is, a Tracker says: a half-open connection goes on in its child and a
// connection in its TIME_WAIT. What the same socket does after CLOSE, as a reconnect,
// is judged afresh, also while the TIME_WAIT of what it was before lasts.
//
// A Selector belongs to one goroutine. Its memory is bounded; see Dropped.
type Selector struct {
	filter  Filter
	all     bool // the filter asks for nothing, so there is nothing to judge
	lasting bool // no state is kept
	lives   *Tracker[choice]
	where   *Namespaces
	waiting Life[choice] // head of a ring: the undecided, oldest first
	held    int          // events in all holds
	spare   *held        // used again, so that holding does not allocate either
	dropped uint64
	row     Event // of qualifies; a variable there would be allocated, for Filter.Where
	// The sockets that are over and could not be judged.
	unjudged Unjudged
}

// choice is what a Selector knows of a Life.
type choice struct {
	matches     bool
	missing     Fact  // for want of which it is undecided
	count       int   // events in the hold
	first, last *held // the hold; nil: not in the ring of the waiting

	prev, next *Life[choice]
}

type held struct {
	event Event
	next  *held
}

// NewSelector returns a Selector for a filter, which is not to be changed any more.
func NewSelector(f Filter) *Selector {
	s := &Selector{filter: f, all: reflect.ValueOf(f).IsZero(), lasting: f.lasting(), where: NewNamespaces(f)}
	s.lives = NewTracker(maxChosen, s.stopWaiting)
	s.waiting.Value.prev, s.waiting.Value.next = &s.waiting, &s.waiting
	return s
}

// Dropped returns how many sockets were given up at one of the bounds: of these,
// events may be missing that the filter asked for. Their later events are judged
// like those of a new socket.
func (s *Selector) Dropped() uint64 { return s.dropped + s.lives.Forgotten() }

// Namespaces returns those in which the filter has selected sockets so far.
func (s *Selector) Namespaces() *Namespaces { return s.where }

// Select calls emit for the events that are to be shown now: none, ev, or ev
// after the held ones of its socket. An Event given to emit, like ev itself, is
// valid until emit returns. Events come in order; a Lost one always passes, an Unseen one
// if it is of a namespace in which the filter selects sockets. The first error of emit is
// returned.
func (s *Selector) Select(ev *Event, emit func(*Event) error) error {
	switch {
	case s.all && ev.Kind.OfSocket():
		s.where.Note(ev)
		return emit(ev)
	case ev.Kind == Unseen && !s.where.Have(ev.NetNS):
		return nil
	case !ev.Kind.OfSocket():
		return emit(ev)
	}
	s.where.Note(ev)
	if s.lasting {
		if s.filter.Match(ev) {
			return emit(ev)
		}
		return nil
	}
	life := s.lives.resolve(ev)
	if life != nil && life.Value.matches {
		s.lives.apply(life, ev)
		return emit(ev)
	}
	switch s.filter.judge(ev) {
	case match:
		return s.release(life, ev, emit)
	case undecided:
		if !ends(ev) {
			s.hold(life, ev)
			return nil
		}
		s.unjudged.Add(s.missing(life, ev))
	}
	if life != nil {
		s.discard(life)
	}
	return nil
}

// missing is the fact for want of which a socket is undecided after this event. The
// owner may be known by now; how long a state lasted that is over is never learned.
func (s *Selector) missing(life *Life[choice], ev *Event) Fact {
	if life != nil && life.Value.missing == Age {
		return Age
	}
	return s.filter.Missing(ev)
}

// Unjudged returns how many sockets were not shown so far, or are not shown yet, because a
// fact that the filter asks for is not known.
func (s *Selector) Unjudged() Unjudged {
	all := s.unjudged
	for life := s.waiting.Value.next; life != &s.waiting; life = life.Value.next {
		all.Add(life.Value.missing)
	}
	return all
}

// Tick shows the sockets that match by the passing of time: those that have been in their
// state for the minimum duration at the time now, of CLOCK_BOOTTIME in ns. It calls emit
// like Select does. It looks at every undecided socket, but only if the filter has a
// minimum duration.
func (s *Selector) Tick(now uint64, emit func(*Event) error) error {
	if !s.Ticks() {
		return nil
	}
	for life := s.waiting.Value.next; life != &s.waiting; {
		next := life.Value.next
		if s.qualifies(&life.Value.last.event, now) {
			life.Value.matches = true
			if err := s.emitHeld(life, emit); err != nil {
				return err
			}
		}
		life = next
	}
	return nil
}

// Ticks reports whether a socket can match by the passing of time, so that Tick is to be
// called.
func (s *Selector) Ticks() bool { return s.filter.MinDuration != 0 }

// qualifies reports whether a socket of which ev is the last event matches at the time now,
// if nothing has happened to it since. Where it is not known when its state began, no time
// is long enough.
func (s *Selector) qualifies(ev *Event, now uint64) bool {
	since := ev.BootNS
	if ev.Kind == Socket {
		if !ev.DurationKind.Known() {
			return false
		}
		since -= min(ev.Duration, since)
	}
	if now < since || now-since < s.filter.MinDuration {
		return false
	}
	s.row = *ev
	s.row.Kind, s.row.Old, s.row.Duration, s.row.DurationKind = Socket, 0, now-since, AtLeast
	s.row.Reason, s.row.Errno = "", 0 // they are of the change before
	return s.filter.Match(&s.row)
}

// release emits what was held of a socket that matches by this event, and the event.
func (s *Selector) release(life *Life[choice], ev *Event, emit func(*Event) error) error {
	var err error
	if life != nil {
		err = s.emitHeld(life, emit)
	}
	s.lives.apply(life, ev).Life.Value.matches = true
	if err != nil {
		return err
	}
	return emit(ev)
}

// emitHeld empties the hold of a socket into emit, up to the first error.
func (s *Selector) emitHeld(life *Life[choice], emit func(*Event) error) error {
	var err error
	for h := life.Value.first; h != nil && err == nil; h = h.next {
		err = emit(&h.event)
	}
	s.stopWaiting(life)
	return err
}

// hold keeps a copy of the event until its socket is decided.
func (s *Selector) hold(life *Life[choice], ev *Event) {
	if life != nil && life.Value.count == maxHeldPer {
		s.drop(life)
		life = nil
	}
	if s.held == maxHeld {
		oldest := s.waiting.Value.next // the least likely to match yet
		s.drop(oldest)
		if life == oldest {
			life = nil
		}
	}
	missing := s.missing(life, ev)
	life = s.lives.apply(life, ev).Life
	life.Value.missing = missing
	h := s.spare
	if h == nil {
		h = new(held)
	} else {
		s.spare = h.next
	}
	h.event, h.next = *ev, nil
	c := &life.Value
	if c.last == nil {
		c.first = h
		c.prev, c.next = s.waiting.Value.prev, &s.waiting
		c.prev.Value.next, c.next.Value.prev = life, life
	} else {
		c.last.next = h
	}
	c.last = h
	c.count++
	s.held++
}

func (s *Selector) drop(life *Life[choice]) {
	s.dropped++
	s.discard(life)
}

// discard forgets a socket and its hold.
func (s *Selector) discard(life *Life[choice]) {
	s.stopWaiting(life)
	s.lives.Drop(life)
}

// stopWaiting frees the hold of a socket, if it has one.
func (s *Selector) stopWaiting(life *Life[choice]) {
	c := &life.Value
	if c.last == nil {
		return
	}
	c.prev.Value.next, c.next.Value.prev = c.next, c.prev
	c.last.next, s.spare = s.spare, c.first
	s.held -= c.count
	c.first, c.last, c.count = nil, nil, 0
}

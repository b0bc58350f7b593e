package recording

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds of what is kept for Existing. A socket takes 128 bytes, and its entry in the
// table of a tcp.Tracker 20 to 40 by cookie and 60 to 120 by address pair: 44 MB, or 65 MB
// if all are half-open or in TIME_WAIT. What sockets have in common is kept once, in 12 MB
// at most: with short texts for 17,000 owners.
const (
	maxSockets  = 1 << 18
	maxTraits   = 12 << 20 // bytes
	traitsBytes = 700      // of one description and its entry in the table, without its texts
)

// sockets are those that exist at a point of a recording, as far as they are wanted.
type sockets struct {
	lives     *tcp.Tracker[row]
	traits    map[traits]*common
	bytes     int // that traits takes
	forgotten uint64
}

// row is what is kept of a socket beside what its Life knows. Counters and queues are not:
// they were those of the last event, and nobody knows how they went on.
type row struct {
	since        uint64 // BootNS when the state began, as exactly as durationKind says
	skAddr       uint64
	common       *common
	pid          uint32
	fd           int32
	durationKind uint8 // of durationKinds
	mptcp        bool
}

var durationKinds = [...]tcp.DurationKind{"", tcp.Exact, tcp.AtLeast, tcp.Unknown}

// traits are what many sockets have in common: those of one owner that play one part.
type traits struct {
	role              tcp.Role
	source            tcp.OwnerSource
	holder            tcp.Holder
	comm              string
	cgroup, container string
	uid               uint32
	names             tcp.Names
}

// common is what sockets share, and how many do.
type common struct {
	traits
	sockets int
}

func newSockets() *sockets {
	s := &sockets{traits: make(map[traits]*common)}
	// One more than are kept, so that a socket that is not wanted drives none out.
	s.lives = tcp.NewTracker(maxSockets+1, func(l *tcp.Life[row]) { s.release(l) })
	return s
}

// observe takes an event; wanted says whether its socket is to be kept in its new state.
// All events are shown to the Tracker, as any may prove that a socket is gone.
func (s *sockets) observe(e *tcp.Event, wanted bool) {
	step := s.lives.Observe(e)
	if step.Ended || !wanted {
		s.drop(step.Life)
		return
	}
	r := &step.Life.Value
	since, kind := begun(e)
	if step.From == e.New && !kind.Known() {
		since, kind = r.since, durationKinds[r.durationKind] // what was known already still holds
	}
	was := r.common
	*r = newRow(e, since, kind)
	r.common = s.share(e)
	s.leave(was)
	for s.lives.Len() > maxSockets || s.bytes > maxTraits && s.lives.Len() > 1 {
		s.forgotten++
		for oldest := range s.lives.All() {
			s.drop(oldest)
			break
		}
	}
}

// begun returns when the state that the event leads to began, and how well that is known.
func begun(e *tcp.Event) (uint64, tcp.DurationKind) {
	if e.Kind == tcp.Transition {
		return e.BootNS, tcp.Exact
	}
	if !e.DurationKind.Known() {
		return e.BootNS, e.DurationKind
	}
	return e.BootNS - min(e.Duration, e.BootNS), e.DurationKind
}

func (s *sockets) drop(life *tcp.Life[row]) {
	s.release(life)
	s.lives.Drop(life)
}

func (s *sockets) release(life *tcp.Life[row]) {
	s.leave(life.Value.common)
	life.Value.common = nil
}

// share returns the common part of the event's socket, which is counted as one more.
func (s *sockets) share(e *tcp.Event) *common {
	t := traits{e.Role, e.OwnerSource, e.Holder, e.Comm, e.Cgroup, e.ContainerID, e.UID, e.Named()}
	c := s.traits[t]
	if c == nil {
		c = &common{traits: t}
		s.traits[t] = c
		s.bytes += t.size()
	}
	c.sockets++
	return c
}

// leave counts one socket less, if c is not nil.
func (s *sockets) leave(c *common) {
	if c == nil {
		return
	}
	if c.sockets--; c.sockets == 0 {
		delete(s.traits, c.traits)
		s.bytes -= c.size()
	}
}

func (t *traits) size() int {
	return traitsBytes + len(t.comm) + len(t.cgroup) + len(t.container) + t.names.Size()
}

func newRow(e *tcp.Event, since uint64, kind tcp.DurationKind) row {
	return row{
		since: since, skAddr: e.SkAddr, pid: e.PID, fd: e.FD, mptcp: e.MPTCP,
		durationKind: uint8(max(0, slices.Index(durationKinds[:], kind))),
	}
}

// fill is the reverse of newRow, for the time e.BootNS.
func (r *row) fill(e *tcp.Event) {
	c := r.common
	e.Role, e.OwnerSource, e.Holder, e.Comm, e.UID = c.role, c.source, c.holder, c.comm, c.uid
	e.Cgroup, e.ContainerID = c.cgroup, c.container
	if c.names != (tcp.Names{}) {
		e.Names = &c.names
	}
	e.SkAddr, e.PID, e.FD, e.MPTCP = r.skAddr, r.pid, r.fd, r.mptcp
	if e.DurationKind = durationKinds[r.durationKind]; e.DurationKind.Known() {
		e.Duration = e.BootNS - min(r.since, e.BootNS)
	}
}

package serve

import (
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// expiry is for how long a service without sockets is still shown.
const expiry = time.Minute

// states is one more than the greatest number of a state. Number 0 stands for what is none, as
// a later kernel may have it.
const states = int(tcp.NewSynRecv) + 1

// meter counts sockets, and how long they were in each state, by service. It keeps no more
// than max services beside ~other and ~unknown.
type meter struct {
	max            int
	services       map[string]*service
	other, unknown *service
	lives          *tcp.Tracker[life]
	now            uint64
	inexact        [states]inexact // by the state that ended
	taken          taken           // by all
	marked, before uint64          // CLOCK_BOOTTIME in ns of the marks in every taken
}

// edges counts transitions, by the state before and after.
type edges [states][states]uint64

// taken is how often edges were taken: by now, and at the last two marks. The older one is what
// a rate is counted from.
type taken struct{ count, marked, before edges }

// markInterval is from one mark to the next: a rate is that of the last 5 to 10 s.
const markInterval = 5 * time.Second

// inexact counts the times in a state that are in no histogram.
type inexact struct{ atLeast, unknown uint64 }

// service is what is kept of one: 2 KiB for each state that one of its sockets has left, and
// 4 KiB.
type service struct {
	name    string
	sockets [states]int
	seen    [states]bool // a socket was in this state
	dwell   [states]*stats.Histogram
	taken   taken
	members int    // lives
	left    uint64 // CLOCK_BOOTTIME in ns at which the last one ended
}

// life is what is kept of a socket.
type life struct {
	service *service
	cgroup  string // of which service is made
}

func newMeter(maxServices, maxSockets int) *meter {
	m := &meter{
		max: maxServices, services: make(map[string]*service),
		other: &service{name: otherService}, unknown: &service{name: unknownService},
	}
	m.lives = tcp.NewTracker(maxSockets, m.gone)
	return m
}

// event counts a transition or a row of a socket that exists.
func (m *meter) event(e *tcp.Event) {
	m.now = max(m.now, e.BootNS)
	step := m.lives.Observe(e)
	l := &step.Life.Value
	if !step.Began {
		l.service.sockets[index(step.From)]--
	}
	if l.service == nil || e.Cgroup != "" && e.Cgroup != l.cgroup {
		m.move(l, e)
	}
	if e.Kind == tcp.Transition {
		m.stayed(l.service, e)
	}
	if step.Ended {
		m.leave(l)
		return
	}
	at := index(e.New)
	l.service.sockets[at]++
	l.service.seen[at] = true
}

// index is the place of a state. A half-open connection is in SYN_RECV, however the kernel
// keeps it.
func index(s tcp.State) int {
	switch {
	case s == tcp.NewSynRecv:
		return int(tcp.SynRecv)
	case int(s) >= states:
		return 0
	}
	return int(s)
}

// stayed counts the transition, and the time in the state that ends.
func (m *meter) stayed(s *service, e *tcp.Event) {
	at, to := index(e.Old), index(e.New)
	s.taken.count[at][to]++
	m.taken.count[at][to]++
	switch e.DurationKind {
	case tcp.Exact:
		if s.dwell[at] == nil {
			s.dwell[at] = new(stats.Histogram)
		}
		s.dwell[at].Add(e.Duration)
	case tcp.AtLeast:
		m.inexact[at].atLeast++
	case tcp.Unknown:
		m.inexact[at].unknown++
	}
}

// move puts a socket in the service that the event tells.
func (m *meter) move(l *life, e *tcp.Event) {
	to := m.find(e)
	l.cgroup = e.Cgroup
	if l.service == to {
		return
	}
	if l.service != nil {
		m.leave(l)
	}
	l.service = to
	to.members++
}

func (m *meter) leave(l *life) {
	l.service.members--
	l.service.left = m.now
}

// find returns the service of an event, which is ~other if there is no room for it.
func (m *meter) find(e *tcp.Event) *service {
	if e.Cgroup == "" && e.ContainerID == "" {
		return m.unknown
	}
	name := serviceOf(e)
	if s := m.services[name]; s != nil {
		return s
	}
	if len(m.services) >= m.max {
		return m.other
	}
	name = strings.Clone(name) // it may be part of a longer one
	s := &service{name: name}
	m.services[name] = s
	return s
}

// gone is called by the Tracker for a life whose end was not seen.
func (m *meter) gone(l *tcp.Life[life]) {
	l.Value.service.sockets[index(l.State)]--
	m.leave(&l.Value)
}

// mark remembers the counts from time to time.
func (m *meter) mark(now uint64) {
	switch {
	case m.marked == 0:
		m.before, m.marked = now, now
		m.markAll() // what was before the first mark is in no rate
	case now < m.marked+uint64(markInterval):
		return
	default:
		m.before, m.marked = m.marked, now
	}
	m.markAll()
}

func (m *meter) markAll() {
	for _, s := range m.services {
		s.taken.mark()
	}
	for _, t := range []*taken{&m.taken, &m.other.taken, &m.unknown.taken} {
		t.mark()
	}
}

func (t *taken) mark() { t.before, t.marked = t.marked, t.count }

// expire forgets services that have had no socket for some time.
func (m *meter) expire(now uint64) {
	m.now = max(m.now, now)
	for name, s := range m.services {
		if s.members == 0 && m.now-s.left >= uint64(expiry) {
			delete(m.services, name)
		}
	}
}

// nameOf is the service that a name is counted in.
func (m *meter) nameOf(name string) string {
	if m.services[name] != nil || name == unknownService {
		return name
	}
	return otherService
}

// all yields every service that has or had a socket.
func (m *meter) all() (all []*service) {
	for _, s := range m.services {
		all = append(all, s)
	}
	for _, s := range []*service{m.other, m.unknown} {
		if s.seen != [states]bool{} || s.dwell != [states]*stats.Histogram{} {
			all = append(all, s)
		}
	}
	return all
}

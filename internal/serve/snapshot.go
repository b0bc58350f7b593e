package serve

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// snapshot is what /metrics and the page show of one moment. It is plain data of its own, which
// nobody changes.
type snapshot struct {
	host         *stats.Report // without groups
	taken        taken         // by all
	rated        uint64        // ns since taken.before was marked; 0: rates are not known
	look         look
	services     []serviceCounts // by name
	transitions  []transitions
	inexact      [states]inexact
	leaks        []leaks // by service and state; applies if leaksKnown
	leaksKnown   bool
	exhausted    []exhausted
	timeWaitEnds []stats.Reason
	ports        float64 // share of the local ports that the worst destination takes
	portsKnown   bool
	portsUnknown int // destinations in network namespaces whose ports are not known
	lost         []counted
	unseen       []counted
	tracked      int
	forgotten    uint64
	failedLooks  uint64

	// gather makes metrics of it, once for all who have asked.
	gather func() ([]*dto.MetricFamily, error)
	ranked func() []listed // likewise, services
}

type serviceCounts struct {
	name    string
	sockets [states]int
	seen    [states]bool
	dwell   [states]*stats.Histogram // nil: none has ended
	taken   taken
}

type transitions struct {
	from, to tcp.State
	reason   string
	count    uint64
}

// leaks are the sockets of one service in one state that leak.
type leaks struct {
	service     string
	state       tcp.State
	sockets     int
	oldest      uint64  // ns
	growth      float64 // per minute
	growthKnown bool
}

// exhausted is when the first process of a service runs out of descriptors.
type exhausted struct {
	service string
	left    uint64 // ns
}

type counted struct {
	what  string
	count uint64
}

// snapshot copies what /metrics and the page show.
func (c *collector) snapshot(now uint64) *snapshot {
	s := &snapshot{
		host: copyReport(c.tally.Report(now)), taken: c.meter.taken, rated: now - min(c.meter.before, now), look: c.seen,
		services: copyServices(c.meter.all()), inexact: c.meter.inexact,
		lost: sortedCounts(c.lost), unseen: sortedCounts(c.unseen),
		tracked: c.meter.lives.Len(), forgotten: c.meter.lives.Forgotten(), failedLooks: c.failedLooks,
	}
	s.countTransitions(s.host)
	if c.leaked != nil {
		s.leaksKnown = true
		s.countLeaks(c.leaked, c.meter)
	}
	if c.waiting != nil {
		s.countPorts(c.waiting)
	}
	s.ranked = sync.OnceValue(s.ranking)
	s.gather = sync.OnceValues(func() ([]*dto.MetricFamily, error) {
		registry := prometheus.NewRegistry()
		registry.MustRegister(s)
		return registry.Gather()
	})
	return s
}

// copyReport gives a report histograms of its own, and takes the groups out of it.
func copyReport(r *stats.Report) *stats.Report {
	r.Groups = nil
	for i := range r.States {
		s := &r.States[i]
		exact, atLeast := *s.Exact, *s.AtLeast
		s.Exact, s.AtLeast = &exact, &atLeast
	}
	return r
}

func copyServices(all []*service) (copies []serviceCounts) {
	for _, s := range all {
		one := serviceCounts{name: s.name, sockets: s.sockets, seen: s.seen, taken: s.taken}
		for at, h := range s.dwell {
			if h != nil {
				same := *h
				one.dwell[at] = &same
			}
		}
		copies = append(copies, one)
	}
	slices.SortFunc(copies, func(a, b serviceCounts) int { return cmp.Compare(a.name, b.name) })
	return copies
}

// countTransitions takes over what the report says of edges.
func (s *snapshot) countTransitions(r *stats.Report) {
	for i := range r.Edges {
		e := &r.Edges[i]
		for _, why := range e.Reasons {
			reason := cmp.Or(string(why.Reason), "unknown")
			s.transitions = append(s.transitions, transitions{e.From, e.To, reason, why.Count})
			if e.From == tcp.TimeWait && e.To == tcp.Close {
				s.timeWaitEnds = append(s.timeWaitEnds, stats.Reason{Reason: tcp.Reason(reason), Count: why.Count})
			}
		}
	}
}

// countLeaks sums up the groups that leak by service and state.
func (s *snapshot) countLeaks(r *leak.Report, m *meter) {
	type place struct {
		service string
		state   tcp.State
	}
	sums, left := make(map[place]*leaks), make(map[string]uint64)
	for _, g := range r.Groups {
		if g.Verdict != leak.Leak {
			continue
		}
		name := m.nameOf(serviceOf(&tcp.Event{Cgroup: g.Cgroup, ContainerID: g.Container}))
		at := place{name, g.State}
		if sums[at] == nil {
			sums[at] = &leaks{service: name, state: g.State}
		}
		sums[at].add(g)
		if g.LeftKnown {
			left[name] = min(g.Left, cmp.Or(left[name], math.MaxUint64))
		}
	}
	for _, sum := range sums {
		s.leaks = append(s.leaks, *sum)
	}
	for name, ns := range left {
		s.exhausted = append(s.exhausted, exhausted{name, ns})
	}
}

func (l *leaks) add(g *leak.Group) {
	l.sockets += g.Count
	l.oldest = max(l.oldest, g.Oldest)
	if g.GrowthKnown {
		l.growth, l.growthKnown = l.growth+g.Growth, true
	}
}

// countPorts finds the destination that takes most of its local ports.
func (s *snapshot) countPorts(r *leak.Report) {
	for _, d := range r.Destinations {
		share, known := d.Share()
		switch {
		case known:
			s.ports, s.portsKnown = max(s.ports, share), true
		case !d.Server():
			s.portsUnknown++
		}
	}
}

func sortedCounts(all map[string]uint64) (list []counted) {
	for what, n := range all {
		list = append(list, counted{what, n})
	}
	slices.SortFunc(list, func(a, b counted) int { return cmp.Compare(a.what, b.what) })
	return list
}

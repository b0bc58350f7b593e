package serve

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// maxListed is how many services the page has a row for.
const maxListed = 20

// overview is what the page shows of one moment: of the host, or of one service. Texts of it are
// as the page shows them; they hold nothing that a terminal acts on.
type overview struct {
	V         int             `json:"v"`
	Type      string          `json:"type"`
	Time      string          `json:"time"`
	BootNS    string          `json:"boot_ns"`
	Watched   float64         `json:"watched_s"`
	Service   string          `json:"service,omitempty"` // of which States and Edges are; empty: all
	Verdict   verdict         `json:"verdict"`
	Lost      uint64          `json:"lost"`
	Forgotten uint64          `json:"forgotten"`
	States    []overviewState `json:"states"`
	Edges     []overviewEdge  `json:"edges"`
	Below     []string        `json:"below"` // what was taken and has no place in the diagram
	Services  []listed        `json:"services"`
	LeftOut   int             `json:"services_left_out"`

	live *output.Live
}

type overviewState struct {
	State string   `json:"state"`
	Now   *int     `json:"now,omitempty"`
	P50   *float64 `json:"p50_ms,omitempty"`
	P99   *float64 `json:"p99_ms,omitempty"`
	Label string   `json:"label"`
	Times string   `json:"times"`
}

type overviewEdge struct {
	From      string   `json:"old_state"`
	To        string   `json:"new_state"`
	Count     uint64   `json:"count"`
	PerSecond *float64 `json:"per_s,omitempty"` // of the last seconds
	Why       string   `json:"why"`             // the reasons, the most frequent first
	Label     string   `json:"label"`
	Title     string   `json:"title"`
	Classes   string   `json:"classes"`
}

// Rate is PerSecond for the eye.
func (e overviewEdge) Rate() string {
	if e.PerSecond == nil {
		return "–"
	}
	return strconv.FormatFloat(*e.PerSecond, 'f', 1, 64)
}

// listed is a service in the order of what leaks.
type listed struct {
	Service string  `json:"service"`
	Leaking int     `json:"leaking"`
	Oldest  float64 `json:"oldest_s"`
	Growth  float64 `json:"growth_per_min"` // 0 as well if it is not known
	Waiting int     `json:"close_wait"`
	Sockets int     `json:"sockets"`
	Age     string  `json:"oldest"` // for the eye
}

// overview says what the page shows of a service; "" is the whole host. False: there is no such
// service.
func (s *snapshot) overview(service string) (*overview, bool) {
	r, counts, found := s.report(service)
	if !found {
		return nil, false
	}
	rate := func(from, to tcp.State) (float64, bool) { return counts.perSecond(from, to, s.rated) }
	o := &overview{
		V: tcp.SchemaVersion, Type: "overview", Time: time.Unix(0, s.host.Time).UTC().Format("2006-01-02T15:04:05.000Z"),
		BootNS: strconv.FormatUint(s.host.BootNS, 10), Watched: seconds(s.host.Watched),
		Service: service, Verdict: s.verdict(), Lost: total(s.lost), Forgotten: s.forgotten,
		live: output.NewLive(r, rate),
	}
	o.addStates(r)
	o.addEdges(r, rate)
	o.Below = append([]string{}, o.live.Below()...)
	o.Services = s.ranked()
	if len(o.Services) > maxListed {
		o.LeftOut = len(o.Services) - maxListed
		o.Services = o.Services[:maxListed]
	}
	return o, true
}

// report is a report of one service or of the host. The sockets are those of /metrics. Of a
// service it does not say why edges were taken.
func (s *snapshot) report(service string) (*stats.Report, *taken, bool) {
	var sockets [states]int
	of, found := -1, service == ""
	for i := range s.services {
		if service != "" && s.services[i].name != service {
			continue
		}
		of, found = i, true
		for at, n := range s.services[i].sockets {
			sockets[at] += n
		}
	}
	if !found {
		return nil, nil, false
	}
	r, counts := *s.host, &s.taken
	r.States = slices.Clone(s.host.States)
	for i := range r.States {
		r.States[i].Now = sockets[index(r.States[i].State)]
	}
	if service != "" {
		one := &s.services[of]
		counts = &one.taken
		one.narrow(&r)
	}
	return &r, counts, true
}

// narrow makes a report of the host one of the service.
func (s *serviceCounts) narrow(r *stats.Report) {
	for i := range r.States {
		one := &r.States[i]
		one.Exact, one.AtLeast = s.dwell[index(one.State)], new(stats.Histogram)
		if one.Exact == nil {
			one.Exact = new(stats.Histogram)
		}
	}
	r.Edges = slices.Clone(r.Edges)
	for i := range r.Edges {
		e := &r.Edges[i]
		e.Count, e.Reasons = s.taken.count[index(e.From)][index(e.To)], nil
	}
}

// perSecond is how often an edge was taken a second since the mark before the last; false: that
// is not known.
func (t *taken) perSecond(from, to tcp.State, since uint64) (float64, bool) {
	if since == 0 {
		return 0, false
	}
	n := t.count[index(from)][index(to)] - t.before[index(from)][index(to)]
	return float64(n) * 1e9 / float64(since), true
}

func (o *overview) addStates(r *stats.Report) {
	for _, text := range o.live.States() {
		for i := range r.States {
			s := &r.States[i]
			if s.State != text.State {
				continue
			}
			one := overviewState{State: s.State.String(), Label: text.Now, Times: text.Times}
			if s.NowKnown {
				one.Now = &s.Now
			}
			if s.Exact.Count > 0 {
				p50, p99 := milliseconds(s.Exact.Quantile(0.5)), milliseconds(s.Exact.Quantile(0.99))
				one.P50, one.P99 = &p50, &p99
			}
			o.States = append(o.States, one)
		}
	}
}

func milliseconds(ns uint64) float64 { return float64(ns) / 1e6 }

func (o *overview) addEdges(r *stats.Report, rate func(from, to tcp.State) (float64, bool)) {
	for _, text := range o.live.Edges() {
		one := overviewEdge{
			From: text.From.String(), To: text.To.String(), Label: text.Label, Title: text.Title, Classes: text.Classes,
		}
		if perSecond, known := rate(text.From, text.To); known {
			one.PerSecond = &perSecond
		}
		for i := range r.Edges {
			e := &r.Edges[i]
			if e.From != text.From || e.To != text.To {
				continue
			}
			one.Count = e.Count
			for _, why := range e.Reasons {
				one.Why += fmt.Sprintf(", %s %d", cmp.Or(string(why.Reason), "unknown"), why.Count)
			}
			one.Why = strings.TrimPrefix(one.Why, ", ")
		}
		o.Edges = append(o.Edges, one)
	}
}

// ranking lists all services: those that leak first, by how many sockets, then those that have
// most in CLOSE_WAIT, then those that have most.
func (s *snapshot) ranking() []listed {
	byName := make(map[string]*listed)
	for i := range s.services {
		one := &listed{Service: s.services[i].name, Waiting: s.services[i].sockets[tcp.CloseWait]}
		byName[one.Service] = one
		for at, n := range s.services[i].sockets {
			if tcp.State(at) != tcp.Close { // what is not connected is not followed
				one.Sockets += n
			}
		}
	}
	for _, l := range s.leaks {
		one := byName[l.service]
		if one == nil { // its sockets had to make room for others
			one = &listed{Service: l.service}
			byName[l.service] = one
		}
		one.Leaking += l.sockets
		one.Growth += l.growth
		one.Oldest = max(one.Oldest, seconds(l.oldest))
		one.Age = leak.Span(uint64(one.Oldest * 1e9))
	}
	all := make([]listed, 0, len(byName))
	for _, one := range byName {
		all = append(all, *one)
	}
	slices.SortFunc(all, func(a, b listed) int {
		return cmp.Or(cmp.Compare(b.Leaking, a.Leaking), cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Sockets, a.Sockets),
			cmp.Compare(a.Service, b.Service))
	})
	return all
}

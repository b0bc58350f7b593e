package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// ledger is what the views are compared with: the events, in a list for each socket, and
// nothing that the views have in common. It takes no duration of a state from an event, but
// the time between two of them.
type ledger struct {
	events []tcp.Event
	paths  map[socketName][]tcp.Event // transitions and rows
	end    uint64                     // BootNS of the last event
}

// socketName tells the sockets of a short recording apart: an address pair is one connection
// in it. The cookie is for what never had a port.
type socketName struct {
	local, remote netip.AddrPort
	cookie        uint64
}

func newLedger(events []tcp.Event) *ledger {
	bound := map[uint64]netip.AddrPort{}
	for _, e := range events {
		if e.Local.Port() != 0 && e.Cookie != 0 {
			bound[e.Cookie] = e.Local
		}
	}
	l := &ledger{events: events, paths: map[socketName][]tcp.Event{}}
	for _, e := range events {
		l.end = max(l.end, e.BootNS)
		if e.Kind == tcp.Transition || e.Kind == tcp.Socket {
			name := nameOf(&e, bound[e.Cookie])
			l.paths[name] = append(l.paths[name], e)
		}
	}
	return l
}

func nameOf(e *tcp.Event, bound netip.AddrPort) socketName {
	name := socketName{local: e.Local, remote: e.Remote}
	if e.Local.Port() == 0 && bound.IsValid() {
		name.local = bound
	}
	if name.local.Port() == 0 {
		name.cookie = e.Cookie
	}
	return name
}

// isConnection reports whether the events are those of a connection, not of a listener.
func isConnection(path []tcp.Event) bool {
	last := path[len(path)-1]
	return last.New != tcp.Listen && (last.Old != tcp.Listen || last.New != tcp.Close)
}

// between is the time in ns in the state that number i of a path ends, if both of its ends were
// seen.
func between(path []tcp.Event, i int) (ns uint64, seen bool) {
	if i == 0 || path[i].Kind != tcp.Transition || path[i-1].Kind != tcp.Transition || path[i-1].New != path[i].Old {
		return 0, false
	}
	return path[i].BootNS - path[i-1].BootNS, true
}

// The views agree with the events and with each other, in each recording.
func TestViewsAgree(t *testing.T) {
	for name, events := range recordings(t) {
		t.Run(name, func(t *testing.T) { agree(t, events) })
	}
}

func agree(t *testing.T, events []tcp.Event) (v views) {
	t.Helper()
	l := newLedger(events)
	v = seen(t, events, l.end)
	l.agreeWithStats(t, v.report)
	l.agreeWithDiagram(t, v.report)
	l.agreeWithRecords(t, v.records)
	l.agreeWithStories(t, v.stories)
	recordsAgreeWithStats(t, v.ended, v.report)
	return v
}

// views are what the views made of some events.
type views struct {
	report  *stats.Report
	ended   []connection.Record // as the command prints them
	records []connection.Record // with open ones, and with TIME_WAIT
	stories []timeline.Story
}

func seen(t *testing.T, events []tcp.Event, end uint64) (v views) {
	t.Helper()
	nothing := func() error { return nil }
	keep := func(to *[]connection.Record) func(*connection.Record) error {
		return func(r *connection.Record) error { *to = append(*to, *r); return nil }
	}
	all := []pipeline.Consumer{
		stats.NewTally(stats.Config{By: stats.ByComm, Max: 1000, Show: func(r *stats.Report) error { v.report = r; return nil }}),
		connection.NewCollector(connection.Config{Max: 1000, Show: keep(&v.ended), Flush: nothing}),
		connection.NewCollector(connection.Config{Max: 1000, Open: true, TimeWait: true, Show: keep(&v.records), Flush: nothing}),
		timeline.NewCollector(timeline.Config{Max: 1000, Flush: nothing, Show: func(s *timeline.Story) error {
			v.stories = append(v.stories, *s)
			return nil
		}}),
	}
	for _, view := range all {
		for i := range events {
			if err := view.Event(&events[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := view.Close(end); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// figures are what can be counted of one state.
type figures struct {
	now, entered, exact, atLeast, unknown, min, max uint64
}

func (l *ledger) states() map[tcp.State]figures {
	of := map[tcp.State]figures{}
	for _, path := range l.paths {
		for i, e := range path {
			if e.Kind != tcp.Transition {
				continue
			}
			into, from := of[e.New], of[e.Old]
			into.entered++
			if e.Old == e.New {
				from = into
			}
			switch ns, both := between(path, i); {
			case e.DurationKind == tcp.Exact && both:
				if from.exact == 0 || ns < from.min {
					from.min = ns
				}
				from.max = max(from.max, ns)
				from.exact++
			case e.DurationKind == tcp.Exact: // nothing else says how long it was
				from.exact++
			case e.DurationKind == tcp.AtLeast:
				from.atLeast++
			case e.DurationKind == tcp.Unknown:
				from.unknown++
			}
			of[e.New] = into
			of[e.Old] = from
		}
		last := path[len(path)-1]
		f := of[last.New]
		f.now++
		of[last.New] = f
	}
	return of
}

// edges counts the transitions by the states that they join and by their reason.
func (l *ledger) edges() (total uint64, count map[string]uint64) {
	count = map[string]uint64{}
	for _, e := range l.events {
		if e.Kind == tcp.Transition {
			total++
			count[fmt.Sprintf("%v>%v %s", e.Old, e.New, e.Reason)]++
		}
	}
	return total, count
}

// The sum of the edges is the number of transitions, also by state and by reason; and each time
// between two transitions is in the distribution of its state.
func (l *ledger) agreeWithStats(t *testing.T, r *stats.Report) {
	t.Helper()
	total, want := l.edges()
	sum, got := uint64(0), map[string]uint64{}
	for _, e := range r.Edges {
		sum += e.Count
		reasons := uint64(0)
		for _, why := range e.Reasons {
			got[fmt.Sprintf("%v>%v %s", e.From, e.To, why.Reason)] += why.Count
			reasons += why.Count
		}
		if reasons != e.Count || e.Client+e.Server > e.Count {
			t.Errorf("stats: %v>%v was taken %d times, for %d reasons, by %d clients and %d servers", e.From, e.To, e.Count, reasons, e.Client, e.Server)
		}
	}
	if sum != total || r.Transitions != total || !maps.Equal(got, want) {
		t.Errorf("stats: %d transitions, %d of the edges, %d events:\n%v\nwant\n%v", r.Transitions, sum, total, got, want)
	}
	states := l.states()
	for _, s := range r.States {
		want := states[s.State]
		if s.State == tcp.Close {
			want.now = uint64(s.Now) // not followed
		}
		got := figures{uint64(s.Now), s.Entered, s.Exact.Count, s.AtLeast.Count, s.Unknown, s.Exact.Min, s.Exact.Max}
		if got != want && !l.beginsWithin(s.State) {
			t.Errorf("stats: %v: %+v, want %+v", s.State, got, want)
		}
	}
	var groups stats.Counts
	for _, g := range r.Groups {
		groups.Opened += g.Opened
		groups.Closed += g.Closed
		groups.Reset += g.Reset
		groups.Failed += g.Failed
		groups.Broken += g.Broken
		groups.Unknown += g.Unknown
		groups.Open += g.Open
	}
	if groups != r.Total {
		t.Errorf("stats: the groups have %+v, all together %+v", groups, r.Total)
	}
}

// beginsWithin reports whether an exact time in the state is one of which the begin was not
// seen, so that the events alone do not tell MIN and MAX.
func (l *ledger) beginsWithin(s tcp.State) bool {
	for _, path := range l.paths {
		for i, e := range path {
			if _, both := between(path, i); !both && e.Kind == tcp.Transition && e.Old == s && e.DurationKind == tcp.Exact {
				return true
			}
		}
	}
	return false
}

// whole matches a number that stands alone, so that none is a time.
var whole = regexp.MustCompile(`(?:^|[^\w.])(\d+)\b[^.\w]`)

// The diagram has each count of an edge that was taken, and each number of sockets in a state,
// and no other.
func (l *ledger) agreeWithDiagram(t *testing.T, r *stats.Report) {
	t.Helper()
	var text bytes.Buffer
	if err := output.NewDiagram(&text, output.DiagramOptions{ASCII: true}).Write(r); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfterN(text.String(), "\n", 3) // the first two are the title
	drawn, _, _ := strings.Cut(lines[2], "\nState: sockets now")
	var got, want []string
	for _, number := range whole.FindAllStringSubmatch(drawn+"\n", -1) {
		got = append(got, number[1])
	}
	edges := map[[2]tcp.State]int{}
	for _, e := range l.events {
		if e.Kind == tcp.Transition {
			edges[[2]tcp.State{e.Old, e.New}]++
		}
	}
	for _, count := range edges {
		want = append(want, fmt.Sprint(count))
	}
	states := l.states()
	for _, s := range r.States {
		if s.NowKnown {
			want = append(want, fmt.Sprint(states[s.State].now))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the diagram has the numbers\n%v, want\n%v:\n%s", got, want, text.String())
	}
}

// Each connection has one record. It is over if its path is, and has the time between the
// transitions in each state: to the nanosecond its end less its start.
func (l *ledger) agreeWithRecords(t *testing.T, records []connection.Record) {
	t.Helper()
	connections := 0
	for _, path := range l.paths {
		if isConnection(path) {
			connections++
		}
	}
	if len(records) != connections {
		t.Errorf("connections: %d records of %d connections", len(records), connections)
	}
	exact := 0
	for i := range records {
		r := &records[i]
		path := l.paths[nameOf(&r.Event, netip.AddrPort{})]
		if len(path) == 0 {
			t.Errorf("connections: nothing is known of %v > %v", r.Local, r.Remote)
			continue
		}
		last := path[len(path)-1]
		if over := last.New == tcp.Close || last.New == tcp.TimeWait; over == r.Open {
			t.Errorf("connections: %v > %v is in %v, open: %v", r.Local, r.Remote, last.New, r.Open)
		}
		if err := l.recordAgrees(r, path); err != nil {
			t.Errorf("connections: %v > %v: %v", r.Local, r.Remote, err)
		}
		if r.DurationKind == tcp.Exact {
			exact++
		}
	}
	if exact < 2 {
		t.Errorf("connections: %d have an exact duration", exact)
	}
}

func (l *ledger) recordAgrees(r *connection.Record, path []tcp.Event) (err error) {
	end := l.end
	if last := path[len(path)-1]; last.New == tcp.Close {
		end = last.BootNS
	}
	if r.BootNS != end {
		err = fmt.Errorf("it ended at %d, want %d", r.BootNS, end)
	}
	if first := path[0]; first.Kind == tcp.Transition && (first.Old == tcp.Close || first.Old == tcp.Listen) {
		if r.StartBoot != first.BootNS || r.DurationKind != tcp.Exact || r.Duration != end-first.BootNS || r.Start != first.Time {
			err = errors.Join(err, fmt.Errorf("from %d, %s %d ns; want %d, exact %d", r.StartBoot, r.DurationKind, r.Duration, first.BootNS, end-first.BootNS))
		}
	}
	for s, want := range l.times(path) {
		if stay := r.Stays[s]; stay.NS != want || stay.Kind != tcp.Exact {
			err = errors.Join(err, fmt.Errorf("%d ns (%s) in %v, want %d", stay.NS, stay.Kind, s, want))
		}
	}
	return err
}

// times are those in each state of a path whose begin and end were seen, or whose begin was and
// the run ended.
func (l *ledger) times(path []tcp.Event) map[tcp.State]uint64 {
	in := map[tcp.State]uint64{}
	for i, e := range path {
		if ns, seen := between(path, i); seen && e.DurationKind == tcp.Exact {
			in[e.Old] += ns
		}
	}
	if last := path[len(path)-1]; last.New != tcp.Close && last.Kind == tcp.Transition {
		in[last.New] += l.end - last.BootNS
	}
	return in
}

// Each end is told once, with its other end where there is one. Its stays are its path: each
// change with its time and its reason, none left out.
func (l *ledger) agreeWithStories(t *testing.T, stories []timeline.Story) {
	t.Helper()
	told := map[socketName]int{}
	for i := range stories {
		ends := stories[i].Ends()
		for _, end := range ends {
			name := nameOf(&end.Event, netip.AddrPort{})
			told[name]++
			l.endAgrees(t, end, l.paths[name])
			if _, found := l.paths[socketName{local: end.Remote, remote: end.Local}]; found != (len(ends) == 2) {
				t.Errorf("timeline: %v > %v: another end is there: %v, shown are %d", end.Local, end.Remote, found, len(ends))
			}
		}
		if len(ends) == 2 && (ends[0].Local != ends[1].Remote || ends[0].Remote != ends[1].Local) {
			t.Errorf("timeline: %v > %v and %v > %v are joined", ends[0].Local, ends[0].Remote, ends[1].Local, ends[1].Remote)
		}
	}
	for name, path := range l.paths {
		if isConnection(path) && told[name] != 1 || !isConnection(path) && told[name] != 0 {
			t.Errorf("timeline: %v > %v is told %d times", name.local, name.remote, told[name])
		}
	}
}

func (l *ledger) endAgrees(t *testing.T, end *timeline.End, path []tcp.Event) {
	t.Helper()
	var got, want []string
	for i, e := range path {
		if e.Kind == tcp.Transition && (i > 0 || e.Old != tcp.Close && e.Old != tcp.Listen) {
			want = append(want, fmt.Sprint(e.Old, e.New, e.BootNS, e.Reason, e.Errno))
		}
	}
	for i, stay := range end.Stays {
		if stay.Next != 0 {
			got = append(got, fmt.Sprint(stay.State, stay.Next, stay.End, stay.Reason, stay.Errno))
		}
		if i > 0 && stay.Begin != end.Stays[i-1].End && stay.Kind == tcp.Exact {
			t.Errorf("timeline: %v > %v: %v ended at %d, %v began at %d", end.Local, end.Remote,
				end.Stays[i-1].State, end.Stays[i-1].End, stay.State, stay.Begin)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("timeline: %v > %v:\n%q, want\n%q", end.Local, end.Remote, got, want)
	}
	if last := end.Stays[len(end.Stays)-1]; last.Next == 0 && last.End != l.end {
		t.Errorf("timeline: %v > %v: %v goes on until %d, the run until %d", end.Local, end.Remote, last.State, last.End, l.end)
	}
}

// As many connections have a record as are counted, with the same outcomes.
func recordsAgreeWithStats(t *testing.T, records []connection.Record, report *stats.Report) {
	t.Helper()
	outcomes := map[tcp.Outcome]uint64{}
	for i := range records {
		outcomes[records[i].Outcome]++
	}
	total := report.Total
	for outcome, counted := range map[tcp.Outcome]uint64{tcp.Closed: total.Closed, tcp.Reset: total.Reset, tcp.Failed: total.Failed, tcp.Broken: total.Broken, "": total.Unknown} {
		if outcomes[outcome] != counted {
			t.Errorf("%d are %q by their records, %d by the statistics", outcomes[outcome], outcome, counted)
		}
	}
}

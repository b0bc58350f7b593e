package top

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

const hostileName = "\x1b[31mred\x1b]0;title\a\u202e\x9b2J"

// leakSnapshot answers a request with four groups, of which one is hostile.
func leakSnapshot(r Request, names []*leak.Group) *Snapshot {
	remote := netip.MustParseAddrPort("10.0.0.9:5432")
	rows := []LeakRow{
		{Verdict: "leak", Count: 12, Comm: "billing", PID: 20, Remote: remote, Oldest: 95e9, Median: 40e9, Growth: 30, GrowthKnown: true,
			Files: leak.Files{Open: 40, Limit: 1024}, FilesKnown: true, Unit: "billing.service",
			Notes:     []string{"The application has read the end of file and has not closed.", "12 opened by main.connect < main.main"},
			Sentences: []string{"The application has read the end of file and has not closed."},
			Stacks:    []LeakStack{{12, []string{"main.connect (main.go:7)", "main.main (main.go:20)"}}, {1, nil}}},
		{Verdict: "undecided", Count: 300, Comm: "nginx", PID: 7, LocalPort: 443, Oldest: 12e9, AtLeast: true, Notes: []string{"Too early to tell."}},
		{Verdict: "slow", Count: 2, Comm: hostileName, Container: hostileName, Unit: hostileName,
			Remote: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"), Oldest: 20e9,
			Notes: []string{"Opened by " + hostileName}, Sentences: []string{hostileName}, Stacks: []LeakStack{{2, []string{hostileName}}}},
		{Verdict: "slow", Count: 1, Oldest: 3600e9},
	}
	for i := range rows {
		rows[i].LeakName, rows[i].State = LeakName{group: names[i]}, tcp.CloseWait
	}
	found := &LeakReport{
		Title: "CLOSE_WAIT and CLOSE for 10s or longer: 315 sockets, 4 groups, 1 leak, 1 undecided; watched 1m00s",
		Rows:  rows, Missing: []string{"and 3 sockets without a group, for lack of room"}, Of: r.Leak,
	}
	if r.Leak.group == names[0] {
		for i := range 2 {
			found.Sockets = append(found.Sockets, LeakSocket{
				Local: netip.MustParseAddrPort(fmt.Sprintf("10.0.0.1:4000%d", i)), Remote: remote, PID: 20, FD: int32(5 + i),
				Age: uint64(95-i) * 1e9, AtLeast: i == 0, Queues: true, Unread: uint32(i),
			})
		}
		found.More = 10
	}
	return &Snapshot{Request: r, Watched: 60e9, Leaks: found}
}

// leakRig is a Model of leaks alone, whose requests are answered at once.
type leakRig struct {
	rig
	names []*leak.Group
}

func newLeakRig(t *testing.T, o Options) *leakRig {
	r := &leakRig{rig: rig{t: t}, names: []*leak.Group{{}, {}, {}, {}}}
	o.Alone, o.Ask = true, func(q Request) { r.m.Update(leakSnapshot(q, r.names)) }
	r.m = NewModel(o)
	r.m.Init()
	return r
}

func (r *leakRig) press(keys ...string) {
	for _, key := range keys {
		r.m.Update(keyOf(key))
	}
}

// What is shown of leaks alone, screen by screen.
func TestLeakScreens(t *testing.T) {
	for name, keys := range map[string][]string{
		"alone":        nil,
		"alone-sorted": {">", "down"},
		"alone-filter": {"/", "s", "l", "o"},
		"alone-detail": {"enter"},
		"alone-help":   {"?"},
		"alone-paused": {"space"},
	} {
		r := newLeakRig(t, Options{ASCII: true})
		r.press(keys...)
		r.golden(name + "-80x24")
		r.resize(120, 40)
		r.golden(name + "-120x40")
	}
	r := newLeakRig(t, Options{ASCII: true})
	compare(t, "alone-report", r.m.Report())
}

// counts are the counts of the rows; > marks the one that is selected.
func (r *leakRig) counts() string {
	var counts []string
	for line := range strings.Lines(r.m.Screen()) {
		if f := strings.Fields(line); len(f) > 6 && strings.Contains("leak undecided slow", strings.TrimPrefix(f[0], ">")) {
			counts = append(counts, strings.Repeat(">", strings.Count(f[0], ">"))+f[1])
		}
	}
	return strings.Join(counts, " ")
}

func TestLeakKeys(t *testing.T) {
	for _, test := range []struct{ keys, want string }{
		{"", ">12 300 2 1"},
		{"r", ">1 2 300 12"},
		{">", ">300 12 2 1"},
		{"> r", ">1 2 12 300"},
		{"down down", "12 300 >2 1"},
		{"end", "12 300 2 >1"},
		{"end home", ">12 300 2 1"},
		{"down >", ">300 12 2 1"}, // what is selected stays so
		{"/ s l o w", ">2 1"},
		{"/ s l o w esc", ">12 300 2 1"},
		{"/ s l o w enter esc", ">12 300 2 1"},
		{"down enter", ""},
		{"down enter esc", "12 >300 2 1"},
		{"d", ">12 300 2 1"},
		{"g", ">12 300 2 1"},
		{"l", ">12 300 2 1"},
		{"esc", ">12 300 2 1"},
	} {
		r := newLeakRig(t, Options{})
		if r.press(strings.Fields(test.keys)...); r.counts() != test.want {
			t.Errorf("%q: %s, want %s\n%s", test.keys, r.counts(), test.want, r.m.Screen())
		}
	}
}

// The name of code can be longer than a line, and is shown whole.
func TestLongNames(t *testing.T) {
	r := newLeakRig(t, Options{})
	s := leakSnapshot(Request{Kind: Leak, Leak: LeakName{group: r.names[0]}}, r.names)
	s.Leaks.Rows[0].Stacks = []LeakStack{{1, []string{strings.Repeat("std::vector<", 20)}}}
	r.press("enter")
	r.m.Update(s)
	var shown strings.Builder
	for line := range strings.Lines(r.m.Screen()) {
		shown.WriteString(strings.TrimSpace(line))
	}
	if !strings.Contains(shown.String(), strings.Repeat("std::vector<", 20)) {
		t.Errorf("it shows\n%s", r.m.Screen())
	}
}

// A group that is looked at may have gone.
func TestLeakIsGone(t *testing.T) {
	r := newLeakRig(t, Options{})
	r.press("down", "enter")
	gone := leakSnapshot(r.m.here().request, []*leak.Group{{}, {}, {}, {}})
	r.m.Update(gone)
	if s := r.m.Screen(); !strings.Contains(s, "No group any more") || !strings.Contains(s, "its sockets have left the state") {
		t.Errorf("it shows\n%s", s)
	}
}

// A paused view stays as it is, but for what is asked for.
func TestLeaksPause(t *testing.T) {
	r := newLeakRig(t, Options{})
	r.press("space")
	before := r.m.shown()
	r.m.Update(leakSnapshot(Request{Kind: Leaks}, r.names))
	if r.m.shown() != before || !strings.Contains(r.m.Screen(), "PAUSED") {
		t.Errorf("it is not paused:\n%s", r.m.Screen())
	}
	r.press("enter")
	if s := r.m.shown(); s == nil || s.Request.Kind != Leak {
		t.Errorf("while it is paused nothing else is shown: %v", s)
	}
}

func TestLeaksHostile(t *testing.T) {
	for _, ascii := range []bool{false, true} {
		r := newLeakRig(t, Options{ASCII: ascii})
		r.resize(200, 50)
		for _, keys := range [][]string{nil, {"down", "down"}, {"enter"}} {
			r.press(keys...)
			for _, text := range []string{r.m.Screen(), r.m.Report()} {
				if strings.ContainsAny(text, "\x1b\a\u202e") || !utf8.ValidString(text) {
					t.Errorf("%v: %q", keys, text)
				}
			}
		}
	}
}

// Destinations of TIME_WAITs have columns of their own.
func TestDestinations(t *testing.T) {
	r := newLeakRig(t, Options{TimeWait: true})
	d := &leak.Destination{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddrPort("10.0.0.9:80"), Count: 90, Held: 100, Ports: 100, Watched: 10e9, New: 95, Diagnosis: "All ports are taken."}
	found := &LeakReport{Title: "TIME_WAIT"}
	found.fill(&leak.Report{TimeWait: true, States: []tcp.State{tcp.TimeWait}, Destinations: []*leak.Destination{d, d}}, 1)
	r.m.Update(&Snapshot{Request: Request{Kind: Leaks}, Leaks: found})
	r.golden("destinations-80x24")
	r.m.o.Ask = func(q Request) { r.m.Update(&Snapshot{Request: q, Leaks: found}) }
	r.press("enter")
	r.golden("destination-80x24")
}

// A LeakCollector looks when it is time, and when the sockets of another group are asked for.
func TestLeakCollector(t *testing.T) {
	played := newRig(t, capture.Mixed, Options{})
	played.play(30 * time.Second)
	desk := NewDesk(Request{Kind: Leaks})
	looks := 0
	var last *Snapshot
	c := NewLeakCollector(LeakConfig{
		Desk: desk, Now: func() uint64 { return played.now }, Interval: 2 * time.Second,
		Leaks: leak.Config{Rule: leak.Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 10e9, Recorded: true}, Existing: played.existing, Detailed: 10},
		Seen:  func(*leak.Report) { looks++ }, Last: func(s *Snapshot) error { last = s; return nil },
	})
	expect := func(what string, want int) *Snapshot {
		t.Helper()
		if looks != want {
			t.Errorf("%s: %d looks, want %d", what, looks, want)
		}
		return desk.Take()
	}
	played.do(c.Idle())
	if s := expect("before the first tick", 0); s != nil {
		t.Errorf("there is a snapshot: %+v", s)
	}
	played.do(c.Tick(played.now))
	s := expect("a tick", 1)
	if s == nil || len(s.Leaks.Rows) != 1 || len(s.Leaks.Sockets) != 0 {
		t.Fatalf("it found %+v", s)
	}
	played.now += 1e9
	played.do(c.Tick(played.now))
	expect("too early", 1)
	desk.Ask(Request{Kind: Leak, Leak: s.Leaks.Rows[0].LeakName})
	played.do(c.Idle())
	if s = expect("a group", 2); s == nil || len(s.Leaks.Sockets) != 1 || s.Leaks.Sockets[0].Age != s.Leaks.Rows[0].Oldest {
		t.Errorf("its sockets are %+v", s)
	}
	desk.Ask(Request{Kind: Leaks})
	played.do(c.Idle())
	if s = expect("back", 2); s == nil || s.Request.Kind != Leaks {
		t.Errorf("back is %+v", s)
	}
	played.now += 1e9
	played.do(c.Close(played.now))
	if expect("the end", 3); last == nil || last.Request.Kind != Leaks {
		t.Errorf("the last is %+v", last)
	}
}

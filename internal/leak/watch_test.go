package leak

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// host is what a Watch looks at, and counts what it is asked.
type host struct {
	rows          []tcp.Event
	files, frames int
}

func (h *host) existing(states []tcp.State, emit func(*tcp.Event) error) error {
	for i := range h.rows {
		if slices.Contains(states, h.rows[i].New) {
			if err := emit(&h.rows[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *host) facts() Facts {
	return Facts{
		Files: func(pid uint32) (Files, error) {
			h.files++
			if pid == 9 {
				return Files{}, errors.New("it has exited")
			}
			return Files{100, 1024}, nil
		},
		Frames: func(stack, _ uint32) []symbolize.Frame {
			h.frames++
			return []symbolize.Frame{{Function: "dial", Offset: uint64(stack)}}
		},
	}
}

// leaks adds n CLOSE_WAITs of a process, each to a destination of its own.
func (h *host) leaks(pid uint32, n int, stack uint32) {
	for i := range n {
		e := row(tcp.CloseWait, 1000*second, 60*second)
		e.PID, e.Role, e.Stack = pid, tcp.Client, stack
		e.Remote = netip.AddrPortFrom(e.Remote.Addr(), uint16(1000+i))
		h.rows = append(h.rows, e)
	}
}

// A report asks for each fact once, and for no more than it is allowed to.
func TestReportResolves(t *testing.T) {
	var h host
	h.leaks(7, 5, 1)
	h.leaks(8, 1, 2)
	h.leaks(9, 1, 0)
	var last *Report
	w := NewWatch(Config{
		Rule: closeWait, Existing: h.existing, Facts: h.facts(), Detailed: 6,
		Show: func(r *Report) error { last = r; return nil },
	})
	if err := w.Tick(1000 * second); err != nil {
		t.Fatal(err)
	}
	if last.Sockets != 7 || len(last.Groups) != 7 || last.Leaks != 7 || last.Unresolved != 1 {
		t.Errorf("got %+v", last)
	}
	if h.files != 2 || h.frames != 6 {
		t.Errorf("asked %d times for files and %d times for stacks, want 2 and 6", h.files, h.frames)
	}
	if g := last.Groups[0]; !g.FilesKnown || g.Files.Open != 100 || len(g.Stacks) != 1 || g.Diagnosis == "" {
		t.Errorf("the worst group is %+v", g)
	}
	if err := w.Close(1000 * second); err != nil || h.files != 2 {
		t.Errorf("the same moment was looked at twice, or %v", err)
	}
}

// What several processes of one program opened at one place is one line.
func TestSameStackOfProcesses(t *testing.T) {
	var h host
	for pid := uint32(1); pid <= 4; pid++ {
		h.leaks(pid, 1, 5)
	}
	h.leaks(5, 1, 6)
	rule := closeWait
	rule.By = ByRemote
	w := NewWatch(Config{Rule: rule, Existing: h.existing, Facts: h.facts(), Detailed: 9, Show: func(*Report) error { return nil }})
	r, err := w.Report(1000*second, nil)
	if err != nil {
		t.Fatal(err)
	}
	if g := r.Groups[0]; len(g.Stacks) != 2 || g.Stacks[0].Count != 4 || g.Stacks[1].Count != 1 {
		t.Errorf("got %+v, want one stack of 4 sockets and one of 1", g.Stacks)
	}
}

// With AtEnd only the last report is shown, but each refresh counts.
func TestReportAtEnd(t *testing.T) {
	var h host
	h.leaks(7, 1, 0)
	var shown []*Report
	w := NewWatch(Config{
		Rule: closeWait, Existing: h.existing, AtEnd: true, Offset: 5,
		Filter: tcp.Filter{PIDs: []uint32{7}},
		Show:   func(r *Report) error { shown = append(shown, r); return nil },
	})
	for now := uint64(1000 * second); now < 1012*second; now += 2 * second {
		if err := w.Tick(now); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(1012 * second); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 1 || !shown[0].Groups[0].GrowthKnown || shown[0].Watched != 12*second || shown[0].Time != 1012*second+5 || !shown[0].AnyMatch {
		t.Errorf("got %+v", shown)
	}
	if findings := shown[0].Findings(Limits{}); len(findings) != 1 || findings[0].Why != "leak" {
		t.Errorf("the findings are %+v", findings)
	}
	none := 1
	if findings := shown[0].Findings(Limits{Count: &none}); len(findings) != 0 {
		t.Errorf("1 socket is not more than 1: %+v", findings)
	}
}

// A socket that counts and that the filter cannot judge is counted; one that is too young is not.
func TestWatchUnjudged(t *testing.T) {
	var h host
	h.leaks(7, 4, 0)
	for i := range 3 {
		h.rows[i].OwnerSource, h.rows[i].PID = "", 0
	}
	h.rows[0].Duration = second
	timeWait := h.rows[1]
	timeWait.New, timeWait.Duration = tcp.TimeWait, second
	h.rows = append(h.rows, timeWait)
	for state, want := range map[tcp.State]tcp.Unjudged{
		tcp.CloseWait: {tcp.Owner: 2},
		tcp.TimeWait:  {tcp.Forgotten: 1},
	} {
		rule := closeWait
		rule.States = []tcp.State{state}
		w := NewWatch(Config{Rule: rule, Existing: h.existing, Filter: tcp.Filter{PIDs: []uint32{7}}})
		for range 2 { // each report speaks of itself
			r, err := w.Report(1000*second, nil)
			if err != nil || r.Unjudged != want {
				t.Errorf("%v: %+v, %v; want %v", state, r, err, want)
			}
		}
	}
}

// The refreshes of TIME_WAIT also see who else holds ports.
func TestWatchTimeWait(t *testing.T) {
	var h host
	h.leaks(7, 1, 0)
	h.rows[0].Remote, h.rows[0].Local = netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.7:41000")
	other := h.rows[0]
	other.New, other.Local = tcp.TimeWait, netip.MustParseAddrPort("10.0.0.7:41001")
	h.rows = append(h.rows, other)
	facts := h.facts()
	walking := false // the probe holds a lock then, and to find a namespace takes it
	facts.Ports = func(uint32) (PortRange, error) {
		if walking {
			t.Error("the range of ports is asked for in the midst of a walk")
		}
		return PortRange{First: 41000, Last: 41003}, nil
	}
	existing := func(states []tcp.State, emit func(*tcp.Event) error) error {
		walking = true
		defer func() { walking = false }()
		return h.existing(states, emit)
	}
	w := NewWatch(Config{Rule: Rule{States: []tcp.State{tcp.TimeWait}}, Existing: existing, Facts: facts, Show: func(*Report) error { return nil }})
	r, err := w.Report(1000*second, nil)
	if err != nil || len(r.Destinations) != 1 || r.Destinations[0].Held != 2 || r.Destinations[0].Count != 1 || r.Groups != nil {
		t.Errorf("got %+v, %v", r, err)
	}
}

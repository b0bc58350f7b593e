package tcp

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

func TestEdges(t *testing.T) {
	drawn := 0
	for i, e := range Edges {
		if e.Extension == "" {
			drawn++
		}
		if e.Name == "" || e.From == e.To || e.From == NewSynRecv || e.To == NewSynRecv {
			t.Errorf("%+v", e)
		}
		if found, ok := FindEdge(e.From, e.To); !ok || found != Edges[i] {
			t.Errorf("%v>%v is there twice", e.From, e.To)
		}
	}
	if drawn != 20 {
		t.Errorf("%d edges, figure 5 has 20", drawn)
	}
	if _, ok := FindEdge(CloseWait, TimeWait); ok {
		t.Error("CLOSE_WAIT>TIME_WAIT is an edge")
	}
}

// Each path leads from CLOSE to CLOSE, and each of its states to the next.
func TestPaths(t *testing.T) {
	for path, want := range map[Path][]State{
		ClientPath: {Close, SynSent, Established, FinWait1, FinWait2, TimeWait, Close},
		ServerPath: {Close, Listen, SynRecv, Established, CloseWait, LastAck, Close},
	} {
		var got []State
		for state := Close; len(got) == 0 || state != Close; {
			i := slices.IndexFunc(Edges, func(e Edge) bool { return e.Path&path != 0 && e.From == state })
			if i < 0 {
				t.Fatalf("path %d ends in %v", path, state)
			}
			got = append(got, state)
			state = Edges[i].To
		}
		if got = append(got, Close); !slices.Equal(got, want) {
			t.Errorf("path %d is %v", path, got)
		}
	}
}

// What the tests of this package take a socket through is in the diagram, but for what a
// few of them make up.
func TestCapturesTakeEdges(t *testing.T) {
	madeUp := []string{"TIME_WAIT>TIME_WAIT"} // a TIME_WAIT whose timer begins again
	for _, file := range []string{"tracker_test.go", "selector_test.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		captured := regexp.MustCompile(`\s[-a-z] ([A-Z_0-9]+)>([A-Z_0-9]+) `).FindAllSubmatch(source, -1)
		if len(captured) < 20 {
			t.Fatalf("%s has %d transitions", file, len(captured))
		}
		for _, c := range captured {
			_, known := FindEdge(state(t, string(c[1])), state(t, string(c[2])))
			if edge := string(c[1]) + ">" + string(c[2]); !known && !slices.Contains(madeUp, edge) {
				t.Errorf("%s: %s is not an edge", file, edge)
			}
		}
	}
}

func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		old, new State
		reason   Reason
		want     Outcome
	}{
		{FinWait2, TimeWait, FinReceived, Closed},
		{Closing, TimeWait, FinAcked, Closed},
		{LastAck, Close, FinAcked, Closed},
		{FinWait2, Close, TimewaitOverflow, Closed},
		{LastAck, Close, RSTReceived, Reset},
		{Established, Close, AbortedLinger, Reset},
		{SynSent, Close, RSTReceived, Failed},
		{SynRecv, Close, "", Failed},
		{FinWait2, Close, Timeout, Broken},
		{Established, Close, Timeout, Broken},
		{Established, Close, "", ""},
	} {
		e := Event{Old: test.old, New: test.new, Reason: test.reason}
		if got := e.Outcome(); !e.Finishes() || got != test.want {
			t.Errorf("%v>%v %s is %q, want %q", test.old, test.new, test.reason, got, test.want)
		}
	}
}

// A connection is opened once and ends once, whichever way it takes.
func TestOpensAndFinishesOnce(t *testing.T) {
	var walk func(at State, opened, finished int, path []State)
	walk = func(at State, opened, finished int, path []State) {
		for _, edge := range Edges {
			e := Event{Old: edge.From, New: edge.To}
			if edge.From != at || edge.Untaken || edge.To == Listen || len(path) == 1 && edge.From == Listen && edge.To == Close {
				continue
			}
			opens, finishes := opened, finished
			if e.Opens() {
				opens++
			}
			if e.Finishes() {
				finishes++
			}
			path := append(slices.Clone(path), edge.To)
			if edge.To != Close {
				walk(edge.To, opens, finishes, path)
			} else if established := !opening(edge.From); finishes != 1 || established != (opens == 1) {
				t.Errorf("%v opens %d times and finishes %d times", path, opens, finishes)
			}
		}
	}
	walk(Close, 0, 0, []State{Close})
	walk(Listen, 0, 0, []State{Listen})
}

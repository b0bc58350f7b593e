package top

import (
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// names are those of the groups that are shown, in order; * marks the one that is selected.
func (r *rig) names() string {
	var names []string
	for line := range strings.Lines(r.m.Screen()) {
		if f := strings.Fields(line); len(f) > 3 && (line[0] == '>' || line[0] == ' ') && !strings.HasSuffix(f[0], "COMM") {
			names = append(names, strings.Replace(f[0], ">", "*", 1))
		}
	}
	return strings.Join(names, " ")
}

func TestKeys(t *testing.T) {
	for _, test := range []struct{ keys, want string }{
		{"", "*billing curl job nginx sync"},
		{"t", "*job nginx billing curl sync"},
		{"t r", "*billing curl sync job nginx"},
		{"t down down", "job nginx *billing curl sync"},
		{"t down down r", "*billing curl sync job nginx"},
		{"t down down up", "job *nginx billing curl sync"},
		{"t end", "job nginx billing curl *sync"},
		{"t end home", "*job nginx billing curl sync"},
		{"t <", "*billing curl job nginx sync"},
		{"t < r", "*sync nginx job curl billing"},
		{"t > >", "*job billing curl nginx sync"},
		{"t / n", "*nginx billing sync"},
	} {
		r := newRig(t, capture.Mixed, Options{})
		r.play(30 * time.Second)
		r.press(strings.Fields(test.keys)...)
		if got := r.names(); got != test.want {
			t.Errorf("%s: %s, want %s", test.keys, got, test.want)
		}
	}
}

func TestFilterIsTyped(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	steps := []struct{ key, filter, names string }{
		{"/", "", "*billing curl job nginx sync"},
		{"q", "q", ""}, // it does not quit
		{"backspace", "", "*billing curl job nginx sync"},
		{"B", "B", "*job"},
		{"i", "Bi", "*billing"},
		{"enter", "Bi", "*billing"},
		{"g", "Bi", ""}, // now it is a command
		{"G", "Bi", "*billing"},
		{"esc", "", "*billing curl job nginx sync"},
	}
	steps[3].names = "*billing job"
	for _, step := range steps {
		r.press(step.key)
		if r.m.groups.filter != step.filter || step.key != "g" && r.names() != step.names {
			t.Errorf("%s: filter %q, groups %s, want %q, %s", step.key, r.m.groups.filter, r.names(), step.filter, step.names)
		}
	}
}

func TestGroupings(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	var got []stats.By
	for range stats.Bys {
		got = append(got, r.m.shown().Request.By)
		r.press("g")
	}
	if !slices.Equal(got, stats.Bys) || r.m.shown().Request.By != stats.ByComm {
		t.Errorf("g shows %v, then %v", got, r.m.shown().Request.By)
	}
	r.press("G")
	if by := r.m.shown().Request.By; by != stats.ByImage {
		t.Errorf("G shows %v", by)
	}
}

// From a group to its sockets to the story of one, and back.
func TestDrillDown(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	var kinds []Kind
	for _, key := range []string{"enter", "enter", "d", "l", "esc", "esc", "esc", "esc"} {
		r.press(key)
		kinds = append(kinds, r.m.shown().Request.Kind)
	}
	if want := []Kind{Sockets, Story, Diagram, Leaks, Story, Sockets, Groups, Groups}; !slices.Equal(kinds, want) {
		t.Errorf("the places are %v, want %v", kinds, want)
	}
}

// A story goes on while it is looked at, and stays when it is over.
func TestStoryGoesOn(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(15 * time.Second)
	r.press("/", "b", "i", "l", "enter", "enter", "/", "5", "0", "0", "0", "0", "enter", "enter")
	for _, step := range []struct {
		until time.Duration
		want  string
	}{{15 * time.Second, "ESTABLISHED goes on"}, {30 * time.Second, "FIN_WAIT2 goes on"}, {100 * time.Second, "CLOSE timeout"}} {
		r.play(step.until)
		if got := r.m.shown().Text; !strings.Contains(got, step.want) {
			t.Errorf("after %v it is not %s:\n%s", step.until, step.want, got)
		}
	}
}

func TestPause(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(3 * time.Second)
	r.press("space")
	before := r.m.shown()
	r.play(10 * time.Second)
	if r.m.shown() != before || !strings.Contains(r.m.Screen(), "PAUSED") {
		t.Errorf("it is not paused:\n%s", r.m.Screen())
	}
	r.press("d")
	if s := r.m.shown(); s == nil || s.Request.Kind != Diagram {
		t.Errorf("while it is paused nothing else is shown: %v", s)
	}
	r.press("esc", "space")
	if s := r.m.shown(); s.Watched != 10e9 {
		t.Errorf("after the pause it shows what was at %v", time.Duration(s.Watched))
	}
}

// An answer to what was asked for before is not taken for another one.
func TestLateAnswer(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(10 * time.Second)
	late := r.m.shown()
	r.press("g")
	r.m.Update(late)
	if s := r.m.shown(); s.Request.By != stats.ByHost {
		t.Errorf("it shows groups by %v", s.Request.By)
	}
}

func TestQuit(t *testing.T) {
	for _, key := range []string{"q", "ctrl+c", "ctrl+\\"} {
		r := newRig(t, capture.Mixed, Options{})
		cmd := r.press(key)
		if cmd == nil {
			t.Errorf("%s does not quit", key)
		} else if _, quits := cmd().(tea.QuitMsg); !quits {
			t.Errorf("%s does not quit", key)
		}
	}
}

func TestSuspend(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(10 * time.Second)
	cmd := r.press("/", "ctrl+z")
	if cmd == nil || cmd() != (tea.QuitMsg{}) || !r.m.Suspended() || r.m.Suspended() {
		t.Error("it does not quit to be stopped")
	}
	r.press("d")
	r.play(20 * time.Second)
	r.m.Init() // it goes on, with what is there now
	if r.show(); r.m.shown().Watched != 20e9 || !r.m.typing {
		t.Errorf("it goes on with %+v", r.m.shown())
	}
}

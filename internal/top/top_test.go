package top

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

var update = flag.Bool("update", false, "write the screens that are shown")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// rig is a Collector and a Model that share a Desk, and the events that they are fed with.
type rig struct {
	t      *testing.T
	events []tcp.Event
	desk   *Desk
	c      *Collector
	m      *Model
	now    uint64
	last   *Snapshot
}

func newRig(t *testing.T, text string, o Options) *rig {
	t.Helper()
	r := &rig{t: t, events: capture.Events(t, text), now: capture.BootNS}
	o.By = stats.ByComm
	r.desk = NewDesk(Request{Kind: Groups, By: o.By})
	o.Ask = r.desk.Ask
	r.m = NewModel(o)
	r.c = NewCollector(Config{
		Desk: r.desk, Now: func() uint64 { return r.now }, Interval: time.Second, Max: 100, MaxEnds: 100, Offset: capture.Start - capture.BootNS,
		ASCII: o.ASCII, Styled: o.Styled,
		Leaks: leak.Config{Rule: leak.Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 10e9, By: leak.ByOwner, Recorded: true}, Existing: r.existing, Detailed: MaxLeaks},
		Last:  func(s *Snapshot) error { r.last = s; return nil },
	})
	return r
}

// existing lists sockets as a recording does.
func (r *rig) existing(states []tcp.State, emit func(*tcp.Event) error) error {
	for e := range r.c.stories.Ends() {
		row := e.Event
		row.Kind, row.New, row.BootNS, row.Old, row.Reason = tcp.Socket, e.Event.New, r.now, 0, ""
		row.Duration, row.DurationKind = r.now-e.Event.BootNS, tcp.Exact
		if row.New == states[0] {
			if err := emit(&row); err != nil {
				return err
			}
		}
	}
	return nil
}

// play takes the events up to a time, and ticks every second.
func (r *rig) play(until time.Duration) {
	r.t.Helper()
	end := uint64(capture.BootNS) + uint64(until)
	for ; r.now < end; r.now += 1e9 {
		for len(r.events) > 0 && r.events[0].BootNS <= r.now+1e9 {
			r.do(r.c.Event(&r.events[0]))
			r.events = r.events[1:]
		}
		r.do(r.c.Tick(r.now + 1e9))
	}
	r.show()
}

func (r *rig) do(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// show has the Model take what lies on the desk.
func (r *rig) show() {
	r.do(r.c.Idle())
	if s := r.desk.Take(); s != nil {
		r.m.Update(s)
	}
}

// press presses keys, by their names as bubbletea has them, and shows what they ask for.
func (r *rig) press(keys ...string) tea.Cmd {
	r.t.Helper()
	var cmd tea.Cmd
	for _, key := range keys {
		_, cmd = r.m.Update(keyOf(key))
		r.show()
	}
	return cmd
}

// keyOf is the key of a name.
func keyOf(name string) tea.KeyPressMsg {
	codes := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown,
		"end": tea.KeyEnd, "home": tea.KeyHome, "space": tea.KeySpace, "backspace": tea.KeyBackspace,
	}
	if code, known := codes[name]; known {
		return tea.KeyPressMsg{Code: code}
	}
	if letter, control := strings.CutPrefix(name, "ctrl+"); control {
		return tea.KeyPressMsg{Code: rune(letter[0]), Mod: tea.ModCtrl}
	}
	return tea.KeyPressMsg{Code: []rune(name)[0], Text: name}
}

// golden compares the screen with a file, and wants it to fit.
func (r *rig) golden(name string) {
	r.t.Helper()
	screen := r.m.Screen()
	lines := strings.Split(screen, "\n")
	if len(lines) != r.m.height {
		r.t.Errorf("%s: %d lines, want %d", name, len(lines), r.m.height)
	}
	compare(r.t, name, screen+"\n")
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

func (r *rig) resize(width, height int) { r.m.Update(tea.WindowSizeMsg{Width: width, Height: height}) }

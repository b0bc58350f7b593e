package main

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
	"github.com/tcptrace/tcptrace/internal/test/need"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/top"
)

// recordings are those of this package's tests.
func recordings(t *testing.T) (all map[string][]tcp.Event) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("%v: %v", files, err)
	}
	all = map[string][]tcp.Event{"a capture": capture.Events(t, capture.Mixed)}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r := recording.NewReader(f, name)
		var e tcp.Event
		for err = r.Read(&e); err == nil; err = r.Read(&e) {
			all[name] = append(all[name], e)
		}
		if err != io.EOF {
			t.Fatal(err)
		}
	}
	return all
}

func TestRecordingsTakeEdges(t *testing.T) {
	for name, events := range recordings(t) {
		for i := range events {
			if e := &events[i]; e.Kind == tcp.Transition {
				if edge, known := tcp.FindEdge(e.Old, e.New); !known || edge.Untaken {
					t.Errorf("%s: %v>%v is not an edge of the state diagram", name, e.Old, e.New)
				}
			}
		}
	}
}

// live is a source of events that lists the first of them as existing sockets, as the kernel
// does.
type live struct {
	pipeline.Ended
	events []tcp.Event
	now    uint64
}

func (l *live) Read(e *tcp.Event) error {
	if len(l.events) == 0 {
		return io.EOF
	}
	*e, l.events = l.events[0], l.events[1:]
	l.now = max(l.now, e.BootNS)
	return nil
}

func (l *live) Now() uint64 { return l.now }

func (l *live) existing(emit func(*tcp.Event) error) error {
	for len(l.events) > 0 && l.events[0].Kind == tcp.Socket {
		l.now = max(l.now, l.events[0].BootNS)
		if err := emit(&l.events[0]); err != nil {
			return err
		}
		l.events = l.events[1:]
	}
	return nil
}

// both shows the events as a live trace does, and as their recording does.
func both(t *testing.T, events []tcp.Event, filter tcp.Filter, open func(io.Writer) pipeline.Consumer) (asLive, asRecording string) {
	t.Helper()
	var shown [2]bytes.Buffer
	source := &live{events: slices.Clone(events)}
	config := pipeline.Config{Existing: source.existing, Selector: tcp.NewSelector(filter)}
	if _, err := pipeline.Run(context.Background(), config, source, open(&shown[0])); err != nil {
		t.Fatal(err)
	}
	var recorded bytes.Buffer
	w := output.NewJSON(&recorded)
	for i := range events {
		if err := w.Write(&events[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	config = pipeline.Config{Selector: tcp.NewSelector(filter)}
	if _, err := pipeline.Run(context.Background(), config, recording.Open(&recorded, "recording"), open(&shown[1])); err != nil {
		t.Fatal(err)
	}
	return shown[0].String(), shown[1].String()
}

func TestLiveAndRecordingShowTheSame(t *testing.T) {
	for name, events := range recordings(t) {
		t.Run(name, func(t *testing.T) {
			liveAndRecordingAgree(t, events, tcp.Filter{}, tcp.Filter{Comm: []string{"web", "curl", "job"}})
		})
	}
}

func liveAndRecordingAgree(t *testing.T, events []tcp.Event, filters ...tcp.Filter) {
	t.Helper()
	for _, filter := range filters {
		for view, open := range map[string]func(io.Writer) pipeline.Consumer{
			"connections": func(w io.Writer) pipeline.Consumer {
				j := output.NewConnectionJSON(w)
				return connection.NewCollector(connection.Config{Max: 100, Open: true, TimeWait: true, Show: j.Write, Flush: j.Flush})
			},
			"timeline": func(w io.Writer) pipeline.Consumer {
				j := output.NewTimelineJSON(w)
				return timeline.NewCollector(timeline.Config{Max: 100, Show: j.Write, Flush: j.Flush})
			},
			"stats": func(w io.Writer) pipeline.Consumer {
				return stats.NewTally(stats.Config{By: stats.ByComm, Max: 100, Show: output.NewStatsJSON(w).Write})
			},
		} {
			asLive, asRecording := both(t, events, filter, open)
			if asLive != asRecording || asLive == "" {
				t.Errorf("%s: live\n%s\nrecorded\n%s", view, asLive, asRecording)
			}
		}
	}
}

// The screen of stats ends as that of leaks does, and leaves the last report on the terminal.
func TestStatsScreen(t *testing.T) {
	need.Kernel(t)
	term := newPTY(t, "tcptrace", "stats", "--netns", "/proc/self/ns/net")
	term.until("[q: quit]")
	term.until("EDGE")
	term.master.WriteString("q")
	term.until("\x1b[?25h\x1b[?1049l")
	term.until("Connections: ")
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := term.modes(); got != term.before {
		t.Errorf("the terminal is not as before: %+v, was %+v", got, term.before)
	}
}

// A terminal that can only print gets one report after the other.
func TestDumbTerminal(t *testing.T) {
	need.Kernel(t)
	t.Setenv("TERM", "dumb")
	term := newPTY(t, "tcptrace", "stats", "--netns", "/proc/self/ns/net", "-d", "300ms")
	term.until("EDGE")
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if strings.ContainsRune(term.shown.String(), '\x1b') {
		t.Errorf("it acts on the terminal: %q", term.shown.String())
	}
}

// The diagram has styles on a terminal that shows them, unless they are not wanted.
func TestDiagramOnTerminal(t *testing.T) {
	for name, c := range map[string]struct {
		variable, value string
		styled          bool
	}{
		"a terminal":        {"NO_COLOR", "", true},
		"no colors wanted":  {"NO_COLOR", "1", false},
		"it can only print": {"TERM", "dumb", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TERM", "xterm")
			t.Setenv("NO_COLOR", "")
			t.Setenv(c.variable, c.value)
			term := newPTY(t, "tcptrace", "stats", "-r", "testdata/mixed.json", "--diagram")
			term.until("State: sockets now")
			if err := term.cmd.Wait(); err != nil {
				t.Error(err)
			}
			if styled := strings.ContainsRune(term.shown.String(), '\x1b'); styled != c.styled {
				t.Errorf("styled is %v: %q", styled, term.shown.String())
			}
		})
	}
}

// Live, the diagram is drawn in place with its styles, and left on the terminal.
func TestDiagramScreen(t *testing.T) {
	need.Kernel(t)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	svg := filepath.Join(t.TempDir(), "live.svg")
	term := newPTY(t, "tcptrace", "stats", "--netns", "/proc/self/ns/net", "--diagram", "--svg", svg)
	term.until("[q: quit]")
	term.until("\x1b[1m ESTABLISHED \x1b[m")
	term.master.WriteString("q")
	term.until("\x1b[?25h\x1b[?1049l")
	term.until("State: sockets now")
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if picture, err := os.ReadFile(svg); !bytes.HasSuffix(picture, []byte("</svg>\n")) {
		t.Errorf("the picture has %d bytes: %v", len(picture), err)
	}
}

// The manual describes every field of a connection.
func TestManPageListsConnectionFields(t *testing.T) {
	for _, field := range output.ConnectionFields() {
		if !strings.Contains(manPage, field) {
			t.Errorf("the manual does not name %s", field)
		}
	}
}

// It does so for every field of a story, in the section about it.
func TestManPageListsTimelineFields(t *testing.T) {
	_, section, _ := strings.Cut(manPage, ".Sh TIMELINES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	for _, field := range output.TimelineFields() {
		if !strings.Contains(section, field) {
			t.Errorf("the manual does not name %s", field)
		}
	}
}

// clients is a source of clients, of which as many are open at a time as it has room for: each
// a socket and an address pair of its own.
type clients struct {
	pipeline.Ended
	life  []tcp.Event
	open  []int // how far each of those that are open has come
	born  uint64
	names []uint64
	next  int
	left  int
}

func newClients(open, events int) *clients {
	c := &clients{life: clientLife(), open: make([]int, open), names: make([]uint64, open), left: events}
	for i := range c.life { // as the kernel has them
		e := &c.life[i]
		e.Cgroup = "/system.slice/curl.service"
		if e.Old == tcp.Established || e.New == tcp.Close || e.New == tcp.TimeWait {
			e.HasCounters, e.BytesSent, e.BytesReceived, e.SRTT = true, 79, 8510, 251
			e.HasQueues, e.TxQueue = true, 1
		}
	}
	for i := range c.open {
		c.open[i] = len(c.life)
	}
	return c
}

func (c *clients) Read(e *tcp.Event) error {
	if c.left == 0 {
		return io.EOF
	}
	c.left--
	i := c.next
	c.next = (i + 1) % len(c.open)
	if c.open[i] == len(c.life) {
		c.open[i] = 0
		c.born++
		c.names[i] = c.born
	}
	*e = c.life[c.open[i]]
	c.open[i]++
	e.Cookie = c.names[i]
	addr := e.Local.Addr().As4()
	addr[3] = byte(c.names[i] >> 16)
	e.Local = netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(c.names[i]))
	return nil
}

func (c *clients) More() bool { return c.left%64 != 0 }

// crowdViews are the consumers, at their bound.
func crowdViews() map[string]func() pipeline.Consumer {
	return map[string]func() pipeline.Consumer{
		"connections": func() pipeline.Consumer {
			j := output.NewConnectionJSON(io.Discard)
			return connection.NewCollector(connection.Config{Max: maxFollowed, Show: j.Write, Flush: j.Flush})
		},
		"connections, TIME_WAIT included": func() pipeline.Consumer {
			j := output.NewConnectionJSON(io.Discard)
			return connection.NewCollector(connection.Config{Max: maxFollowed, TimeWait: true, Show: j.Write, Flush: j.Flush})
		},
		"timeline": func() pipeline.Consumer {
			j := output.NewTimelineJSON(io.Discard)
			return timeline.NewCollector(timeline.Config{Max: maxStories, Show: j.Write, Flush: j.Flush})
		},
		"stats": func() pipeline.Consumer {
			return stats.NewTally(stats.Config{By: stats.ByComm, Max: maxFollowed, Show: output.NewStatsJSON(io.Discard).Write})
		},
		"top": func() pipeline.Consumer {
			nothing := func([]tcp.State, func(*tcp.Event) error) error { return nil }
			return top.NewCollector(top.Config{
				Desk: top.NewDesk(top.Request{}), Interval: time.Second, Max: maxFollowed, MaxEnds: maxTopEnds, Now: func() uint64 { return 0 },
				Leaks: leak.Config{Rule: leak.Rule{States: []tcp.State{tcp.CloseWait}}, Existing: nothing},
				Last:  func(*top.Snapshot) error { return nil },
			})
		},
		"-j":       func() pipeline.Consumer { return &stream{writer: output.NewJSON(io.Discard)} },
		"-o trace": func() pipeline.Consumer { return &stream{writer: output.NewTrace(io.Discard)} },
	}
}

// Memory is that of the connections that are open at a time, not of how many there were.
func TestViewsStaySmall(t *testing.T) {
	clients := 1_000_000
	if testing.Short() {
		clients = 15_000
	}
	for name, open := range crowdViews() {
		heap := func(events int) uint64 {
			to := open()
			if _, err := pipeline.Run(context.Background(), pipeline.Config{}, newClients(500, events), to); err != nil {
				t.Fatal(err)
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			runtime.KeepAlive(to)
			return m.HeapAlloc
		}
		few := heap(1000 * len(clientLife()))
		many := heap(clients * len(clientLife()))
		if many > few+1<<20 {
			t.Errorf("%s: %d KiB after 1,000 connections, %d after %d", name, few>>10, many>>10, clients)
		}
	}
}

func BenchmarkViews(b *testing.B) {
	for name, open := range crowdViews() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			source := newClients(1000, b.N)
			b.ResetTimer()
			if _, err := pipeline.Run(context.Background(), pipeline.Config{}, source, open()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// host is a source of events as the kernel is one: the sockets that exist are no part of
// it, and it knows at its end what it has not said. It can be stopped at any time.
type host struct {
	pipeline.Ended
	rows, events []tcp.Event
	now          uint64
	waits        bool // at the end, to be stopped
	stop         chan struct{}
	once         sync.Once
}

func newHost(t testing.TB) *host {
	return &host{stop: make(chan struct{}), rows: capture.Events(t, `
0s old >ESTABLISHED 10.0.0.1:80 10.0.0.9:41000 at_least=3s pid=7/web role=server
0s stuck >CLOSE_WAIT 10.0.0.1:80 10.0.0.8:41000 at_least=90s pid=7/web role=server
`), events: capture.Events(t, `
1s a CLOSE>SYN_SENT 10.0.0.1:40000 10.0.0.2:443 connect pid=9/\x1b[2J role=client cgroup=/system.slice/a.service
1.1s a SYN_SENT>ESTABLISHED 10.0.0.1:40000 10.0.0.2:443 handshake_done pid=9/\x1b[2J role=client cgroup=/system.slice/a.service
2s old ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.9:41000 fin_received exact=5s pid=7/web role=server
3s lost 12
4s a ESTABLISHED>CLOSE 10.0.0.1:40000 10.0.0.2:443 rst_received errno=104 pid=9/\x1b[2J role=client cgroup=/system.slice/a.service bytes=10/20/1/300
`)}
}

func (h *host) Read(e *tcp.Event) error {
	if len(h.events) == 0 {
		if h.waits {
			<-h.stop
		}
		return io.EOF
	}
	*e, h.events = h.events[0], h.events[1:]
	h.now = e.BootNS
	return nil
}

func (h *host) More() bool  { return len(h.events) > 0 }
func (h *host) Now() uint64 { return h.now }
func (h *host) Stop()       { h.once.Do(func() { close(h.stop) }) }

func (h *host) config() pipeline.Config {
	return pipeline.Config{
		Existing: func(emit func(*tcp.Event) error) error {
			for i := range h.rows {
				if err := emit(&h.rows[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Last: func(emit func(*tcp.Event) error) error {
			return emit(&tcp.Event{
				Kind: tcp.Unseen, Time: capture.Start + 4e9, BootNS: h.now, UID: tcp.NoUID, FD: tcp.NoFD,
				NetNS: 4026531840, Lost: 3, Where: tcp.WhereCookie,
			})
		},
	}
}

// newFiles are what --record asks for.
func newFiles(t testing.TB, name string, rotate *rotation) *recordFiles {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	files, err := (&recordFlags{Record: &path, Rotate: rotate}).create()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// consumers are those of the commands, which write their reports to w.
var consumers = map[string]func(t *testing.T, w io.Writer) pipeline.Consumer{
	"stream": func(_ *testing.T, w io.Writer) pipeline.Consumer {
		return &stream{writer: output.NewJSON(w), existing: true}
	},
	"connections": func(_ *testing.T, w io.Writer) pipeline.Consumer {
		writer := output.NewConnectionJSON(w)
		return connection.NewCollector(connection.Config{Max: 100, Open: true, Show: writer.Write, Flush: writer.Flush})
	},
	"stats": func(_ *testing.T, w io.Writer) pipeline.Consumer {
		return stats.NewTally(stats.Config{By: "comm", Max: 100, Show: output.NewStatsJSON(w).Write})
	},
	"timeline": func(_ *testing.T, w io.Writer) pipeline.Consumer {
		writer := output.NewTimelineJSON(w)
		return timeline.NewCollector(timeline.Config{Max: 100, Show: writer.Write, Flush: writer.Flush})
	},
}

// A recording of what a command was shown gives the report that it gave.
func TestRecordingGivesTheSameReport(t *testing.T) {
	for name, consumer := range consumers {
		for _, suffix := range []string{".json", ".gz", ".zst"} {
			var live, again bytes.Buffer
			h, files := newHost(t), newFiles(t, "rec"+suffix, nil)
			counts, err := files.run(t.Context(), h.config(), h, consumer(t, &live))
			if err != nil || counts.Events != 4 || counts.Lost != 12 {
				t.Errorf("%s: %+v, %v", name, counts, err)
			}
			source := open(t, files)
			if _, err := pipeline.Run(t.Context(), pipeline.Config{}, source, consumer(t, &again)); err != nil {
				t.Error(err)
			}
			if live.String() != again.String() || live.Len() == 0 {
				t.Errorf("%s, %s: the report was\n%s\nand of the recording is\n%s", name, suffix, &live, &again)
			}
		}
	}
}

// leaks looks at the sockets that exist again and again: of a recording, at those that it left.
func TestRecordingOfLeaks(t *testing.T) {
	report := func(run func(pipeline.Source, pipeline.Consumer), source interface {
		pipeline.Source
		Track(...tcp.State)
	}) string {
		var out bytes.Buffer
		source.Track(tcp.CloseWait)
		run(source, leak.NewWatch(leak.Config{
			Rule:  leak.Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 1e9, By: leak.ByOwner, Recorded: true},
			AtEnd: true, Existing: source.Existing, Show: output.NewReportJSON(&out).Write, Detailed: 9,
		}))
		return out.String()
	}
	h, original, files := newHost(t), newFiles(t, "original.json", nil), newFiles(t, "rec.zst", nil)
	if _, err := original.run(t.Context(), h.config(), h, consumers["stream"](t, io.Discard)); err != nil {
		t.Fatal(err)
	}
	live := report(func(s pipeline.Source, to pipeline.Consumer) {
		if _, err := files.run(t.Context(), pipeline.Config{}, s, to); err != nil {
			t.Error(err)
		}
	}, open(t, original))
	again := report(func(s pipeline.Source, to pipeline.Consumer) {
		if _, err := pipeline.Run(t.Context(), pipeline.Config{}, s, to); err != nil {
			t.Error(err)
		}
	}, open(t, files))
	if live != again || !strings.Contains(live, `"web"`) {
		t.Errorf("the report was\n%s\nand of the recording is\n%s", live, again)
	}
}

// open reads what was written.
func open(t *testing.T, files *recordFiles) *recording.Source {
	t.Helper()
	f, err := os.Open(files.files[0].Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return recording.Open(f, f.Name())
}

// transitions returns how many there are in what was written; it has to be whole.
func transitions(t *testing.T, files *recordFiles) uint64 {
	t.Helper()
	counts, err := pipeline.Run(t.Context(), pipeline.Config{}, open(t, files), consumers["stream"](t, io.Discard))
	if err != nil {
		t.Error(err)
	}
	return counts.Events
}

// bad is a consumer of which one call ends otherwise.
type bad struct {
	pipeline.Consumer
	event func() error
}

func (b bad) Event(e *tcp.Event) error {
	if e.Kind != tcp.Transition {
		return nil
	}
	return b.event()
}

// The recording is finished however a run ends: what was taken is in it.
func TestRecordingOfARunThatEnds(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	hung := make(chan struct{})
	defer close(hung)
	for name, test := range map[string]struct {
		event func() error
		want  error
	}{
		"nobody reads":     {func() error { return syscall.EPIPE }, syscall.EPIPE},
		"enough":           {func() error { return pipeline.Enough }, nil},
		"something breaks": {func() error { return io.ErrNoProgress }, io.ErrNoProgress},
		"the output hangs": {func() error { signal(); <-hung; return nil }, pipeline.ErrUnfinished},
	} {
		t.Run(name, func(t *testing.T) {
			h, files := newHost(t), newFiles(t, "rec.gz", nil)
			h.rows = nil
			run := t.Context()
			if name == "the output hangs" {
				run = ctx
				h.rows = newHost(t).rows // they wait no more when the hand-over is past
			}
			_, err := files.run(run, h.config(), h, bad{consumers["stream"](t, io.Discard), test.event})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			want := uint64(1)
			if name == "the output hangs" {
				want = 0 // it had not been handed over; the rows had
			}
			if n := transitions(t, files); n != want {
				t.Errorf("%d transitions are recorded", n)
			}
		})
	}
}

// A disk that is full ends the run with what has been seen, and an error that no other one
// hides, also on a quiet host.
func TestRecordingThatFails(t *testing.T) {
	for name, event := range map[string]func() error{
		"quiet": func() error { return nil }, "nobody reads": func() error { return syscall.EPIPE },
	} {
		h, files := newHost(t), newFiles(t, "rec", nil)
		h.waits = true
		file, err := os.Open(files.files[0].Name()) // not for writing
		if err != nil {
			t.Fatal(err)
		}
		files.files[0] = file
		d := &closed{Consumer: bad{consumers["stream"](t, io.Discard), event}}
		_, err = files.run(t.Context(), h.config(), h, d)
		if err == nil || errors.Is(err, syscall.EPIPE) || !strings.Contains(err.Error(), "cannot write the recording: write ") {
			t.Errorf("%s: got %v", name, err)
		}
		if name == "quiet" && !d.closed {
			t.Error("what has been seen is not shown")
		}
	}
}

// closed knows whether the consumer was closed.
type closed struct {
	pipeline.Consumer
	closed bool
}

func (c *closed) Close(now uint64) error {
	c.closed = true
	return c.Consumer.Close(now)
}

func TestRecordingAllocatesNothingPerEvent(t *testing.T) {
	files := newFiles(t, "rec.zst", &rotation{64 << 10, 2})
	w, err := recording.NewWriter(recording.WriterConfig{Files: files.files, Size: files.size, Failed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r := &recorder{Consumer: bad{nil, func() error { return nil }}, lines: output.NewJSON(w), file: w}
	e := newHost(t).events[0]
	record := func() {
		for range 100 {
			if err := r.Event(&e); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 500 { // the buffers grow
		record()
	}
	if n := testing.AllocsPerRun(500, record); n > 1 {
		t.Errorf("%v allocations for 100 events", n)
	}
}

func TestRotatedNames(t *testing.T) {
	for _, test := range []struct {
		path  string
		files int
		want  string
	}{
		{"a/rec.json.zst", 3, "a/rec.json.1.zst a/rec.json.2.zst a/rec.json.3.zst"},
		{"rec.gz", 2, "rec.1.gz rec.2.gz"},
		{"rec.json", 2, "rec.json.1 rec.json.2"},
		{".zst", 2, ".1.zst .2.zst"},
	} {
		if got := strings.Join(rotatedNames(test.path, test.files), " "); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	if names := rotatedNames("r", 100); names[0] != "r.001" || !slices.IsSorted(names) {
		t.Errorf("got %v", names)
	}
}

// recordOf starts a command that prints and records what it reads from a pipe, which stays
// open, and returns when it has printed something.
func recordOf(t *testing.T, to string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	cmd = exec.Command("tcptrace", "-j", "-r", "-", "--record", to)
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stderr = stderr
	feed, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	some := make(chan struct{})
	cmd.Stdout = &noticed{w: stdout, some: some}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	trace, err := os.ReadFile("testdata/mixed.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := feed.Write(trace); err != nil {
		t.Fatal(err)
	}
	<-some
	return cmd, stdout, stderr
}

// noticed is a writer that tells when the first bytes come.
type noticed struct {
	w    io.Writer
	once sync.Once
	some chan struct{}
}

func (n *noticed) Write(b []byte) (int, error) {
	n.once.Do(func() { close(n.some) })
	return n.w.Write(b)
}

// A signal ends the recording as it ends what is shown: at once, and whole.
func TestOneSignalEndsARecording(t *testing.T) {
	for i, signal := range fourSignals {
		path := filepath.Join(t.TempDir(), "rec"+[]string{".gz", ".zst", "", ".json"}[i])
		cmd, stdout, stderr := recordOf(t, path)
		began := time.Now()
		cmd.Process.Signal(signal)
		if err := cmd.Wait(); err != nil || time.Since(began) > endLimit {
			t.Errorf("%v: %v after %v: %s", signal, err, time.Since(began), stderr)
		}
		again, err := exec.Command("tcptrace", "-j", "-r", path).Output()
		if err != nil || !bytes.Equal(again, stdout.Bytes()) || len(again) == 0 {
			t.Errorf("%v: %d bytes were printed, of the recording %d: %v", signal, stdout.Len(), len(again), err)
		}
	}
}

// kill -9 loses what came in the last second. The rest is read and reported on, it is said
// that the recording is not whole, and the status says so too.
func TestRecordingOfAKilledCommand(t *testing.T) {
	want, err := exec.Command("tcptrace", "stats", "-r", "testdata/mixed.json").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{".gz", ".zst"} {
		path := filepath.Join(t.TempDir(), "rec"+suffix)
		cmd, _, _ := recordOf(t, path)
		time.Sleep(1500 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		var stderr bytes.Buffer
		read := exec.Command("tcptrace", "stats", "-r", path)
		read.Stderr = &stderr
		got, err := read.Output()
		if !bytes.Equal(got, want) || read.ProcessState.ExitCode() != exitFailure {
			t.Errorf("%s: %v, the report is\n%s", suffix, err, got)
		}
		if lines := strings.Split(stderr.String(), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "data is cut off: the file was not finished") {
			t.Errorf("%s: it says %q", suffix, stderr.String())
		}
	}
}

// A disk that hangs keeps no command from ending. A pipe stands in for it here, which is
// nothing that --record opens.
func TestOneSignalEndsARecordingThatHangs(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	reader, hung := os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "hung")
	defer reader.Close()
	h := newHost(t)
	h.waits = true
	for range 4000 {
		h.events = append(h.events, h.events[0])
	}
	ctx, signal := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, signal)
	began := time.Now()
	_, err := (&recordFiles{files: []*os.File{hung}}).run(ctx, h.config(), h, consumers["stream"](t, io.Discard))
	if !errors.Is(err, pipeline.ErrUnfinished) || !strings.Contains(fmt.Sprint(err), "the recording was not finished") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > endLimit {
		t.Errorf("it took %v", took)
	}
	go io.Copy(io.Discard, reader)
}

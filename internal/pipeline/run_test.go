package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

const (
	second      = uint64(time.Second)
	millisecond = uint64(time.Millisecond)
)

// events is a source of events in the order of their time, as a recording is. At its end
// it waits to be stopped, if waiting is set.
type events struct {
	left     []tcp.Event
	now      uint64
	deadline uint64
	waiting  bool
	err      error // at the end; nil: io.EOF
	stop     chan struct{}
	stopped  atomic.Bool
}

// at returns a source of an event at each of these times.
func at(times ...uint64) *events {
	s := &events{stop: make(chan struct{})}
	for _, t := range times {
		s.left = append(s.left, tcp.Event{BootNS: t, Old: tcp.Close, New: tcp.SynSent})
	}
	return s
}

func (s *events) Read(e *tcp.Event) error {
	switch {
	case s.stopped.Load():
		return io.EOF
	case len(s.left) == 0 && s.err != nil:
		return s.err
	case len(s.left) == 0 && s.waiting:
		<-s.stop
		return io.EOF
	case len(s.left) == 0:
		return io.EOF
	case s.deadline != 0 && s.left[0].BootNS > s.deadline:
		s.now = max(s.now, s.deadline)
		return os.ErrDeadlineExceeded
	}
	*e = s.left[0]
	s.now, s.left = max(s.now, e.BootNS), s.left[1:]
	return nil
}

func (s *events) More() bool              { return len(s.left) > 0 }
func (s *events) SetDeadline(boot uint64) { s.deadline = boot }
func (s *events) Now() uint64             { return s.now }

func (s *events) Existing([]tcp.State, func(*tcp.Event) error) error { return nil }

func (s *events) Stop() {
	if s.stopped.CompareAndSwap(false, true) {
		close(s.stop)
	}
}

// diary is a consumer that notes what it is told, with the time in seconds.
type diary struct {
	said  []string
	enter func(e *tcp.Event) error // beside the note; may be nil
	tick  func() error
}

func (d *diary) note(what string, now uint64) {
	d.said = append(d.said, fmt.Sprintf("%s %g", what, float64(now)/1e9))
}

func (d *diary) Event(e *tcp.Event) error {
	d.note(e.Kind.String(), e.BootNS)
	if d.enter != nil {
		return d.enter(e)
	}
	return nil
}

func (d *diary) Idle() error {
	d.said = append(d.said, "idle")
	return nil
}

func (d *diary) Tick(now uint64) error {
	d.note("tick", now)
	if d.tick != nil {
		return d.tick()
	}
	return nil
}

func (d *diary) Close(now uint64) error {
	d.note("close", now)
	return nil
}

func TestRunTicksInEventTime(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		times  []uint64
		want   string
	}{
		"no ticks": {Config{}, []uint64{1 * second, 9 * second},
			"transition 1, transition 9, idle, close 9"},
		"between events": {Config{Interval: 2 * time.Second}, []uint64{1 * second, 2 * second, 6 * second},
			"transition 1, transition 2, tick 3, tick 5, transition 6, idle, close 6"},
		"at an event": {Config{Interval: 2 * time.Second}, []uint64{1 * second, 3 * second, 4 * second},
			"transition 1, transition 3, tick 3, transition 4, idle, close 4"},
		"the end": {Config{Duration: 2 * time.Second}, []uint64{1 * second, 3 * second, 3*second + 1},
			"transition 1, transition 3, close 3"},
		"ticks up to the end": {Config{Interval: time.Second, Duration: 2500 * time.Millisecond}, []uint64{1 * second, 9 * second},
			"transition 1, tick 2, tick 3, close 3.5"},
		"a long silence": {Config{Interval: time.Second, Silence: 2}, []uint64{1 * second, 3600 * second, 3602 * second},
			"transition 1, tick 2, tick 3, transition 3600, tick 3600, tick 3601, transition 3602, tick 3602, idle, close 3602"},
		"the end in a long silence": {Config{Interval: time.Second, Silence: 2, Duration: time.Minute}, []uint64{1 * second, 3600 * second},
			"transition 1, tick 2, tick 3, close 61"},
		"not sorted": {Config{Interval: 2 * time.Second, Duration: 5 * time.Second}, []uint64{3 * second, 1 * second, 4 * second},
			"transition 3, transition 1, transition 4, idle, close 4"},
	} {
		t.Run(name, func(t *testing.T) {
			d := new(diary)
			if _, err := Run(t.Context(), c.config, at(c.times...), d); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(c.want, ", "), d.said); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A time near the end of the 64 bits neither wraps nor makes ticks without end.
func TestRunAtTheEndOfTime(t *testing.T) {
	for _, times := range [][]uint64{
		{1, math.MaxUint64}, {1, math.MaxUint64 - 1, math.MaxUint64}, {math.MaxUint64, 1, math.MaxUint64, 5},
		{math.MaxUint64 - second, math.MaxUint64},
	} {
		d := new(diary)
		config := Config{Interval: 2 * time.Second, Silence: 100}
		if _, err := Run(t.Context(), config, at(times...), d); err != nil {
			t.Fatal(err)
		}
		if len(d.said) > 120 {
			t.Errorf("%d: %d calls for %d events", times, len(d.said), len(times))
		}
		for _, want := range times {
			if want := fmt.Sprintf("transition %g", float64(want)/1e9); !slices.Contains(d.said, want) {
				t.Errorf("%d: %s is missing", times, want)
			}
		}
	}
}

// slow is a clock that goes on while a tick takes its time.
type slow struct{ *events }

func TestRunLeavesTimeForEvents(t *testing.T) {
	source := slow{at(1*second, 20*second)}
	d := &diary{tick: func() error { source.now += 3 * second; return nil }}
	config := Config{Interval: 2 * time.Second, Duration: 15 * time.Second}
	if _, err := Run(t.Context(), config, source, d); err != nil {
		t.Fatal(err)
	}
	// Each tick takes 3 s, so the next comes 6 s after it began.
	if want := []string{"transition 1", "tick 3", "tick 9", "tick 15", "close 18"}; !slices.Equal(d.said, want) {
		t.Errorf("got %q, want %q", d.said, want)
	}
}

// early is a source that gives up long before the deadline, and again and again until it
// is set again.
type early struct {
	*events
	sets int
}

func (s *early) SetDeadline(boot uint64) {
	s.sets++
	s.deadline = s.now + (boot-s.now+1)/2
}

func TestRunSetsAnEarlyDeadlineAnew(t *testing.T) {
	source := &early{events: at(1*second, 60*second)}
	d := new(diary)
	if _, err := Run(t.Context(), Config{Duration: 10 * time.Second}, source, d); err != nil {
		t.Fatal(err)
	}
	if want := []string{"transition 1", "close 11"}; !slices.Equal(d.said, want) || source.sets < 10 {
		t.Errorf("got %q after %d deadlines, want %q", d.said, source.sets, want)
	}
}

func TestRunBeginsWithWhatExists(t *testing.T) {
	d := new(diary)
	source := at(7 * second)
	source.now = 5 * second
	config := Config{
		Interval: time.Second,
		Existing: func(emit func(*tcp.Event) error) error {
			return errors.Join(emit(&tcp.Event{Kind: tcp.Socket, BootNS: 3 * second}), emit(&tcp.Event{Kind: tcp.Socket, BootNS: 4 * second}))
		},
		Confine: func() error { d.said = append(d.said, "confine"); return nil },
		Enrich:  func(e *tcp.Event) { e.BootNS += second / 2 },
	}
	counts, err := Run(t.Context(), config, source, d)
	if err != nil {
		t.Fatal(err)
	}
	want := "socket 3.5, socket 4.5, confine, tick 5, idle, tick 6, transition 7.5, tick 7, idle, close 7"
	if diff := cmp.Diff(strings.Split(want, ", "), d.said); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if counts.Events != 1 {
		t.Errorf("counted %+v", counts)
	}
}

// What the source has counted comes before the end, through the selector, also after Enough;
// not where the run has failed.
func TestRunEndsWithWhatWasCounted(t *testing.T) {
	for name, c := range map[string]struct {
		says error // the consumer, at the second event
		want string
	}{
		"the source ends": {nil, "transition 1, transition 2, idle, unseen 3, close 2"},
		"enough":          {Enough, "transition 1, transition 2, unseen 3, close 2"},
		"failed":          {io.ErrClosedPipe, "transition 1, transition 2"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &diary{enter: func(e *tcp.Event) error {
				if e.BootNS == 2*second {
					return c.says
				}
				return nil
			}}
			config := Config{
				Selector: tcp.NewSelector(tcp.Filter{}),
				Last: func(emit func(*tcp.Event) error) error {
					return errors.Join(emit(&tcp.Event{Kind: tcp.Unseen, NetNS: 7, BootNS: 3 * second}), emit(&tcp.Event{Kind: tcp.Unseen, BootNS: 3 * second}))
				},
			}
			source := at(1*second, 2*second)
			source.left[0].NetNS = 7
			source.left[1].NetNS = 7
			if _, err := Run(t.Context(), config, source, d); c.says != Enough && !errors.Is(err, c.says) {
				t.Error(err)
			}
			if diff := cmp.Diff(strings.Split(c.want, ", "), d.said); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestRunEnds(t *testing.T) {
	broken, cut := errors.New("line 3 is wrong"), fmt.Errorf("line 3: %w", io.ErrUnexpectedEOF)
	full := errors.New("no space left")
	for name, c := range map[string]struct {
		end  error // of the source
		says error // the consumer, at the second event
		last string
		want error
	}{
		"the source ends":    {nil, nil, "close 2", nil},
		"the source fails":   {broken, nil, "idle", broken},
		"the source is cut":  {cut, nil, "close 2", cut},
		"the consumer fails": {nil, full, "transition 2", full},
		"enough":             {nil, Enough, "close 2", nil},
	} {
		t.Run(name, func(t *testing.T) {
			source := at(1*second, 2*second)
			source.err = c.end
			d := &diary{enter: func(e *tcp.Event) error {
				if e.BootNS == 2*second {
					return c.says
				}
				return nil
			}}
			_, err := Run(t.Context(), Config{}, source, d)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := d.said[len(d.said)-1]; got != c.last {
				t.Errorf("the last call is %q, want %q", got, c.last)
			}
		})
	}
	d := new(diary)
	source := at()
	source.err = broken
	if _, err := Run(t.Context(), Config{}, source, d); !errors.Is(err, broken) || len(d.said) != 0 {
		t.Errorf("a source that fails at once: %v and %q", err, d.said)
	}
}

func TestRunCounts(t *testing.T) {
	source := at(1, 2, 3, 4)
	source.left[1].DurationKind = tcp.Unknown
	source.left[2] = tcp.Event{Kind: tcp.Lost, BootNS: 3, Lost: 17}
	source.left[3].New = tcp.Listen
	config := Config{Selector: tcp.NewSelector(tcp.Filter{States: []tcp.State{tcp.SynSent}})}
	counts, err := Run(t.Context(), config, source, new(diary))
	if want := (Counts{Events: 2, Unknown: 1, Lost: 17}); err != nil || counts != want {
		t.Errorf("got %+v and %v, want %+v", counts, err, want)
	}
}

// A connection that hangs is shown when it has hung for long enough, not at its end; one
// whose next event has not been read yet may have gone on meanwhile.
func TestRunShowsWhatWaits(t *testing.T) {
	filter := tcp.Filter{States: []tcp.State{tcp.SynSent}, MinDuration: second}
	source := at(1*second, 5*second)
	source.left[1] = tcp.Event{Kind: tcp.Lost, BootNS: 5 * second, Lost: 1}
	d := new(diary)
	config := Config{Interval: time.Second / 4, Selector: tcp.NewSelector(filter)}
	if _, err := Run(t.Context(), config, source, d); err != nil {
		t.Fatal(err)
	}
	want := []string{"tick 1.25", "tick 1.5", "tick 1.75", "transition 1", "tick 2", "tick 2.25"}
	if got := d.said[:len(want)]; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	source = at(1*second, 1300*millisecond, 1500*millisecond)
	source.left[1] = tcp.Event{Kind: tcp.Lost, BootNS: 1300 * millisecond, Lost: 1}
	source.left[2].Old, source.left[2].New = tcp.SynSent, tcp.Established
	source.left[2].Duration, source.left[2].DurationKind = 500*millisecond, tcp.Exact
	d = new(diary)
	kernel := &behind{events: source}
	config.Enrich = func(*tcp.Event) { kernel.lag = 3 * second }
	if _, err := Run(t.Context(), config, kernel, d); err != nil {
		t.Fatal(err)
	}
	want = []string{"lost 1.3", "tick 4.3", "idle", "close 4.5"}
	if diff := cmp.Diff(want, d.said); diff != "" {
		t.Errorf("a connection that was open after half a second: -want +got:\n%s", diff)
	}
}

// behind is a source as the kernel is when reading does not keep up: what waits in the ring
// is older than the clock.
type behind struct {
	*events
	lag uint64
}

func (b *behind) Now() uint64        { return b.now + b.lag }
func (b *behind) SetDeadline(uint64) {}

var fourSignals = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

func raise(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Error(err)
	}
}

// The first signal ends a run in order: one that waits, and one that is busy for ever.
func TestRunEndsBySignal(t *testing.T) {
	need.Hangup(t)
	busy := func() Source { return &forever{} }
	idle := func() Source {
		s := at(1 * second)
		s.waiting = true
		return s
	}
	for _, s := range fourSignals {
		for name, source := range map[string]func() Source{"busy": busy, "idle": idle} {
			for _, whole := range []bool{false, true} {
				once := false
				d := &count{event: func() error {
					if !once {
						once = true
						raise(t, s)
					}
					return nil
				}}
				began := time.Now()
				_, err := Run(t.Context(), Config{Whole: whole}, source(), d)
				want := error(nil)
				if whole {
					want = ErrInterrupted
				}
				if !errors.Is(err, want) || d.closed == whole {
					t.Errorf("%v, %s, whole %v: got %v, closed %v", s, name, whole, err, d.closed)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("%v, %s: it took %v", s, name, took)
				}
			}
		}
	}
}

// So does it where the output is a pipe that is full and that nobody reads.
func TestRunEndsWhileBlocked(t *testing.T) {
	need.Hangup(t)
	for _, s := range fourSignals {
		r, w := pipe(t)
		d := &count{event: func() error { _, err := w.Write(make([]byte, 4096)); return err }}
		time.AfterFunc(100*time.Millisecond, func() { raise(t, s) })
		began := time.Now()
		if _, err := Run(t.Context(), Config{Output: w}, &forever{}, d); err != ErrBlocked {
			t.Errorf("%v: got %v, want ErrBlocked", s, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%v: it took %v", s, took)
		}
		r.Close() // lets the goroutine that was left behind end
	}
}

func TestRunEndsWhileUnfinished(t *testing.T) {
	_, w := pipe(t)
	release := make(chan struct{})
	defer close(release)
	d := &count{event: func() error { <-release; return nil }}
	time.AfterFunc(50*time.Millisecond, func() { raise(t, syscall.SIGTERM) })
	if _, err := Run(t.Context(), Config{Output: w}, &forever{}, d); err != ErrUnfinished {
		t.Errorf("got %v, want ErrUnfinished", err)
	}
}

// A signal ends the look at what exists, too, and the consumer closes.
func TestRunEndsDuringExisting(t *testing.T) {
	d := new(count)
	config := Config{Existing: func(emit func(*tcp.Event) error) error {
		raise(t, syscall.SIGINT)
		for {
			if err := emit(&tcp.Event{Kind: tcp.Socket}); err != nil {
				return fmt.Errorf("read the sockets: %w", err)
			}
		}
	}}
	if _, err := Run(t.Context(), config, at(1), d); err != nil || !d.closed {
		t.Errorf("got %v, closed %v", err, d.closed)
	}
}

// On a quiet host no write would tell that the reader has gone.
func TestRunEndsWithItsReader(t *testing.T) {
	r, w := pipe(t)
	source := at(1 * second)
	source.waiting = true
	time.AfterFunc(50*time.Millisecond, func() { r.Close() })
	began := time.Now()
	if _, err := Run(t.Context(), Config{Output: w}, source, new(diary)); err != syscall.EPIPE {
		t.Errorf("got %v, want EPIPE", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// A deferred function of the caller has to run on a panic: it restores the terminal.
func TestRunPassesPanicsOn(t *testing.T) {
	defer func() {
		if p := fmt.Sprint(recover()); !strings.Contains(p, "a fault") || !strings.Contains(p, "run_test.go") {
			t.Errorf("got the panic %q", p)
		}
	}()
	Run(t.Context(), Config{}, at(1), &diary{enter: func(*tcp.Event) error { panic("a fault") }})
	t.Error("no panic")
}

func TestRunAllocatesNothingPerEvent(t *testing.T) {
	config := Config{Interval: time.Millisecond, Enrich: func(e *tcp.Event) { e.Cgroup = "/" }, Selector: tcp.NewSelector(tcp.Filter{})}
	allocations := func(n int) float64 {
		return testing.AllocsPerRun(5, func() {
			if _, err := Run(context.Background(), config, &forever{left: n}, new(count)); err != nil {
				t.Fatal(err)
			}
		})
	}
	few, many := allocations(10), allocations(100_010)
	if perEvent := (many - few) / 100_000; perEvent > 0.001 {
		t.Errorf("%v allocations per event", perEvent)
	}
}

// forever yields events, 1 ms apart, until it is stopped or has yielded as many as left.
type forever struct {
	events
	left int // 0: no end
	n    uint64
	end  atomic.Bool
}

func (f *forever) Read(e *tcp.Event) error {
	if f.end.Load() || f.left != 0 && f.n == uint64(f.left) {
		return io.EOF
	}
	f.n++
	f.now = f.n * 1e6
	e.BootNS, e.Old, e.New = f.now, tcp.Close, tcp.SynSent
	return nil
}

func (f *forever) More() bool { return true }
func (f *forever) Stop()      { f.end.Store(true) }

// count is a consumer that keeps nothing.
type count struct {
	event  func() error
	closed bool
}

func (c *count) Event(*tcp.Event) error {
	if c.event != nil {
		return c.event()
	}
	return nil
}

func (c *count) Idle() error        { return nil }
func (c *count) Tick(uint64) error  { return nil }
func (c *count) Close(uint64) error { c.closed = true; return nil }

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	// Not os.Pipe: a write to that is never blocked in the kernel, as one to stdout is.
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// Where SIGHUP means something else, another signal still ends the run.
func TestRunIgnoresHangup(t *testing.T) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	source, d := at(1*second), new(count)
	source.waiting = true
	time.AfterFunc(20*time.Millisecond, func() {
		raise(t, syscall.SIGHUP)
		<-hangups
		time.Sleep(50 * time.Millisecond)
		if source.stopped.Load() {
			t.Error("SIGHUP has ended the run")
		}
		raise(t, syscall.SIGTERM)
	})
	if _, err := Run(t.Context(), Config{IgnoreHangup: true}, source, d); err != nil || !d.closed {
		t.Errorf("got %v, closed %v", err, d.closed)
	}
}

package probe_test

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The walk takes real sockets along every edge of the TCP state diagram, each
// scenario in a network namespace of its own, and holds what the probe reports
// against what the scenario itself did and timed.
//
// It runs no other program than itself, so the same binary (go test -c) walks
// any kernel from an initramfs that holds nothing else.

// scenario is one path through the diagram.
type scenario struct {
	name string
	slow bool // waits seconds for the kernel's timers: runs beside the others
	dies bool // ends with the exit of its namespace, as the step "exit"
	run  func(*netns)
}

// patience bounds every wait for what must happen at once. It is long because
// an emulated kernel is slow, and costs nothing while all is well.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	if name := os.Getenv(agentEnv); name != "" {
		agentMain(name)
		return
	}
	os.Exit(m.Run())
}

func TestWalk(t *testing.T) {
	need.Kernel(t)
	w, err := openWalk(probe.Config{
		RingBytes:    32 << 20, // room for what else runs on the machine
		OwnerRefresh: -1,       // so that owners depend on the events alone
		Hooks:        probe.Hooks(cmp.Or(os.Getenv("TCPTRACE_TEST_HOOKS"), "tracepoints")),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, sentence := range w.probe.Limitations() {
		t.Error(sentence)
	}
	if w.hidden, err = openHidden(); err != nil {
		t.Logf("a change that the kernel hides from BPF will count as missing: %v", err)
	}
	slow := map[string]<-chan error{}
	for _, g := range groups {
		for _, s := range g.scenarios {
			if s.slow {
				slow[s.name] = w.start(s)
			}
		}
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, s := range g.scenarios {
				t.Run(s.name, func(t *testing.T) {
					done, started := slow[s.name]
					if !started {
						done = w.start(s)
					}
					report(t, <-done)
				})
			}
		})
	}
	account, err := w.close()
	if err := errors.Join(err, w.hidden.close()); err != nil {
		t.Error(err)
	}
	if again := w.hidden.unjudged; len(again) > 0 {
		t.Logf("run again, as something happened under process 1: %q", again)
	}
	// Others may use the machine meanwhile. What is lost of the scenarios' own
	// events is missing in their tables.
	t.Logf("%+v", account)
}

// groups are the scenarios by subject. TIME_WAIT has the slow one, which is waited for
// at the end of it, so it is the last.
var groups = []struct {
	name      string
	scenarios []scenario
}{
	{"open", openScenarios},
	{"close", closeScenarios},
	{"owners", ownerScenarios},
	{"listeners", listenerScenarios},
	{"descriptors", descriptorScenarios},
	{"twins", twinScenarios},
	{"TLS", tlsScenarios},
	{"seeding", seedScenarios},
	{"TIME_WAIT", timeWaitScenarios},
}

func report(t *testing.T, err error) {
	t.Helper()
	if missing, ok := errors.AsType[notHere](err); ok {
		t.Skip(missing)
	}
	if err != nil {
		t.Error(err)
	}
}

// walk is one running probe and what it reported so far, by network namespace.
type walk struct {
	probe  *probe.Probe
	opened span // attached and seeded

	mu     sync.Mutex
	seeded []tcp.Event
	events map[uint32][]tcp.Event // of the namespaces that scenarios run in
	err    error                  // why the stream is not whole, or why it ended
	ended  chan struct{}

	hidden *hidden
	held   []*os.File // namespaces, whose inode numbers would be reused
}

func openWalk(config probe.Config) (*walk, error) {
	w, err := attachWalk(config)
	if err != nil {
		return nil, err
	}
	return w, w.seed()
}

// attachWalk attaches the hooks; seed then completes the walk, or closes the probe.
// TCPTRACE_TEST_WITHOUT names hooks to leave out.
func attachWalk(config probe.Config) (*walk, error) {
	config.Without = strings.Fields(os.Getenv("TCPTRACE_TEST_WITHOUT"))
	w := &walk{events: map[uint32][]tcp.Event{config.NetNS: nil}, ended: make(chan struct{})}
	w.opened.from = bootNS()
	p, err := probe.Open(config)
	if err != nil {
		return nil, fmt.Errorf("open the probe: %w", err)
	}
	w.probe = p
	return w, nil
}

func (w *walk) seed() error {
	err := w.probe.Seed(func(e *tcp.Event) error {
		w.seeded = append(w.seeded, *e)
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("seed the probe: %w", err), w.probe.Close())
	}
	w.opened.to = bootNS()
	go w.collect()
	return nil
}

func (w *walk) collect() {
	defer close(w.ended)
	var e tcp.Event
	for {
		err := w.probe.Read(&e)
		w.mu.Lock()
		switch {
		case errors.Is(err, io.EOF):
		case err != nil:
			w.err = fmt.Errorf("read an event: %w", err)
		case !e.Kind.OfSocket():
		case e.Kind != tcp.Transition:
			w.err = fmt.Errorf("event of kind %d in the live stream", e.Kind)
		case !taken(e.Old, e.New):
			w.err = fmt.Errorf("%v>%v is not an edge of the state diagram", e.Old, e.New)
		default:
			if events, ours := w.events[e.NetNS]; ours {
				w.events[e.NetNS] = append(events, e)
			}
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// taken reports whether a socket of Linux may go from one state to the other.
func taken(from, to tcp.State) bool {
	edge, known := tcp.FindEdge(from, to)
	return known && !edge.Untaken
}

func (w *walk) close() (probe.Losses, error) {
	w.probe.Stop()
	<-w.ended
	for _, f := range w.held {
		f.Close()
	}
	return w.probe.Losses(), errors.Join(w.err, w.probe.Close())
}

// start runs s on a thread of its own, which is thrown away with the namespace
// it moved to. A scenario that the kernel hid something of is run again.
func (w *walk) start(s scenario) <-chan error {
	done := make(chan error, 1)
	go func() {
		n, err := w.try(s)
		for range 3 {
			if err == nil || !w.hidden.has(n) {
				break
			}
			w.hidden.note(s.name)
			n, err = w.try(s)
		}
		done <- err
	}()
	return done
}

func (w *walk) try(s scenario) (n *netns, err error) {
	err = onOwnThread(func() {
		n = w.newNetns(s.dies)
		defer n.leave()
		s.run(n)
		if !s.dies {
			n.markEnd()
		}
	})
	if err == nil {
		err = n.verify()
	}
	return n, err
}

// failure and notHere end a scenario: it went wrong, or this kernel cannot do
// it. They travel as panics because a scenario must not call t.Fatal from a
// thread that is not the test's.
type (
	failure struct{ error }
	notHere string
)

func (n notHere) Error() string { return string(n) }

func fail(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

func check(err error, what string) {
	if err != nil {
		fail("%s: %w", what, err)
	}
}

func must[T any](v T, err error) T {
	check(err, "set up")
	return v
}

// onOwnThread runs f on a thread that ends with it, and never on the main
// thread: that one's namespace and name are the process's in /proc/PID.
func onOwnThread(f func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			switch cause := recover().(type) {
			case nil:
				done <- nil
			case failure:
				done <- cause
			case notHere:
				done <- cause
			default:
				panic(cause)
			}
		}()
		f()
	}()
	return <-done
}

// eventually polls until ok. The pauses grow with the time waited for, so that
// what is timed by it is known to half a percent.
func eventually(within time.Duration, what string, ok func() bool) {
	began := time.Now()
	for !ok() {
		waited := time.Since(began)
		if waited > within {
			fail("gave up after %v: %s", within, what)
		}
		time.Sleep(max(200*time.Microsecond, waited/200))
	}
}

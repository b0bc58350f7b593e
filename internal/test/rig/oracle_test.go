package rig

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// traffic is a kind of load, as arguments of churn.
type traffic struct {
	name  string
	rate  int // per second; 0: as fast as the machine can
	args  []string
	steer bool // see namespace.steer
}

// Two threads make sockets of both CPUs meet; the storm leaves one CPU to the tracer.
var loads = []traffic{
	{name: "fin", args: []string{"run", "-m", "fin", "-t", "2", "-n", "30000"}},
	{name: "rst", args: []string{"run", "-m", "rst", "-t", "2", "-n", "40000"}},
	{name: "fin ipv6", args: []string{"run", "-m", "fin", "-6", "-n", "5000"}},
	// Both ends change state at the same time, on two CPUs.
	{name: "fin crossing", args: []string{"run", "-m", "fin", "-x", "-n", "10000"}},
	// 400,000 events per second is what the tool promises to take without a loss.
	{name: "storm", rate: 200000, args: []string{"storm", "-n", "200000"}},
}

// interrupting is traffic whose softirqs interrupt the processes that change states: the
// kernel does not run a program inside itself, so another copy of it reports the change.
var interrupting = traffic{name: "interrupting", args: []string{"run", "-m", "fin", "-t", "2", "-n", "20000"}, steer: true}

// namespace makes one for the traffic.
func (tr traffic) namespace(t *testing.T) *namespace {
	ns := newNamespace(t)
	if tr.steer {
		ns.steer()
	}
	return ns
}

// record runs a load under the oracle and returns what tracefs saw of it. complete is
// false when the oracle itself lost events.
func record(ns *namespace, args ...string) (edges []Edge, l load, complete bool) {
	t := ns.t
	t.Helper()
	r, err := Record("tcptrace-test", 64)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Remove(); err != nil {
			t.Error(err)
		}
	}()
	l = ns.churn(append(args, "-p", strconv.Itoa(int(testPorts.Lo)))...)
	ns.settle()
	all, lost, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if lost > 0 {
		t.Logf("the oracle lost %d events at %.0f events/s", lost, l.PerSecond)
	}
	return Diagram(all, testPorts), l, lost == 0
}

// The two halves of the rig agree: tracefs saw what churn says it made.
func TestOracleSeesWhatChurnMakes(t *testing.T) {
	need.Kernel(t)
	for _, load := range append(loads, interrupting) {
		t.Run(load.name, func(t *testing.T) {
			args := append(slices.Clip(load.args), "-n", "2000")
			edges, made, complete := record(load.namespace(t), args...)
			if !complete || len(edges) != made.Events {
				t.Errorf("churn made %d events, the oracle saw %d, complete: %v", made.Events, len(edges), complete)
			}
		})
	}
}

// The tracer reports exactly what tracefs saw, at the highest rate that the oracle can
// record, and in addition only the steps of mini-sockets and half-open connections.
func TestTracerAgreesWithOracle(t *testing.T) {
	need.Kernel(t)
	cookies := givesCookies(t)
	for _, load := range append(loads, interrupting) {
		t.Run(load.name, func(t *testing.T) {
			if !cookies {
				t.Skip("this kernel gives tracing programs no socket cookies (since 5.12), by which the test tells lives apart")
			}
			for rate := load.rate; ; rate = lower(rate) {
				if agree(t, load, rate) {
					return
				}
				if rate == 1000 {
					t.Fatal("the oracle loses events at any rate")
				}
			}
		})
	}
}

// givesCookies looks for the helper that tracing programs ask for a socket's cookie.
func givesCookies(t *testing.T) bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	_, err = kernel.AnyTypesByName("bpf_get_socket_ptr_cookie")
	return err == nil
}

// lower is the next rate to try; 0 stands for no limit.
func lower(rate int) int {
	if rate == 0 {
		return 16000
	}
	return max(1000, rate/2)
}

// agree runs one load. It returns false when the oracle's record has holes, so that
// it cannot judge, and a lower rate is to be tried.
func agree(t *testing.T, traffic traffic, rate int) (complete bool) {
	complete = true // what fails before there is a record has failed, at any rate
	t.Run(fmt.Sprintf("rate %d", rate), func(t *testing.T) {
		ns := traffic.namespace(t)
		// Room for all events: where the host gives a reader no time for half a second,
		// events are lost and counted. That is another test's business.
		tr := ns.trace("--ring-size", "64M")
		file := tempFile(t)
		tr.out.sendTo(file)
		init := initThreads(t)
		var seen []Edge
		var made load
		seen, made, complete = record(ns, append(slices.Clip(traffic.args), "-r", strconv.Itoa(rate))...)
		maps.Copy(init, initThreads(t))
		tr.endTimeWaits()
		tr.stop()
		if !complete {
			return
		}
		under := Under(init, seen)
		told := translateFile(t, file, under)
		if told.Lost != 0 {
			t.Errorf("%d of %d events lost", told.Lost, made.Events)
		}
		judged := Without(under, seen)
		if happened := events(judged); told.Written != happened {
			t.Errorf("%d events written, but %d happened", told.Written, happened)
		}
		d := Compare(judged, told.Edges)
		t.Logf("%.0f events/s: %d edges, told %d, on %d addresses; besides %d steps of mini-sockets, %d of half-open connections",
			made.PerSecond, d.Oracle, d.Tracer, d.Sockets, told.Mini, told.HalfOpen)
		if err := d.Err(); err != nil {
			t.Error(err)
		}
		if told.Pending != 0 {
			t.Errorf("%d half-open connections have no end", told.Pending)
		}
		if told.Unseen != 0 || len(under) != 0 {
			t.Logf("not judged: %d connections of which a step happened under process 1; the tracer says that %d steps were kept from it", len(under), told.Unseen)
		}
		if told.Unseen > 0 && len(under) == 0 || len(under) > made.Conns/20 {
			t.Error("too much could not be judged")
		}
	})
	return complete
}

// events is how many events the tracer makes of what tracefs saw: one for each step, and
// a second for an X>CLOSE that begins a TIME_WAIT. (The LISTEN>SYN_RECV of a child is
// reported once, for its request sock.) The number varies from run to run, as closes may
// cross.
func events(seen []Edge) int {
	n := len(seen)
	for _, e := range seen {
		if e.New == tcp.Close && (e.Old == tcp.FinWait2 || e.Old == tcp.Closing) {
			n++
		}
	}
	return n
}

// countEdges is how often each edge was seen.
func countEdges(seen []Edge) map[string]int {
	count := map[string]int{}
	for _, e := range seen {
		count[fmt.Sprintf("%v>%v", e.Old, e.New)]++
	}
	return count
}

// skippedRuns is how often the kernel did not run a BPF program because it ran already on that
// CPU, by id and name.
func skippedRuns() map[string]uint64 {
	skipped := map[string]uint64{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it has gone
		}
		if stats, err := program.Stats(); err == nil && stats.RecursionMisses > 0 {
			skipped[fmt.Sprint(id, " ", program)] = stats.RecursionMisses
		}
		program.Close()
	}
	return skipped
}

// When the reader stalls and the ring is far too small, every event is either written
// or counted as lost, the steps of mini-sockets included.
func TestOverloadIsCountedExactly(t *testing.T) {
	need.Kernel(t)
	for _, load := range loads {
		t.Run(load.name, func(t *testing.T) {
			untilJudged(t, func() bool { return overload(t, load) })
		})
	}
}

// untilJudged repeats a test that returns false because something happened under
// process 1.
func untilJudged(t *testing.T, test func() bool) {
	for range 10 {
		if test() {
			return
		}
		t.Log("cannot be judged, as something happened under process 1: run again")
	}
	t.Fatal("something happens under process 1 in every run")
}

func overload(t *testing.T, load traffic) (judged bool) {
	ns := newNamespace(t)
	tr := ns.trace("--ring-size", "64K")
	file := tempFile(t)
	tr.out.sendTo(file)
	tr.out.mu.Lock() // the reader stalls
	init := initThreads(t)
	seen, _, complete := record(ns, load.args...)
	tr.out.mu.Unlock()
	if !complete {
		t.Fatal("the oracle lost events: it cannot judge")
	}
	if len(Under(init, seen)) > 0 {
		tr.stop()
		return false
	}
	tr.endTimeWaits()
	skipped := skippedRuns()
	t.Logf("runs of BPF programs that the kernel skipped: %v", skipped)
	tr.stop()
	told := countFile(t, file)
	happened := events(seen)
	if told.Written+told.Lost != happened {
		t.Errorf("%d events written + %d counted as lost = %d, but %d happened: %v",
			told.Written, told.Lost, told.Written+told.Lost, happened, countEdges(seen))
	}
	if told.Lost == 0 {
		t.Error("nothing was lost: this was not an overload")
	}
	return true
}

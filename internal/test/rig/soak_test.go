package rig

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// soakTime is enough to see that everything works, and to find a leak of 100 bytes for each
// connection. `make soak` takes 20 minutes.
var soakTime = flag.Duration("soak", 75*time.Second, "how long the load of TestSoak goes on")

const (
	soakRate         = 4200 // connections per second, which two CPUs can make and three tracers read
	tenantsPerMinute = 26
	crowdSize        = 10000 // sockets
	minRounds        = 12    // three in each quarter
	perRound         = 30 * time.Second
)

// Three tracers at once, of all kinds, are as big after five million connections, hundreds
// of namespaces and cgroups that came and went, and processes that were killed with ten
// thousand sockets as they were when they had warmed up; what they counted adds up; and
// they leave nothing in the kernel.
func TestSoak(t *testing.T) {
	need.Kernel(t)
	s := newSoak(t)
	rounds := max(minRounds, int(*soakTime/perRound))
	for i := range rounds {
		s.forgetPeaks()
		s.round(i, *soakTime/time.Duration(rounds))
		s.sample()
	}
	hidden, expired := s.drain()
	s.sample()
	s.print()
	for _, tr := range s.tracers {
		if err := growth(tr.samples[:rounds]); err != nil {
			t.Errorf("%s: %v", tr.name, err)
		}
	}
	s.stop()
	s.checkStream(hidden, expired)
	s.checkOthers()
}

// soak is the load, and the tracers under it.
type soak struct {
	t       *testing.T
	init    *Recorder  // state changes under process 1
	expired *Recorder  // ends of TIME_WAIT under it
	ns      *namespace // it lasts
	tracers []*soaked

	stream, leaks, columns *soaked
	told                   tally       // by stream
	found                  lineCounter // by leaks: groups in CLOSE_WAIT
	rows                   lineCounter // by columns

	conns      int      // made in ns
	brief      []uint64 // the inodes of namespaces that ended, some of them more than once
	briefConns int      // made in these, not counting those that a kill ended

	tenants, killed, listed int
}

// soaked is one of the tracers.
type soaked struct {
	*tracer
	name    string
	samples []footprint
}

func newSoak(t *testing.T) *soak {
	// A tracer is to be as big as what it remembers, not as what it has not collected yet.
	t.Setenv("GOGC", "20")
	threads := slices.Collect(maps.Keys(initThreads(t)))
	init, err := Record("tcptrace-init", 1, threads...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = init.Remove() }) // drain has stopped it
	expired, err := RecordExpiries("tcptrace-expired", threads...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = expired.Remove() })
	s := &soak{t: t, init: init, expired: expired, ns: newNamespace(t)}
	s.found.with, s.rows.with = `"state":"CLOSE_WAIT"`, " -> "
	s.stream = s.add(&s.told, "-j", "--ring-size", "64M")
	s.leaks = s.add(&s.found, "leaks", "-j", "--comm", "churn", "--older-than", "1s", "--interval", "1s")
	// It holds the events of every crowd back, as many each time: what they take is used again.
	s.columns = s.add(&s.rows, "--comm", "churn", "--state", "time-wait", "--min-duration", "100ms", "--ring-size", "64M")
	s.stream.sync()
	return s
}

func (s *soak) add(to io.Writer, args ...string) *soaked {
	tr := &soaked{tracer: s.ns.start(to, args...), name: strings.Join(args, " ")}
	s.tracers = append(s.tracers, tr)
	return tr
}

// lineCounter counts the lines that have a text.
type lineCounter struct {
	with string
	n    int
	rest []byte // of a line that is not whole yet
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.rest = append(c.rest, p...)
	for {
		line, rest, whole := bytes.Cut(c.rest, []byte("\n"))
		if !whole {
			c.rest = append(c.rest[:0], line...)
			return len(p), nil
		}
		c.rest = rest
		if bytes.Contains(line, []byte(c.with)) {
			c.n++
		}
	}
}

// round makes connections for some time, while everything else comes and goes. What leaves
// thousands of TIME_WAITs does so in a namespace that ends with the round: those of the
// others take a minute to be as many as they will be.
func (s *soak) round(i int, during time.Duration) {
	s.t.Helper()
	place := newNamespace(s.t)
	run := func(ns *namespace, mode, threads, port string, rate float64) func() load {
		return ns.begin(ns.churnCommand("run", "-m", mode, "-t", threads, "-p", port,
			"-r", strconv.Itoa(int(rate)), "-n", strconv.Itoa(int(rate*during.Seconds()))))
	}
	resets, waits := run(s.ns, "rst", "2", "20000", 0.89*soakRate), run(s.ns, "fin", "1", "20010", 0.01*soakRate)
	fins := run(place, "fin", "1", "20000", 0.1*soakRate)
	crowd := place.startHerd("-m", []string{"open", "closewait"}[i%2], "-k", strconv.Itoa(crowdSize), "-p", "21000")
	listing := s.list()
	for range int(during.Minutes()*tenantsPerMinute + 1) {
		s.tenant()
	}
	listing()
	s.conns += resets().Conns + waits().Conns
	s.briefConns += fins().Conns + crowdSize/2
	s.killCrowd(crowd)
	place.close()
	s.brief = append(s.brief, place.inode)
}

// list has `tcptrace sockets` look at everything, and returns what waits for it.
func (s *soak) list() (wait func()) {
	s.t.Helper()
	cmd := exec.Command(program(s.t, "tcptrace"), "sockets", "-j")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if err := cmd.Wait(); err != nil || bytes.Count(out.Bytes(), []byte("\n")) < crowdSize {
			s.t.Errorf("tcptrace sockets, amid all this: %v, %d rows: %s", err, bytes.Count(out.Bytes(), []byte("\n")), stderr.Bytes())
		}
		s.listed++
	}
}

// tenant is a namespace and a cgroup of its own, as of a container, with a process that
// becomes another user and program as it goes, and one that is killed amid its connections.
func (s *soak) tenant() {
	s.t.Helper()
	const execs = 20
	ns, cg := newNamespace(s.t), newCgroup(s.t)
	busy, restless := ns.churnCommand("run", "-m", "fin", "-d", "60", "-r", "500"), ns.churnCommand("exec", "-n", strconv.Itoa(execs), "-p", "21000")
	cg.take(busy, restless)
	if err := busy.Start(); err != nil {
		s.t.Fatal(err)
	}
	if l := ns.begin(restless)(); l.Conns != execs {
		s.t.Fatalf("churn exec made %d connections, want %d", l.Conns, execs)
	}
	ns.close()
	if err := busy.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	_ = busy.Wait()
	cg.remove()
	s.brief = append(s.brief, ns.inode)
	s.briefConns += execs
	s.tenants++
}

// killCrowd kills the processes that hold the sockets of a herd.
func (s *soak) killCrowd(herd *exec.Cmd) {
	s.t.Helper()
	pid := herd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(children) == 0 {
		s.t.Fatalf("a herd without processes: %v", err)
	}
	for _, child := range strings.Fields(string(children)) {
		id, err := strconv.Atoi(child)
		if err == nil {
			err = syscall.Kill(id, syscall.SIGKILL)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		s.killed++
	}
	_ = herd.Process.Signal(os.Interrupt)
	if err := herd.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) forgetPeaks() {
	s.t.Helper()
	for _, tr := range s.tracers {
		tr.forgetPeak()
	}
}

func (s *soak) sample() {
	s.t.Helper()
	for _, tr := range s.tracers {
		tr.samples = append(tr.samples, tr.footprint(s.conns+s.briefConns))
	}
}

// drain ends the namespace, and waits until the tracers know of no socket that does not
// exist. It returns how many steps and how many ends of TIME_WAIT happened under process 1,
// which they may not have seen.
func (s *soak) drain() (hidden, expired int) {
	s.t.Helper()
	s.stream.sync()
	s.ns.close()
	steps, lost, err := s.init.Stop()
	if err != nil || lost > 0 {
		s.t.Fatalf("what happened under process 1: %d steps and %d lost: %v", len(steps), lost, err)
	}
	ends, err := s.expired.Count()
	if err != nil {
		s.t.Fatal(err)
	}
	hidden, expired = len(steps), int(ends)
	unseen := map[string]int{"socks": hidden, "timewaits": hidden + expired, "requests": hidden}
	for _, tr := range s.tracers {
		err := await(func() error {
			got, err := tr.entries()
			if err != nil {
				return err
			}
			for name, n := range existing(s.t) {
				if got[name] > n+unseen[name] {
					return fmt.Errorf("%d entries in %s, but %d sockets; %d steps happened under process 1", got[name], name, n, unseen[name])
				}
			}
			return nil
		})
		if err != nil {
			s.t.Errorf("%s: %v", tr.name, err)
		}
	}
	return hidden, expired
}

// existing counts the sockets of this host by the map that they belong to. An orphan in
// FIN_WAIT2 may be in either.
func existing(t *testing.T) map[string]int {
	t.Helper()
	rows, err := exec.Command(program(t, "tcptrace"), "sockets", "-j").Output()
	if err != nil {
		t.Fatal(err)
	}
	count := func(state string) int { return bytes.Count(rows, []byte(`"state":"`+state+`"`)) }
	waiting, halfOpen := count("TIME_WAIT"), count("SYN_RECV")
	return map[string]int{
		"socks":     bytes.Count(rows, []byte("\n")) - waiting - halfOpen,
		"timewaits": waiting + count("FIN_WAIT2"),
		"requests":  halfOpen,
	}
}

func (s *soak) print() {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TRACER\tCONNECTIONS\tMB\tFILES\tTHREADS\tGOROUTINES\tSOCKS\tTIMEWAITS\tREQUESTS")
	for _, tr := range s.tracers {
		writeFootprints(w, tr.name, tr.samples)
	}
	w.Flush()
	s.t.Logf("%d connections, %d namespaces and cgroups, %d processes with %d sockets killed, all sockets listed %d times\n%s",
		s.conns+s.briefConns, s.tenants, s.killed, crowdSize, s.listed, text.String())
}

// stop ends the tracers, and waits until the kernel has nothing of them any more.
func (s *soak) stop() {
	s.t.Helper()
	for _, tr := range s.tracers {
		held := tr.bpfObjects()
		tr.stop()
		eventually(s.t, tr.name+": nothing left in the kernel", held.gone)
	}
}

// checkStream compares what was made with what was told: each connection has two ends, and
// each of them an end. What is missing was counted as lost, or happened under process 1.
func (s *soak) checkStream(hidden, expired int) {
	s.t.Helper()
	unseen := s.told.lost.Lost + hidden
	check := func(what string, l lives, begun int) {
		begins, ends := max(begun-l.begun, l.begun-begun), max(begun-l.ended, l.ended-begun, l.waiting, -l.waiting)
		if begun == 0 || begins > unseen || ends > unseen+expired {
			s.t.Errorf("%s: of %d sockets %d began and %d ended, %d remain in TIME_WAIT, with %d events lost, and %d steps and %d expiries under process 1",
				what, begun, l.begun, l.ended, l.waiting, s.told.lost.Lost, hidden, expired)
		}
	}
	check("the namespace that lasts", *s.told.of(s.ns.inode), 2*s.conns)
	// The number of a namespace that ended is given again.
	var brief lives
	slices.Sort(s.brief)
	for _, inode := range slices.Compact(s.brief) {
		l := s.told.of(inode)
		brief.begun, brief.ended, brief.waiting = brief.begun+l.begun, brief.ended+l.ended, brief.waiting+l.waiting
	}
	check("namespaces that ended", brief, brief.begun)
	if brief.begun < 2*s.briefConns-s.told.lost.Lost-hidden {
		s.t.Errorf("namespaces that ended: %d sockets began, of %d or more", brief.begun, 2*s.briefConns)
	}
	events, lost := s.stream.account()
	if events != s.told.events || lost != s.told.lost.Lost {
		s.t.Errorf("the stream's last line says %d events and %d lost, but it wrote %d and %d", events, lost, s.told.events, s.told.lost.Lost)
	}
	s.t.Logf("%d events, %d lost; %d steps happened under process 1, of which the stream noticed %d", events, lost, hidden, s.told.lost.Unseen)
}

// checkOthers looks whether the other tracers did anything, and what they say of it.
func (s *soak) checkOthers() {
	s.t.Helper()
	events, lost := s.columns.account()
	if rows := s.rows.n - 1; events == 0 || rows != events { // less the header
		s.t.Errorf("%s: %d rows, but it says %d events, %d lost", s.columns.name, rows, events, lost)
	}
	if s.found.n == 0 {
		s.t.Errorf("%s: not a word of the sockets in CLOSE_WAIT", s.leaks.name)
	}
}

// account reads the last line that a stream says.
func (tr *tracer) account() (events, lost int) {
	tr.t.Helper()
	said := strings.TrimSpace(tr.stderr.String())
	last := said[strings.LastIndexByte(said, '\n')+1:]
	if _, err := fmt.Sscanf(last, "tcptrace: %d events, %d lost,", &events, &lost); err != nil {
		tr.t.Fatalf("no account in %q: %v", said, err)
	}
	return events, lost
}

// cgroup is a cgroup of version 2.
type cgroup struct {
	t   *testing.T
	dir *os.File
}

func newCgroup(t *testing.T) cgroup {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			dir, err := os.MkdirTemp(f[1], "tcptrace-soak-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(dir) }) // where remove was not reached
			file, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return cgroup{t, file}
		}
	}
	t.Fatal("no cgroup v2 file system is mounted")
	return cgroup{}
}

// take has commands start in the cgroup.
func (c cgroup) take(commands ...*exec.Cmd) {
	for _, cmd := range commands {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.dir.Fd())}
	}
}

// remove removes it when the last process is gone.
func (c cgroup) remove() {
	c.t.Helper()
	defer c.dir.Close()
	eventually(c.t, "the end of "+filepath.Base(c.dir.Name()), func() error {
		if err := os.Remove(c.dir.Name()); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}

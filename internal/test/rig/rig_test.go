package rig

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests need root, and the binaries that `make build rig` puts there.
const binaries = "../../../bin"

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(binaries, name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run 'make build rig' first", err)
	}
	return path
}

// namespace is a network namespace of its own with lo up, where no stranger opens a
// socket. A process holds it until close.
type namespace struct {
	t      *testing.T
	holder *exec.Cmd
	hold   io.Closer
	inode  uint64
	closed bool
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	ns := &namespace{t: t, holder: exec.Command("unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat")}
	ns.holder.Stderr = os.Stderr
	in, err := ns.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ns.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.holder.Start(); err != nil {
		t.Fatal(err)
	}
	ns.hold = in
	t.Cleanup(ns.close)
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		t.Fatalf("cannot make a network namespace (the test needs root): %v", err)
	}
	info, err := os.Stat(ns.path())
	if err != nil {
		t.Fatal(err)
	}
	ns.inode = info.Sys().(*syscall.Stat_t).Ino
	return ns
}

func (ns *namespace) path() string { return fmt.Sprintf("/proc/%d/ns/net", ns.holder.Process.Pid) }

// steer makes all CPUs handle the packets of lo (RPS), in interrupts of whatever runs
// there, as with a network card. Without it the sending process handles them.
func (ns *namespace) steer() {
	ns.t.Helper()
	script := fmt.Sprintf("mount -t sysfs sysfs /sys && echo %x > /sys/class/net/lo/queues/rx-0/rps_cpus", 1<<runtime.NumCPU()-1)
	if out, err := exec.Command("nsenter", "-n"+ns.path(), "--", "unshare", "-m", "sh", "-c", script).CombinedOutput(); err != nil {
		ns.t.Fatalf("steer packets to all CPUs: %v: %s", err, out)
	}
}

// close ends the namespace, and every TIME_WAIT in it.
func (ns *namespace) close() {
	if ns.closed {
		return
	}
	ns.closed = true
	ns.hold.Close()
	if err := ns.holder.Wait(); err != nil {
		ns.t.Errorf("the holder of the namespace: %v", err)
	}
}

// settle returns when nothing but TIME_WAIT is left in the namespace: the last segments of a
// load may still be on their way on another CPU when it has ended.
func (ns *namespace) settle() {
	ns.t.Helper()
	eventually(ns.t, "the end of every connection", func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			rows, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", ns.holder.Process.Pid, table))
			if err != nil {
				return err
			}
			for row := range strings.Lines(string(rows)) {
				if f := strings.Fields(row); len(f) > 3 && f[3] != "st" && f[3] != "06" {
					return fmt.Errorf("a socket in state %s of net/%s", f[3], table)
				}
			}
		}
		return nil
	})
}

func (ns *namespace) churnCommand(args ...string) *exec.Cmd {
	ns.t.Helper()
	return exec.Command("nsenter", append([]string{"-n" + ns.path(), "--", program(ns.t, "churn")}, args...)...)
}

// load is what churn says that it did.
type load struct {
	Conns, Failed, Events int
	PerSecond             float64 `json:"events_per_s"`
	Errno                 string
}

// churn runs the load generator in the namespace until it is done.
func (ns *namespace) churn(args ...string) load {
	ns.t.Helper()
	return ns.begin(ns.churnCommand(args...))()
}

// begin starts the load generator, and returns what waits until it is done.
func (ns *namespace) begin(cmd *exec.Cmd) (wait func() load) {
	ns.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(func() { _ = cmd.Process.Kill() }) // where nobody waited
	return func() (l load) {
		ns.t.Helper()
		err := cmd.Wait()
		if err == nil {
			err = json.Unmarshal(out.Bytes(), &l)
		}
		if err != nil || l.Failed > 0 {
			ns.t.Fatalf("churn %q: %v, %d failed: %s", cmd.Args, err, l.Failed, l.Errno)
		}
		return l
	}
}

// valve is what the tracer writes to. It passes everything on, can be made to stall, and
// can keep a copy to search.
type valve struct {
	mu    sync.Mutex
	to    io.Writer
	watch *bytes.Buffer // nil: nobody searches
	grew  chan struct{} // there is more in watch
}

func (v *valve) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.watch != nil {
		v.watch.Write(p)
		select {
		case v.grew <- struct{}{}:
		default:
		}
	}
	return v.to.Write(p)
}

func (v *valve) sendTo(w io.Writer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.to = w
}

func (v *valve) setWatch(b *bytes.Buffer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watch = b
}

func (v *valve) saw(what *regexp.Regexp) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return what.Match(v.watch.Bytes())
}

// tracer is a running tcptrace.
type tracer struct {
	t       *testing.T
	ns      *namespace // where sync makes its events
	cmd     *exec.Cmd
	out     valve
	stderr  bytes.Buffer
	exited  chan error
	markers int // cycles of sync, two events each
}

// trace starts a `tcptrace -j -x` that sees the namespace alone, and returns when it is
// attached.
func (ns *namespace) trace(args ...string) *tracer {
	ns.t.Helper()
	tr := ns.start(io.Discard, append([]string{"-j", "-x", "--netns", strconv.FormatUint(ns.inode, 10)}, args...)...)
	tr.sync()
	return tr
}

// start starts tcptrace, and returns before it is attached. It sees all namespaces.
func (ns *namespace) start(to io.Writer, args ...string) *tracer {
	t := ns.t
	t.Helper()
	tr := &tracer{t: t, ns: ns, cmd: exec.Command(program(t, "tcptrace"), args...), exited: make(chan error, 1),
		out: valve{to: to, grew: make(chan struct{}, 1)}}
	tr.cmd.Stdout, tr.cmd.Stderr = &tr.out, &tr.stderr
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { tr.exited <- tr.cmd.Wait() }()
	t.Cleanup(func() { _ = tr.cmd.Process.Kill() }) // where stop was not reached
	return tr
}

// markerPort is the first of the ports that sync listens on: no test uses them.
const markerPort = 10001

// sync returns when a tracer of JSON has written everything that happened before. It makes
// an event of its own, on a port of its own, until one is seen: the tracer may not be
// attached yet at the first.
func (tr *tracer) sync() {
	tr.t.Helper()
	tr.out.setWatch(new(bytes.Buffer))
	defer tr.out.setWatch(nil)
	deadline := time.After(30 * time.Second)
	for {
		port := strconv.Itoa(markerPort + tr.markers)
		tr.markers++
		tr.ns.churn("storm", "-n", "1", "-p", port)
		seen := regexp.MustCompile(`"lport":` + port + `,.*"old_state":"LISTEN"`)
		again := time.After(250 * time.Millisecond)
		for waiting := true; waiting; {
			if tr.out.saw(seen) {
				return
			}
			select {
			case <-tr.out.grew:
			case <-again:
				waiting = false
			case err := <-tr.exited:
				tr.t.Fatalf("tcptrace ended by itself: %v: %s", err, tr.stderr.String())
			case <-deadline:
				tr.t.Fatalf("tcptrace does not show listen() on port %s: %s", port, tr.stderr.String())
			}
		}
	}
}

// endTimeWaits ends the namespace, and every TIME_WAIT in it. The tracer reports a
// FIN_WAIT2 in a mini-socket only then, if it did not see its FIN.
func (tr *tracer) endTimeWaits() {
	tr.t.Helper()
	tr.ns.close()
	eventually(tr.t, "the end of every TIME_WAIT", func() error {
		return tr.wantEntries(map[string]int{"timewaits": 0})
	})
}

// stop ends the tracer with Ctrl-C when it has read every event, and returns when all its
// output is here. It ends within a second then, whether or not that is enough for what is left.
func (tr *tracer) stop() {
	tr.t.Helper()
	eventually(tr.t, "an empty ring", func() error {
		return tr.wantEntries(map[string]int{"events": 0})
	})
	if err := tr.cmd.Process.Signal(os.Interrupt); err != nil {
		tr.t.Fatal(err)
	}
	select {
	case err := <-tr.exited:
		if err != nil {
			tr.t.Fatalf("tcptrace ended with %v: %s", err, tr.stderr.String())
		}
		tr.t.Logf("tcptrace: %s", bytes.TrimSpace(tr.stderr.Bytes()))
	case <-time.After(60 * time.Second):
		tr.t.Fatal("tcptrace does not end on Ctrl-C")
	}
}

// initThreads are InitThreads. The test cannot judge a connection of which a step happened
// under one of them.
func initThreads(t *testing.T) map[uint32]bool {
	t.Helper()
	ids, err := InitThreads()
	if err != nil {
		t.Fatal(err)
	}
	threads := map[uint32]bool{}
	for _, id := range ids {
		threads[id] = true
	}
	return threads
}

// tempFile is removed with the test.
func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "trace.json"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// translateFile reads what the tracer wrote.
func translateFile(t *testing.T, f *os.File, except map[Connection]bool) *Translation {
	t.Helper()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	tr, err := Translate(f, testPorts, except)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// countFile counts what the tracer wrote when its record has holes, so that its
// lives cannot be followed.
func countFile(t *testing.T, f *os.File) (told Translation) {
	t.Helper()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		switch {
		case e.Type == "lost":
			told.addLost(&e)
		case testPorts.Has(e.LPort, e.RPort):
			told.Written++
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return told
}

package rig

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// tally counts the beginnings and ends of connections in the lines of JSON that it is
// given, by network namespace, and keeps nothing else.
type tally struct {
	in     map[uint64]*lives // by the inode of the namespace
	events int               // transitions
	lost   Translation       // what else there should be: only Lost and Unseen
	rest   []byte            // of a line that is not whole yet
}

// lives counts the sockets of a namespace, each end of a connection. One ends in CLOSE or
// TIME_WAIT, which is the last that tracefs sees of it.
type lives struct {
	begun, ended int
	waiting      int // TIME_WAITs that did not end
}

func (c *tally) Write(p []byte) (int, error) {
	c.rest = append(c.rest, p...)
	for {
		line, rest, whole := bytes.Cut(c.rest, []byte("\n"))
		if !whole {
			c.rest = append(c.rest[:0], line...)
			return len(p), nil
		}
		c.rest = rest
		if err := c.count(line); err != nil {
			return 0, err
		}
	}
}

func (c *tally) count(line []byte) error {
	switch {
	case bytes.Contains(line, []byte(`"type":"transition"`)):
		c.events++
	case bytes.Contains(line, []byte(`"type":"lost"`)):
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		c.lost.addLost(&e)
		return nil
	default:
		return nil
	}
	if bytes.Contains(line, []byte(`"role":"listener"`)) {
		return nil
	}
	l := c.of(netnsOf(line))
	fromTimeWait := bytes.Contains(line, []byte(`"old_state":"TIME_WAIT"`))
	switch {
	case bytes.Contains(line, []byte(`"new_state":"SYN_`)): // SYN_SENT, SYN_RECV
		l.begun++
	case bytes.Contains(line, []byte(`"new_state":"TIME_WAIT"`)) && !fromTimeWait:
		l.ended++
		l.waiting++
	case bytes.Contains(line, []byte(`"new_state":"CLOSE",`)) && fromTimeWait:
		l.waiting--
	case bytes.Contains(line, []byte(`"new_state":"CLOSE",`)):
		l.ended++
	}
	return nil
}

// of returns what happened in a namespace.
func (c *tally) of(netns uint64) *lives {
	if c.in == nil {
		c.in = map[uint64]*lives{}
	}
	if c.in[netns] == nil {
		c.in[netns] = new(lives)
	}
	return c.in[netns]
}

// netnsOf reads the inode of the namespace in a line; 0: there is none.
func netnsOf(line []byte) (inode uint64) {
	_, rest, _ := bytes.Cut(line, []byte(`"netns":`))
	for _, digit := range rest {
		if digit < '0' || digit > '9' {
			break
		}
		inode = 10*inode + uint64(digit-'0')
	}
	return inode
}

// A life ends once, a TIME_WAIT apart, in whatever pieces the lines come.
func TestTally(t *testing.T) {
	lines := strings.Join([]string{
		line("l", 0x1, 80, 0, "CLOSE", "LISTEN"),
		line("", 0x2, 80, 4000, "LISTEN", "SYN_RECV"),
		line("a", 0x3, 0, 80, "CLOSE", "SYN_SENT"),
		line("a", 0x3, 4000, 80, "SYN_SENT", "ESTABLISHED"),
		`{"v":1,"type":"lost","events":3,"where":"ring buffer"}`,
		`{"v":1,"type":"lost","events":5,"where":"hook"}`,
		`{"v":1,"type":"socket","netns":7,"state":"TIME_WAIT"}`,
		line("a", 0x3, 4000, 80, "FIN_WAIT2", "TIME_WAIT"),
		line("a", 0x4, 4000, 80, "TIME_WAIT", "TIME_WAIT"),
		line("b", 0x2, 80, 4000, "LAST_ACK", "CLOSE"),
		line("c", 0x5, 4001, 80, "TIME_WAIT", "CLOSE"),
		line("d", 0x6, 4002, 80, "FIN_WAIT2", "TIME_WAIT"),
	}, "\n") + "\n"
	// What ends a line of the real thing follows the states.
	lines = strings.ReplaceAll(lines, `"CLOSE"}`, `"CLOSE","reason":""}`)
	var got tally
	for _, piece := range strings.SplitAfter(lines, "_") {
		if _, err := got.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	want := lives{begun: 2, ended: 3, waiting: 1}
	if l := *got.of(7); l != want || got.events != 9 || got.lost.Lost != 3 || got.lost.Unseen != 5 {
		t.Errorf("got %+v, %d events, %d lost, %d unseen", l, got.events, got.lost.Lost, got.lost.Unseen)
	}
}

// A tracer that has seen a million connections is as big as one that just started: the
// kernel's maps hold the sockets that exist, and memory does not grow.
func TestMillionConnections(t *testing.T) {
	need.Kernel(t)
	untilJudged(t, func() bool { return million(t) })
}

func million(t *testing.T) (judged bool) {
	const (
		warmUp = 50000
		fins   = 20000 // each leaves a TIME_WAIT
		slack  = 4 << 20
	)
	resets := 1000000
	if testing.Short() {
		resets = 50000
	}
	init, err := Record("tcptrace-init", 1, slices.Collect(maps.Keys(initThreads(t)))...)
	if err != nil {
		t.Fatal(err)
	}
	defer init.Remove()
	ns := newNamespace(t)
	herd := ns.herd(100) // sockets that live all the time, and are seeded
	// What is measured is growth, not speed: room for the pauses of a busy machine.
	tr := ns.trace("--ring-size", "64M")
	count := new(tally)
	tr.out.sendTo(count)

	// Not as fast as it can: two CPUs cannot make the load and read the stream, too.
	run := func(mode string, conns int) int {
		return ns.churn("run", "-m", mode, "-t", "2", "-r", "12500", "-n", strconv.Itoa(conns), "-p", strconv.Itoa(int(testPorts.Lo))).Conns
	}
	conns := run("rst", warmUp)
	tr.sync()
	before := tr.rss()
	conns += run("rst", resets)
	conns += run("fin", fins)
	tr.sync()
	after := tr.rss()
	if under, _, err := init.Stop(); err != nil {
		t.Fatal(err)
	} else if len(under) > 0 {
		herd()
		tr.stop()
		return false
	}
	if after-before > slack {
		t.Errorf("RSS grew from %d to %d KiB", before>>10, after>>10)
	}
	// Each connection has two ends. (The number of events between varies: a server
	// that closes before the RST arrives goes through FIN_WAIT1.)
	if l := count.of(ns.inode); l.begun != 2*conns || l.ended != 2*conns {
		t.Errorf("%d connections: %d sockets began, %d ended", conns, l.begun, l.ended)
	}
	eventually(t, "maps that hold what exists", func() error { return tr.wantEntries(ns.sockets()) })

	herd()
	ns.close()
	eventually(t, "empty maps", func() error {
		return tr.wantEntries(map[string]int{"socks": 0, "timewaits": 0, "requests": 0})
	})
	tr.stop()
	return true
}

// herd holds connected sockets until the returned function is called.
func (ns *namespace) herd(sockets int) (end func()) {
	ns.t.Helper()
	cmd := ns.startHerd("-m", "open", "-k", strconv.Itoa(sockets), "-p", "21000")
	end = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
	ns.t.Cleanup(end)
	return end
}

// startHerd starts processes that hold sockets, children of the one that is returned, and
// returns when all are open.
func (ns *namespace) startHerd(args ...string) *exec.Cmd {
	ns.t.Helper()
	cmd := ns.churnCommand(append([]string{"herd", "-s", "600"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		ns.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(func() { _ = cmd.Process.Kill() }) // the others end with it
	var l load
	if err := json.NewDecoder(out).Decode(&l); err != nil || l.Failed > 0 {
		ns.t.Fatalf("churn herd %q: %v, %d failed: %s", args, err, l.Failed, l.Errno)
	}
	return cmd
}

// sockets counts what exists in the namespace, as the tracer's maps should.
func (ns *namespace) sockets() map[string]int {
	n := map[string]int{"socks": 0, "timewaits": 0, "requests": 0}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", ns.holder.Process.Pid, table))
		if err != nil {
			ns.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			field := strings.Fields(line)
			switch state := field[3]; state {
			case "st": // the header
			case "03":
				n["requests"]++
			case "06":
				n["timewaits"]++
			case "0A":
				n["socks"]++
			default:
				n["socks"]++
			}
		}
	}
	return n
}

// wantEntries says how the maps that the tracer holds differ from want.
func (tr *tracer) wantEntries(want map[string]int) error {
	got, err := tr.entries()
	if err != nil {
		return err
	}
	maps.DeleteFunc(got, func(name string, _ int) bool {
		_, asked := want[name]
		return !asked
	})
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("entries of the maps, -want +got:\n%s", diff)
	}
	return nil
}

// entries counts what is in the maps that the tracer holds, by name; see countEntries.
func (tr *tracer) entries() (map[string]int, error) {
	ids, err := tr.objects("map_id:")
	if err != nil {
		return nil, err
	}
	entries := map[string]int{}
	for _, id := range ids {
		name, n, err := countEntries(ebpf.MapID(id))
		if err != nil {
			return nil, err
		}
		entries[name] = n
	}
	return entries, nil
}

// objects lists the BPF objects that the tracer holds, by what their fdinfo calls the id.
func (tr *tracer) objects(label string) (ids []uint32, err error) {
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", tr.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	for _, file := range infos {
		info, err := os.ReadFile(file)
		if err != nil {
			continue // closed meanwhile
		}
		_, rest, ok := strings.Cut(string(info), label)
		if !ok {
			continue
		}
		var id uint32
		if _, err := fmt.Sscan(rest, &id); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// countEntries counts the entries of a hash map, and the bytes of a ring that nobody has
// read; any other kind counts as -1.
func countEntries(id ebpf.MapID) (name string, entries int, err error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return "", 0, fmt.Errorf("open map %d of the tracer: %w", id, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return "", 0, err
	}
	switch m.Type() {
	case ebpf.Hash:
	case ebpf.RingBuf:
		entries, err = unread(m)
		return info.Name, entries, err
	default:
		return info.Name, -1, nil
	}
	key, err := m.NextKeyBytes(nil)
	for ; err == nil && key != nil; key, err = m.NextKeyBytes(key) {
		entries++
	}
	if err != nil {
		return "", 0, fmt.Errorf("walk map %s: %w", info.Name, err)
	}
	return info.Name, entries, nil
}

// unread is how far the reader of a ring is behind: its first two pages begin with the
// positions of the reader and of the writers (struct bpf_ringbuf).
func unread(ring *ebpf.Map) (bytes int, err error) {
	var at [2]uint64
	for i := range at {
		page, err := unix.Mmap(ring.FD(), int64(i*os.Getpagesize()), os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, fmt.Errorf("map the ring's positions: %w", err)
		}
		at[i] = binary.NativeEndian.Uint64(page)
		if err := unix.Munmap(page); err != nil {
			return 0, err
		}
	}
	return int(at[1] - at[0]), nil
}

// rss is the memory of the tracer that is resident now, in bytes.
func (tr *tracer) rss() int {
	tr.t.Helper()
	return tr.status("VmRSS:") << 10
}

// status reads a number of the tracer's /proc/PID/status.
func (tr *tracer) status(field string) (n int) {
	tr.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tr.cmd.Process.Pid))
	if err != nil {
		tr.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), field)
	if _, err := fmt.Sscan(rest, &n); err != nil {
		tr.t.Fatalf("%s %v", field, err)
	}
	return n
}

// eventually waits for what the kernel does in its own time, such as the end of a
// namespace.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := await(try); err != nil {
		t.Fatalf("%s: still not so: %v", what, err)
	}
}

// await tries for a minute, and returns the last error.
func await(try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return err
		}
	}
}

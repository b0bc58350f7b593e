package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
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

// tally counts the beginnings and ends of connections in the lines that it is
// given, and keeps nothing else. An end is the last that tracefs sees of a socket.
type tally struct {
	begun, ended int
	rest         []byte // of a line that is not whole yet
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
		if bytes.Contains(line, []byte(`"role":"listener"`)) {
			continue
		}
		switch {
		case bytes.Contains(line, []byte(`"new_state":"SYN_`)): // SYN_SENT, SYN_RECV
			c.begun++
		case bytes.Contains(line, []byte(`"new_state":"CLOSE",`)), bytes.Contains(line, []byte(`"new_state":"TIME_WAIT"`)):
			c.ended++
		}
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
	if count.begun != 2*conns || count.ended != 2*conns {
		t.Errorf("%d connections: %d sockets began, %d ended", conns, count.begun, count.ended)
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
	cmd := ns.churnCommand("herd", "-m", "open", "-k", strconv.Itoa(sockets), "-s", "600", "-p", "21000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		ns.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	end = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
	ns.t.Cleanup(end)
	if _, err := out.Read(make([]byte, 512)); err != nil { // its line says that all are open
		ns.t.Fatalf("churn herd: %v", err)
	}
	return end
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
	got := map[string]int{}
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", tr.cmd.Process.Pid))
	if err != nil {
		return err
	}
	for _, file := range infos {
		info, err := os.ReadFile(file)
		if err != nil {
			continue // closed meanwhile
		}
		_, rest, ok := strings.Cut(string(info), "map_id:")
		if !ok {
			continue
		}
		var id int
		if _, err := fmt.Sscan(rest, &id); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		name, entries, err := countEntries(ebpf.MapID(id))
		if err != nil {
			return err
		}
		if _, ok := want[name]; ok {
			got[name] = entries
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("entries of the maps, -want +got:\n%s", diff)
	}
	return nil
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
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tr.cmd.Process.Pid))
	if err != nil {
		tr.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		tr.t.Fatalf("VmRSS: %v", err)
	}
	return kib << 10
}

// eventually waits for what the kernel does in its own time, such as the end of a
// namespace.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still not so: %v", what, err)
		}
	}
}

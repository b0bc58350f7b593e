// Package containers holds tests that run tcptrace beside real containers, and inside
// of one.
package containers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// line is what these tests read of tcptrace's JSON: a transition, a socket or a group
// of leaks.
type line struct {
	Type        string
	State       string
	PID         uint32
	Comm        string
	ContainerID string `json:"container_id"`
	Container   string
	Image       string
	Unit        string
	Pod         string
	PodUID      string `json:"pod_uid"`
	Namespace   string
	Cgroup      string
	LPort       uint16
	RPort       uint16
	NetNS       uint32
	Sockets     int
	MaxFiles    uint64 `json:"max_files"`
	Diagnosis   string
	Stacks      []struct{ Frames []struct{ Function string } }
}

// port is where the leaking server listens. No other program does that here.
const port = 7351

func (l line) isOfServer() bool { return l.LPort == port }
func (l line) isOfClient() bool { return l.RPort == port }

// trace runs a command that is or becomes tcptrace, until enough is satisfied or it
// ends by itself, and returns what it wrote.
func trace(t *testing.T, cmd *exec.Cmd, enough func(line) bool) (lines []line, stderr string) {
	t.Helper()
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for scan := bufio.NewScanner(out); scan.Scan(); {
		var l line
		if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
			t.Errorf("line %q: %v", scan.Bytes(), err)
			continue
		}
		if lines = append(lines, l); enough(l) {
			break
		}
	}
	out.Close() // tcptrace ends when nobody reads
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %v: %s", cmd, err, errors.Bytes())
	}
	return lines, errors.String()
}

// traceWhile traces while something is done again and again: nothing says when tracing has begun.
func traceWhile(t *testing.T, cmd *exec.Cmd, enough func(line) bool, do func(number int)) []line {
	t.Helper()
	done := make(chan []line, 1)
	go func() {
		lines, _ := trace(t, cmd, enough)
		done <- lines
	}()
	for number := 0; ; number++ {
		select {
		case lines := <-done:
			return lines
		case <-time.After(100 * time.Millisecond):
			do(number)
		}
	}
}

// all returns a condition that holds when each of these has held for a line.
func all(conditions ...func(line) bool) func(line) bool {
	met := make([]bool, len(conditions))
	return func(l line) bool {
		for i, condition := range conditions {
			met[i] = met[i] || condition(l)
		}
		return !slices.Contains(met, false)
	}
}

// group is a server that leaks, with a client in another network namespace and one in
// the same. Each is in a container, and a PID namespace, of its own.
type group struct{ server, neighbour, guest container }

func (p *podman) startGroup() group {
	p.t.Helper()
	var g group
	g.server = p.start("podman", "serve", fmt.Sprint(port))
	g.neighbour = p.start("podman", "visit", fmt.Sprintf("%s:%d", p.address(g.server), port))
	g.guest = p.start("container:"+g.server.id, "visit", fmt.Sprintf("127.0.0.1:%d", port))
	return g
}

// seen is a condition: the container's process does something with a socket.
func seen(c container) func(line) bool {
	return func(l line) bool { return l.Type == "transition" && l.PID == c.pid && l.ContainerID == c.id }
}

// check holds the lines against who is who.
func (g group) check(t *testing.T, lines []line) {
	t.Helper()
	for _, c := range []container{g.server, g.neighbour, g.guest} {
		if !slices.ContainsFunc(lines, seen(c)) {
			t.Errorf("nothing is said of container %.12s with process %d", c.id, c.pid)
		}
	}
	wrong := 0
	for _, l := range lines {
		allowed := []container{g.server}
		switch {
		case l.isOfClient():
			allowed = []container{g.neighbour, g.guest}
		case !l.isOfServer():
			continue
		}
		if l.PID != 0 && !slices.ContainsFunc(allowed, func(c container) bool {
			return l.PID == c.pid && l.ContainerID == c.id && l.Comm == "leaker" && strings.Contains(l.Cgroup, c.id)
		}) {
			if wrong++; wrong <= 3 {
				t.Errorf("wrong owner: %+v, want one of %+v", l, allowed)
			}
		}
	}
	if wrong > 3 {
		t.Errorf("and %d more", wrong-3)
	}
}

// checkLeak looks for one group of leaking sockets, that of the server.
func (g group) checkLeak(t *testing.T, lines []line) (found line) {
	t.Helper()
	for _, l := range lines {
		if l.State != "CLOSE_WAIT" || l.LPort != port {
			continue
		}
		if found = l; l.PID != g.server.pid || l.Comm != "leaker" || l.Sockets == 0 {
			t.Errorf("wrong group: %+v, want process %d", l, g.server.pid)
		}
	}
	if found.PID == 0 {
		t.Errorf("the leak is not found: %+v", lines)
	}
	return found
}

func ignore(line) bool { return false }

// TestFromTheHost has containers traced from outside: a bridge network, a network
// namespace that two share, PID namespaces.
func TestFromTheHost(t *testing.T) {
	need.Kernel(t)
	p := newPodman(t)
	g := p.startGroup()

	lines, stderr := trace(t, exec.Command(tcptrace(t), "-j", "-d", "20s"), all(seen(g.server), seen(g.neighbour), seen(g.guest)))
	g.check(t, lines)
	if strings.Contains(stderr, "namespace of its own") {
		t.Errorf("the host is said to have namespaces of its own: %s", stderr)
	}

	lines, _ = trace(t, exec.Command(tcptrace(t), "leaks", "-j", "--once", "-d", "4s", "--older-than", "1s", "--by", "pid", "--container", g.server.id[:12]), ignore)
	leak := g.checkLeak(t, lines)
	if leak.ContainerID != g.server.id || leak.MaxFiles != fileLimit {
		t.Errorf("container %q with a limit of %d files, want %q and %d", leak.ContainerID, leak.MaxFiles, g.server.id, fileLimit)
	}
	// The file lies in the root of the container.
	if !strings.Contains(fmt.Sprint(leak.Stacks), "main.serve") {
		t.Errorf("the code that accepts is not named: %v", leak.Stacks)
	}

	lines, _ = trace(t, exec.Command(tcptrace(t), "sockets", "-j", "--container", g.server.id), ignore)
	if !slices.ContainsFunc(lines, func(l line) bool { return l.State == "LISTEN" && l.PID == g.server.pid }) {
		t.Errorf("the listener of the container is not among %+v", lines)
	}
	for _, l := range lines {
		// A connection that came after the look at open files has no owner yet.
		if l.ContainerID != g.server.id || l.PID != g.server.pid && l.PID != 0 {
			t.Errorf("--container shows a socket of another one: %+v", l)
		}
	}
}

// TestFromAContainer traces from a privileged container that shares the host's PID
// namespace, with the host's cgroup namespace and with one of its own.
func TestFromAContainer(t *testing.T) {
	need.Kernel(t)
	p := newPodman(t)
	g := p.startGroup()
	for _, cgroupns := range []string{"host", "private"} {
		t.Run("cgroupns="+cgroupns, func(t *testing.T) {
			run := []string{"run", "--rm", "--privileged", "--pid=host", "--network=none", "--cgroupns=" + cgroupns, image, "/tcptrace"}
			lines, stderr := trace(t, p.command(append(run, "-j", "-d", "10s")...), ignore)
			g.check(t, lines)
			if strings.Contains(stderr, "namespace of its own") {
				t.Errorf("something is not shown: %s", stderr)
			}
			lines, _ = trace(t, p.command(append(run, "leaks", "-j", "--once", "-d", "4s", "--older-than", "1s", "--by", "pid", "--container", g.server.id[:12])...), ignore)
			if leak := g.checkLeak(t, lines); leak.ContainerID != g.server.id || leak.MaxFiles != fileLimit {
				t.Errorf("container %q with a limit of %d files, want %q and %d", leak.ContainerID, leak.MaxFiles, g.server.id, fileLimit)
			}
		})
	}
}

// TestFromAPIDNamespace traces from a privileged container with a PID namespace of its
// own, in which an innocent process has the PID that the leaking one has on the host.
func TestFromAPIDNamespace(t *testing.T) {
	need.Kernel(t)
	p := newPodman(t)
	g := p.startGroup()
	run := []string{"run", "--rm", "--privileged", "--network=none", image, "/leaker", "decoy", fmt.Sprint(g.server.pid), "/tcptrace"}
	lines, stderr := trace(t, p.command(append(run, "leaks", "-j", "--once", "-d", "6s", "--older-than", "1s", "--by", "pid")...), ignore)
	leak := g.checkLeak(t, lines)
	if leak.MaxFiles != 0 || len(leak.Stacks) > 0 && strings.Contains(fmt.Sprint(leak.Stacks), "main.") {
		t.Errorf("an innocent process was read: %+v", leak)
	}
	if leak.ContainerID != "" && leak.ContainerID != g.server.id {
		t.Errorf("container %s, want %s or none", leak.ContainerID, g.server.id)
	}
	if !strings.Contains(stderr, "--pid=host") {
		t.Errorf("nothing is said of the PID namespace: %q", stderr)
	}

	lines, stderr = trace(t, p.command(append(run, "-j", "-d", "6s")...), ignore)
	if strings.Count(stderr, "--pid=host; in a pod") != 1 {
		t.Errorf("the PID namespace is not named once: %q", stderr)
	}
	for _, l := range lines {
		if l.isOfServer() && l.PID != 0 && (l.PID != g.server.pid || l.Comm != "leaker" || l.ContainerID != "" && l.ContainerID != g.server.id) {
			t.Errorf("wrong owner: %+v", l)
		}
	}
	out, err := p.command(append(run, "doctor")...).Output()
	if err != nil || !strings.Contains(string(out), "PID namespace") || !strings.Contains(string(out), "one of its own") ||
		strings.Contains(string(out), "Everything is shown") {
		t.Errorf("doctor: %v: %s", err, out)
	}
}

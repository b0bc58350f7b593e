package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"golang.org/x/sys/unix"
)

// leakNet is a network namespace with programs that leak, and the thread of the test
// in it: what the test starts, dials and listens to is in there.
type leakNet struct{ t *testing.T }

func newLeakNet(t *testing.T) *leakNet {
	t.Helper()
	need.Kernel(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	n := &leakNet{t}
	n.output("ip", "link", "set", "lo", "up")
	return n
}

// start runs a program until the test ends, and returns it with its first line.
func (n *leakNet) start(name string, args ...string) (*exec.Cmd, string) {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		n.t.Fatalf("start %s: %v", name, err)
	}
	n.t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its children
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		n.t.Fatalf("%s says nothing: %v", name, err)
	}
	return cmd, strings.TrimSpace(line)
}

func (n *leakNet) output(name string, args ...string) string {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// namespace is a path to it, from wherever it is asked.
func (n *leakNet) namespace() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
}

// lastGroups runs tcptrace leaks -j and returns the groups of its last refresh, by
// process.
func (n *leakNet) lastGroups(namespace string, args ...string) map[int]leakGroup {
	out, err := exec.Command("tcptrace", append([]string{"leaks", "--netns", namespace, "-j"}, args...)...).Output()
	if err != nil {
		n.t.Errorf("tcptrace leaks: %v", err)
	}
	last, groups := "", map[int]leakGroup{}
	for line := range strings.Lines(string(out)) {
		var g leakGroup
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			n.t.Errorf("%v in %s", err, line)
		}
		if g.BootNS != last {
			clear(groups)
			last = g.BootNS
		}
		if other, twice := groups[g.PID]; twice {
			n.t.Errorf("process %d has two groups: %+v and %+v", g.PID, other, g)
		}
		groups[g.PID] = g
	}
	return groups
}

type leakGroup struct {
	BootNS  string `json:"boot_ns"`
	PID     int
	Comm    string
	RAddr   string
	RPort   int
	LPort   int
	Sockets int
	Oldest  float64  `json:"oldest_s"`
	Growth  *float64 `json:"growth_per_min"`
	FDs     []int
	Open    int `json:"open_files"`
	Unread  int `json:"unread_bytes"`
	Verdict string
	Cause   string
	Stacks  []struct {
		Sockets int
		Frames  []struct {
			Function, File string
			Line           int
		}
	}
}

// opened reports whether a stack of the group goes through a line of a source file
// that holds the text.
func (g *leakGroup) opened(t *testing.T, function, source, text string) {
	t.Helper()
	code, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(code), text)
	line := 1 + strings.Count(before, "\n")
	if !found {
		t.Fatalf("%s does not hold %q", source, text)
	}
	for _, stack := range g.Stacks {
		for _, f := range stack.Frames {
			if f.Function == function && filepath.Base(f.File) == filepath.Base(source) && f.Line == line {
				return
			}
		}
	}
	t.Errorf("%s: no stack has %s at %s:%d: %+v", g.Comm, function, source, line, g.Stacks)
}

// build makes a program of the repository.
func (n *leakNet) build(name string, source ...string) string {
	n.t.Helper()
	binary := filepath.Join(n.t.TempDir(), name)
	if strings.HasSuffix(source[0], ".c") {
		n.output("gcc", append([]string{"-g", "-fno-omit-frame-pointer", "-pthread", "-o", binary}, source...)...)
	} else {
		n.output("go", append([]string{"build", "-o", binary}, source...)...)
	}
	return binary
}

// peer listens and hands each connection to handle.
func (n *leakNet) peer(handle func(net.Conn)) (port string) {
	n.t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			handle(conn)
		}
	}()
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
}

// visit connects to a server, says something and closes.
func (n *leakNet) visit(port string) {
	n.t.Helper()
	conn, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		n.t.Fatal(err)
	}
	conn.Close()
}

// TestLeakingPrograms has real programs leak in all the usual ways, beside one that
// does not, and expects each to be found out, also what it leaked before the look.
func TestLeakingPrograms(t *testing.T) {
	n := newLeakNet(t)
	leaky, server := n.build("leaky", "../../internal/test/rig/leaky"), n.build("server", "testdata/leaky/server.c")

	client, said := n.start(leaky, "-rate", "5")
	clientSince := time.Now()
	_, _, found := strings.Cut(said, "http://127.0.0.1:")
	if !found {
		t.Fatalf("leaky says %q", said)
	}
	serverCmd, serverPort := n.start(server)
	busy, _ := n.start("busy")

	// These leak a number of sockets, now.
	data := n.peer(func(c net.Conn) { c.Write(make([]byte, 1448)); c.Close() })
	worker, _ := n.start("python3", "testdata/leaky/worker.py", data, "7")
	empty := n.peer(func(c net.Conn) { c.Close() })
	parent, childPID := n.start("python3", "testdata/leaky/fork.py", empty, "4")
	child, _ := strconv.Atoi(childPID)
	leaked := time.Now()

	// The server leaks on at a rate of its own.
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for time.Since(leaked) < 4*time.Second {
		n.visit(serverPort)
		<-ticker.C
	}
	leakOn := func(args ...string) (groups map[int]leakGroup) {
		result := make(chan map[int]leakGroup)
		namespace := n.namespace()
		go func() { result <- n.lastGroups(namespace, args...) }()
		for {
			select {
			case groups := <-result:
				return groups
			case <-ticker.C:
				n.visit(serverPort)
			}
		}
	}
	asked := time.Now()
	once := leakOn("--once", "--older-than", "1s")
	answered := time.Now()
	checkOldest := func(pid int, since time.Time) {
		t.Helper()
		low, high := asked.Sub(since).Seconds()-1, answered.Sub(since).Seconds()+1
		if got := once[pid].Oldest; got < low || got > high {
			t.Errorf("%s: the oldest is %.3f s, want %.3f to %.3f", once[pid].Comm, got, low, high)
		}
	}
	checkOldest(client.Process.Pid, clientSince)
	for _, pid := range []int{serverCmd.Process.Pid, worker.Process.Pid, child} {
		checkOldest(pid, leaked)
	}

	groups := leakOn("--older-than", "2s", "--interval", "1s", "-d", "16s")
	for _, want := range []struct {
		name           string
		pid            int
		verdict, cause string
		growth         float64
		sockets        int
		unread         int
	}{
		{"client", client.Process.Pid, "leak", "not_reading", 300, 0, 0},
		{"server", serverCmd.Process.Pid, "leak", "missing_close", 300, 0, 0},
		{"worker", worker.Process.Pid, "leak", "not_reading", 0, 7, 7 * 1448},
		{"child", child, "leak", "missing_close", 0, 4, 0},
	} {
		g, found := groups[want.pid]
		switch {
		case !found:
			t.Errorf("%s: not found: %+v", want.name, groups)
			continue
		case g.Verdict != want.verdict || g.Cause != want.cause:
			t.Errorf("%s: got %s, %s, want %s, %s", want.name, g.Verdict, g.Cause, want.verdict, want.cause)
		case want.sockets != 0 && (g.Sockets != want.sockets || g.Unread != want.unread):
			t.Errorf("%s: got %d sockets, %d bytes, want %d, %d", want.name, g.Sockets, g.Unread, want.sockets, want.unread)
		case g.Growth == nil || math.Abs(*g.Growth-want.growth) > 0.1*want.growth:
			t.Errorf("%s: got growth %v, want %v within 10 %%", want.name, g.Growth, want.growth)
		}
		if g.Growth != nil {
			t.Logf("%s: %d sockets, oldest %.3f s, %+.2f a minute", want.name, g.Sockets, g.Oldest, *g.Growth)
		}
		checkFDs(t, want.pid, g)
	}
	if g := groups[worker.Process.Pid]; strconv.Itoa(g.RPort) != data || g.RAddr != "127.0.0.1" {
		t.Errorf("worker: got remote %s:%d, want port %s", g.RAddr, g.RPort, data)
	}
	if g := groups[serverCmd.Process.Pid]; strconv.Itoa(g.LPort) != serverPort {
		t.Errorf("server: got local port %d, want %s", g.LPort, serverPort)
	}
	for name, pid := range map[string]int{"busy server": busy.Process.Pid, "parent": parent.Process.Pid} {
		if g, accused := groups[pid]; accused {
			t.Errorf("the %s is accused: %+v", name, g)
		}
	}
	g := groups[client.Process.Pid]
	g.opened(t, "main.dial", "../../internal/test/rig/leaky/main.go", "return dialer.DialContext(")
	g = groups[serverCmd.Process.Pid]
	g.opened(t, "take", "testdata/leaky/server.c", "int fd = accept(")
}

// checkFDs holds the descriptors against what /proc says: each is a socket.
func checkFDs(t *testing.T, pid int, g leakGroup) {
	t.Helper()
	if len(g.FDs) != min(g.Sockets, 8) {
		t.Errorf("%s: descriptors %v of %d sockets", g.Comm, g.FDs, g.Sockets)
	}
	for _, fd := range g.FDs {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || !strings.HasPrefix(to, "socket:") {
			t.Errorf("%s: descriptor %d is %q, %v", g.Comm, fd, to, err)
		}
	}
}

// busy is a server that closes all it accepts, a little late, and its client.
func busy() {
	listener := must(net.Listen("tcp4", "127.0.0.1:0"))
	go func() {
		for {
			conn := must(listener.Accept())
			go func() {
				io.Copy(io.Discard, conn)
				time.Sleep(100 * time.Millisecond)
				conn.Close()
			}()
		}
	}()
	fmt.Println("busy")
	parent := os.Getppid()
	for range time.Tick(10 * time.Millisecond) {
		if os.Getppid() != parent {
			return // the test was killed
		}
		must(net.Dial("tcp4", listener.Addr().String())).Close()
	}
}

// leak holds one socket whose peer has said hello and closed.
func leakSome() {
	listener := must(net.Listen("tcp4", "127.0.0.1:0"))
	client := must(net.Dial("tcp4", listener.Addr().String()))
	server := must(listener.Accept())
	must(io.WriteString(server, "hello"))
	server.Close()
	listener.Close()
	fmt.Println("leaking")
	must(io.Copy(io.Discard, os.Stdin)) // as long as the script lives
	client.Close()
}

// TestLeaksOfMany looks at 100 000 sockets in CLOSE_WAIT. The cost is CPU time, and
// that of the refresh that was disturbed least: neighbours who empty the caches can
// double it.
func TestLeaksOfMany(t *testing.T) {
	n := newLeakNet(t)
	churn := n.build("churn", "../../internal/test/rig/churn/churn.c")
	// The other ends are to be gone, as those on other hosts are.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	n.start(churn, "herd", "-k", "200000", "-m", "closewait", "-s", "300")

	cmd := exec.Command("tcptrace", "leaks", "--netns", n.namespace(), "--older-than", "100ms", "-d", "15s", "--interval", "1s", "--top", "3")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	var first time.Duration   // until the first screen
	var spent []time.Duration // CPU time at the end of each refresh
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var sockets int
		if _, err := fmt.Sscanf(lines.Text(), "CLOSE_WAIT and CLOSE for 100ms or longer: %d sockets", &sockets); err != nil {
			continue
		}
		// The kernel resets a few of so many connections itself.
		if sockets < 99_900 {
			t.Errorf("got %s", lines.Text())
		}
		if len(spent) == 0 {
			first = time.Since(started)
		}
		spent = append(spent, cpuTime(t, cmd.Process.Pid))
	}
	if err := cmd.Wait(); err != nil || len(spent) < 5 {
		t.Fatalf("%d refreshes, %v", len(spent), err)
	}
	var each []time.Duration
	for i := range spent[1:] {
		each = append(each, spent[i+1]-spent[i])
	}
	slices.Sort(each)
	rss := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
	t.Logf("first screen: after %s, %s of CPU; %d refreshes: %s to %s, median %s; %d MB",
		first, spent[0], len(each), each[0], each[len(each)-1], each[len(each)/2], rss)
	// A refresh looks at all open files, too: owners and descriptors change.
	if spent[0] > 2*time.Second || each[0] > 400*time.Millisecond || rss > 128 {
		t.Errorf("the first screen may take 2 s of CPU, a refresh 400 ms, and the process 128 MB")
	}
}

// cpuTime is what a process has used so far, in units of 10 ms.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		t.Fatal(err)
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

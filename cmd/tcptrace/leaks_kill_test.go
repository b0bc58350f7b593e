package main

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLeaksKill leaks in two programs and closes the sockets of one. Those of the
// other, and healthy ones, stay.
func TestLeaksKill(t *testing.T) {
	n := newLeakNet(t)
	empty := n.peer(func(c net.Conn) { c.Close() })
	open := n.peer(func(net.Conn) {})
	one, _ := n.start("python3", "testdata/leaky/worker.py", empty, "5")
	two, _ := n.start("python3", "testdata/leaky/worker.py", empty, "3")
	healthy, _ := n.start("python3", "testdata/leaky/worker.py", open, "2")
	time.Sleep(time.Second) // three times --older-than
	count := func(pid int, state string) int {
		return strings.Count(n.output("ss", "-tnHp", "state", state), fmt.Sprintf("pid=%d,", pid))
	}
	kill := func(stdin string, args ...string) (string, error) {
		args = append([]string{"leaks", "--netns", n.namespace(), "--older-than", "300ms", "--kill"}, args...)
		cmd := exec.Command("tcptrace", args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	check := func(wantOne, wantTwo int) {
		t.Helper()
		got := []int{count(one.Process.Pid, "close-wait"), count(two.Process.Pid, "close-wait"), count(healthy.Process.Pid, "established")}
		if want := []int{wantOne, wantTwo, 2}; got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
			t.Errorf("sockets are %v, want %v", got, want)
		}
	}
	pid := strconv.Itoa(one.Process.Pid)

	out, err := kill("", "--dry-run", "-p", pid)
	if err != nil || strings.Count(out, "would close pid "+pid) != 5 {
		t.Errorf("--dry-run: %v\n%s", err, out)
	}
	check(5, 3)
	for _, answer := range []string{"", "y\n", "no\n"} {
		if out, err := kill(answer, "-p", pid); err == nil || !strings.Contains(out, "nothing was closed") {
			t.Errorf("answer %q: %v\n%s", answer, err, out)
		}
	}
	check(5, 3)
	out, err = kill("yes\n", "-p", pid)
	if err != nil || strings.Count(out, "\nclosed pid "+pid)+strings.Count(out, "yes: closed pid "+pid) != 5 {
		t.Errorf("yes: %v\n%s", err, out)
	}
	check(0, 3)
	out, err = kill("", "--yes")
	if err != nil || !strings.Contains(out, "3 sockets closed, 0 gone before, 0 not closed") {
		t.Errorf("--yes: %v\n%s", err, out)
	}
	check(0, 0)
}

package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

func TestProcessExists(t *testing.T) {
	runtime.LockOSThread()
	threads := make(chan int)
	go func() {
		runtime.LockOSThread() // on another thread than the test
		threads <- unix.Gettid()
		threads <- 0
	}()
	tid := <-threads
	defer func() { <-threads }()
	if tid == os.Getpid() { // the test is on the other one, then
		tid = unix.Gettid()
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]bool{os.Getpid(): true, tid: false, gone.Process.Pid: false, 1 << 30: false} {
		if got := processExists(uint32(pid)); got != want {
			t.Errorf("process %d exists: %v (this is process %d, and %d is a thread of it)", pid, got, os.Getpid(), tid)
		}
	}
}

func TestUserExists(t *testing.T) {
	const nameless = 1<<31 - 77
	if !userExists(0) || userExists(nameless) {
		t.Errorf("root exists: %v, one of whom nobody has heard: %v", userExists(0), userExists(nameless))
	}
	if os.Geteuid() != 0 {
		return
	}
	sleep := exec.Command("sleep", "60")
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nameless, Gid: nameless}}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	if !userExists(nameless) {
		t.Error("a user without a name has a process")
	}
}

// A user who is not there may own a socket whose user is not known; a container has to exist.
func TestCensusOfUnknownUsers(t *testing.T) {
	const nameless = 1<<31 - 77
	none := func(func(*tcp.Event) error) error { return nil }
	user, both := tcp.Filter{UIDs: []uint32{nameless}}, tcp.Filter{UIDs: []uint32{nameless}, PIDs: []uint32{1 << 30}}
	for _, test := range []struct {
		unjudged tcp.Unjudged
		filter   tcp.Filter
		want     string
	}{
		{tcp.Unjudged{}, user, "nothing that exists matches --uid"},
		{tcp.Unjudged{tcp.Age: 1, tcp.Owner: 1, tcp.Place: 1}, user, "nothing that exists matches --uid"},
		{tcp.Unjudged{tcp.Forgotten: 1}, user, ""},
		{tcp.Unjudged{tcp.User: 1}, user, ""},
		{tcp.Unjudged{}, both, "nothing that exists matches --pid, --uid"},
		{tcp.Unjudged{tcp.Forgotten: 1}, both, "nothing that exists matches --pid"},
	} {
		got := ""
		if err := (census{sockets: none, unjudged: test.unjudged}).nothing(test.filter); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("with %v left out: got %q, want %q", test.unjudged, got, test.want)
		}
	}
}

// FuzzThreadGroup reads /proc/PID/status, whose first line has the name of the process.
func FuzzThreadGroup(f *testing.F) {
	f.Fuzz(func(t *testing.T, status string) {
		if pid, err := threadGroup(strings.NewReader(status)); err == nil && !strings.Contains(status, "Tgid:") {
			t.Errorf("%d", pid)
		}
	})
}

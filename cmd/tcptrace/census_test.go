package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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

// FuzzThreadGroup reads /proc/PID/status, whose first line has the name of the process.
func FuzzThreadGroup(f *testing.F) {
	f.Fuzz(func(t *testing.T, status string) {
		if pid, err := threadGroup(strings.NewReader(status)); err == nil && !strings.Contains(status, "Tgid:") {
			t.Errorf("%d", pid)
		}
	})
}

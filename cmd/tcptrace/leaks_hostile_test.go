package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// locked keeps the whole program in memory, so that it goes on when its file system hangs.
const locked = `#include <sys/mman.h>
__attribute__((constructor)) static void lock(void) { mlockall(MCL_CURRENT); }
`

// A user without privileges runs a leaking program from a file system of theirs that does
// not answer. The watch goes on, says so once, and ends when it is told to.
func TestLeaksOfAHungProgram(t *testing.T) {
	need.Kernel(t)
	dir := hostile.Dir(t)
	lock, program := filepath.Join(dir, "lock.c"), filepath.Join(dir, "server")
	if err := os.WriteFile(lock, []byte(locked), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("gcc", "-O1", "-g", "-static", "-fno-omit-frame-pointer", "-o", program, "testdata/leaky/server.c", lock)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	victim := hostile.Nobody.HungFS(t, dir, program)

	cmd := exec.Command("tcptrace", "leaks", "-p", fmt.Sprint(victim.PID), "--older-than", "100ms", "--interval", "200ms")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(stdout)
	await := func(what string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return
			}
		}
		t.Fatalf("it did not say %q; stderr: %s", what, &stderr)
	}
	await("CLOSE_WAIT")
	client, err := net.Dial("tcp4", "127.0.0.1:"+victim.Line)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	await("opened by app+0x")
	await("opened by app+0x")
	began := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	for lines.Scan() {
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Logf("it ended after %v: %v", time.Since(began), err)
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end: a thread of it waits for the file system")
	}
	want := fmt.Sprintf("tcptrace: the code in a file is not named: /proc/%d: %s: its file system does not answer\n", victim.PID, filepath.Join(dir, "fs/app"))
	if stderr.String() != want {
		t.Errorf("it said %q, want %q", &stderr, want)
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// stopped is a program whose stdout is a pipe that nobody reads.
type stopped struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *os.File
	stderr bytes.Buffer
}

// startStopped starts a program, and returns when its stdout is full. Its stderr is the
// same pipe if sameErr is set.
func startStopped(t *testing.T, sameErr bool, name string, args ...string) *stopped {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	in, out := os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() { in.Close(); out.Close() })
	if _, err := unix.FcntlInt(out.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil { // soon full
		t.Fatal(err)
	}
	s := &stopped{t: t, cmd: exec.Command(name, args...), out: out}
	s.cmd.Stdout, s.cmd.Stderr = out, &s.stderr
	if sameErr {
		s.cmd.Stderr = out
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with what else the script starts
	s.cmd.WaitDelay = 5 * time.Second                       // for that to let go of stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) })
	s.fill()
	return s
}

// fill waits until the pipe has been full for a while. A page with a few bytes in it counts as
// full, and takes more all the same: it puts these in, so that nothing fits that comes next.
func (s *stopped) fill() {
	s.t.Helper()
	full := 0
	for began := time.Now(); full < 5; time.Sleep(20 * time.Millisecond) {
		fds := []unix.PollFd{{Fd: int32(s.out.Fd()), Events: unix.POLLOUT}}
		if ready, _ := unix.Poll(fds, 0); ready == 0 {
			full++
		} else {
			full = 0
		}
		if time.Since(began) > 30*time.Second {
			s.t.Fatalf("the pipe is not full; stderr: %s", &s.stderr)
		}
	}
	// A description of its own: that of the program is to block.
	pipe, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", s.out.Fd()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	for err == nil {
		_, err = unix.Write(pipe, []byte("\n"))
	}
	if err != unix.EAGAIN {
		s.t.Fatalf("fill the pipe: %v", err)
	}
	unix.Close(pipe)
}

// endLimit is how late a program may end. It needs 0.5 to 0.7 s, which the log has; the
// rest is for a machine that is busy: that a second is enough is tested within a process
// (pipeline.Run). One that does not end is killed later.
const endLimit = 3 * time.Second

// endsBy sends one signal, and wants the program to end by it at once, in order but not as
// if nothing was lost.
func (s *stopped) endsBy(signal syscall.Signal) {
	s.t.Helper()
	began := time.Now()
	s.cmd.Process.Signal(signal)
	timeout := time.AfterFunc(10*time.Second, func() { s.cmd.Process.Kill() })
	err := s.cmd.Wait()
	timeout.Stop()
	s.t.Logf("%v: %v", signal, time.Since(began))
	if took := time.Since(began); took > endLimit {
		s.t.Errorf("%v: it took %v", signal, took)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailure {
		s.t.Errorf("%v: it ended with %v, want status %d", signal, err, exitFailure)
	}
	if said := s.stderr.String(); s.cmd.Stderr != s.cmd.Stdout && !strings.HasSuffix(said, "tcptrace: the standard output is blocked: what was not written is lost\n") {
		s.t.Errorf("%v: it said %q", signal, said)
	}
}

var fourSignals = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

func TestOneSignalEndsABlockedReplay(t *testing.T) {
	need.Hangup(t)
	recording, err := os.ReadFile(filepath.Join("testdata", "trace.json"))
	if err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(t.TempDir(), "long.json")
	if err := os.WriteFile(long, bytes.Repeat(recording, 100), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, signal := range fourSignals {
		startStopped(t, false, "tcptrace", "-j", "-r", long).endsBy(signal)
	}
	startStopped(t, true, "tcptrace", "-r", long).endsBy(syscall.SIGTERM)
}

// A terminal or a pipe to read from may be silent for ever.
func TestOneSignalEndsAWaitingReplay(t *testing.T) {
	need.Hangup(t)
	for _, signal := range fourSignals {
		cmd := exec.Command("tcptrace", "-r", "-")
		input, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer input.Close()
		output, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		recording, err := os.ReadFile(filepath.Join("testdata", "trace.json"))
		if err != nil {
			t.Fatal(err)
		}
		input.Write(recording)
		if _, err := output.Read(make([]byte, 10)); err != nil { // now it is at work
			t.Fatal(err)
		}
		began := time.Now()
		cmd.Process.Signal(signal)
		late := time.AfterFunc(2*endLimit, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
		late.Stop()
		if took := time.Since(began); took > endLimit {
			t.Errorf("%v: it took %v", signal, took)
		}
	}
}

func TestOneSignalEndsABlockedTrace(t *testing.T) {
	need.Kernel(t)
	need.Hangup(t)
	const script = `ip link set lo up
while :; do connect </dev/null; done >/dev/null 2>&1 &
exec tcptrace -j --netns /proc/self/ns/net`
	for i, signal := range fourSignals {
		startStopped(t, i == 3, "unshare", "--net", "bash", "-c", script).endsBy(signal)
	}
}

// nohup(1) ignores SIGHUP for a program that is to live on.
func TestIgnoredHangupEndsNothing(t *testing.T) {
	recording, err := os.ReadFile(filepath.Join("testdata", "trace.json"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "trap '' HUP; exec tcptrace -j -r -")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	input.Write(recording)
	if _, err := io.CopyN(&got, output, 10); err != nil { // now it is at work
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGHUP)
	time.Sleep(100 * time.Millisecond) // for it to act on the signal
	input.Write(recording)
	input.Close()
	if _, err := io.Copy(&got, output); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if want := bytes.Repeat(recording, 2); !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes are shown, want %d", got.Len(), len(want))
	}
}

func TestOneSignalEndsABlockedWatch(t *testing.T) {
	need.Kernel(t)
	need.Hangup(t)
	const script = `ip link set lo up
sleep 100 2>/dev/null | leak >/dev/null 2>&1 &
exec tcptrace leaks -j --netns /proc/self/ns/net --interval 10ms --older-than 1ms`
	for _, signal := range fourSignals {
		startStopped(t, false, "unshare", "--net", "bash", "-c", script).endsBy(signal)
	}
}

func TestOneSignalEndsABlockedTable(t *testing.T) {
	need.Kernel(t)
	need.Hangup(t)
	const script = `ip link set lo up
busy >/dev/null 2>&1 &
sleep 1
exec tcptrace sockets -j --netns /proc/self/ns/net`
	for _, signal := range fourSignals {
		startStopped(t, false, "unshare", "--net", "bash", "-c", script).endsBy(signal)
	}
}

// A recording that ticks for long fills the pipe with reports.
func TestOneSignalEndsABlockedReplayOfLeaks(t *testing.T) {
	need.Hangup(t)
	recording, err := os.ReadFile(filepath.Join("testdata", "trace.json"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "trace.json")
	if err := os.WriteFile(file, recording, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, signal := range fourSignals {
		startStopped(t, false, "tcptrace", "leaks", "-j", "-r", file, "--interval", "1ms").endsBy(signal)
	}
}

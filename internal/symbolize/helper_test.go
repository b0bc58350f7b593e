package symbolize

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// TestServe is the helper of the tests below.
func TestServe(t *testing.T) {
	if flag.Arg(0) != "serve" {
		return
	}
	if err := Serve(os.Stdin, os.Stdout, "/proc"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func startHelper(t *testing.T, ctx context.Context) *Helper {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h, err := StartHelper(ctx, program, program, "-test.run=^TestServe$", "serve")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestHelper(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	h := startHelper(t, t.Context())
	h.Remember(p.pid)
	p.stop() // what was remembered stays
	got, final := h.Name(p.pid, p.addrs, nil)
	if strings.Join(text(got), "\n") != strings.Join(wantC(t), "\n") || !final || h.Err() != nil || h.Skipped() != (Skipped{}) {
		t.Errorf("got %v, final %v, error %v, skipped %+v", text(got), final, h.Err(), h.Skipped())
	}
	if got, final := h.Name(p.pid, nil, nil); got != nil || !final {
		t.Errorf("an empty stack: got %v, %v", got, final)
	}
	h.cmd.Process.Kill()
	if got, final := h.Name(p.pid, p.addrs, nil); got != nil || final || h.Err() == nil {
		t.Errorf("without a helper: got %v, final %v, error %v", got, final, h.Err())
	}
}

// A helper that a file system keeps is left behind, and an interrupt does not wait for it.
func TestHelperIsLeftBehind(t *testing.T) {
	need.Kernel(t)
	victim := hostile.Nobody.HungFS(t, hostile.Dir(t), buildC(t, "-g", "-static"))
	h := startHelper(t, t.Context())
	h.Name(uint32(victim.PID), []uint64{1}, nil)
	if h.Err() != nil || h.Skipped().Count != 1 {
		t.Fatalf("error %v, skipped %+v, want the program", h.Err(), h.Skipped())
	}
	closed := make(chan struct{})
	go func() { h.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("it is waited for")
	}

	ctx, cancel := context.WithCancel(t.Context())
	h = startHelper(t, ctx)
	if err := h.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if got, final := h.Name(uint32(os.Getpid()), []uint64{1}, nil); got != nil || final || h.Err() != nil {
		t.Errorf("interrupted: got %v, final %v, error %v", got, final, h.Err())
	}
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// memoryBound is what the manual says of the helper.
const memoryBound = 160 << 20

// TestHelperMemory has a helper look at programs each of which asks for all that it may
// have. The test is the process that has them mapped.
func TestHelperMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes long, and the race detector several times the memory")
	}
	file := withSymbols(t, oneSequence(maxLineBytes), maxSymbols)
	h := startHelper(t, t.Context())
	dir := t.TempDir()
	for i := range 4 {
		name := filepath.Join(dir, fmt.Sprint("bomb", i))
		if err := os.WriteFile(name, file, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		code, err := unix.Mmap(int(f.Fd()), 0x1000, 0x1000, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(code)
		time.Sleep(recheck) // it reads the maps once a second
		for try := 0; try < 5; try++ {
			frames, final := h.Name(uint32(os.Getpid()), []uint64{addressOf(code) + 0x801}, nil)
			if h.Err() != nil || len(frames) != 1 {
				t.Fatalf("got %v, error %v", frames, h.Err())
			}
			if t.Log(frames[0], final); final {
				break
			}
			time.Sleep(period)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kb int
	if _, err := fmt.Sscan(string(peak), &kb); err != nil {
		t.Fatal(err)
	}
	t.Logf("VmHWM: %d MB, skipped %+v", kb>>10, h.Skipped())
	if kb<<10 > memoryBound {
		t.Errorf("it took %d MB", kb>>10)
	}
}

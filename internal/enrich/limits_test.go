package enrich

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestParseFileLimit(t *testing.T) {
	const head = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max cpu time              unlimited            unlimited            seconds   \n"
	for text, want := range map[string]uint64{
		head + "Max open files            1024                 524288               files     \n":           1024,
		head + "Max open files            unlimited            unlimited            files     \n":           math.MaxUint64,
		head + "Max open files            18446744073709551615 18446744073709551615 files     \nMore   1 2": math.MaxUint64,
	} {
		if got, err := parseFileLimit(strings.NewReader(text)); err != nil || got != want {
			t.Errorf("parseFileLimit(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", head, head + "Max open files\n", head + "Max open files  x  y\n"} {
		if got, err := parseFileLimit(strings.NewReader(text)); err == nil {
			t.Errorf("parseFileLimit(%q) = %d, want an error", text, got)
		}
	}
}

func TestReadFiles(t *testing.T) {
	before, err := ReadFiles("/proc", uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	const more = 100
	for range more {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	after, err := ReadFiles("/proc", uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Open - before.Open; got != more {
		t.Errorf("%d files more, want %d", got, more)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || after.Limit != limit.Cur {
		t.Errorf("the limit is %d, want %d, %v", after.Limit, limit.Cur, err)
	}
	if _, err := ReadFiles(t.TempDir(), 1); err == nil {
		t.Error("a process that does not exist has files")
	}
}

// withoutMainThread is a program whose main thread ends. Another says how many files it
// sees, as soon as that has happened, and goes on until the end of its input.
const withoutMainThread = `
import ctypes, os, sys, threading, time
def work():
    files = [open("/dev/null") for _ in range(10)]
    while open("/proc/%d/stat" % os.getpid()).read().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(.01)
    print(len(os.listdir("/proc/thread-self/fd")) - 1, flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
`

func TestReadFilesOfAnotherThread(t *testing.T) {
	cmd := exec.Command("python3", "-c", withoutMainThread)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var want uint64
	if _, err := fmt.Fscan(out, &want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFiles("/proc", uint32(cmd.Process.Pid)); err != nil || got.Open != want {
		t.Errorf("got %+v, %v, want %d open files", got, err, want)
	}
}

// The number of files of a process that has ended is not known, and not 0.
func TestReadFilesOfNoThread(t *testing.T) {
	cmd := exec.Command("true")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1)) // the end of file: it has let go of its files
	if got, err := ReadFiles("/proc", uint32(cmd.Process.Pid)); err == nil {
		t.Errorf("got %+v", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

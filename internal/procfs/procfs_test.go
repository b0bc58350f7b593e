package procfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

const statOf = "%d (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %d 4096 1 18446744073709551615 11 12 13\n"

func TestParseStat(t *testing.T) {
	want := Stat{Start: 12345, Exec: [2]uint64{11, 13}, Name: "a) b (c"}
	if got, err := ParseStat(strings.NewReader(fmt.Sprintf(statOf, 7, 12345))); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, text := range []string{"", "7", "7 (x", "7 x) S", ")(" + strings.Repeat(" 1", 30), "7 (x) S 1 2 3", "7 (x)" + strings.Repeat(" y", 30)} {
		if got, err := ParseStat(strings.NewReader(text)); err == nil {
			t.Errorf("ParseStat(%q) = %+v, want an error", text, got)
		}
	}
}

// links makes a proc file system out of symbolic links.
func links(t *testing.T, to map[string]string) Proc {
	t.Helper()
	root := t.TempDir()
	for name, target := range to {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	return Open(root)
}

func TestHasEventPIDs(t *testing.T) {
	const (
		other  = "pid:[4026532500]"
		thread = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 1 1 1 1\n"
	)
	me := fmt.Sprint(os.Getpid())
	forged := strings.Replace(fmt.Sprintf(statOf, 2, 1), "a) b (c", "kthreadd", 1)
	for _, test := range []struct {
		name string
		two  string // 2/stat
		to   map[string]string
		want bool
	}{
		{"the host", thread, map[string]string{"self": me, me + "/ns/pid": initialPID}, true},
		{"a container", "", map[string]string{"self": "1", "1/ns/pid": other}, false},
		{"a container that has a process of that name", forged, map[string]string{"self": "1", "1/ns/pid": other}, false},
		{"a container that has the host's /proc", thread, map[string]string{"self": "77", "77/ns/pid": other}, true},
		{"the host with the /proc of a container", "", map[string]string{"1/ns/pid": other}, false},
		{"the host with the /proc of a container that has two processes", forged, map[string]string{"1/ns/pid": other}, false},
		{"others are hidden", "", map[string]string{"self": me, me + "/ns/pid": initialPID}, true},
		{"others are hidden, in a container", "", map[string]string{"self": me, me + "/ns/pid": other}, false},
		{"others are hidden, and we have another number", "", map[string]string{"self": me + "0", me + "0/ns/pid": initialPID}, false},
		{"nothing is there", "", nil, false},
	} {
		root := links(t, test.to).Root()
		if test.two != "" {
			writeFile(t, filepath.Join(root, "2/stat"), test.two)
		}
		p := Open(root)
		if got := p.HasEventPIDs(); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		if _, err := p.Dir(1); (err == nil) != test.want || err != nil && !errors.Is(err, ErrOtherNamespace) {
			t.Errorf("%s: Dir: %v", test.name, err)
		}
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestLiveDir looks at a process whose main thread has ended, and at one that has.
func TestLiveDir(t *testing.T) {
	cmd := exec.Command("python3", "-c", `
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p, pid := Open("/proc"), uint32(cmd.Process.Pid)
	for stat := (Stat{}); !stat.Ended; time.Sleep(time.Millisecond) {
		if stat, err = p.Stat(pid); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := p.Live(pid)
	if err != nil || !strings.HasPrefix(dir, fmt.Sprintf("/proc/%d/task/", pid)) {
		t.Errorf("the main thread has ended: got %q, %v", dir, err)
	}
	if maps, err := os.ReadFile(dir + "/maps"); len(maps) == 0 {
		t.Errorf("%s/maps is empty: %v", dir, err)
	}
	stdin.Close()
	for {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil || len(tasks) < 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if dir, err := p.Live(pid); err == nil { // a zombie until Wait
		t.Errorf("the process has ended: got %q", dir)
	}
	cmd.Wait()
	me := uint32(os.Getpid())
	if dir, err := p.Live(me); dir != fmt.Sprintf("/proc/%d", me) || err != nil {
		t.Errorf("this process: got %q, %v", dir, err)
	}
}

// TestLiveNamespaces has this test look at real proc file systems: the host's, one
// of a PID namespace, and each from the other side.
func TestLiveNamespaces(t *testing.T) {
	need.Kernel(t)
	if os.Getenv("TCPTRACE_TEST_PROC") != "" {
		fmt.Printf("answer %v\n", Open("/proc").HasEventPIDs())
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		command []string
		want    string
	}{
		{"here", nil, "true"},
		{"a PID namespace with its /proc", []string{"unshare", "--pid", "--fork", "--mount-proc"}, "false"},
		{"a PID namespace with the host's /proc", []string{"unshare", "--pid", "--fork"}, "true"},
		{"the /proc of a namespace that we are not in", []string{"unshare", "--mount", "sh", "-c",
			`unshare --pid --fork --kill-child sh -c 'mount -t proc proc /proc; sleep 10' & while [ -e /proc/$$ ]; do sleep 0.01; done; "$0" "$@"; kill -KILL $!`}, "false"},
	} {
		args := append(test.command, exe, "-test.run=^TestLiveNamespaces$", "-test.v")
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "TCPTRACE_TEST_PROC=1")
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), "answer "+test.want+"\n") {
			t.Errorf("%s: %v: want %s: %s", test.name, err, test.want, out)
		}
	}
}

func TestRead(t *testing.T) {
	text := func(r io.Reader) (string, error) { b, err := io.ReadAll(r); return string(b), err }
	p := Open("/proc")
	if got, err := Read(p, uint32(os.Getpid()), "comm", text); got == "" || err != nil {
		t.Errorf("this process: got %q, %v", got, err)
	}
	if _, err := Read(p, 1<<31, "comm", text); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that does not exist: %v", err)
	}
	other := links(t, nil)
	writeFile(t, filepath.Join(other.Root(), "7/comm"), "stranger\n")
	if got, err := Read(other, 7, "comm", text); !errors.Is(err, ErrOtherNamespace) || got != "" {
		t.Errorf("another namespace: got %q, %v", got, err)
	}
}

// In a time namespace the times of processes are shifted, and those of events are not.
func TestBegan(t *testing.T) {
	const kthreadd = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0 1 1 1 1\n"
	const wrapped = uint64(1<<64-10_000_000_000_000) / Tick // 10,000 s before the boot
	for name, test := range map[string]struct{ kthreadd, start, want uint64 }{
		"the host":                  {22, 700, 7e9},
		"a slow boot":               {300, 700, 7e9},
		"shifted forward":           {100_000_000, 100_000_700, 7e9},
		"shifted back":              {wrapped, wrapped + 700, 7e9},
		"back, but not below zero":  {wrapped, 700, 10_007e9},
		"it began while we counted": {100_000_022, 100_000_021, 0},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "2"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "2/stat"), fmt.Appendf(nil, kthreadd, test.kthreadd), 0o644); err != nil {
			t.Fatal(err)
		}
		got := Open(root).Began(Stat{Start: test.start})
		if diff := max(got, test.want) - min(got, test.want); diff > Tick {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
	}
}

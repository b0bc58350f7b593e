package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

func TestParseBootShift(t *testing.T) {
	for text, want := range map[string]int64{
		"monotonic           0         0\nboottime      1000000         5\n": 1_000_000*int64(time.Second) + 5,
		"monotonic         7 0\nboottime -20 500000000\n":                    -19_500_000_000,
		"monotonic 7 0\n": 0,
		"boottime\n":      0,
		"":                0,
	} {
		if got := parseBootShift(strings.NewReader(text)); got != want {
			t.Errorf("parseBootShift(%q) = %d, want %d", text, got, want)
		}
	}
}

// rerun runs the test that calls it once more, as start does with a program, its arguments and
// its environment, and returns what that run wrote after "answer ".
func rerun(t *testing.T, start starter) (answers []string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	pid, err := start([]string{exe, "-test.run=^" + t.Name() + "$", "-test.v"}, append(os.Environ(), rerunEnv+"=1"), output)
	var ended unix.WaitStatus
	if err == nil {
		_, err = unix.Wait4(pid, &ended, 0, nil)
	}
	text, readErr := os.ReadFile(output.Name())
	if err = errors.Join(err, readErr); err != nil || ended != 0 {
		t.Fatalf("wait status %#x, %v\n%s", ended, err, text)
	}
	for line := range strings.Lines(string(text)) {
		if answer, ok := strings.CutPrefix(line, "answer "); ok {
			answers = append(answers, strings.TrimSuffix(answer, "\n"))
		}
	}
	return answers
}

// A starter starts a program, which writes to a file.
type starter func(argv, env []string, output *os.File) (pid int, err error)

// rerunEnv is set where rerun runs a test.
const rerunEnv = "TCPTRACE_TEST_RERUN"

// TestTimeInTimeNamespace traces from a time namespace. The kernel's stamps are those
// of the host.
func TestTimeInTimeNamespace(t *testing.T) {
	need.Kernel(t)
	if os.Getenv(rerunEnv) != "" {
		traceListener(t)
		return
	}
	for _, boottime := range []string{"1000000", "-10"} {
		if got := rerun(t, inTimeNamespace(boottime)); len(got) != 1 || got[0] != "right" {
			t.Errorf("boottime shifted by %s s: %q", boottime, got)
		}
	}
}

// inTimeNamespace starts a program in a time namespace of its own.
func inTimeNamespace(boottime string) starter {
	return func(argv, env []string, output *os.File) (pid int, err error) {
		cmd := exec.Command("unshare", append([]string{"--time", "--boottime", boottime}, argv...)...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, output, output
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	}
}

// traceListener opens a socket and says whether all stamps of it are of now.
func traceListener(t *testing.T) {
	before := time.Now()
	p, err := Open(Config{RingBytes: 1 << 20, OwnerRefresh: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	p.SetDeadline(time.Now().Add(10 * time.Second))
	for ev := (tcp.Event{}); ; {
		if err := p.Read(&ev); err != nil {
			t.Fatalf("the listener was not seen: %v", err)
		}
		if ev.New != tcp.Listen || int(ev.Local.Port()) != port {
			continue
		}
		at, age := time.Unix(0, ev.Time), int64(p.Now())-int64(ev.BootNS)
		if at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) || age < 0 || age > 10e9 {
			fmt.Printf("answer time %s, now %s, age %d ns\n", at, time.Now(), age)
			return
		}
		fmt.Println("answer right")
		return
	}
}

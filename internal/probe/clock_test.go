package probe

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

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

// rerun runs the test that calls it once more, below a command, and returns what
// that run wrote after "answer ".
func rerun(t *testing.T, command ...string) (answers []string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], append(command[1:], exe, "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), rerunEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		if answer, ok := strings.CutPrefix(lines.Text(), "answer "); ok {
			answers = append(answers, answer)
		}
	}
	return answers
}

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
		if got := rerun(t, "unshare", "--time", "--boottime", boottime); len(got) != 1 || got[0] != "right" {
			t.Errorf("boottime shifted by %s s: %q", boottime, got)
		}
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

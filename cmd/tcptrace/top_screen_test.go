package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// asTop runs top on a terminal of 80x24, by a script in which "$@" is the command.
func asTop(t *testing.T, script string, env ...string) *pty {
	t.Helper()
	cmd := exec.Command("bash", "-c", script, "bash", "tcptrace", "top", "-r", "testdata/mixed.json")
	cmd.Env = append(os.Environ(), append([]string{"TZ=UTC", "TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR="}, env...)...)
	return newSizedPTY(t, 80, 24, cmd)
}

// play plays the recording to its end.
func (term *pty) play() {
	term.t.Helper()
	term.until("TCP by comm")
	term.press("++++++")
	term.until("end of the recording")
}

func (term *pty) press(keys string) {
	term.t.Helper()
	if _, err := term.master.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
}

// ends waits for the end, and wants the terminal to be as it was.
func (term *pty) ends(status int) {
	term.t.Helper()
	late := time.AfterFunc(2*endLimit, func() { term.cmd.Process.Kill() })
	defer late.Stop()
	began := time.Now()
	err := term.cmd.Wait()
	if took := time.Since(began); took > endLimit {
		term.t.Errorf("it took %v to end", took)
	}
	if got := term.cmd.ProcessState.ExitCode(); got != status {
		term.t.Errorf("it ended with %d (%v), want %d", got, err, status)
	}
	if got := term.modes(); got != term.before {
		term.t.Errorf("the terminal is not as before: %+v, was %+v", got, term.before)
	}
}

// leave is what the screen ends with.
const leave = "\x1b[?1049l"

// left is what stays on the terminal.
func (term *pty) left() string {
	term.t.Helper()
	term.until(leave)
	term.until("<end>")
	_, left, _ := strings.Cut(term.shown.String(), leave)
	return left
}

// Keys are answered, another size is taken, and the last report stays.
func TestTop(t *testing.T) {
	term := asTop(t, `"$@"; printf '<end>'`)
	term.play()
	term.press("?")
	term.until("group by what comes next")
	term.press("?t")
	term.resize(120, 40)
	term.until("since the start: 22 opened, 12 closed, 6 reset, 7 failed")
	term.until("P99_MS")
	term.press("\r")
	term.until("LOCAL REMOTE")
	term.press("\r")
	term.until("cookie")
	term.press("q")
	left := term.left()
	term.ends(0)
	if !strings.Contains(left, "One connection") || !strings.Contains(left, "CLIENT") {
		t.Errorf("it leaves %q", left)
	}
}

// Ctrl-Z gives the terminal back, and the shell can have it go on.
func TestTopIsSuspended(t *testing.T) {
	term := asTop(t, `set -m; "$@"; echo "stopped $?"; stty -a | grep -c -- ' icanon'; fg >/dev/null; echo "ended $?"; printf '<end>'`)
	term.play()
	term.press("\x1a")
	term.until(leave)
	term.until("stopped 148")
	term.until("1\r\n") // the terminal edits lines
	term.until("TCP by comm")
	term.press("q")
	left := term.left()
	term.ends(0)
	if !strings.Contains(left, "ended 0") {
		t.Errorf("it leaves %q", left)
	}
}

// Where nobody could have it go on, Ctrl-Z draws the screen anew.
func TestTopOfNobodyIsNotSuspended(t *testing.T) {
	term := asTop(t, `exec "$@"`)
	term.play()
	term.press("\x1a")
	term.until(leave)
	term.until("TCP by comm")
	term.press("q")
	term.until(leave)
	term.ends(0)
}

func TestOneSignalEndsTop(t *testing.T) {
	need.Hangup(t)
	for _, signal := range fourSignals {
		term := asTop(t, `exec "$@"`)
		term.play()
		term.cmd.Process.Signal(signal)
		term.until(leave)
		term.until("TCP by comm") // the report
		term.ends(0)
	}
}

// A terminal that was stopped takes nothing any more.
func TestOneSignalEndsABlockedTop(t *testing.T) {
	need.Hangup(t)
	endsBlocked(t, func(script string) *pty { return asTop(t, script) }, "TCP by comm")
}

// endsBlocked stops the terminal of a screen that shows a text, and wants each signal to end it.
func endsBlocked(t *testing.T, begin func(script string) *pty, text string) {
	t.Helper()
	for _, signal := range fourSignals {
		said := filepath.Join(t.TempDir(), "stderr")
		term := begin(`exec "$@" 2>` + said)
		term.until(text)
		if err := unix.IoctlSetInt(int(term.slave.Fd()), unix.TCXONC, unix.TCOOFF); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond) // for the next look to be drawn, which hangs
		term.cmd.Process.Signal(signal)
		term.ends(exitFailure)
		if got, err := os.ReadFile(said); err != nil || !strings.Contains(string(got), "the standard output is blocked") {
			t.Errorf("%v: it said %q: %v", signal, got, err)
		}
	}
}

func TestTopSurroundings(t *testing.T) {
	styles := regexp.MustCompile("\x1b\\[[0-9;]+m")
	for name, at := range allSurroundings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			term := asTop(t, `"$@"; printf '<end>'`, at.env...)
			dumb := strings.Contains(strings.Join(at.env, " "), "dumb")
			if !dumb {
				term.play()
				term.press("d")
				term.until("State diagram")
				term.press("q")
			}
			term.until("<end>")
			term.ends(0)
			shown := term.shown.String()
			if at.ascii && strings.ContainsFunc(shown, func(r rune) bool { return r >= utf8.RuneSelf }) {
				t.Errorf("it is not ASCII: %q", shown)
			}
			if styles.MatchString(shown) != at.styled {
				t.Errorf("styled is %v: %q", !at.styled, shown)
			}
			if dumb && strings.Contains(shown, "\x1b") {
				t.Errorf("it does more than print: %q", shown)
			}
		})
	}
}

// What the library does because of the environment it would do with rights of its own.
func TestTopEnvironment(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	term := asTop(t, `exec "$@"`, "TEA_TRACE="+log, "UV_DEBUG="+log, "TERM=../../../etc/passwd")
	term.play()
	term.press("q")
	term.until(leave)
	term.ends(0)
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it wrote a log: %v", err)
	}
}

// Without keys only a signal ends it.
func TestTopWithoutKeys(t *testing.T) {
	term := asTop(t, `exec "$@" </dev/null`)
	term.until("TCP by comm")
	term.cmd.Process.Signal(syscall.SIGINT)
	term.until(leave)
	term.ends(0)
}

// Confined as it is, the live view can do all that its keys ask for.
func TestTopLive(t *testing.T) {
	need.Kernel(t)
	cmd := exec.Command("bash", "-c", `set -m; tcptrace top --netns /proc/self/ns/net; echo "stopped $?"; fg >/dev/null; echo "ended $?"; printf '<end>'`)
	cmd.Env = append(os.Environ(), "TERM=xterm", "LC_ALL=C.UTF-8")
	term := newSizedPTY(t, 80, 24, cmd)
	term.until("TCP by comm")
	term.until("open") // it has looked
	term.press("g")
	term.until("host")
	term.press("\r")
	term.until("Sockets of host")
	term.press("l")
	term.until("CLOSE_WAIT and CLOSE for 10s or longer")
	term.press("\x1a")
	term.until("stopped 148")
	term.until("CLOSE_WAIT and CLOSE for 10s or longer")
	term.press("d")
	term.until("State diagram")
	term.resize(100, 50)
	term.until("LAST_ACK")
	term.press("q")
	left := term.left()
	term.ends(0)
	if !strings.Contains(left, "LAST_ACK") || !strings.Contains(left, " events, 0 lost, ") || !strings.Contains(left, "ended 0") {
		t.Errorf("it leaves %q", left)
	}
}

// The listeners of a group stand above its sockets, and what leaks says which code opened it.
func TestTopListenersAndStacks(t *testing.T) {
	n := newLeakNet(t)
	_, port := n.start(n.build("server", "testdata/leaky/server.c"))
	cmd := exec.Command("bash", "-c", `"$@"; printf '<end>'`, "bash", "tcptrace", "top", "--stacks", "--netns", n.namespace())
	cmd.Env = append(os.Environ(), "TERM=xterm", "LC_ALL=C.UTF-8")
	term := newSizedPTY(t, 80, 24, cmd)
	term.until("TCP by comm")
	n.visit(port)
	term.press("/server\r")
	term.until("Filter: server (esc: none)")
	term.press("\r")
	term.until("LISTENER")
	term.until(":" + port)
	term.until("LOCAL REMOTE")
	term.press("l")
	term.until("CLOSE_WAIT and CLOSE for 10s or longer")
	term.until("1 server ") // after ten seconds
	term.press("\r")
	term.until("1 socket in CLOSE_WAIT of server")
	term.until("server.c:")
	term.until("127.0.0.1:" + port)
	term.press("q")
	left := term.left()
	term.ends(0)
	if !strings.Contains(left, "opened by") || !strings.Contains(left, "server.c:") {
		t.Errorf("it leaves %q", left)
	}
}

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// terminal is a pseudo terminal with a program on it.
type pty struct {
	t             *testing.T
	master, slave *os.File
	cmd           *exec.Cmd
	before        unix.Termios
	shown         strings.Builder
	at            int // until has looked at what was shown up to here
}

// newPTY starts a program on a terminal of its own.
func newPTY(t *testing.T, name string, args ...string) *pty {
	t.Helper()
	return newSizedPTY(t, 100, 30, exec.Command(name, args...))
}

// newSizedPTY starts a program on a terminal of that size.
func newSizedPTY(t *testing.T, columns, rows uint16, cmd *exec.Cmd) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock the terminal: %v", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("name the terminal: %v", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	term := &pty{t: t, master: master, slave: slave, cmd: cmd}
	term.resize(columns, rows)
	term.before = term.modes()
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.cmd.Process.Kill() })
	return term
}

func (term *pty) modes() unix.Termios {
	term.t.Helper()
	modes, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
	if err != nil {
		term.t.Fatal(err)
	}
	return *modes
}

func (term *pty) resize(columns, rows uint16) {
	term.t.Helper()
	term.at = term.shown.Len()
	err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	if err != nil {
		term.t.Fatal(err)
	}
}

// until reads until the text is shown behind what it has waited for before, which may come
// with it in one piece, and after the last change of size.
func (term *pty) until(text string) {
	term.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	buf := make([]byte, 64<<10)
	for !strings.Contains(term.shown.String()[term.at:], text) {
		// The fd is in blocking mode since Fd was called: poll.
		fds := []unix.PollFd{{Fd: int32(term.master.Fd()), Events: unix.POLLIN}}
		if ready, _ := unix.Poll(fds, 100); ready > 0 {
			n, err := term.master.Read(buf)
			if err != nil {
				term.t.Fatalf("read the terminal: %v after %q", err, term.shown.String())
			}
			term.shown.Write(buf[:n])
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("%q is not shown: %q", text, term.shown.String())
		}
	}
	term.at += strings.Index(term.shown.String()[term.at:], text) + len(text)
}

// asLeaks runs leaks on a terminal of 80x24, by a script in which "$@" is the command.
func (n *leakNet) asLeaks(script string, env ...string) *pty {
	n.t.Helper()
	cmd := exec.Command("bash", "-c", script, "bash", "tcptrace", "leaks", "--netns", n.namespace(), "--older-than", "100ms", "--interval", "200ms")
	cmd.Env = append(os.Environ(), append([]string{"TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR="}, env...)...)
	return newSizedPTY(n.t, 80, 24, cmd)
}

// worker has a program leak so many sockets, and returns its process.
func (n *leakNet) worker(sockets string) (pid int) {
	n.t.Helper()
	worker, _ := n.start("python3", "testdata/leaky/worker.py", n.peer(func(c net.Conn) { c.Close() }), sockets)
	return worker.Process.Pid
}

func TestLeaksScreen(t *testing.T) {
	need.Hangup(t)
	n := newLeakNet(t)
	n.worker("7")
	for name, end := range map[string]func(*pty){
		"q": func(term *pty) { term.press("q") },
		// As the terminal does it for Ctrl-C.
		"Ctrl-C":  func(term *pty) { term.press("\x03") },
		"SIGTERM": func(term *pty) { term.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(term *pty) { term.cmd.Process.Signal(syscall.SIGHUP) },
	} {
		term := n.asLeaks(`exec "$@"`)
		term.until("VERDICT   COUNT COMM")
		term.until(" 7 python3")
		if modes := term.modes(); modes.Lflag&(unix.ICANON|unix.ECHO) != 0 {
			t.Errorf("%s: keys are echoed, or wait for a new line", name)
		}
		term.resize(120, 30) // drawn again at once, with the columns that there is room for
		term.until("OPEN/MAX")
		end(term)
		term.until(leave)
		term.until("COUNT")
		term.until(" 7 python3")
		term.ends(0)
	}
}

// From a group to its sockets and the code that opened them, and back.
func TestLeaksScreenDetail(t *testing.T) {
	n := newLeakNet(t)
	server := n.build("server", "testdata/leaky/server.c")
	n.worker("7")
	_, port := n.start(server)
	term := n.asLeaks(`"$@"; printf '<end>'`)
	term.until(" 7 python3")
	n.visit(port)
	term.until("2 groups")
	term.press("/serv")
	term.until("1 group not shown by the filter")
	term.press("\r\r") // ends typing, then enters
	term.until("1 socket in CLOSE_WAIT of server")
	term.until("opened by")
	term.until("server.c:")
	term.until("LOCAL REMOTE")
	term.press("q")
	left := term.left()
	term.ends(0)
	for _, part := range []string{"1 socket in CLOSE_WAIT of server", "server.c:", "127.0.0.1:" + port} {
		if !strings.Contains(left, part) {
			t.Errorf("what it leaves has no %q: %s", part, left)
		}
	}
}

// Ctrl-Z gives the terminal back, and the shell can have it go on; also where all is given up
// that is, which --netns is an exception from.
func TestLeaksIsSuspended(t *testing.T) {
	n := newLeakNet(t)
	pid := n.worker("7")
	term := n.asLeaks(`set -m; tcptrace leaks --older-than 100ms -p ` + strconv.Itoa(pid) + `; echo "stopped $?"; stty -a | grep -c -- ' icanon'; fg >/dev/null; echo "ended $?"; printf '<end>'`)
	term.until(" 7 python3")
	term.press("\r")
	term.until("LOCAL REMOTE")
	term.press("\x1b")
	term.until("VERDICT")
	term.press("\x1a")
	term.until(leave)
	term.until("stopped 148")
	term.until("1\r\n") // the terminal edits lines
	term.until(" 7 python3")
	term.press("q")
	left := term.left()
	term.ends(0)
	if !strings.Contains(left, " 7 python3") || !strings.Contains(left, "ended 0") {
		t.Errorf("it leaves %q", left)
	}
}

// A terminal that was stopped takes nothing any more.
func TestOneSignalEndsABlockedLeaks(t *testing.T) {
	need.Hangup(t)
	n := newLeakNet(t)
	endsBlocked(t, func(script string) *pty { return n.asLeaks(script) }, "VERDICT")
}

func TestLeaksSurroundings(t *testing.T) {
	styles := regexp.MustCompile("\x1b\\[[0-9;]+m")
	n := newLeakNet(t)
	n.worker("7")
	for name, at := range allSurroundings {
		term := n.asLeaks(`"$@"; printf '<end>'`, at.env...)
		dumb := strings.Contains(strings.Join(at.env, " "), "dumb")
		if dumb {
			term.until("SOCKETS")
			term.until("\r\n\r\n") // one report after the other
			term.until("python3")
			term.press("\x03")
		} else {
			term.until(" 7 python3")
			term.press("q")
		}
		term.until("<end>")
		term.ends(0)
		shown := term.shown.String()
		if at.ascii && strings.ContainsFunc(shown, func(r rune) bool { return r >= utf8.RuneSelf }) {
			t.Errorf("%s: it is not ASCII: %q", name, shown)
		}
		if styles.MatchString(shown) != at.styled {
			t.Errorf("%s: styled is %v: %q", name, !at.styled, shown)
		}
		if dumb && strings.Contains(shown, "\x1b") {
			t.Errorf("%s: it does more than print: %q", name, shown)
		}
	}
}

// sockets --watch shows its looks in place, and leaves the last one on the terminal; where it is
// to have no colours it prints them one after the other.
func TestSocketsScreen(t *testing.T) {
	n := newLeakNet(t)
	args := []string{"sockets", "--netns", n.namespace(), "--watch", "200ms"}
	term := newPTY(t, "tcptrace", args...)
	term.until("[q: quit]")
	term.until("socket")
	term.until("[q: quit]")
	term.resize(60, 10)
	term.until("\x1b[K")
	term.master.WriteString("q")
	term.until("\x1b[?25h\x1b[?1049l")
	term.until("STATE")
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := term.modes(); got != term.before {
		t.Errorf("the terminal is not as before: %+v, was %+v", got, term.before)
	}

	t.Setenv("NO_COLOR", "1")
	term = newPTY(t, "tcptrace", args...)
	term.until("STATE")
	term.until("\r\n\r\n")
	term.until("STATE")
	began := time.Now()
	term.cmd.Process.Signal(syscall.SIGINT)
	if err := term.cmd.Wait(); err != nil || time.Since(began) > time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if strings.Contains(term.shown.String(), "\x1b") {
		t.Errorf("it shows %q", term.shown.String())
	}
}

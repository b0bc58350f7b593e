package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

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

func TestLeaksScreen(t *testing.T) {
	need.Hangup(t)
	n := newLeakNet(t)
	for name, leave := range map[string]func(*pty){
		"q": func(term *pty) { term.master.WriteString("q") },
		// As the terminal does it for Ctrl-C.
		"Ctrl-C":  func(term *pty) { term.master.WriteString("\x03") },
		"SIGTERM": func(term *pty) { term.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(term *pty) { term.cmd.Process.Signal(syscall.SIGHUP) },
	} {
		term := newPTY(t, "tcptrace", "leaks", "--netns", n.namespace())
		term.until("[q: quit]")
		if !strings.HasPrefix(term.shown.String(), "\x1b[?1049h\x1b[?25l") {
			t.Errorf("it begins with %.20q", term.shown.String())
		}
		if modes := term.modes(); modes.Lflag&(unix.ICANON|unix.ECHO) != 0 {
			t.Error("keys are echoed, or wait for a new line")
		}
		term.resize(40, 10) // drawn again at once, not with the next refresh
		term.until("\x1b[K")
		leave(term)
		term.until("\x1b[?25h\x1b[?1049l")
		if err := term.cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := term.modes(); got != term.before {
			t.Errorf("%s: the terminal is not as before: %+v, was %+v", name, got, term.before)
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

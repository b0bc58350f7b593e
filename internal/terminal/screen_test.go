package terminal

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A terminal whose other end has stopped takes nothing, and a write to it hangs.
func TestScreenClosesOnAStoppedTerminal(t *testing.T) {
	terminal := openPTY(t)
	fd := int(terminal.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenScreen(terminal, terminal)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for s.Draw(strings.Repeat("a line\n", 20)) == nil {
		}
	}()
	for writable := 1; writable != 0; time.Sleep(50 * time.Millisecond) {
		if writable, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := s.Close(); err == nil {
		t.Error("the last bytes were written; the terminal was not stopped")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	if after, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil || *after != *before {
		t.Errorf("the modes are %+v, were %+v: %v", after, before, err)
	}
}

// Styles take no room and end with the line. Whatever else a terminal would act on does not
// get through.
func TestAppendStyled(t *testing.T) {
	for line, want := range map[string]string{
		"plain text":                         "plain text",
		"\x1b[1mbold\x1b[m not":              "\x1b[1mbold\x1b[m not\x1b[m",
		"\x1b[1m\x1b[31m1234567890123\x1b[m": "\x1b[1m\x1b[31m123456789012\x1b[m\x1b[m",
		"12\x1b[2m│┊│┊│┊│┊│┊│┊│┊":            "12\x1b[2m│┊│┊│┊│┊│┊\x1b[m",
		"\x1b[2Ja":        "\\x1b[2Ja",
		"\x1b[1mb\x1b[5m": "\x1b[1mb\\x1b[5m\x1b[m",
		"a\x1b":           "a\\x1b",
		"":                "",
	} {
		if got := string(appendStyled(nil, line, 12)); got != want {
			t.Errorf("%q gives %q, want %q", line, got, want)
		}
	}
}

// openPTY returns a pseudo terminal whose other end nobody reads.
func openPTY(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock the terminal: %v", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("name the terminal: %v", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return slave
}

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

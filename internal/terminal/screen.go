// Package terminal is what stands between this program and a terminal: a screen for live
// views, and the only way for text to get there, see Visible and Writer.
package terminal

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// What the screen writes, see console_codes(4) and xterm's private modes.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the other buffer, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K" // from the cursor to the end
	clearBelow  = "\x1b[J"
)

// Style is how characters look: a sequence for a terminal, see SGR in console_codes(4). Styles
// are added by +; Plain ends them.
type Style string

// The styles.
const (
	Plain Style = "\x1b[m"
	Bold  Style = "\x1b[1m"
	Faint Style = "\x1b[2m"
	Red   Style = "\x1b[31m"
)

// A Screen shows one frame after the other in place, on the terminal's alternate
// buffer, so that what was there before is there again after Close.
type Screen struct {
	in, out *os.File
	saved   *unix.Termios // nil: in is not a terminal
	keys    chan byte
	resized chan os.Signal
	closing sync.Once
	err     error // of Close
	frame   []byte
}

// IsTerminal reports whether f is one.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// OpenScreen takes over the terminal out, and in for keys if that is a terminal
// too. Ctrl-C still sends a signal; the caller ends by Close for it as for
// any other end, panics included. Ctrl-Z is switched off: it would leave the shell
// on our buffer.
func OpenScreen(in, out *os.File) (*Screen, error) {
	s := &Screen{in: in, out: out, keys: make(chan byte, 16), resized: make(chan os.Signal, 1)}
	if saved, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err == nil {
		raw := *saved
		raw.Lflag &^= unix.ICANON | unix.ECHO
		raw.Cc[unix.VSUSP] = 0
		if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &raw); err != nil {
			return nil, fmt.Errorf("set up the terminal: %w", err)
		}
		s.saved = saved
		go s.readKeys()
	}
	if _, err := out.WriteString(enterScreen); err != nil {
		return nil, fmt.Errorf("write to the terminal: %w", s.restore(err))
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	return s, nil
}

// readKeys ends with the process: a read of a terminal cannot be interrupted.
func (s *Screen) readKeys() {
	var key [1]byte
	for {
		if n, err := s.in.Read(key[:]); n != 1 || err != nil {
			return
		}
		select {
		case s.keys <- key[0]:
		default: // nobody asks: drop it
		}
	}
}

// Keys gives the keys that are pressed, byte by byte.
func (s *Screen) Keys() <-chan byte { return s.keys }

// Resized tells that the terminal has another size now: draw again.
func (s *Screen) Resized() <-chan os.Signal { return s.resized }

// Size is that of the terminal, see the function of that name.
func (s *Screen) Size() (width, height int) { return Size(s.out) }

// Size is that of a terminal, in characters; 80 by 24 where it does not tell, or is not one.
func Size(f *os.File) (width, height int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// Draw shows the lines of a text, cut to the terminal's size, the first in bold.
// What the terminal would act on is made Visible. It is one write, so the frame does not
// flicker.
func (s *Screen) Draw(text string) error { return s.draw(text, AppendVisible) }

// DrawStyled is Draw for a text with Styles, which it passes on. They are to be those of the
// program itself: foreign text in it must be Visible before.
func (s *Screen) DrawStyled(text string) error { return s.draw(text, appendStyled) }

func (s *Screen) draw(text string, appendLine func(b []byte, line string, limit int) []byte) error {
	width, height := s.Size()
	b := append(s.frame[:0], home...)
	row := 0
	for line := range strings.Lines(text) {
		if row == height {
			break
		}
		if row > 0 {
			b = append(b, "\r\n"...)
		}
		if row == 0 {
			b = append(b, Bold...)
		}
		b = appendLine(b, strings.TrimSuffix(line, "\n"), width)
		if row == 0 {
			b = append(b, Plain...)
		}
		b = append(b, clearLine...)
		row++
	}
	if row < height { // the last row would scroll
		b = append(b, "\r\n"+clearBelow...)
	}
	s.frame = b
	if _, err := s.out.Write(b); err != nil {
		return fmt.Errorf("write to the terminal: %w", err)
	}
	return nil
}

// appendStyled is AppendVisible for a line with styles, which take no room. It ends them.
func appendStyled(b []byte, line string, limit int) []byte {
	styled := false
	for line != "" {
		if style := leadingStyle(line); style != "" {
			b, line, styled = append(b, style...), line[len(style):], true
			continue
		}
		text := line
		if next := strings.IndexByte(line[1:], styleStart); next >= 0 {
			text = line[:next+1]
		}
		line = line[len(text):]
		start := len(b)
		b = AppendVisible(b, text, limit)
		limit -= utf8.RuneCount(b[start:])
	}
	if styled {
		b = append(b, Plain...)
	}
	return b
}

// styleStart is the first byte of every style.
const styleStart = '\x1b'

// leadingStyle is the style that a text begins with, or nothing.
func leadingStyle(text string) Style {
	for _, style := range []Style{Plain, Bold, Faint, Red} {
		if strings.HasPrefix(text, string(style)) {
			return style
		}
	}
	return ""
}

// closeLimit is how long Close waits for the terminal to take the last bytes.
const closeLimit = 200 * time.Millisecond

// Close gives the terminal back as it was. It may be called more than once, and
// from any goroutine. Where the terminal takes nothing any more, as one that was stopped
// does, it still restores the modes.
func (s *Screen) Close() error {
	s.closing.Do(func() {
		signal.Stop(s.resized)
		left := make(chan error, 1)
		go func() {
			_, err := s.out.WriteString(leaveScreen)
			left <- err
		}()
		select {
		case err := <-left:
			s.err = s.restore(err)
		case <-time.After(closeLimit):
			s.err = s.restore(os.ErrDeadlineExceeded)
		}
	})
	return s.err
}

// restore sets the terminal's modes back; a problem that there was goes before.
func (s *Screen) restore(before error) error {
	if s.saved == nil {
		return before
	}
	err := unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETS, s.saved)
	if before != nil {
		return before
	}
	return err
}

// Modes returns what gives the terminal f the modes back that it has now. Of what is not a
// terminal it does nothing.
func Modes(f *os.File) (restore func() error) {
	saved, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return func() error { return nil }
	}
	return func() error { return unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, saved) }
}

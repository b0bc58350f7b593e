package main

import (
	"os"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// liveScreen shows one text after the other in place on a terminal. Keys and a change of size
// are answered at once, by a goroutine of its own.
type liveScreen struct {
	screen *terminal.Screen
	done   chan struct{}
	once   sync.Once // close

	mu     sync.Mutex
	text   string // shown last
	styled bool   // it has styles, and its lines are not wrapped
	closed bool
}

// hasScreen reports whether f is a terminal that can do more than print.
func hasScreen(f *os.File) bool { return terminal.IsTerminal(f) && os.Getenv("TERM") != "dumb" }

// lineWidth is how long a line of the terminal is; 0: f is none.
func lineWidth(f *os.File) int {
	if !terminal.IsTerminal(f) {
		return 0
	}
	width, _ := terminal.Size(f)
	return width
}

// openScreen takes over the terminal, if there is one that hasScreen; nil: there is none. The key q calls quit.
func openScreen(e *env, quit func()) (*liveScreen, error) {
	if !hasScreen(e.stdout.File()) {
		return nil, nil
	}
	screen, err := terminal.OpenScreen(e.stdin, e.stdout.File())
	if err != nil {
		return nil, err
	}
	s := &liveScreen{screen: screen, done: make(chan struct{})}
	go s.answer(quit)
	return s, nil
}

func (s *liveScreen) answer(quit func()) {
	for {
		select {
		case key := <-s.screen.Keys():
			if key == 'q' || key == 'Q' {
				quit()
			}
		case <-s.screen.Resized():
			if s.draw() != nil {
				quit()
			}
		case <-s.done:
			return
		}
	}
}

// show draws a text.
func (s *liveScreen) show(text string) error { return s.set(text, false) }

// showStyled draws a text with styles of package terminal, see DrawStyled.
func (s *liveScreen) showStyled(text string) error { return s.set(text, true) }

func (s *liveScreen) set(text string, styled bool) error {
	s.mu.Lock()
	s.text, s.styled = "[q: quit] "+text, styled
	s.mu.Unlock()
	return s.draw()
}

func (s *liveScreen) draw() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if s.styled {
		return s.screen.DrawStyled(s.text)
	}
	width, _ := s.screen.Size()
	return s.screen.Draw(output.Wrap(s.text, width))
}

// close gives the terminal back, unless a write to it hangs. It can be called again.
func (s *liveScreen) close() { s.once.Do(s.restore) }

func (s *liveScreen) restore() {
	close(s.done)
	if !s.mu.TryLock() {
		time.Sleep(sayLimit) // it is being drawn
		if !s.mu.TryLock() {
			return
		}
	}
	defer s.mu.Unlock()
	s.closed = true
	s.screen.Close()
}

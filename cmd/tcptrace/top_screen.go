package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/terminal"
	"github.com/tcptrace/tcptrace/internal/top"
)

// topScreen runs the view on a terminal, in goroutines of its own.
type topScreen struct {
	model   *top.Model
	options []tea.ProgramOption
	program atomic.Pointer[tea.Program] // that runs, or the last one
	file    *os.File
	modes   func() error  // gives the terminal its modes back
	closing chan struct{} // closed: it is not to begin any more
	done    chan struct{} // closed: the program has ended
	err     error         // of the program, once it is done
	panic   any           // likewise
	once    sync.Once
	closed  error // what close returns
}

// openTopScreen takes over the terminal as soon as there is something to show: what is said before
// that would be in the way. When the user has enough, quit is called.
func openTopScreen(e *env, desk *top.Desk, o top.Options, quit func()) *topScreen {
	s := &topScreen{file: e.stdout.File(), modes: terminal.Modes(e.stdin), closing: make(chan struct{}), done: make(chan struct{})}
	s.model = top.NewModel(o)
	profile := colorprofile.ASCII
	if o.Styled {
		profile = colorprofile.ANSI
	}
	s.options = []tea.ProgramOption{
		tea.WithOutput(s.file), tea.WithColorProfile(profile), tea.WithEnvironment([]string{"TERM=" + prepareEnvironment()}),
		tea.WithoutSignalHandler(), tea.WithoutCatchPanics(), // these are the business of package pipeline
		tea.WithFPS(20), // there is less to see
		tea.WithInput(nil),
	}
	if terminal.IsTerminal(e.stdin) {
		s.options[len(s.options)-1] = tea.WithInput(e.stdin)
	}
	s.program.Store(tea.NewProgram(s.model, s.options...))
	go s.begin(desk, quit)
	return s
}

// prepareEnvironment returns the type of the terminal. What the library reads or writes because
// of a variable it would with rights that the user may lack: files of terminfo, a log.
func prepareEnvironment() (term string) {
	for _, name := range []string{"TEA_TRACE", "TEA_DEBUG", "UV_DEBUG", "TERMINFO", "TERMINFO_DIRS", "HOME"} {
		_ = os.Unsetenv(name) // fails for no name that is one
	}
	if term = os.Getenv("TERM"); !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9+._-]*$`).MatchString(term) {
		return "xterm"
	}
	return term
}

// begin waits for something to show.
func (s *topScreen) begin(desk *top.Desk, quit func()) {
	select {
	case <-desk.Ready():
		s.model.Update(desk.Take())
		go s.forward(desk)
		s.run(quit)
	case <-s.closing:
		close(s.done)
	}
}

// run shows the view until it has an end.
func (s *topScreen) run(quit func()) {
	defer quit()
	defer close(s.done)
	defer func() {
		if p := recover(); p != nil {
			s.panic = fmt.Sprintf("%v\n\n%s", p, debug.Stack())
			s.program.Load().Kill()
		}
	}()
	for {
		_, s.err = s.program.Load().Run()
		if s.err != nil || !s.model.Suspended() {
			return
		}
		suspend()
		s.program.Store(tea.NewProgram(s.model, s.options...))
		select {
		case <-s.closing:
			return
		default: // close sees the new program
		}
	}
}

// forward shows what is found, as soon as there is time for it.
func (s *topScreen) forward(desk *top.Desk) {
	const pause = 50 * time.Millisecond // a screen need not be faster
	for {
		select {
		case <-s.done:
			return
		case <-desk.Ready():
			if found := desk.Take(); found != nil {
				s.program.Load().Send(found) // lost if that has ended: the next one asks anew
			}
			time.Sleep(pause)
		}
	}
}

// suspend stops this process, as Ctrl-Z does, until it is to go on. It is a signal to the
// thread, so that it has come when the call returns. Where nobody could have the process go
// on, the kernel ignores it. A view that was only interrupted (tea.Program.ReleaseTerminal) could
// stand still afterwards: it stops its clock late.
func suspend() {
	runtime.LockOSThread()
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGTSTP) // if it fails the view goes on
	runtime.UnlockOSThread()
}

// close gives the terminal back, and returns what was shown. It can be called again. Where
// the terminal takes nothing any more, as one that was stopped does, it still restores the
// modes, and returns pipeline.ErrBlocked.
func (s *topScreen) close() (*top.Model, error) {
	s.once.Do(func() {
		close(s.closing)
		go s.program.Load().Quit() // hangs while the view does
		s.closed = s.await()
	})
	select {
	case <-s.done:
		if s.panic != nil {
			panic(s.panic)
		}
	default:
	}
	return s.model, s.closed
}

// leave closes the screen, and leaves a report on the terminal in its place.
func (s *topScreen) leave(last *top.Snapshot, to io.Writer) error {
	model, err := s.close()
	if err != nil {
		return err
	}
	model.Update(last)
	_, err = io.WriteString(to, model.Report())
	return err
}

// release closes the screen, if there is one, where the run has an error of its own.
func (s *topScreen) release() {
	if s != nil {
		_, _ = s.close()
	}
}

// slowest is how long a view may take to end that has not been blocked.
const slowest = 2 * time.Second

// await waits for the end of the view.
func (s *topScreen) await() error {
	for began := time.Now(); ; {
		select {
		case <-s.done:
			if s.err != nil {
				return fmt.Errorf("show the screen: %w", s.err)
			}
			return nil
		case <-time.After(sayLimit):
			if time.Since(began) > slowest || !pipeline.Writable(int(s.file.Fd())) {
				_ = s.modes() // there is nobody to tell
				return pipeline.ErrBlocked
			}
		}
	}
}

package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// kernel is the live kernel as a pipeline.Source, whose time is the clock.
type kernel struct{ *probe.Probe }

// openKernel begins to trace, and says what this kernel does not show. Close it.
func (e *env) openKernel(config probe.Config) (kernel, error) {
	p, err := probe.Open(config)
	if err != nil {
		return kernel{}, err
	}
	for _, sentence := range p.Limitations() {
		e.say("%s", sentence)
	}
	return kernel{p}, nil
}

// config is what Run needs to know of the kernel as a source. When the sockets that exist
// were read, the command keeps the privileges of these tasks alone.
func (k kernel) config(keep ...probe.Task) pipeline.Config {
	return pipeline.Config{
		Existing: k.Seed,
		Drop:     func() error { return probe.DropPrivileges(keep...) },
		Enrich:   enrich.New("/proc", "").Fill,
	}
}

func (k kernel) Now() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // cannot fail: the clock exists since 2.6.39
	}
	return uint64(t.Nano())
}

func (k kernel) SetDeadline(boot uint64) {
	if boot == 0 {
		k.Probe.SetDeadline(time.Time{})
		return
	}
	left := boot - min(boot, k.Now())
	k.Probe.SetDeadline(time.Now().Add(time.Duration(min(left, uint64(maxWait)))))
}

// maxWait keeps a deadline within what time.Time can add. Run is asked again after it.
const maxWait = 24 * time.Hour

func (k kernel) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	return k.TrackedSockets(states, emit)
}

// recorded is a recording as a pipeline.Source, whose time is that of its events.
type recorded struct {
	reader   *recording.Reader
	input    *interruptible
	next     tcp.Event // has been read, if waits
	waits    bool
	stopped  atomic.Bool
	now      uint64
	deadline uint64 // 0: none
}

// maxSilence is how many ticks of a silence are played back, see pipeline.Config.
const maxSilence = 100

// openRecording opens a file, or standard input for "-". Close it.
func (e *env) openRecording(path string) (*recorded, error) {
	in, name := e.stdin, "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read the recording: %w", err)
		}
		in, name = f, path
	}
	input, err := newInterruptible(in)
	if err != nil {
		return nil, err
	}
	return &recorded{reader: recording.NewReader(input, name), input: input}, nil
}

// config is what Run needs to know of a recording, which needs no privileges once it is
// open.
func (r *recorded) config() pipeline.Config {
	return pipeline.Config{
		Drop:    func() error { return probe.DropPrivileges() },
		Silence: maxSilence,
	}
}

func (r *recorded) Read(e *tcp.Event) error {
	if r.stopped.Load() {
		return io.EOF
	}
	if !r.waits {
		if err := r.reader.Read(&r.next); err != nil {
			return err
		}
	}
	if r.waits = r.deadline != 0 && r.next.BootNS > r.deadline; r.waits {
		r.now = max(r.now, r.deadline)
		return os.ErrDeadlineExceeded
	}
	r.now = max(r.now, r.next.BootNS) // a recording is not sorted strictly
	*e = r.next
	return nil
}

func (r *recorded) More() bool { return r.waits || r.reader.More() }

func (r *recorded) SetDeadline(boot uint64) { r.deadline = boot }

func (r *recorded) Now() uint64 { return r.now }

// Existing has nothing to list: the rows are among the events.
func (r *recorded) Existing([]tcp.State, func(*tcp.Event) error) error { return nil }

func (r *recorded) Stop() {
	r.stopped.Store(true)
	r.input.Stop()
}

func (r *recorded) Close() error { return r.input.Close() }

// interruptible is an input whose reader can be stopped while it waits: for a terminal, or
// for a pipe that nobody writes to.
type interruptible struct {
	in   *os.File
	stop int // an eventfd, readable once it is stopped
}

func newInterruptible(in *os.File) (*interruptible, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("prepare to be interrupted: %w", err)
	}
	return &interruptible{in, stop}, nil
}

func (i *interruptible) Read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(i.in.Fd()), Events: unix.POLLIN}, {Fd: int32(i.stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		default:
			return i.in.Read(p)
		}
	}
}

// Stop makes Read return io.EOF from now on.
func (i *interruptible) Stop() { unix.Write(i.stop, []byte{0, 0, 0, 0, 0, 0, 0, 1}) }

func (i *interruptible) Close() error {
	unix.Close(i.stop)
	return i.in.Close()
}

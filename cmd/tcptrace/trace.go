package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/recording"
)

// traceCmd streams state changes, of the live kernel or of a recording.
type traceCmd struct {
	formatFlags `embed:"" group:"Output"`
	Time        bool  `short:"T" group:"Output" help:"Time of day."`
	Timestamp   bool  `short:"t" group:"Output" help:"Seconds since the start."`
	Existing    *bool `negatable:"" group:"Output" help:"Rows for the sockets that exist at the start; the default with JSON only."`

	filterFlags `embed:"" group:"Filters (of sockets, not of lines: each is shown from first to last)"`

	Read     *string  `short:"r" placeholder:"FILE" group:"Source and end" help:"Read a recording (JSON of -j) instead of the kernel; - is standard input."`
	Duration duration `short:"d" placeholder:"TIME" group:"Source and end" help:"Stop after this time: 10s, 5m."`
	Count    count    `short:"n" placeholder:"COUNT" group:"Source and end" help:"Stop after this many transitions."`

	RingSize   bytes `placeholder:"SIZE" group:"Limits" help:"Ring buffer between kernel and us; default 8M."`
	MaxSockets count `placeholder:"COUNT" group:"Limits" help:"Sockets tracked at once; default 1048576."`

	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// Run streams until the source ends or the user has enough.
func (c *traceCmd) Run(e *env) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	out, err := c.writer(e.stdout, output.Options{Time: c.Time, Since: c.Timestamp})
	if err != nil {
		return err
	}
	s := newStream(filter, out)
	s.limit = uint64(c.Count)
	_, s.existing = out.(*output.JSON) // a recording is to be complete, a screen is small
	if c.Existing != nil {
		s.existing = *c.Existing
	}
	if c.Read != nil {
		return c.replay(e, s)
	}
	return c.live(e, s)
}

// live streams from the kernel. A signal, the time limit and a reader that went
// away end it alike: what the kernel has handed over is still printed. A second
// signal kills, because the first restores the usual effect.
func (c *traceCmd) live(e *env, s *stream) error {
	config := c.probeConfig()
	config.RingBytes, config.MaxSockets, config.KernelAddr = int(c.RingSize), uint32(c.MaxSockets), c.Extended
	config.Hooks, config.BTF, config.Without = c.Hooks, c.BTF, c.Without
	p, err := probe.Open(config)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, sentence := range p.Limitations() {
		fmt.Fprintf(e.stderr, "tcptrace: %s\n", sentence)
	}

	ctx, restore := signal.NotifyContext(e.ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore)
	if c.Duration != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.Duration))
		defer cancel()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		if unread(e.stdout) {
			cancel(syscall.EPIPE)
		}
	}()
	defer context.AfterFunc(ctx, p.Stop)()

	s.source, s.enrich = p, enrich.New("/proc", "")
	if err = e.warnSkipped(p.Seed(s.handle)); err == nil {
		err = probe.DropPrivileges()
	}
	if err == nil {
		err = s.writer.Flush() // the header shows at once that the trace is on
	}
	if err == nil {
		err = s.run()
	}
	if errors.Is(err, syscall.EPIPE) || context.Cause(ctx) == syscall.EPIPE {
		return nil // nobody reads: say nothing
	}
	s.account(e.stderr, p.Losses())
	return err
}

// replay streams a recording. Signals keep their usual effect, as for cat(1).
func (c *traceCmd) replay(e *env, s *stream) error {
	in, name := e.stdin, "standard input"
	if *c.Read != "-" {
		f, err := os.Open(*c.Read)
		if err != nil {
			return fmt.Errorf("cannot read the recording: %w", err)
		}
		defer f.Close()
		in, name = f, *c.Read
	}
	s.source, s.span = recording.NewReader(in, name), uint64(c.Duration)
	err := s.run()
	if s.lost != 0 && !errors.Is(err, syscall.EPIPE) {
		fmt.Fprintf(e.stderr, "tcptrace: %d events were lost when this was recorded\n", s.lost)
	}
	return err
}

// unread blocks until nobody reads w any more; false says that it cannot tell.
// The next write would tell as well, but on a quiet host that can be hours away.
func unread(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd())}} // POLLERR and POLLHUP need not be asked for
		_, err := unix.Poll(fds, -1)
		if err != unix.EINTR {
			return err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	}
}

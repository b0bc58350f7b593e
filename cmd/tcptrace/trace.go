package main

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// traceCmd streams state changes, of the live kernel or of a recording.
type traceCmd struct {
	Output      streamFormat `short:"o" placeholder:"FORMAT" group:"Output" help:"${streamFormats}; default ${format}."`
	formatFlags `embed:"" group:"Output"`
	Time        bool  `short:"T" group:"Output" help:"Show the time of day."`
	Date        bool  `group:"Output" help:"Show the date and the time of day to the microsecond."`
	Timestamp   bool  `short:"t" group:"Output" help:"Show the seconds since the start."`
	Existing    *bool `negatable:"" group:"Output" help:"Print a row for each socket that exists at the start; the default with JSON only."`

	filterFlags `embed:"" group:"Filters (of sockets, not of lines: each is shown from first to last)"`
	changeFlags `embed:"" group:"Filters (of sockets, not of lines: each is shown from first to last)"`

	Read     *string  `short:"r" placeholder:"FILE" group:"Source and end" help:"Read a recording (JSON of -j) instead of the kernel; - is standard input."`
	Duration duration `short:"d" placeholder:"TIME" group:"Source and end" help:"Stop after this time: 10s, 5m."`
	Count    count    `short:"n" placeholder:"COUNT" group:"Source and end" help:"Stop after this many transitions."`

	RingSize   ringSize `default:"8M" placeholder:"SIZE" group:"Limits" help:"Ring buffer between the kernel and tcptrace; default ${default}."`
	MaxSockets *count   `placeholder:"COUNT" group:"Limits" help:"Sockets tracked at once; default 1048576, before Linux 6.1 an eighth of that."`

	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// selectInterval is how soon a socket is shown that stays in a state for long enough.
const selectInterval = 250 * time.Millisecond

// Run streams until the source ends or the user has enough.
func (c *traceCmd) Run(e *env) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	filter.Reasons, filter.Errnos = c.Reason, c.Errno
	format, err := c.format(format(c.Output))
	if err != nil {
		return err
	}
	s := &stream{
		writer:   format.writer(e.stdout.File(), c.options(output.Options{Time: c.Time, Date: c.Date, Since: c.Timestamp})),
		existing: format.existing,
		limit:    uint64(c.Count),
	}
	if c.Existing != nil {
		s.existing = *c.Existing
	}
	selector := tcp.NewSelector(filter)
	if c.Read != nil {
		return c.replay(e, s, selector)
	}
	return c.live(e, s, selector)
}

// config adds to what Run needs to know of the source.
func (c *traceCmd) config(e *env, config pipeline.Config, selector *tcp.Selector) pipeline.Config {
	config.Selector, config.Duration, config.Output = selector, time.Duration(c.Duration), e.stdout.File()
	if c.MinDuration != 0 {
		config.Interval = selectInterval
	}
	return config
}

func (c *traceCmd) live(e *env, s *stream, selector *tcp.Selector) error {
	config := c.probeConfig()
	config.RingBytes, config.KernelAddr = int(c.RingSize), c.Extended && e.showsAddresses()
	if c.MaxSockets != nil {
		config.MaxSockets = uint32(*c.MaxSockets)
	}
	config.Hooks, config.BTF, config.Without = c.Hooks, c.BTF, c.Without
	source, err := e.openKernel(config)
	if err != nil {
		return err
	}
	defer source.Close()
	counts, err := pipeline.Run(e.ctx, c.config(e, source.config(probe.ReadTrace), selector), source, s)
	a := account{counts: counts, losses: source.Losses(), dropped: selector.Dropped(), unjudged: selector.Unjudged(), where: c.Where.failed(), undrawn: s.undrawn(), namespaces: selector.Namespaces()}
	return e.finish(err, append(a.ofListeners(), a.ofTrace())...)
}

func (c *traceCmd) replay(e *env, s *stream, selector *tcp.Selector) error {
	source, err := e.openRecording(*c.Read)
	if err != nil {
		return err
	}
	defer source.Close()
	counts, err := pipeline.Run(e.ctx, c.config(e, source.config(), selector), source, s)
	a := account{counts: counts, dropped: selector.Dropped(), unjudged: selector.Unjudged(), where: c.Where.failed(), undrawn: s.undrawn()}
	return e.finish(err, a.ofRecording())
}

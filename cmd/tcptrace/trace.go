package main

import (
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// traceCmd streams state changes, of the live kernel or of a recording.
type traceCmd struct {
	Output      streamFormat `short:"o" placeholder:"FORMAT" group:"Output" help:"${streamFormats}; default ${format}."`
	formatFlags `embed:"" group:"Output"`
	Time        bool  `short:"T" group:"Output" help:"Show the time of day."`
	Date        bool  `group:"Output" help:"Show the date and the time of day to the microsecond."`
	Timestamp   bool  `short:"t" group:"Output" help:"Show the seconds since the start."`
	Existing    *bool `negatable:"" group:"Output" help:"Print a row for each socket that exists at the start; the default with JSON only."`

	followFlags `embed:"" group:"Filters (of sockets, not of lines: each is shown from first to last)"`

	Count        count `short:"n" placeholder:"COUNT" group:"Source and end" help:"Stop after this many transitions."`
	tracingFlags `embed:""`
}

// Run streams until the source ends or the user has enough.
func (c *traceCmd) Run(e *env) error {
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
	return c.run(e, &c.followFlags, view{
		open:       func(pipeline.Source, int64) (pipeline.Consumer, error) { return s, nil },
		kernelAddr: c.Extended,
		missing: func() []string {
			return counted(s.undrawn(), "%d connections not drawn to their end (too many at a time)")
		},
	})
}

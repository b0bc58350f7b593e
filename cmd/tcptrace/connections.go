package main

import (
	"os"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// connectionsCmd prints each connection when it is over.
type connectionsCmd struct {
	Output      format `short:"o" placeholder:"FORMAT" group:"Output" help:"${formats}; default ${format}."`
	formatFlags `embed:"" group:"Output"`
	Date        bool `group:"Output" help:"Show the date and the time of day of the end, to the microsecond."`
	Time        bool `short:"T" group:"Output" help:"Show the time of day of the end."`
	Open        bool `group:"Output" help:"At the end, also print the connections that are open."`
	TimeWait    bool `group:"Output" help:"Print a connection when its TIME_WAIT is over, and include that."`

	followFlags `embed:"" group:"Filters (of connections)"`

	Count        count `short:"n" placeholder:"COUNT" group:"Source and end" help:"Stop after this many connections."`
	tracingFlags `embed:""`
}

// recordWriter prints connections, whole lines at a time.
type recordWriter interface {
	Write(*connection.Record) error
	Flush() error
}

// recordWriterOf returns the writer of a format.
func recordWriterOf(f format, w *os.File, o output.Options) recordWriter {
	switch f.name {
	case "json":
		return output.NewConnectionJSON(w)
	case "csv":
		return output.NewConnectionCSV(w, o)
	}
	return output.NewConnectionColumns(w, o, lineWidth(w))
}

// Run prints connections until the source ends or the user has enough.
func (c *connectionsCmd) Run(e *env) error {
	format, err := c.format(c.Output)
	if err != nil {
		return err
	}
	writer := recordWriterOf(format, e.stdout.File(), c.options(output.Options{Time: c.Time, Date: c.Date}))
	var collector *connection.Collector
	return c.run(e, &c.followFlags, view{
		open: func(_ pipeline.Source, offset int64) (pipeline.Consumer, error) {
			collector = connection.NewCollector(connection.Config{
				Max: c.followed(), TimeWait: c.TimeWait, Open: c.Open, Limit: uint64(c.Count), Offset: offset,
				Show: writer.Write, Flush: writer.Flush,
			})
			return collector, nil
		},
		kernelAddr: c.Extended,
		missing: func() []string {
			return append(
				counted(collector.Forgotten(), "%d connections not followed from start to end (raise --max-sockets)"),
				counted(collector.Unended(), "%d connections whose end was not seen")...)
		},
	})
}

package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// socketsCmd prints the sockets that exist now.
type socketsCmd struct {
	All         bool     `short:"a" group:"Output" help:"A row for each socket in TIME_WAIT, which columns sum up otherwise."`
	By          statsBy  `placeholder:"WHAT" group:"Output" help:"Count sockets by state, for each comm, host, pid, unit, container, remote, lport, netns, cgroup, pod, namespace or image."`
	Watch       duration `placeholder:"TIME" group:"Output" help:"Look again after this time, such as 2s, until you stop it."`
	Output      format   `short:"o" placeholder:"FORMAT" group:"Output" help:"${formats}; default ${format}."`
	formatFlags `embed:"" group:"Output"`
	filterFlags `embed:"" group:"Filters"`
	kernelFlags `embed:"" group:"Kernel"`
}

// look is what takes the rows of one look at the sockets after the other.
type look interface {
	// listeners are those that tell the role of sockets in TIME_WAIT; nil: nobody asks.
	listeners() stats.Listeners
	add(*tcp.Event) error
	// end is called when all rows of the look are in; complete says that none is missing.
	end(complete bool) error
}

// lookConsumer hands the sockets that match to a look.
type lookConsumer struct {
	to       look
	filter   tcp.Filter
	any      bool // one matches
	complete bool // all were read
	unjudged tcp.Unjudged
}

func (c *lookConsumer) Event(e *tcp.Event) error {
	if listeners := c.to.listeners(); listeners != nil {
		listeners.Note(e)
	}
	if !c.filter.Match(e) {
		c.unjudged.Add(c.filter.Missing(e))
		return nil
	}
	c.any = true
	return c.to.add(e)
}

func (c *lookConsumer) Idle() error        { return nil }
func (c *lookConsumer) Tick(uint64) error  { return nil }
func (c *lookConsumer) Close(uint64) error { return c.to.end(c.complete) }

// again begins another look.
func (c *lookConsumer) again() { c.complete, c.unjudged = false, tcp.Unjudged{} }

// check returns a usageError for flags that make no sense together.
func (c *socketsCmd) check() error {
	if c.By != "" && c.Extended {
		return usageError{errors.New("--by counts sockets: there are no columns for -x to add")}
	}
	return nil
}

// Run prints one row per socket of every network namespace.
func (c *socketsCmd) Run(e *env) error {
	c.idsFirst(e)
	filter, err := c.filter()
	if err != nil {
		return err
	}
	format, err := c.format(c.Output)
	if err = errors.Join(err, c.check()); err != nil {
		return err
	}
	show := &socketsShow{cmd: c, env: e, file: e.stdout.File()}
	rows := &lookConsumer{to: show.look(format), filter: filter}
	if _, err := begin(recordFlags{}, probe.SetupNeeds()); err != nil {
		return err
	}
	config := c.probeConfig()
	config.KernelAddr, config.BTF, config.Without = c.Extended && e.showsAddresses(), c.BTF, c.Without
	where := enrich.New("/proc", "")
	if c.Extended {
		where.FillDetails()
	}
	if c.Watch > 0 {
		return c.watch(e, config, where, rows, show)
	}
	return c.once(e, config, where, rows)
}

// once takes one look.
func (c *socketsCmd) once(e *env, config probe.Config, where *enrich.Enricher, rows *lookConsumer) error {
	var mistake error // in the filter
	_, err := pipeline.Run(e.ctx, pipeline.Config{
		Existing: func(emit func(*tcp.Event) error) error {
			err := e.saySkipped(probe.Sockets(config, emit))
			if err != nil {
				return err
			}
			rows.complete = true
			e.sayLimits(where)
			if !rows.any {
				mistake = c.census(where, rows.unjudged).nothing(rows.filter)
			}
			return nil
		},
		Confine: confined(confine.Needs{}),
		Enrich:  where.Fill,
		Output:  e.stdout.File(),
	}, pipeline.Ended{}, rows)
	if err != nil {
		return err
	}
	if mistake != nil {
		e.say(mistake.Error())
	}
	c.conclude(e, where, rows)
	return nil
}

// conclude says what is not shown.
func (c *socketsCmd) conclude(e *env, where *enrich.Enricher, rows *lookConsumer) {
	for _, sentence := range append(output.Unjudged(rows.unjudged), whereFailed(c.Where.failed())...) {
		e.say(sentence)
	}
	if where.Stalled() {
		e.say("command lines are missing: a process did not let its own be read in time")
	}
}

// census looks at all sockets again, whatever their ports.
func (c *socketsCmd) census(where *enrich.Enricher, unjudged tcp.Unjudged) census {
	config := probe.Config{BTF: c.BTF, Without: c.Without}
	return census{where: where, unjudged: unjudged, sockets: func(emit func(*tcp.Event) error) error { return probe.Sockets(config, emit) }}
}

// errPartial is for what is sorted or counted: a part of it would look like all.
var errPartial = errors.New("interrupted before all sockets were read")

// rowStream is a look that prints rows as they come, all of them, in the order of the kernel.
type rowStream struct{ stream }

func (*rowStream) listeners() stats.Listeners { return nil }
func (s *rowStream) add(e *tcp.Event) error   { return s.Event(e) }
func (s *rowStream) end(bool) error           { return s.Close(0) }

// sortedRows is a look that sorts them.
type sortedRows struct {
	*stats.Inventory
}

func (s *sortedRows) listeners() stats.Listeners { return s.Listeners() }
func (s *sortedRows) add(e *tcp.Event) error     { return s.Add(e) }

func (s *sortedRows) end(complete bool) error {
	if !complete {
		return errPartial
	}
	return s.End(time.Now().UnixNano())
}

// countedRows is a look that counts them.
type countedRows struct {
	by    stats.By
	tally *stats.SocketTally
	show  func(*stats.SocketReport) error
}

func (s *countedRows) listeners() stats.Listeners { return s.tally.Listeners() }

func (s *countedRows) add(e *tcp.Event) error {
	s.tally.Add(e)
	return nil
}

func (s *countedRows) end(complete bool) error {
	if !complete {
		return errPartial
	}
	report := s.tally.Report(time.Now().UnixNano(), bootTime())
	s.tally = stats.NewSocketTally(s.by)
	return s.show(report)
}

// bootTime is CLOCK_BOOTTIME in ns, which every kernel has.
func bootTime() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return uint64(now.Nano())
}

// socketsShow shows looks at the sockets: on a screen, or one after the other.
type socketsShow struct {
	cmd    *socketsCmd
	env    *env
	file   *os.File    // stdout, for writers that escape
	screen *liveScreen // nil: none
	last   string      // shown on the screen
	any    bool        // a look was printed
}

// look returns what takes the rows for a format.
func (s *socketsShow) look(f format) look {
	c := s.cmd
	switch {
	case c.By != "":
		return &countedRows{by: stats.By(c.By), tally: stats.NewSocketTally(stats.By(c.By)), show: s.summary(f.name)}
	case f.name != formats[0].name:
		return &rowStream{stream{writer: f.writer(s.file, c.options(output.Options{Sockets: true})), existing: true}}
	}
	config := stats.InventoryConfig{SumTimeWait: !c.All && c.State == nil && c.Cookie == nil, Show: s.table()}
	if s.onScreen() {
		config.Top = screenRows
	}
	return &sortedRows{Inventory: stats.NewInventory(config)}
}

// screenRows is how many rows a screen is made of: more than it has room for.
const screenRows = 512

// onScreen reports whether looks are shown in place.
func (s *socketsShow) onScreen() bool { return s.cmd.Watch > 0 && isStyled(s.file) }

// options are those of text.
func (s *socketsShow) options() output.SocketsOptions {
	o := output.SocketsOptions{Options: s.cmd.formatFlags.options(output.Options{}), Title: s.cmd.Watch > 0, Width: lineWidth(s.file)}
	if s.onScreen() {
		_, height := terminal.Size(s.file)
		o.Lines = max(height-1, 1) // the title may take two
	}
	return o
}

// summary returns what shows counts in a format.
func (s *socketsShow) summary(format string) func(*stats.SocketReport) error {
	switch format {
	case "json":
		return output.NewSocketSummaryJSON(s.env.stdout).Write
	case "csv":
		return output.NewSocketSummaryCSV(s.env.stdout).Write
	}
	return func(r *stats.SocketReport) error {
		return s.text(s.env.stdout, true, func(w io.Writer) error { return output.NewSocketSummary(w, s.options()).Write(r) })
	}
}

// table returns what shows rows as columns.
func (s *socketsShow) table() func(*stats.InventoryReport) error {
	var rows *output.Sockets // of the look
	return func(r *stats.InventoryReport) error {
		begins := rows == nil
		return s.text(s.file, begins, func(w io.Writer) error {
			if begins {
				rows = output.NewSockets(w, s.options())
			}
			err := rows.Write(r)
			if !r.More {
				rows = nil
			}
			return err
		})
	}
}

// text has a look written, which begins with it: on the screen, or below the one before.
func (s *socketsShow) text(to io.Writer, begins bool, write func(io.Writer) error) error {
	if s.screen != nil {
		var b strings.Builder
		if err := write(&b); err != nil {
			return err
		}
		s.last = b.String()
		return s.screen.show(s.last)
	}
	if s.any && begins {
		if _, err := io.WriteString(to, "\n"); err != nil {
			return err
		}
	}
	s.any = true
	return write(to)
}

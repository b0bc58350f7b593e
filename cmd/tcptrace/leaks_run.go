package main

import (
	"io"
	"math"
	"time"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// leaksRun is one run of the command.
type leaksRun struct {
	cmd    *leaksCmd
	env    *env
	filter tcp.Filter
	where  *enrich.Enricher
	watch  *leak.Watch
	last   *leak.Report // with --once, --check and --kill
	kernel *kernel      // nil: a recording
}

// watchConfig is what the flags say about the Watch, whatever the source.
func (r *leaksRun) watchConfig() leak.Config {
	c := r.cmd
	config := leak.Config{Rule: c.rule(), AtEnd: c.atEnd(), Detailed: int(c.Top), Admit: r.filter.Match}
	options := output.ReportOptions{Time: c.Time, Top: int(c.Top)}
	print := r.printBlocks(options)
	switch format, _ := c.format(); format.name { // consistent has seen the error
	case "json":
		print, config.Detailed = output.NewReportJSON(r.env.stdout).Write, math.MaxInt
	case "csv":
		print, config.Detailed = output.NewReportCSV(r.env.stdout, options).Write, math.MaxInt
	}
	config.Show = print
	if c.Check || c.Kill {
		print = func(*leak.Report) error { return nil }
	}
	if config.AtEnd {
		config.Show = func(report *leak.Report) error {
			r.last = report
			return print(report)
		}
	}
	return config
}

// printBlocks prints a report as a block of text, and an empty line between two.
func (r *leaksRun) printBlocks(o output.ReportOptions) func(*leak.Report) error {
	w := output.NewReportColumns(r.env.stdout, o)
	return func(report *leak.Report) error {
		err := w.Write(report)
		if err == nil && !r.cmd.atEnd() {
			_, err = io.WriteString(r.env.stdout, "\n")
		}
		return err
	}
}

// runConfig adds to what Run needs to know of the source.
func (c *leaksCmd) runConfig(e *env, config pipeline.Config) pipeline.Config {
	config.Interval, config.Duration = time.Duration(c.Interval), time.Duration(c.Duration)
	config.Output, config.Whole = e.stdout, c.Check || c.Kill
	return config
}

// live watches the kernel.
func (c *leaksCmd) live(e *env, filter tcp.Filter) error {
	options := c.probeConfig()
	options.Tracked, options.Stacks, options.Hooks, options.BTF, options.Without = true, c.Stacks, c.Hooks, c.BTF, c.Without
	source, err := e.openKernel(options)
	if err != nil {
		return err
	}
	defer source.Close()
	// Port ranges and sockets to close are in other network namespaces, and limits and
	// code are those of other users' processes.
	keep := []probe.Task{probe.ReadTrace, probe.EnterNamespaces, probe.InspectProcesses}
	if c.Kill {
		keep = append(keep, probe.CloseSockets)
	}
	config := c.runConfig(e, source.config(keep...))
	run := &leaksRun{cmd: c, env: e, filter: filter, kernel: &source, where: source.place}
	config.Enrich = nil // Admit does it, also for the sockets of a refresh
	watch := run.watchConfig()
	watch.Admit = func(e *tcp.Event) bool {
		run.where.Fill(e)
		return filter.Match(e)
	}
	watch.Once = c.atEnd() && c.Duration == 0
	watch.Offset = time.Now().UnixNano() - int64(source.Now())
	watch.Existing, watch.Facts = source.Existing, leakFacts(source.Probe, "/proc", c.Stacks)
	if format, _ := c.format(); format.name == "columns" && !c.atEnd() {
		screen, err := openLeakScreen(e, source.Stop)
		if err != nil {
			return err
		}
		if screen != nil {
			defer screen.close() // also on a panic
			watch.Show, watch.Detailed = screen.show, screenGroups
		}
	}
	run.watch = leak.NewWatch(watch)
	if _, err := pipeline.Run(e.ctx, config, source, run.watch); err != nil {
		return err
	}
	return run.conclude()
}

// replay looks at a recording as if it were the kernel, refresh by refresh of the time
// recorded.
func (c *leaksCmd) replay(e *env, filter tcp.Filter) error {
	source, err := e.openRecording(*c.Read)
	if err != nil {
		return err
	}
	defer source.Close()
	run := &leaksRun{cmd: c, env: e, filter: filter}
	watch := run.watchConfig()
	source.Track(watch.Rule.States...)
	watch.Existing = source.Existing
	run.watch = leak.NewWatch(watch)
	if _, err := pipeline.Run(e.ctx, c.runConfig(e, source.config()), source, run.watch); err != nil {
		return err
	}
	if n := source.Forgotten(); n > 0 {
		e.say(leak.Counted(int(n), "socket") + " of the recording left out: no more fit in memory")
	}
	return run.conclude()
}

// conclude ends a run in which something was asked for at the end.
func (r *leaksRun) conclude() error {
	switch {
	case r.cmd.Kill:
		return r.kill(r.kernel.Now())
	case r.cmd.Check:
		return r.check()
	case r.cmd.Once:
		r.warn()
	}
	return nil
}

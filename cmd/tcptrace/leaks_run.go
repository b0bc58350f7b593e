package main

import (
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/top"
)

// leaksRun is one run of the command.
type leaksRun struct {
	cmd    *leaksCmd
	env    *env
	filter tcp.Filter
	where  *enrich.Enricher
	watch  *leak.Watch  // nil: there is a screen
	screen *topScreen   // nil: none
	last   *leak.Report // nil: there was none, as of an empty recording
	kernel *kernel      // nil: a recording

	namespaces *tcp.Namespaces // nil: a recording, or SYN_RECV is not looked at
	stacks     *stackReader    // nil: none are named
	unseen     error           // sockets that existed, and that we lack the capability to list; or nil
}

// watchConfig is what the flags say about the Watch, whatever the source.
func (r *leaksRun) watchConfig() leak.Config {
	c := r.cmd
	config := leak.Config{Rule: c.rule(), Filter: r.filter, AtEnd: c.atEnd(), Detailed: int(c.Top)}
	options := output.ReportOptions{Time: c.Time, Top: int(c.Top)}
	print := r.printBlocks(options)
	switch format, _ := c.format(); format.name { // consistent has seen the error
	case "json":
		print, config.Detailed = output.NewReportJSON(r.env.stdout).Write, math.MaxInt
	case "csv":
		print, config.Detailed = output.NewReportCSV(r.env.stdout, options).Write, math.MaxInt
	}
	if c.Check || c.Kill {
		print = func(*leak.Report) error { return nil }
	}
	config.Show = r.keeping(print)
	return config
}

// keeping shows a report, which then is the last one.
func (r *leaksRun) keeping(show func(*leak.Report) error) func(*leak.Report) error {
	return func(report *leak.Report) error {
		r.last = report
		return show(report)
	}
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
	config.Output, config.Whole = e.stdout.File(), c.Check || c.Kill
	return config
}

// live watches the kernel.
func (c *leaksCmd) live(e *env, filter tcp.Filter) error {
	options := c.probeConfig()
	options.Tracked, options.Stacks, options.Hooks, options.BTF, options.Without = true, c.Stacks, c.Hooks, c.BTF, c.Without
	if err := probe.CheckPlace(); err != nil { // or the helper would say that it cannot start
		return err
	}
	var stacks *stackReader
	if c.Stacks {
		if stacks = e.newStackReader(); stacks != nil {
			defer stacks.Close()
		}
		options.Stacks = stacks != nil
	}
	source, err := e.openKernel(options, c.recordFlags)
	if err != nil {
		return err
	}
	defer source.Close()
	source.nameCode(stacks)
	run := &leaksRun{cmd: c, env: e, filter: filter, kernel: &source, where: source.place, stacks: stacks}
	config := c.runConfig(e, source.config())
	config.Confine = confined(source.record.add(c.needs(source.place)))
	config.Existing = run.existing
	if source.record == nil {
		config.Enrich = nil // the Watch does it, also for the sockets of a refresh
	}
	to := run.consumer(&config)
	defer func() { run.screen.release() }() // also on a panic
	counts, err := source.record.run(e.ctx, config, source, to)
	run.screen.release()
	return run.conclude(account{counts: counts, losses: source.Losses(), where: c.Where.failed(), namespaces: run.namespaces}, err)
}

// consumer returns what watches the kernel: with a screen it also has to answer keys.
func (r *leaksRun) consumer(config *pipeline.Config) pipeline.Consumer {
	watch := r.liveConfig()
	if r.hasScreen() {
		config.Interval = min(config.Interval, top.Wake)
		return r.openView(watch)
	}
	r.watch = leak.NewWatch(watch)
	return r.watch
}

// existing hands on the sockets that exist at the start.
func (r *leaksRun) existing(emit func(*tcp.Event) error) error {
	err := r.kernel.Seed(emit)
	if skipped, ok := errors.AsType[*probe.SkippedError](err); ok && errors.Is(skipped, unix.EPERM) {
		r.unseen = skipped
		return nil
	}
	return r.env.saySkipped(err)
}

// needs is what the watch still does when it has begun. Port ranges and sockets to close are
// in other network namespaces. Code is the business of the helper.
func (c *leaksCmd) needs(place *enrich.Enricher) confine.Needs {
	keep := []probe.Task{probe.ReadTrace}
	if c.Kill || len(c.NetNS) > 0 || slices.Contains(c.State, tcp.TimeWait) {
		keep = append(keep, probe.EnterNamespaces)
	}
	if c.Kill {
		keep = append(keep, probe.CloseSockets)
	}
	n := needs(place, keep...)
	n.Helper = c.Stacks
	if len(c.UID) > 0 {
		n.Read = append(n.Read, "/etc/passwd") // census asks whether they exist
	}
	return n
}

// liveConfig adds what the kernel knows.
func (r *leaksRun) liveConfig() leak.Config {
	k, c := r.kernel, r.cmd
	watch := r.watchConfig()
	watch.Enrich = r.where.Fill
	if slices.Contains(watch.Rule.States, tcp.SynRecv) {
		r.namespaces = tcp.NewNamespaces(r.filter)
		watch.Enrich = func(e *tcp.Event) {
			r.where.Fill(e)
			r.namespaces.Note(e)
		}
	}
	watch.Once = c.atEnd() && c.Duration == 0
	watch.Offset = time.Now().UnixNano() - int64(k.Now())
	watch.Existing, watch.Facts = k.Existing, leakFacts(k.Probe, "/proc", r.stacks)
	return watch
}

// replay looks at a recording as if it were the kernel, refresh by refresh of the time
// recorded.
func (c *leaksCmd) replay(e *env, filter tcp.Filter) error {
	source, err := e.openRecording(c.Read...)
	if err != nil {
		return err
	}
	defer source.Close()
	record, err := c.create()
	if err != nil {
		return err
	}
	run := &leaksRun{cmd: c, env: e, filter: filter}
	watch := run.watchConfig()
	source.Track(watch.Rule.States...)
	watch.Existing = source.Existing
	run.watch = leak.NewWatch(watch)
	counts, err := record.run(e.ctx, c.runConfig(e, source.config(record)), source, run.watch)
	return run.conclude(account{counts: counts, forgotten: source.Forgotten(), where: c.Where.failed()}, err)
}

// conclude ends a run: it says what is missing, and does what was asked for at the end.
func (r *leaksRun) conclude(a account, err error) error {
	lines := append(a.ofListeners(), a.ofLeaks())
	if r.kernel == nil {
		lines = []string{a.ofRecording()}
	}
	if err := r.env.finish(err, lines...); err != nil {
		return err
	}
	if r.stacks != nil {
		r.stacks.explain(r.env)
	}
	switch {
	case r.cmd.Kill:
		return r.kill(r.kernel.Now())
	case r.cmd.Check:
		return r.check()
	case r.last != nil:
		r.warn()
	}
	return nil
}

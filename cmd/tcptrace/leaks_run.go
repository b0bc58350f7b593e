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
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// errInterrupted ends a watch that was to give an answer at its end and has none.
var errInterrupted = errors.New("interrupted before the end of the watch")

// leaksRun is one run of the command.
type leaksRun struct {
	cmd    *leaksCmd
	env    *env
	filter tcp.Filter
	where  *enrich.Enricher
	watch  *leak.Watch
	last   *leak.Report // with --once, --check and --kill
	probe  *probe.Probe // nil: a recording
}

// newLeaksRun returns a run that lacks its Watch, and the configuration of that.
func (c *leaksCmd) newLeaksRun(e *env, filter tcp.Filter) (*leaksRun, leak.Config) {
	where := enrich.New("/proc", "")
	run := &leaksRun{cmd: c, env: e, filter: filter, where: where}
	config := leak.Config{
		Rule: c.rule(), AtEnd: c.atEnd(), Detailed: int(c.Top),
		Offset: time.Now().UnixNano() - int64(bootNow()),
		Admit: func(e *tcp.Event) bool {
			where.Fill(e)
			return filter.Match(e)
		},
	}
	options := output.ReportOptions{Time: c.Time, Top: int(c.Top)}
	show := output.NewReportColumns(e.stdout, options).Write
	switch format, _ := c.format(); format { // consistent has seen the error
	case formatJSON:
		show, config.Detailed = output.NewReportJSON(e.stdout).Write, int(^uint(0)>>1)
	case formatCSV:
		show, config.Detailed = output.NewReportCSV(e.stdout, options).Write, int(^uint(0)>>1)
	}
	config.Show = show
	if config.AtEnd {
		config.Show = func(r *leak.Report) error {
			run.last = r
			if c.Once && !c.Check && !c.Kill {
				return show(r)
			}
			return nil
		}
	} else if format, _ := c.format(); format == formatColumns {
		config.Show = func(r *leak.Report) error {
			err := show(r)
			if err == nil {
				_, err = io.WriteString(e.stdout, "\n")
			}
			return err
		}
	}
	return run, config
}

// live watches the kernel. Privileges are kept: port ranges and sockets to close are in
// other network namespaces, and limits are those of other users' processes.
func (c *leaksCmd) live(e *env, filter tcp.Filter) error {
	run, config := c.newLeaksRun(e, filter)
	options := c.probeConfig()
	options.Tracked, options.Stacks, options.Hooks, options.BTF, options.Without = true, c.Stacks, c.Hooks, c.BTF, c.Without
	p, err := probe.Open(options)
	if err != nil {
		return err
	}
	defer p.Close()
	run.probe = p
	if !c.atEnd() {
		for _, sentence := range p.Limitations() {
			fmt.Fprintf(e.stderr, "tcptrace: %s\n", sentence)
		}
	}
	ctx, cancel := signal.NotifyContext(e.ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer cancel()
	defer context.AfterFunc(ctx, p.Stop)()
	// The rows are of no use here, Existing gives them again, but it takes this look for
	// the probe to know what existed before it.
	if err := p.Seed(func(*tcp.Event) error { return nil }); err != nil {
		return err
	}
	config.Existing, config.Facts = p.TrackedSockets, leakFacts(p, "/proc", c.Stacks)
	if format, _ := c.format(); format == formatColumns && !c.atEnd() {
		screen, err := openLeakScreen(e, cancel)
		if err != nil {
			return err
		}
		if screen != nil {
			defer screen.close() // also on a panic
			config.Show, config.Detailed = screen.show, screenGroups
		}
	}
	run.watch = leak.NewWatch(config)
	return run.follow(ctx)
}

// follow refreshes until the time is up, the user leaves, or nobody reads.
func (r *leaksRun) follow(ctx context.Context) error {
	started := time.Now()
	limit := time.Duration(r.cmd.Duration)
	for {
		begun := time.Now()
		if r.cmd.atEnd() && limit == 0 || limit != 0 && begun.Sub(started) >= limit {
			return r.conclude(bootNow())
		}
		if err := r.watch.Tick(bootNow()); err != nil {
			return err
		}
		// A refresh that takes long is not followed at once by the next.
		next := begun.Add(max(time.Duration(r.cmd.Interval), 2*time.Since(begun)))
		if end := started.Add(limit); limit != 0 && next.After(end) {
			next = end
		}
		switch err := r.wait(ctx, next); {
		case err == io.EOF && r.cmd.atEnd() && !r.cmd.Once:
			return errInterrupted
		case err == io.EOF:
			return r.conclude(bootNow())
		case err != nil:
			return err
		}
	}
}

// wait hands on events until the time has come. io.EOF says that it is over.
func (r *leaksRun) wait(ctx context.Context, until time.Time) error {
	var e tcp.Event
	r.probe.SetDeadline(until)
	var err error
	for err == nil && time.Now().Before(until) {
		if err = r.probe.Read(&e); err == nil {
			err = r.watch.Event(&e)
		}
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if ctx.Err() != nil {
		return io.EOF
	}
	return nil
}

// replay looks at a recording as if it were the kernel, refresh by refresh of the
// time recorded.
func (c *leaksCmd) replay(e *env, filter tcp.Filter) error {
	in, name := e.stdin, "standard input"
	if *c.Read != "-" {
		f, err := os.Open(*c.Read)
		if err != nil {
			return fmt.Errorf("cannot read the recording: %w", err)
		}
		defer f.Close()
		in, name = f, *c.Read
	}
	run, config := c.newLeaksRun(e, filter)
	sockets := leak.NewReplay(config.Rule.States...)
	config.Existing = sockets.Existing
	run.watch = leak.NewWatch(config)
	now, err := run.playBack(recording.NewReader(in, name), sockets)
	if err != nil {
		return err
	}
	if n := sockets.Unplaced(); n > 0 {
		fmt.Fprintf(e.stderr, "tcptrace: %s of the recording left out: no more fit in memory\n", leak.Counted(n, "socket"))
	}
	return run.conclude(now)
}

// playBack takes the events up to the end that was asked for, and returns the time of
// the last, of CLOCK_BOOTTIME in ns. On the way it refreshes in time.
func (r *leaksRun) playBack(events *recording.Reader, sockets *leak.Replay) (now uint64, err error) {
	interval := uint64(r.cmd.Interval)
	var first, next uint64
	var e tcp.Event
	for {
		err := events.Read(&e)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if first == 0 {
			first, now, next = e.BootNS, e.BootNS, e.BootNS+interval
		}
		if err == io.EOF || r.cmd.Duration != 0 && e.BootNS > first+uint64(r.cmd.Duration) {
			return now, nil
		}
		if e.BootNS > next+maxReplayedRefreshes*interval { // a silence of hours: nothing changed
			next += (e.BootNS - next) / interval * interval
		}
		for ; e.BootNS >= next; next += interval {
			sockets.SetNow(next)
			if err := r.watch.Tick(next); err != nil {
				return 0, err
			}
		}
		now = max(now, e.BootNS)
		sockets.SetNow(now)
		sockets.Event(&e)
		if err := r.watch.Event(&e); err != nil {
			return 0, err
		}
	}
}

// maxReplayedRefreshes is how many refreshes of a silence are played back.
const maxReplayedRefreshes = 100

// conclude ends a run: what was asked for is printed, if it was not all the time.
func (r *leaksRun) conclude(now uint64) error {
	if r.cmd.Kill {
		return r.kill(now)
	}
	if err := r.watch.Close(now); err != nil || r.last == nil {
		return err
	}
	if r.cmd.Check {
		return r.check()
	}
	r.warn()
	return nil
}

func bootNow() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // cannot fail: the clock exists since 2.6.39
	}
	return uint64(t.Nano())
}

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// leaksCmd finds sockets that sit in a state, and says why.
type leaksCmd struct {
	State     stateName `default:"close-wait" placeholder:"STATE" group:"What to look for" help:"The state to look at; default close-wait."`
	OlderThan duration  `default:"10s" placeholder:"TIME" group:"What to look for" help:"Sockets that are in it for so long; default 10s."`
	By        *leakBy   `placeholder:"WHAT" group:"What to look for" help:"Group by owner (process and remote end, the default), pid, comm, container, remote, lport or stack."`

	Once     bool     `group:"Output" help:"One report; with -d after that time."`
	JSON     bool     `short:"j" group:"Output" help:"JSON, one object per group and refresh."`
	Top      count    `default:"20" placeholder:"COUNT" group:"Output" help:"Groups to print, the worst first; default 20. JSON has all."`
	Interval duration `default:"2s" placeholder:"TIME" group:"Output" help:"Time from one refresh to the next; default 2s."`
	Stacks   bool     `default:"true" negatable:"" group:"Output" help:"Where in the code the sockets were opened; the default."`
	Duration duration `short:"d" placeholder:"TIME" group:"Output" help:"Watch for this time: 30s, 5m."`
	Read     *string  `short:"r" placeholder:"FILE" group:"Output" help:"Look at a recording (JSON of tcptrace -j) instead of the kernel; - is standard input."`

	Check     bool    `group:"For scripts" help:"Print findings only, one a line, and exit with 0: none, 2: some, 1: could not look."`
	MaxCount  *limit  `placeholder:"COUNT" group:"For scripts" help:"With --check: a group of more sockets is a finding, whatever the verdict."`
	MaxGrowth *growth `placeholder:"RATE" group:"For scripts" help:"With --check: so is one that grows by more a minute."`

	Kill   bool `group:"Close what leaks" help:"Have the kernel close the sockets of the groups that leak."`
	Yes    bool `group:"Close what leaks" help:"Do not ask before."`
	DryRun bool `group:"Close what leaks" help:"Only print what would be closed."`

	selectFlags `embed:"" group:"Filters"`
	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// leaksFound ends --check when there are findings, which are printed already.
type leaksFound struct{}

func (leaksFound) Error() string { return "leaks were found" }

// view is a way to look at the sockets of a state: leakView or timeWaitView.
type view interface {
	event(*tcp.Event)                   // something happened
	begin(now uint64)                   // a refresh begins
	row(*tcp.Event)                     // a socket of it
	end()                               // all were there: judge
	title() string                      // one line about the refresh
	report(io.Writer, int)              // so many groups of it, as text
	objects(emit func(any) error) error // all groups of it, for JSON
	findings() []string                 // what --check complains about
}

// Run looks once or watches, at the kernel or at a recording.
func (c *leaksCmd) Run(e *env) error {
	filter, err := c.selectFlags.filter()
	if err == nil {
		err = c.consistent()
	}
	if err != nil {
		return err
	}
	w := &leakWatch{cmd: c, env: e, filter: filter, where: enrich.New("/proc", "")}
	if c.Read != nil {
		return w.replay()
	}
	return w.live()
}

// consistent returns a usageError for flags that make no sense together.
func (c *leaksCmd) consistent() error {
	timeWait := c.State.State() == tcp.TimeWait
	for _, bad := range []struct {
		is  bool
		why string
	}{
		{(c.Yes || c.DryRun) && !c.Kill, "--yes and --dry-run are for --kill"},
		{(c.MaxCount != nil || c.MaxGrowth != nil) && !c.Check, "--max-count and --max-growth are for --check"},
		{c.Kill && c.Check, "--kill and --check cannot be combined: check first, then kill"},
		{c.Kill && c.Read != nil, "--kill cannot close the sockets of a recording"},
		{c.Kill && c.JSON, "--kill prints no JSON"},
		{c.Check && c.JSON, "--check prints no JSON: use --once -j for that"},
		{c.Kill && timeWait, "--kill is not for TIME_WAIT: these sockets go by themselves after a minute"},
		{timeWait && c.By != nil, "--by is not for TIME_WAIT: these are grouped by destination"},
	} {
		if bad.is {
			return usageError{errors.New(bad.why)}
		}
	}
	return nil
}

// quiet reports whether nothing is printed before the end.
func (c *leaksCmd) quiet() bool { return c.Once || c.Check || c.Kill }

// leakWatch is one run of the command.
type leakWatch struct {
	cmd    *leaksCmd
	env    *env
	filter tcp.Filter
	where  *enrich.Enricher
	view   view
	probe  *probe.Probe // nil: a recording
	screen *terminal.Screen
}

// newView returns the view for the state, of a watch that begins at first.
func (w *leakWatch) newView(first uint64) view {
	if w.cmd.State.State() == tcp.TimeWait {
		return newTimeWaitView(w.cmd, w.probe, first)
	}
	return newLeakView(w.cmd, w.probe)
}

// event hands on what happened to sockets that are asked for.
func (w *leakWatch) event(e *tcp.Event) {
	w.where.Fill(e)
	if e.Kind == tcp.Lost || w.filter.Match(e) {
		w.view.event(e)
	}
}

// row hands on a socket that is asked for.
func (w *leakWatch) row(row *tcp.Event) error {
	w.where.Fill(row)
	if w.filter.Match(row) {
		w.view.row(row)
	}
	return nil
}

// conclude ends a run: what was asked for is printed, if it was not all the time.
func (w *leakWatch) conclude() error {
	switch {
	case w.cmd.Check:
		return w.check()
	case w.cmd.Kill:
		return w.kill()
	case w.cmd.quiet():
		return w.show()
	}
	return nil
}

// check prints the findings.
func (w *leakWatch) check() error {
	findings := w.view.findings()
	for _, finding := range findings {
		fmt.Fprintln(w.env.stdout, finding) // that nobody reads it changes nothing of the result
	}
	if len(findings) > 0 {
		return leaksFound{}
	}
	return nil
}

// limit is a count that may be 0, growth a rate that may be 0.
type (
	limit  int
	growth float64
)

func (l *limit) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil {
		return fmt.Errorf("%q is not a count: give a number from 0 on", text)
	}
	*l = limit(n)
	return nil
}

func (g *growth) UnmarshalText(text []byte) error {
	rate, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(rate >= 0) || math.IsInf(rate, 0) {
		return fmt.Errorf("%q is not a growth: give sockets per minute, such as 0.5 or 60", text)
	}
	*g = growth(rate)
	return nil
}

// stateName is one state, as it is spelled in a flag.
type stateName tcp.State

// State is the state that is meant.
func (s stateName) State() tcp.State { return tcp.State(s) }

func (s *stateName) UnmarshalText(text []byte) error {
	state, err := tcp.ParseState(string(text))
	if err == nil && (state == tcp.Listen || state == tcp.Close) {
		err = fmt.Errorf("%s is no state that a connection can be stuck in", state)
	}
	*s = stateName(state)
	return err
}

// leakBy is what to group by.
type leakBy leak.LeakBy

func (b *leakBy) UnmarshalText(text []byte) error {
	by, err := leak.ParseLeakBy(string(text))
	*b = leakBy(by)
	return err
}

// replay looks at a recording as if it were the kernel, refresh by refresh of the
// time recorded.
func (w *leakWatch) replay() error {
	in, name := w.env.stdin, "standard input"
	if *w.cmd.Read != "-" {
		f, err := os.Open(*w.cmd.Read)
		if err != nil {
			return fmt.Errorf("cannot read the recording: %w", err)
		}
		defer f.Close()
		in, name = f, *w.cmd.Read
	}
	sockets := leak.NewReplay(w.cmd.State.State())
	now, err := w.playBack(recording.NewReader(in, name), sockets)
	if err != nil {
		return err
	}
	if n := sockets.Unplaced(); n > 0 {
		fmt.Fprintf(w.env.stderr, "tcptrace: %d sockets of the recording did not fit in memory and are left out\n", n)
	}
	if err := w.refresh(now, sockets.Rows); err != nil {
		return err
	}
	return w.conclude()
}

// playBack takes the events up to the end that was asked for, and returns the time of
// the last, of CLOCK_BOOTTIME in ns. On the way it refreshes in time.
func (w *leakWatch) playBack(events *recording.Reader, sockets *leak.Replay) (now uint64, err error) {
	interval := uint64(w.cmd.Interval)
	var first, next uint64
	var e tcp.Event
	for {
		err := events.Read(&e)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if first == 0 {
			first, now, next = e.BootNS, e.BootNS, e.BootNS+interval
			w.view = w.newView(first)
		}
		if err == io.EOF || w.cmd.Duration != 0 && e.BootNS > first+uint64(w.cmd.Duration) {
			return now, nil
		}
		if e.BootNS > next+maxReplayedRefreshes*interval { // a silence of hours: nothing changed
			next += (e.BootNS - next) / interval * interval
		}
		for ; e.BootNS >= next; next += interval {
			if err := w.refresh(next, sockets.Rows); err != nil {
				return 0, err
			}
		}
		now = max(now, e.BootNS)
		sockets.Event(&e)
		w.event(&e)
	}
}

// maxReplayedRefreshes is how many refreshes of a silence are played back.
const maxReplayedRefreshes = 100

// refresh looks at all sockets anew and shows them, unless it is to be quiet.
func (w *leakWatch) refresh(now uint64, rows func(uint64, func(*tcp.Event) error) error) error {
	w.view.begin(now)
	if err := rows(now, w.row); err != nil {
		return err
	}
	w.view.end()
	if w.cmd.quiet() {
		return nil
	}
	return w.show()
}

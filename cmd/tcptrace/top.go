package main

import (
	"io"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
	"github.com/tcptrace/tcptrace/internal/top"
)

// topCmd shows groups of sockets on a screen.
type topCmd struct {
	By       statsBy   `default:"comm" placeholder:"WHAT" group:"Output" help:"Group sockets by comm (the default), host, pid, unit, container, remote, lport, netns, cgroup, pod, namespace or image; the key g changes it."`
	Interval *duration `placeholder:"TIME" group:"Output" help:"Time from one look to the next; default 1s on a screen."`

	Stacks bool `group:"Output" help:"Name the code that opened sockets that leak, by their stacks at connect() and accept()."`

	followFlags  `embed:"" group:"Filters (of sockets)"`
	tracingFlags `embed:""`
}

// maxTopEnds is how many sockets can be looked at one by one. The others are only counted.
const maxTopEnds = 1 << 15

// topInterval is the time from one look to the next.
const topInterval = time.Second

// topRun is one run of the command.
type topRun struct {
	cmd       *topCmd
	env       *env
	desk      *top.Desk
	player    *top.Player // nil: the kernel, or nobody watches a recording
	screen    *topScreen  // nil: none
	interval  time.Duration
	repeats   bool // without a screen, a report comes at each interval
	any       bool // one was printed
	collector *top.Collector
}

// Run shows groups until the source ends or the user has enough.
func (c *topCmd) Run(e *env) error {
	r := &topRun{cmd: c, env: e, desk: top.NewDesk(top.Request{Kind: top.Groups, By: stats.By(c.By)}), interval: topInterval}
	r.repeats = c.Interval != nil || c.Read == nil && terminal.IsTerminal(e.stdout.File())
	if c.Interval != nil {
		r.interval = time.Duration(*c.Interval)
	}
	interval := r.interval
	if hasScreen(e.stdout.File()) {
		interval = min(interval, top.Wake)
	}
	return c.run(e, &c.followFlags, view{
		interval: interval,
		tracked:  true,
		stacks:   c.Stacks,
		open:     r.open,
		paced:    r.paced,
		ended:    r.close,
		missing: func() []string {
			return counted(r.collector.Forgotten(), "%d sockets not followed from start to end (raise --max-sockets)")
		},
	})
}

// open takes over the terminal, if there is one.
func (r *topRun) open(source pipeline.Source, offset int64) (pipeline.Consumer, error) {
	config := top.Config{
		Desk: r.desk, Now: source.Now, Interval: r.interval, Max: r.cmd.followed(), MaxEnds: min(maxTopEnds, r.cmd.followed()), Offset: offset,
		Keep: r.cmd.Read != nil, ASCII: !speaksUTF8(), Styled: isStyled(r.env.stdout.File()), Last: r.last,
	}
	var err error
	if config.Leaks, err = r.leaks(source); err != nil {
		return nil, err
	}
	if hasScreen(r.env.stdout.File()) {
		stop := source.Stop
		if r.cmd.Read != nil {
			r.player = top.NewPlayer(source, r.desk.Asked())
			config.Now, stop = r.player.Now, r.player.Stop
		}
		r.screen = openTopScreen(r.env, r.desk, r.options(), stop)
	} else {
		config.Report = r.report
	}
	r.collector = top.NewCollector(config)
	return r.collector, nil
}

// options say how the view looks.
func (r *topRun) options() top.Options {
	return top.Options{
		By: stats.By(r.cmd.By), ASCII: !speaksUTF8(), Styled: isStyled(r.env.stdout.File()), Ask: r.desk.Ask, Player: r.player,
	}
}

// paced plays a recording that is watched.
func (r *topRun) paced(source pipeline.Source) pipeline.Source {
	if r.player == nil {
		return source
	}
	return r.player
}

// leaks says which sockets may leak: those that leaks looks at without flags.
func (r *topRun) leaks(source pipeline.Source) (leak.Config, error) {
	filter, err := r.cmd.selectFlags.filter()
	config := leak.Config{Rule: leak.DefaultRule(r.cmd.Read != nil), Filter: filter, Detailed: top.MaxLeaks, Existing: source.Existing}
	switch source := source.(type) {
	case recorded:
		source.Track(append(slices.Clone(config.Rule.States), tcp.Listen)...)
	case kernel:
		config.Facts = leakFacts(source.Probe, "/proc", source.stacks)
		config.Existing = completeKernel{source}.Existing
	}
	return config, err
}

// allColumns is a width at which every column has room, for what is not a terminal.
const allColumns = 400

// report prints what was found, where there is no screen.
func (r *topRun) report(s *top.Snapshot) error {
	if !r.repeats {
		return nil
	}
	return r.print(s, false)
}

func (r *topRun) print(s *top.Snapshot, totals bool) error {
	width := allColumns
	if terminal.IsTerminal(r.env.stdout.File()) {
		width, _ = terminal.Size(r.env.stdout.File())
	}
	text := top.Report(r.options(), s, width, totals)
	if r.any {
		text = "\n" + text
	}
	r.any = true
	_, err := io.WriteString(r.env.stdout, text)
	return err
}

// last leaves a report on the terminal: of what the screen showed or, where there was none, of
// all that happened.
func (r *topRun) last(s *top.Snapshot) error {
	if r.screen == nil {
		return r.print(s, true)
	}
	return r.screen.leave(s, r.env.stdout)
}

// close gives the terminal back. It can be called again.
func (r *topRun) close() { r.screen.release() }

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// leaksCmd finds sockets that sit in a state, and says why.
type leaksCmd struct {
	State     stuckStates `placeholder:"STATE,..." group:"What to look for" help:"The states to look at; default close-wait,close: CLOSE as long as a process holds the descriptor."`
	OlderThan duration    `default:"${olderThan}" placeholder:"TIME" group:"What to look for" help:"Sockets that are in it for so long; default ${default}."`
	By        *leakBy     `placeholder:"WHAT" group:"What to look for" help:"Group by owner (process and remote end, the default), pid, comm, container, remote, lport or stack."`

	Once     bool     `group:"Output" help:"One report; with -d after that time."`
	Output   format   `short:"o" group:"Output" placeholder:"FORMAT" help:"${formats}; default ${format}."`
	JSON     bool     `short:"j" group:"Output" help:"JSON, one object per group and refresh; -o json."`
	CSV      bool     `short:"s" name:"csv" group:"Output" help:"CSV, one record per group and refresh; -o csv."`
	Time     bool     `short:"T" group:"Output" help:"Time of day; JSON has it always."`
	Top      count    `default:"20" placeholder:"COUNT" group:"Output" help:"Groups to print, the worst first; default 20. JSON and CSV have all."`
	Interval duration `default:"2s" placeholder:"TIME" group:"Output" help:"Time from one refresh to the next; default 2s."`
	Stacks   bool     `default:"true" negatable:"" group:"Output" help:"Where in the code the sockets were opened; the default."`
	Duration duration `short:"d" placeholder:"TIME" group:"Output" help:"Watch for this time: 30s, 5m."`
	Read     []string `short:"r" sep:"none" placeholder:"FILE" group:"Output" help:"Look at a recording (JSON of tcptrace -j) instead of the kernel; - is standard input."`

	recordFlags `embed:"" group:"Recording"`

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

// Run looks once or watches, at the kernel or at a recording.
func (c *leaksCmd) Run(e *env) error {
	if c.Read == nil {
		c.idsFirst(e)
	}
	filter, err := c.selectFlags.filter()
	if err == nil {
		err = c.consistent()
	}
	if err == nil {
		err = c.recordFlags.check()
	}
	if err != nil {
		return err
	}
	if c.Read != nil {
		return c.replay(e, filter)
	}
	return c.live(e, filter)
}

// consistent returns a usageError for flags that make no sense together.
func (c *leaksCmd) consistent() error {
	timeWait := slices.Contains(c.State, tcp.TimeWait)
	format, err := c.format()
	if err != nil {
		return err
	}
	for _, bad := range []struct {
		is  bool
		why string
	}{
		{(c.Yes || c.DryRun) && !c.Kill, "--yes and --dry-run are for --kill"},
		{(c.MaxCount != nil || c.MaxGrowth != nil) && !c.Check, "--max-count and --max-growth are for --check"},
		{c.Kill && c.Check, "--kill and --check cannot be combined: check first, then kill"},
		{c.Kill && c.Read != nil, "--kill cannot close the sockets of a recording"},
		{c.Kill && format.name != "columns", fmt.Sprintf("--kill does not print %s", format.name)},
		{c.Check && format.name != "columns", fmt.Sprintf("--check does not print %s: use --once -o %[1]s for that", format.name)},
		{c.Kill && timeWait, "--kill is not for TIME_WAIT: these sockets go by themselves after a minute"},
		{timeWait && c.By != nil, "--by is not for TIME_WAIT: these are grouped by destination"},
		{timeWait && len(c.State) > 1, "--state time-wait is looked at alone: its groups are destinations"},
		{c.Read != nil && slices.Equal(c.State, stuckStates{tcp.Close}), "--state close needs the kernel: a recording does not say when a descriptor is closed"},
	} {
		if bad.is {
			return usageError{errors.New(bad.why)}
		}
	}
	return nil
}

// format returns the one format that was asked for, or a usageError.
func (c *leaksCmd) format() (format, error) {
	return (&formatFlags{JSON: c.JSON, CSV: c.CSV}).format(c.Output)
}

// atEnd reports whether nothing is printed before the end.
func (c *leaksCmd) atEnd() bool { return c.Once || c.Check || c.Kill }

// rule is what the flags say about which sockets count.
func (c *leaksCmd) rule() leak.Rule {
	rule := leak.DefaultRule(c.Read != nil)
	rule.OlderThan = uint64(c.OlderThan)
	if c.By != nil {
		rule.By = leak.By(*c.By)
	}
	if c.State != nil {
		rule.States = c.State
	}
	return rule
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

// stuckStates are states that a connection can be stuck in.
type stuckStates []tcp.State

func (l *stuckStates) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		state, err := tcp.ParseState(s)
		if err == nil && state == tcp.Listen {
			err = errors.New("a connection is never in LISTEN: give another state, such as close-wait")
		}
		if err == nil && !slices.Contains(*l, state) {
			*l = append(*l, state)
		}
		return err
	})
}

// leakBy is what to group by.
type leakBy leak.By

func (b *leakBy) UnmarshalText(text []byte) error {
	by, err := parseGroup(text, leak.Bys)
	*b = leakBy(by)
	return err
}

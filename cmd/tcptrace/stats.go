package main

import (
	"cmp"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// statsCmd counts states, edges and connections.
type statsCmd struct {
	By       statsBy   `default:"comm" placeholder:"WHAT" group:"Output" help:"Group connections by comm (the default), host, pid, unit, container, remote, lport, netns or cgroup."`
	Output   string    `short:"o" group:"Output" enum:"columns,json" default:"columns" placeholder:"FORMAT" help:"columns or json; default ${default}."`
	JSON     bool      `short:"j" group:"Output" help:"-o json: one object per report, with the buckets of the distributions."`
	Wide     bool      `short:"w" group:"Output" help:"Lines of 120 characters where the terminal does not say."`
	Time     bool      `short:"T" group:"Output" help:"Time of day; JSON has it always."`
	Top      count     `default:"10" placeholder:"COUNT" group:"Output" help:"Groups to print, those with most connections first; default 10. JSON has all."`
	Interval *duration `placeholder:"TIME" group:"Output" help:"Time from one report to the next; default 2s on a terminal, elsewhere one report at the end."`

	followFlags  `embed:"" group:"Filters (of sockets)"`
	tracingFlags `embed:""`
}

// statsBy is what to group by.
type statsBy stats.By

func (b *statsBy) UnmarshalText(text []byte) error {
	by, err := stats.ParseBy(string(text))
	*b = statsBy(by)
	return err
}

// Words are what one can group by.
func (*statsBy) Words() (words []string) {
	for _, by := range stats.Bys {
		words = append(words, string(by))
	}
	return words
}

// statsInterval is how often a screen shows a new report.
const statsInterval = 2 * time.Second

// Run counts until the source ends or the user has enough.
func (c *statsCmd) Run(e *env) error {
	interval := time.Duration(0)
	if c.Interval != nil {
		interval = time.Duration(*c.Interval)
	}
	show := &statsShow{cmd: c, env: e}
	columns := !c.JSON && c.Output == "columns"
	if columns && c.Read == nil && interval == 0 && terminal.IsTerminal(e.stdout.File()) {
		interval = statsInterval
	}
	return c.run(e, &c.followFlags, view{
		interval: interval,
		open: func(source pipeline.Source, offset int64) (pipeline.Consumer, error) {
			if columns && c.Read == nil {
				screen, err := openScreen(e, source.Stop)
				if err != nil {
					return nil, err
				}
				show.screen = screen
			}
			return stats.NewTally(stats.Config{
				By: stats.By(c.By), Max: c.followed(), Interval: uint64(interval), Show: show.report, Offset: offset,
			}), nil
		},
		ended: show.close,
	})
}

// statsShow shows reports: on a screen, and the last one in its place when that is closed; or
// one after the other.
type statsShow struct {
	cmd    *statsCmd
	env    *env
	screen *liveScreen // nil: none
	any    bool        // a report was printed
}

func (s *statsShow) report(r *stats.Report) error {
	if s.screen != nil && !r.Last {
		var b strings.Builder
		width, _ := s.screen.screen.Size()
		if err := output.NewStats(&b, s.options(width)).Write(r); err != nil {
			return err
		}
		return s.screen.show(b.String())
	}
	s.close()
	return s.print(r)
}

func (s *statsShow) close() {
	if s.screen != nil {
		s.screen.close()
	}
}

func (s *statsShow) print(r *stats.Report) error {
	if s.cmd.JSON || s.cmd.Output == "json" {
		return output.NewStatsJSON(s.env.stdout).Write(r)
	}
	if s.any {
		if _, err := io.WriteString(s.env.stdout, "\n"); err != nil {
			return err
		}
	}
	s.any = true
	width, _ := terminal.Size(s.env.stdout.File())
	if s.cmd.Wide {
		width = wideLine
	}
	return output.NewStats(s.env.stdout, s.options(width)).Write(r)
}

// The widths of lines.
const narrowLine, wideLine = 80, 120

func (s *statsShow) options(width int) output.StatsOptions {
	return output.StatsOptions{Time: s.cmd.Time, Top: int(s.cmd.Top), Width: max(width, narrowLine), ASCII: !speaksUTF8()}
}

// speaksUTF8 reports whether the locale has more characters than those of ASCII, see
// setlocale(3).
func speaksUTF8() bool {
	locale := strings.ToUpper(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")))
	return strings.HasSuffix(locale, "UTF-8") || strings.HasSuffix(locale, "UTF8")
}

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// statsCmd counts states, edges and connections.
type statsCmd struct {
	By       statsBy   `default:"comm" placeholder:"WHAT" group:"Output" help:"Group connections by comm (the default), host, pid, unit, container, remote, lport, netns, cgroup, pod, namespace or image."`
	Output   string    `short:"o" group:"Output" enum:"columns,json" default:"columns" placeholder:"FORMAT" help:"columns or json; default ${default}."`
	JSON     bool      `short:"j" group:"Output" help:"-o json: one object per report, with the buckets of the distributions."`
	Wide     bool      `short:"w" group:"Output" help:"Lines of 120 characters where the terminal does not say."`
	Time     bool      `short:"T" group:"Output" help:"Time of day; JSON has it always."`
	Top      count     `default:"10" placeholder:"COUNT" group:"Output" help:"Groups to print, those with most connections first; default 10. JSON has all."`
	Diagram  bool      `group:"Output" help:"Draw the state diagram of TCP with counts, 80x40, instead of the tables."`
	SVG      *string   `name:"svg" placeholder:"FILE" group:"Output" help:"At the end, also write the diagram to this file as a picture."`
	Role     pathRole  `placeholder:"ROLE" group:"Output" help:"Draw the path of a client or a server alone."`
	Interval *duration `placeholder:"TIME" group:"Output" help:"Time from one report to the next; default 2s on a terminal, elsewhere one report at the end."`

	followFlags  `embed:"" group:"Filters (of sockets)"`
	tracingFlags `embed:""`
}

// statsBy is what to group by.
type statsBy stats.By

func (b *statsBy) UnmarshalText(text []byte) error {
	by, err := parseGroup(text, stats.Bys)
	*b = statsBy(by)
	return err
}

// Words are what one can group by.
func (*statsBy) Words() []string { return wordsIn(stats.Bys) }

// pathRole is a role that has a path in the diagram, or none.
type pathRole tcp.Role

func (r *pathRole) UnmarshalText(text []byte) error {
	if !slices.Contains(r.Words(), string(text)) {
		return fmt.Errorf("unknown role %q: give %s", text, either(r.Words()))
	}
	*r = pathRole(text)
	return nil
}

// Words are the roles.
func (*pathRole) Words() []string { return []string{string(tcp.Client), string(tcp.Server)} }

// check returns a usageError for flags that make no sense together.
func (c *statsCmd) check() error {
	switch {
	case c.Diagram && !c.columns():
		return usageError{errors.New("cannot print the diagram as JSON: give either --diagram or JSON")}
	case c.Role != "" && !c.Diagram && c.SVG == nil:
		return usageError{errors.New("--role applies to the diagram: give --diagram or --svg as well, or select sockets with --where 'role == \"client\"'")}
	}
	return nil
}

func (c *statsCmd) columns() bool { return !c.JSON && c.Output == "columns" }

// statsInterval is how often a screen shows a new report.
const statsInterval = 2 * time.Second

// Run counts until the source ends or the user has enough.
func (c *statsCmd) Run(e *env) error {
	if err := c.check(); err != nil {
		return err
	}
	show := &statsShow{cmd: c, env: e, styled: isStyled(e.stdout.File())}
	picture, err := openPicture(c.SVG)
	if err != nil {
		return err
	}
	defer picture.Close() // nil has nothing to close
	show.picture = picture
	err = c.count(e, show)
	if picture != nil && !show.drawn {
		return withPicture(err, pictureError(errors.New("the run ended before its last report")))
	}
	return err
}

// count counts, and shows the reports.
func (c *statsCmd) count(e *env, show *statsShow) error {
	interval := time.Duration(0)
	if c.Interval != nil {
		interval = time.Duration(*c.Interval)
	}
	if c.columns() && c.Read == nil && interval == 0 && terminal.IsTerminal(e.stdout.File()) {
		interval = statsInterval
	}
	return c.run(e, &c.followFlags, view{
		interval: interval,
		open: func(source pipeline.Source, offset int64) (pipeline.Consumer, error) {
			if c.columns() && c.Read == nil {
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
// one after the other. The last one is also the picture.
type statsShow struct {
	cmd     *statsCmd
	env     *env
	screen  *liveScreen // nil: none
	picture *os.File    // nil: none
	styled  bool        // the terminal shows styles
	drawn   bool        // the picture was
	any     bool        // a report was printed
}

func (s *statsShow) report(r *stats.Report) error {
	if s.screen != nil && !r.Last {
		return s.onScreen(r)
	}
	s.close()
	var err error
	if s.picture != nil && r.Last { // first: stdout may be blocked
		err = s.draw(r)
	}
	return withPicture(s.print(r), err)
}

func (s *statsShow) onScreen(r *stats.Report) error {
	var b strings.Builder
	width, _ := s.screen.screen.Size()
	if err := s.writer(&b, width).Write(r); err != nil {
		return err
	}
	if s.cmd.Diagram {
		return s.screen.showStyled(b.String())
	}
	return s.screen.show(b.String())
}

func (s *statsShow) draw(r *stats.Report) error {
	s.drawn = true
	return pictureError(errors.Join(output.NewPicture(s.picture, tcp.Role(s.cmd.Role)).Write(r), s.picture.Close()))
}

func (s *statsShow) close() {
	if s.screen != nil {
		s.screen.close()
	}
}

func (s *statsShow) print(r *stats.Report) error {
	if !s.cmd.columns() {
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
	var to io.Writer = s.env.stdout
	if s.cmd.Diagram {
		to = s.env.stdout.File() // it has styles, and no text from outside
	}
	return s.writer(to, width).Write(r)
}

// statsWriter writes reports as text.
type statsWriter interface{ Write(*stats.Report) error }

// writer returns what writes text of this width.
func (s *statsShow) writer(to io.Writer, width int) statsWriter {
	if s.cmd.Diagram {
		return output.NewDiagram(to, output.DiagramOptions{
			Time: s.cmd.Time, Role: tcp.Role(s.cmd.Role), ASCII: !speaksUTF8(), Styled: s.styled,
		})
	}
	return output.NewStats(to, output.StatsOptions{
		Time: s.cmd.Time, Top: int(s.cmd.Top), Width: max(width, narrowLine), ASCII: !speaksUTF8(),
	})
}

// The widths of lines.
const narrowLine, wideLine = 80, 120

// isStyled reports whether f is a terminal that shows bold characters and colours, and is to
// (no-color.org).
func isStyled(f *os.File) bool {
	return hasScreen(f) && os.Getenv("NO_COLOR") == ""
}

// speaksUTF8 reports whether the locale has more characters than those of ASCII, see
// setlocale(3).
func speaksUTF8() bool {
	locale := strings.ToUpper(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")))
	return strings.HasSuffix(locale, "UTF-8") || strings.HasSuffix(locale, "UTF8")
}

package output

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// StatsOptions says how statistics are shown as text.
type StatsOptions struct {
	Time  bool // the time of day, HH:MM:SS
	Top   int  // so many groups
	Width int  // of a line, 80 or more
	ASCII bool // nothing else
}

// Stats writes statistics as text: a line about all, the states, the edges that were taken,
// the groups.
type Stats struct {
	w io.Writer
	o StatsOptions
}

// NewStats returns a writer of text to w.
func NewStats(w io.Writer, o StatsOptions) *Stats { return &Stats{w, o} }

// Write writes a report at once.
func (s *Stats) Write(r *stats.Report) error {
	_, err := s.w.Write(s.o.text(r))
	return err
}

func (o *StatsOptions) text(r *stats.Report) []byte {
	var b []byte
	if o.Time {
		b = append(append(b, timeOfDay(r.Time)...), ' ')
	}
	b = append(b, statsTitle(r)...)
	b = o.appendStates(append(b, "\n\n"...), r)
	b = o.appendEdges(append(b, '\n'), r)
	if r.By != stats.ByHost {
		b = o.appendGroups(append(b, '\n'), r)
	}
	return appendUncounted(b, r)
}

// statsTitle are two lines about all.
func statsTitle(r *stats.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\nConnections: %d opened", leak.Span(r.Watched), leak.Counted(int(r.Transitions), "transition"), r.Total.Opened)
	for _, ended := range outcomes(&r.Total) {
		if ended.n > 0 {
			fmt.Fprintf(&b, ", %d %s", ended.n, ended.what)
		}
	}
	fmt.Fprintf(&b, "; %d open", r.Total.Open)
	return b.String()
}

type counted struct {
	n    uint64
	what string
}

func outcomes(c *stats.Counts) []counted {
	return []counted{
		{c.Closed, string(tcp.Closed)}, {c.Reset, string(tcp.Reset)}, {c.Failed, string(tcp.Failed)},
		{c.Broken, string(tcp.Broken)}, {c.Unknown, "ended unknown"},
	}
}

// appendStates appends a line for each state that something was in.
func (o *StatsOptions) appendStates(b []byte, r *stats.Report) []byte {
	columns := o.stateColumns()
	b = columns.appendHeader(b)
	for i := range r.States {
		s := &r.States[i]
		if s.Now == 0 && s.Entered == 0 && s.Exact.Count+s.AtLeast.Count+s.Unknown == 0 {
			continue
		}
		b = appendNotes(columns.appendLine(b, s), inexact(s))
	}
	return b
}

func (o *StatsOptions) stateColumns() table[stats.State] {
	at := func(q float64) func([]byte, *stats.State) []byte {
		return func(b []byte, s *stats.State) []byte {
			if s.Exact.Count == 0 {
				return b
			}
			return appendShort(b, s.Exact.Quantile(q))
		}
	}
	return table[stats.State]{
		{name: "state", width: 11, text: func(s *stats.State) (string, bool) { return s.State.String(), true }},
		{name: "now", width: 6, right: true, number: func(s *stats.State) (uint64, bool) { return uint64(s.Now), s.NowKnown }},
		{name: "count", width: 8, right: true, number: func(s *stats.State) (uint64, bool) { return s.Exact.Count, true }},
		{name: "min", width: 7, right: true, append: at(0)},
		{name: "p50", width: 7, right: true, append: at(0.5)},
		{name: "p90", width: 7, right: true, append: at(0.9)},
		{name: "p99", width: 7, right: true, append: at(0.99)},
		{name: "max", width: 7, right: true, append: at(1)},
		{name: o.scale(), append: func(b []byte, s *stats.State) []byte { return o.appendShape(b, s.Exact) }},
	}
}

// inexact says how many times are in no distribution, and what is known of them.
func inexact(s *stats.State) (notes []string) {
	if n := s.AtLeast.Count; n > 0 {
		bound := string(appendShort(nil, s.AtLeast.Min))
		if longest := string(appendShort(nil, s.AtLeast.Max)); longest != bound {
			bound += " to " + longest
		}
		notes = append(notes, fmt.Sprintf("%d more for at least %s: older than the trace", n, bound))
	}
	if s.Unknown > 0 {
		notes = append(notes, fmt.Sprintf("%d more for a time that is not known", s.Unknown))
	}
	return notes
}

// parts is in how many parts a decade of the histogram is divided.
func (o *StatsOptions) parts() int {
	if o.Width >= 120 {
		return 4
	}
	return 1
}

// scale is the title of the histogram: where 1 µs, 1 ms, 1 s and 1000 s are.
func (o *StatsOptions) scale() string {
	fill := strings.Repeat(" ", 3*o.parts()-2)
	return "us" + fill + "ms" + fill + "s " + fill + "ks"
}

// The heights of a bar.
var (
	blocks     = []rune(" ▁▂▃▄▅▆▇█")
	asciiBlock = []rune(" .:-=+*#@")
)

// appendShape draws a histogram: each bar in proportion to the highest.
func (o *StatsOptions) appendShape(b []byte, h *stats.Histogram) []byte {
	if h.Count == 0 {
		return b
	}
	heights := blocks
	if o.ASCII {
		heights = asciiBlock
	}
	counts := h.Shape(o.parts())
	highest, steps := slices.Max(counts), uint64(len(heights)-1)
	end := len(b)
	for _, n := range counts {
		b = utf8.AppendRune(b, heights[(n*steps+highest-1)/highest])
		if n > 0 {
			end = len(b)
		}
	}
	return b[:end]
}

// appendShort appends a time in ns in seven characters at most: 850ns, 12.3us, 1.23ms, 4m05s.
func appendShort(b []byte, ns uint64) []byte {
	if ns >= 60e9 {
		return append(b, leak.Span(ns)...)
	}
	unit, scale := "ns", 0
	for _, u := range []struct {
		unit  string
		scale int
	}{{"us", 3}, {"ms", 6}, {"s", 9}} {
		if ns >= pow10[u.scale] {
			unit, scale = u.unit, u.scale
		}
	}
	return append(appendDigits3(b, ns, scale), unit...)
}

// appendDigits3 appends n / 10^scale with the three digits that say something, or all that are
// before the point.
func appendDigits3(b []byte, n uint64, scale int) []byte {
	digits := 0
	for whole := n / pow10[scale]; scale > 0 && whole < 100 && digits < 2; whole = whole*10 + 1 {
		digits++
	}
	if digits == 0 {
		return strconv.AppendUint(b, n/pow10[scale], 10)
	}
	return appendFixed(b, n, scale, digits)
}

// appendEdges appends a line for each edge that was taken.
func (o *StatsOptions) appendEdges(b []byte, r *stats.Report) []byte {
	columns := table[stats.Edge]{
		{name: "edge", width: 26, append: func(b []byte, e *stats.Edge) []byte {
			return append(append(append(b, e.From.String()...), " > "...), e.To.String()...)
		}},
		{name: "count", width: 9, right: true, number: func(e *stats.Edge) (uint64, bool) { return e.Count, true }},
		{name: "per_s", width: 9, right: true, append: func(b []byte, e *stats.Edge) []byte {
			perSecond, known := e.PerSecond(r.Watched)
			if !known {
				return b
			}
			return strconv.AppendFloat(b, perSecond, 'f', 2, 64)
		}},
		{name: "reasons", append: func(b []byte, e *stats.Edge) []byte { return appendReasons(b, e, o.Width-47) }},
	}
	b = columns.appendHeader(b)
	for i := range r.Edges {
		if r.Edges[i].Count > 0 {
			b = columns.appendLine(b, &r.Edges[i])
		}
	}
	return b
}

// appendReasons appends as many reasons as there is room for, the most frequent first.
func appendReasons(b []byte, e *stats.Edge, room int) []byte {
	start := len(b)
	if !e.Legal {
		b = append(b, "not an edge of the diagram: "...)
	}
	for i, why := range e.Reasons {
		name := string(why.Reason)
		if name == "" {
			name = "?"
		}
		before := len(b)
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendUint(append(append(b, name...), ' '), why.Count, 10)
		if i > 0 && len(b)-start > room-len(", ...") && (i < len(e.Reasons)-1 || len(b)-start > room) {
			return append(b[:before], ", ..."...)
		}
	}
	return b
}

// appendGroups appends a line for each group, those with most connections first.
func (o *StatsOptions) appendGroups(b []byte, r *stats.Report) []byte {
	columns := o.groupColumns(r.By)
	b = columns.appendHeader(b)
	for i := range r.Groups {
		if i == o.Top {
			return fmt.Appendf(b, "and %s; --top shows more\n", leak.Counted(len(r.Groups)-i, "more group"))
		}
		b = columns.appendLine(b, &r.Groups[i])
	}
	return b
}

func (o *StatsOptions) groupColumns(by stats.By) table[stats.Group] {
	name := func(g *stats.Group) (string, bool) {
		if g.Comm != "" {
			return g.Name + " " + g.Comm, true
		}
		return known(g.Name)
	}
	count := func(name string, of func(*stats.Counts) uint64) column[stats.Group] {
		return column[stats.Group]{name: name, width: 7, right: true, number: func(g *stats.Group) (uint64, bool) { return of(&g.Counts), true }}
	}
	return table[stats.Group]{
		{name: string(by), width: o.Width - 57, text: name},
		count("opened", func(c *stats.Counts) uint64 { return c.Opened }),
		count("closed", func(c *stats.Counts) uint64 { return c.Closed }),
		count("reset", func(c *stats.Counts) uint64 { return c.Reset }),
		count("failed", func(c *stats.Counts) uint64 { return c.Failed }),
		count("broken", func(c *stats.Counts) uint64 { return c.Broken }),
		count("unknown", func(c *stats.Counts) uint64 { return c.Unknown }),
		count("open", func(c *stats.Counts) uint64 { return uint64(c.Open) }),
	}
}

// appendUncounted says what the figures do not hold.
func appendUncounted(b []byte, r *stats.Report) []byte {
	if slices.ContainsFunc(r.Groups, func(g stats.Group) bool { return g.Other }) {
		b = fmt.Appendf(b, "%s: there are more than %d groups\n", stats.OtherGroup, stats.MaxGroups)
	}
	if r.Lost > 0 {
		b = fmt.Appendf(b, "%s lost: all counts may be too low, and what is there now too high\n", leak.Counted(int(r.Lost), "event"))
	}
	if r.Forgotten > 0 {
		b = fmt.Appendf(b, "%s not followed: what is there now is too low (raise --max-sockets)\n", leak.Counted(int(r.Forgotten), "socket"))
	}
	if r.Unended > 0 {
		b = fmt.Appendf(b, "%s ended unseen: counted in no edge\n", leak.Counted(int(r.Unended), "socket"))
	}
	return b
}

// StatsJSON writes one object per report, one a line.
type StatsJSON struct{ w io.Writer }

// NewStatsJSON returns a writer of JSON to w.
func NewStatsJSON(w io.Writer) *StatsJSON { return &StatsJSON{w} }

// Write writes a report at once.
func (j *StatsJSON) Write(r *stats.Report) error {
	encoder := json.NewEncoder(j.w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(newStatsObject(r))
}

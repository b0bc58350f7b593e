package output

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// SocketsOptions says how sockets are shown as text.
type SocketsOptions struct {
	Options
	Title bool // begin with a line about all
	Width int  // of a line of the terminal; 0: it is as long as it gets
	Lines int  // of the screen; 0: as many as there are
}

// Sockets writes a table of sockets, each column as wide as its cells, and below it what is
// in TIME_WAIT without a row.
type Sockets struct {
	buffer
	o     SocketsOptions
	all   table[tcp.Event]
	table table[tcp.Event] // of the look that is being written; nil: it has not begun
	left  []string         // columns that there was no room for
}

// NewSockets returns a writer of text to w.
func NewSockets(w io.Writer, o SocketsOptions) *Sockets {
	names := strings.Fields(inventoryLayout)
	if o.Extended {
		names = append(names, strings.Fields(socketsMore)...)
	}
	return &Sockets{buffer: newBuffer(w), o: o, all: newFormatter(o.Options, 3, ">=").events().choose(names)}
}

// Write writes a report at once. Where the sockets of a look come in several reports, the first
// one tells how wide the columns are.
func (s *Sockets) Write(r *stats.InventoryReport) error {
	waits := s.o.shownWaits(r)
	rows := r.Rows[:s.o.shownRows(r, waits)]
	if s.table == nil {
		s.begin(r, rows)
	}
	for _, row := range rows {
		if err := s.keep(s.table.appendLine(s.lines, row)); err != nil {
			return err
		}
	}
	if n := len(r.Rows) - len(rows) + int(r.Hidden); n > 0 {
		s.lines = fmt.Appendf(s.lines, "and %s\n", leak.Counted(n, "more socket"))
	}
	if !r.More {
		s.lines = appendTimeWaits(s.appendLeft(s.lines), r, waits)
		s.table = nil
	}
	return s.Flush()
}

// maxWaits is how many groups of TIME_WAIT are shown.
const maxWaits = 10

// shownWaits is how many groups of TIME_WAIT there is room for.
func (o *SocketsOptions) shownWaits(r *stats.InventoryReport) int {
	most := maxWaits
	if o.Lines > 0 {
		most = min(most, max(1, o.Lines/4))
	}
	return min(most, len(r.TimeWaits))
}

// shownRows is how many sockets there is room for, beside groups of TIME_WAIT.
func (o *SocketsOptions) shownRows(r *stats.InventoryReport, waits int) int {
	if o.Lines == 0 {
		return len(r.Rows)
	}
	const titleHeaderMoreLeft, emptyHeaderMoreHint = 4, 4
	room := o.Lines - titleHeaderMoreLeft
	if waits > 0 {
		room -= waits + emptyHeaderMoreHint
	}
	return min(max(1, room), len(r.Rows))
}

// begin writes what is above the rows.
func (s *Sockets) begin(r *stats.InventoryReport, rows []*tcp.Event) {
	s.table = s.all.asNeeded()
	var scratch []byte
	for _, row := range rows {
		scratch = s.table.widen(scratch, row)
	}
	s.left = nil
	if s.o.Width > 0 && !s.o.Wide && !s.o.Extended {
		s.leaveOut(rows)
	}
	if s.o.Title {
		s.lines = append(append(s.lines, socketsTitle(r.Time, &r.Total)...), '\n')
	}
	s.lines = s.table.appendHeader(s.lines)
}

// leaveOut takes columns away until the lines fit, if they do then.
func (s *Sockets) leaveOut(rows []*tcp.Event) {
	last := &s.table[len(s.table)-1]
	owners := len(last.name)
	for _, row := range rows {
		owners = max(owners, len(last.append(nil, row)))
	}
	for _, name := range []string{"netns", "drops", "tx_queue", "rx_queue"} {
		if s.table.wide()+owners <= s.o.Width {
			return
		}
		i := slices.IndexFunc(s.table, func(c column[tcp.Event]) bool { return c.name == name })
		s.table = slices.Delete(s.table, i, i+1)
		s.left = append(s.left, strings.ToUpper(name))
	}
}

// wide is how many characters come before the last column.
func (t table[T]) wide() (n int) {
	for _, c := range t[:len(t)-1] {
		n += c.width + 1
	}
	return n
}

func (s *Sockets) appendLeft(b []byte) []byte {
	if s.left == nil {
		return b
	}
	return fmt.Appendf(b, "# no room on the terminal for %s: -w has all columns\n", strings.Join(s.left, ", "))
}

// socketsTitle is a line about all: the time, and how many sockets are in which state.
func socketsTitle(wall int64, total *stats.SocketCounts) string {
	var b strings.Builder
	b.WriteString(timeOfDay(wall) + "  " + leak.Counted(int(total.Total), "socket"))
	before := ": "
	for _, state := range stats.StateOrder {
		if n := total.States[state]; n > 0 {
			fmt.Fprintf(&b, "%s%d %s", before, n, state)
			before = ", "
		}
	}
	return b.String()
}

// timeWaitColumns are those of a group: of a client, the local ports differ.
func timeWaitColumns() table[stats.TimeWaitGroup] {
	return table[stats.TimeWaitGroup]{
		{name: "time_wait", right: true, number: func(g *stats.TimeWaitGroup) (uint64, bool) { return g.Count, true }},
		{name: "local", append: func(b []byte, g *stats.TimeWaitGroup) []byte { return endpoint(b, g.Local) }},
		{name: "remote", append: func(b []byte, g *stats.TimeWaitGroup) []byte {
			if g.Remote == (netip.AddrPort{}) {
				return append(b, '*')
			}
			return endpoint(b, g.Remote)
		}},
		{name: "oldest", append: func(b []byte, g *stats.TimeWaitGroup) []byte {
			if g.Oldest == 0 {
				return b
			}
			return append(append(b, ">="...), leak.Span(g.Oldest)...)
		}},
		{name: "netns", number: func(g *stats.TimeWaitGroup) (uint64, bool) { return uint64(g.NetNS), g.NetNS != 0 }},
	}.asNeeded()
}

// appendTimeWaits appends a table of its own, of the first groups.
func appendTimeWaits(b []byte, r *stats.InventoryReport, first int) []byte {
	if first == 0 {
		return b
	}
	shown := r.TimeWaits[:first]
	columns := timeWaitColumns()
	var scratch []byte
	for i := range shown {
		scratch = columns.widen(scratch, &shown[i])
	}
	b = columns.appendHeader(append(b, '\n'))
	for i := range shown {
		b = columns.appendLine(b, &shown[i])
	}
	rest := r.TimeWaitsRest
	for _, g := range r.TimeWaits[len(shown):] {
		rest += g.Count
	}
	if rest > 0 {
		b = fmt.Appendf(b, "and %d more, to other remote ends or of other ports\n", rest)
	}
	return append(b, "-a lists each; 'tcptrace leaks --state time-wait' says what ports are left\n"...)
}

// SocketSummary writes how many sockets of each group are in each state.
type SocketSummary struct {
	w io.Writer
	o SocketsOptions
}

// NewSocketSummary returns a writer of text to w.
func NewSocketSummary(w io.Writer, o SocketsOptions) *SocketSummary { return &SocketSummary{w, o} }

// Write writes a report at once. States that no socket is in have no column.
func (s *SocketSummary) Write(r *stats.SocketReport) error {
	var b, scratch []byte
	if s.o.Title {
		b = append(append(b, socketsTitle(r.Time, &r.Total)...), '\n')
	}
	columns := append(countColumns(&r.Total), nameColumns(r.By)...).asNeeded()
	groups := r.Groups
	if s.o.Lines > 0 {
		const titleHeaderMore = 3
		groups = groups[:min(len(groups), max(1, s.o.Lines-titleHeaderMore))]
	}
	for i := range groups {
		scratch = columns.widen(scratch, &groups[i])
	}
	b = columns.appendHeader(b)
	for i := range groups {
		b = columns.appendLine(b, &groups[i])
	}
	if n := len(r.Groups) - len(groups); n > 0 {
		b = fmt.Appendf(b, "and %s\n", leak.Counted(n, "more group"))
	}
	_, err := s.w.Write(b)
	return err
}

// nameColumns say which group it is.
func nameColumns(by stats.By) table[stats.SocketGroup] {
	columns := table[stats.SocketGroup]{{name: string(by), text: func(g *stats.SocketGroup) (string, bool) { return known(g.Name) }}}
	if by == stats.ByPID {
		columns = append(columns, column[stats.SocketGroup]{name: "comm", text: func(g *stats.SocketGroup) (string, bool) { return known(g.Comm) }})
	}
	return columns
}

// countColumns are the states that sockets are in; all of them with nil.
func countColumns(total *stats.SocketCounts) table[stats.SocketGroup] {
	columns := table[stats.SocketGroup]{
		{name: "sockets", right: true, number: func(g *stats.SocketGroup) (uint64, bool) { return g.Total, true }},
	}
	for _, state := range stats.StateOrder {
		if total == nil || total.States[state] > 0 {
			columns = append(columns, column[stats.SocketGroup]{
				name: strings.ToLower(state.String()), right: true,
				number: func(g *stats.SocketGroup) (uint64, bool) { return g.States[state], true },
			})
		}
	}
	return columns
}

// SocketSummaryCSV writes a record for each group, with the time of its report.
type SocketSummaryCSV struct {
	w     io.Writer
	begun bool
}

// NewSocketSummaryCSV returns a writer of CSV to w.
func NewSocketSummaryCSV(w io.Writer) *SocketSummaryCSV { return &SocketSummaryCSV{w: w} }

// Write writes a report at once.
func (c *SocketSummaryCSV) Write(r *stats.SocketReport) error {
	var b []byte
	columns := slices.Concat(table[stats.SocketGroup]{
		{name: "time", append: func(b []byte, _ *stats.SocketGroup) []byte { return append(b, rfc3339(r.Time)...) }},
	}, nameColumns(r.By), countColumns(nil))
	if !c.begun {
		c.begun = true
		b = columns.appendCSVHeader(b)
	}
	for i := range r.Groups {
		b = columns.appendRecord(b, &r.Groups[i])
	}
	_, err := c.w.Write(b)
	return err
}

// SocketSummaryJSON writes one object per report, one a line.
type SocketSummaryJSON struct{ w io.Writer }

// NewSocketSummaryJSON returns a writer of JSON to w.
func NewSocketSummaryJSON(w io.Writer) *SocketSummaryJSON { return &SocketSummaryJSON{w} }

type socketSummaryObject struct {
	V      int      `json:"v"`
	Type   string   `json:"type"`
	Time   string   `json:"time"`
	BootNS string   `json:"boot_ns"`
	By     stats.By `json:"by"`
	socketCountsObject
	Groups []socketGroupObject `json:"groups"`
}

type socketGroupObject struct {
	Name  Text `json:"name,omitempty"`
	Comm  Text `json:"comm,omitempty"`
	Other bool `json:"other,omitempty"`
	socketCountsObject
}

// socketCountsObject has all states, also those that no socket is in.
type socketCountsObject struct {
	Sockets uint64            `json:"sockets"`
	States  map[string]uint64 `json:"states"`
}

func newSocketCounts(c *stats.SocketCounts) socketCountsObject {
	o := socketCountsObject{c.Total, make(map[string]uint64)}
	for _, state := range stats.StateOrder {
		o.States[state.String()] = c.States[state]
	}
	return o
}

// Write writes a report at once.
func (j *SocketSummaryJSON) Write(r *stats.SocketReport) error {
	o := socketSummaryObject{
		V: tcp.SchemaVersion, Type: "sockets", Time: rfc3339(r.Time), BootNS: strconv.FormatUint(r.BootNS, 10), By: r.By,
		socketCountsObject: newSocketCounts(&r.Total), Groups: make([]socketGroupObject, 0, len(r.Groups)),
	}
	for i := range r.Groups {
		g := &r.Groups[i]
		o.Groups = append(o.Groups, socketGroupObject{Text(g.Name), Text(g.Comm), g.Other, newSocketCounts(&g.SocketCounts)})
	}
	encoder := json.NewEncoder(j.w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(&o)
}

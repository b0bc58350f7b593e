package output

import (
	"bytes"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The layouts of connections, by name. states comes last, where it can be as long as it is.
// On a narrow terminal the folded ones go below the line, the first ones first.
const (
	connectionFolded = "states bytes_received bytes_sent role duration_ms closed_first reason"
	connectionLayout = "pid comm role local remote bytes_sent bytes_received duration_ms closed_first reason states"
	connectionMore   = "start boot_ns start_boot_ns cookie netns device family protocol state open outcome time_wait_reason missing errno " +
		"owner_source holder unaccepted acked fd uid retransmits srtt_us skaddr container_id container image pod pod_uid namespace unit cgroup"
)

// connectionFields are those of JSON, in order, without v, type and time. CSV has them all.
var connectionFields = slices.Concat(
	strings.Fields("boot_ns start start_boot_ns cookie skaddr netns device family protocol laddr lport raddr rport state open duration_ms duration_kind"),
	slices.Concat(stays...),
	strings.Fields("closed_first outcome reason time_wait_reason errno missing role pid comm uid fd owner_source unaccepted acked holder "+
		"cgroup container_id unit container image pod pod_uid namespace bytes_sent bytes_received retransmits srtt_us"),
)

// stays are the names of the fields for the time in each of connection.States: the time, and
// its kind.
var stays = func() (names [][]string) {
	for _, s := range connection.States {
		name := strings.ToLower(s.String())
		names = append(names, []string{name + "_ms", name + "_kind"})
	}
	return names
}()

// ConnectionFields lists the names of the fields of a connection in JSON.
func ConnectionFields() []string { return append([]string{"v", "type", "time"}, connectionFields...) }

// connections is the table of every column there is of a connection. What it shares with
// an event is that of an event.
func (f *formatter) connections() table[connection.Record] {
	shared := []string{
		"time", "boot_ns", "cookie", "skaddr", "netns", "device", "family", "protocol", "laddr", "lport", "raddr", "rport",
		"local", "remote", "state", "duration_ms", "duration_kind", "reason", "errno", "role", "pid", "comm", "uid", "fd", "owner_source",
		"unaccepted", "acked", "holder", "cgroup", "container_id", "unit", "container", "image", "pod", "pod_uid", "namespace", "bytes_sent", "bytes_received", "retransmits", "srtt_us",
	}
	var all table[connection.Record]
	for _, c := range f.events().choose(shared) {
		all = append(all, lift(c))
	}
	return slices.Concat(all, ownConnectionColumns(), f.stayColumns())
}

// lift makes of a column of events one of connections.
func lift(c column[tcp.Event]) column[connection.Record] {
	lifted := column[connection.Record]{name: c.name, width: c.width, wide: c.wide, right: c.right}
	switch {
	case c.number != nil:
		lifted.number = func(r *connection.Record) (uint64, bool) { return c.number(&r.Event) }
	case c.text != nil:
		lifted.text = func(r *connection.Record) (string, bool) { return c.text(&r.Event) }
	default:
		lifted.append = func(b []byte, r *connection.Record) []byte { return c.append(b, &r.Event) }
	}
	return lifted
}

func ownConnectionColumns() table[connection.Record] {
	start := newUTC()
	return table[connection.Record]{
		{name: "start", width: 30, append: func(b []byte, r *connection.Record) []byte { return appendInstant(b, &start, r.Start) }},
		{name: "start_boot_ns", width: 16, number: func(r *connection.Record) (uint64, bool) { return r.StartBoot, true }},
		{name: "open", width: 4, text: func(r *connection.Record) (string, bool) { return "true", r.Open }},
		{name: "closed_first", width: 12, text: func(r *connection.Record) (string, bool) { return known(r.ClosedFirst) }},
		{name: "outcome", width: 7, text: func(r *connection.Record) (string, bool) { return known(r.Outcome) }},
		{name: "time_wait_reason", width: 17, text: func(r *connection.Record) (string, bool) { return known(r.TimeWaitEnd) }},
		{name: "missing", width: 7, text: func(r *connection.Record) (string, bool) { return "true", r.Missing }},
	}
}

// stayColumns are the times in the states: each a field, and all of them in one column.
func (f *formatter) stayColumns() table[connection.Record] {
	all := table[connection.Record]{{name: "states", append: f.states}}
	for i, s := range connection.States {
		all = append(all,
			column[connection.Record]{name: stays[i][0], append: func(b []byte, r *connection.Record) []byte {
				if !r.Stays[s].Kind.Known() {
					return b
				}
				return appendFixed(b, r.Stays[s].NS, 6, 6)
			}},
			column[connection.Record]{name: stays[i][1], text: func(r *connection.Record) (string, bool) { return known(r.Stays[s].Kind) }})
	}
	return all
}

// states are the times for the eye: "SYN_SENT 0.103 ESTABLISHED >=5.524". The state that an
// open connection is in, or TIME_WAIT where that goes on, ends with dots.
func (f *formatter) states(b []byte, r *connection.Record) []byte {
	start := len(b)
	for _, s := range connection.States {
		stay := r.Stays[s]
		if stay.Kind == "" {
			continue
		}
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(append(b, s.String()...), ' ')
		if stay.Kind == tcp.AtLeast {
			b = append(b, f.atLeast...)
		}
		if stay.Kind.Known() {
			b = appendFixed(b, stay.NS, 6, f.digits)
		} else {
			b = append(b, '?')
		}
	}
	if r.New != tcp.Close {
		if r.Stays[r.New].Kind == "" {
			b = append(append(b, ' '), r.New.String()...)
		}
		b = append(b, "..."...)
	}
	return b
}

// ConnectionColumns writes one aligned line per connection, under a header. On a terminal,
// what there is no room for is below the line.
type ConnectionColumns struct {
	buffer
	table table[connection.Record]
	below table[connection.Record]
	width int    // of the terminal
	cell  []byte // for those below
}

// NewConnectionColumns returns a writer of columns to w, a terminal of that width; 0: a line is
// as long as it gets, and so it is if o asks for wide or extended ones. The header is in the
// buffer: Flush shows it before the first connection.
func NewConnectionColumns(w io.Writer, o Options, width int) *ConnectionColumns {
	all, names := newFormatter(o, 3, ">=").connections(), o.connectionNames()
	c := &ConnectionColumns{buffer: newBuffer(w), table: all.choose(names), width: width}
	if width > 0 && !o.Wide && !o.Extended {
		folded := c.table.fold(strings.Fields(connectionFolded), width)
		isFolded := func(name string) bool { return slices.Contains(folded, name) }
		c.table = all.choose(slices.DeleteFunc(slices.Clone(names), isFolded))
		c.below = all.choose(slices.DeleteFunc(names, func(name string) bool { return !isFolded(name) }))
	}
	c.table.fit(o.Wide)
	c.lines = c.table.appendHeader(c.lines)
	return c
}

// fold returns the first of the names that must go for the others to fit into the width.
func (t table[T]) fold(names []string, width int) []string {
	n := -1
	for _, c := range t {
		n += c.width + 1
	}
	for i, name := range names {
		at := slices.IndexFunc(t, func(c column[T]) bool { return c.name == name })
		n -= t[at].width + 1
		if n <= width {
			return names[:i+1]
		}
	}
	return names
}

// connectionNames returns the names of the columns that the options ask for.
func (o Options) connectionNames() []string {
	names := strings.Fields(connectionLayout)
	if o.Extended {
		names = slices.Insert(names, len(names)-1, strings.Fields(connectionMore)...)
	}
	if o.Time || o.Date {
		names = slices.Insert(names, 0, "time")
	}
	return names
}

// Write writes r, when the buffer is full or with the next Flush.
func (c *ConnectionColumns) Write(r *connection.Record) error {
	return c.keep(c.appendBelow(c.table.appendLine(c.lines, r), r))
}

// appendBelow appends lines of "name=value" and of states.
func (c *ConnectionColumns) appendBelow(b []byte, r *connection.Record) []byte {
	at := 0
	for i := range c.below {
		column := &c.below[i]
		c.cell = column.appendCell(c.cell[:0], r, math.MaxInt)
		if column.name != "states" {
			if len(c.cell) > 0 {
				b, at = c.appendWord(b, at, column.name, c.cell)
			}
			continue
		}
		for word := range statesApart(c.cell) {
			b, at = c.appendWord(b, at, "", word)
		}
	}
	if at > 0 {
		b = append(b, '\n')
	}
	return b
}

// appendWord appends a word to the line, which has at characters, or to a new one.
func (c *ConnectionColumns) appendWord(b []byte, at int, name string, word []byte) ([]byte, int) {
	const indent = "        " // under COMM
	n := utf8.RuneCount(word)
	if name != "" {
		n += len(name) + len("=")
	}
	switch {
	case at == 0:
		b, at = append(b, indent...), len(indent)
	case at+1+n <= c.width:
		b, at = append(b, ' '), at+1
	default:
		b, at = append(append(b, '\n'), indent...), len(indent)
	}
	if name != "" {
		b = append(append(b, name...), '=')
	}
	return append(b, word...), at + n
}

// statesApart yields the parts of a cell of states: "SYN_SENT 0.103", "ESTABLISHED >=5.524".
func statesApart(cell []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(cell) > 0 {
			end := len(cell)
			if name := bytes.IndexByte(cell, ' '); name >= 0 {
				if time := bytes.IndexByte(cell[name+1:], ' '); time >= 0 {
					end = name + 1 + time
				}
			}
			if !yield(cell[:end]) {
				return
			}
			cell = cell[min(end+1, len(cell)):]
		}
	}
}

// ConnectionCSV writes one record per connection, after a header, as CSV does. It has every
// field.
type ConnectionCSV struct {
	buffer
	table table[connection.Record]
}

// NewConnectionCSV returns a writer of CSV to w. The header is in the buffer.
func NewConnectionCSV(w io.Writer, o Options) *ConnectionCSV {
	names := connectionFields
	if o.Time || o.Date {
		names = append([]string{"time"}, names...)
	}
	c := &ConnectionCSV{newBuffer(w), newFormatter(o, 6, "").connections().choose(names)}
	c.lines = c.table.appendCSVHeader(c.lines)
	return c
}

// Write writes r as one record, when the buffer is full or with the next Flush.
func (c *ConnectionCSV) Write(r *connection.Record) error {
	return c.keep(c.table.appendRecord(c.lines, r))
}

// ConnectionJSON writes one object per line.
type ConnectionJSON struct {
	buffer
	utc, start clock
}

// NewConnectionJSON returns a writer of JSON lines to w.
func NewConnectionJSON(w io.Writer) *ConnectionJSON {
	return &ConnectionJSON{newBuffer(w), newUTC(), newUTC()}
}

// Write writes r as one line, when the buffer is full or with the next Flush.
func (j *ConnectionJSON) Write(r *connection.Record) error {
	b := strconv.AppendUint(append(j.lines, `{"v":`...), tcp.SchemaVersion, 10)
	b = appendInstant(append(b, `,"type":"connection","time":"`...), &j.utc, r.Time)
	b = strconv.AppendUint(append(b, `","boot_ns":"`...), r.BootNS, 10)
	b = appendInstant(append(b, `","start":"`...), &j.start, r.Start)
	b = append(strconv.AppendUint(append(b, `","start_boot_ns":"`...), r.StartBoot, 10), '"')
	b = appendSocket(b, &r.Event)
	b = appendWord(append(b, `,"state":"`...), r.New.String())
	if r.Open {
		b = append(b, `,"open":true`...)
	}
	b = appendFixed(append(b, `,"duration_ms":`...), r.Duration, 6, 6)
	b = appendWord(append(b, `,"duration_kind":"`...), string(r.DurationKind))
	b = appendStays(b, r)
	b = appendEnd(b, r)
	owner := r.Event
	owner.HasQueues, owner.HasDrops = false, false // those of the last event, not of the connection
	b = appendMeasures(appendOwner(b, &owner), &owner)
	return j.keep(append(b, "}\n"...))
}

func appendStays(b []byte, r *connection.Record) []byte {
	for i, s := range connection.States {
		stay := &r.Stays[s]
		if stay.Kind.Known() {
			b = appendFixed(append(append(append(b, `,"`...), stays[i][0]...), `":`...), stay.NS, 6, 6)
		}
		if stay.Kind != "" {
			b = appendWord(append(append(append(b, `,"`...), stays[i][1]...), `":"`...), string(stay.Kind))
		}
	}
	return b
}

func appendEnd(b []byte, r *connection.Record) []byte {
	for _, field := range [...]struct{ name, word string }{
		{`,"closed_first":"`, string(r.ClosedFirst)}, {`,"outcome":"`, string(r.Outcome)},
		{`,"reason":"`, string(r.Reason)}, {`,"time_wait_reason":"`, string(r.TimeWaitEnd)},
	} {
		if field.word != "" {
			b = appendWord(append(b, field.name...), field.word)
		}
	}
	if r.Errno != 0 {
		b = append(errno(append(b, `,"errno":"`...), &r.Event), '"')
	}
	if r.Missing {
		b = append(b, `,"missing":true`...)
	}
	return b
}

package output

import (
	"bytes"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Columns writes one aligned line per event, under a header. Hostile text is cut
// to its column; anything else that is longer shifts the rest of its line. What
// is not known is "-". Lost events are a line of their own:
//
//	# lost 17 events (ring buffer)
type Columns struct {
	buffer
	columns []column
}

// CSV writes one record per event, after a header, as RFC 4180 has it but for
// the line ends, which are \n. It begins with TYPE, transition, socket or lost,
// and ends with LOST and WHERE, which only lost events fill in. What is not
// known is empty. Control characters are escaped as they are by Columns, so that
// a record is always one line; nothing is cut.
type CSV struct {
	buffer
	columns []column
}

// NewColumns returns a writer of columns to w. The header is in the buffer: Flush
// shows it before the first event.
func NewColumns(w io.Writer, o Options) *Columns {
	c := &Columns{newBuffer(w), newPen(o.Start, 3, ">=").choose(o.titles())}
	for i := range c.columns {
		if c.columns[i].wide > 0 && o.Wide {
			c.columns[i].width = c.columns[i].wide
		}
	}
	// The last column has all the room that is left, and no trailing spaces.
	c.columns[len(c.columns)-1].width = 0
	for i := range c.columns {
		start := len(c.lines)
		c.lines = c.columns[i].pad(append(c.lines, c.columns[i].title...), start)
	}
	c.lines = endLine(c.lines)
	return c
}

// NewCSV returns a writer of CSV to w. The header is in the buffer, as with
// NewColumns.
func NewCSV(w io.Writer, o Options) *CSV {
	titles := slices.DeleteFunc(o.titles(), func(title string) bool { return title == "->" })
	// A number must stay one: no AGE for the eye, and no ">=" before MS.
	for i := range titles {
		if titles[i] == "AGE" || titles[i] == "MS" {
			titles = slices.Replace(titles, i, i+1, "MS", "MS_KIND")
			break
		}
	}
	titles = slices.Concat([]string{"TYPE"}, titles, []string{"LOST", "WHERE"})
	c := &CSV{newBuffer(w), newPen(o.Start, 6, "").choose(titles)}
	c.lines = append(append(c.lines, strings.Join(titles, ",")...), '\n')
	return c
}

// titles returns the titles of the columns that the options ask for.
func (o Options) titles() []string {
	layout, more := streamLayout, streamMore
	if o.Sockets {
		layout, more = socketsLayout, socketsMore
	}
	titles := strings.Fields(layout)
	if o.Extended {
		titles = append(titles, strings.Fields(more)...)
	}
	if !o.Wide {
		titles = slices.DeleteFunc(titles, func(title string) bool { return title == "IP" })
	}
	if o.Since {
		titles = slices.Insert(titles, 0, "TIME(s)")
	}
	if o.Time {
		titles = slices.Insert(titles, 0, "TIME")
	}
	return titles
}

// choose returns the columns of these titles, which the table holds.
func (p *pen) choose(titles []string) []column {
	table := p.table()
	chosen := make([]column, len(titles))
	for i, title := range titles {
		chosen[i] = table[slices.IndexFunc(table, func(c column) bool { return c.title == title })]
	}
	return chosen
}

// Write writes e as one line, when the buffer is full or with the next Flush. It
// keeps nothing of e.
func (c *Columns) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	b := c.lines
	if e.Kind == tcp.Lost {
		b = strconv.AppendUint(append(b, "# lost "...), e.Lost, 10)
		b = appendVisible(append(b, " events ("...), e.Where, math.MaxInt)
		return c.keep(append(b, ")\n"...))
	}
	for i := range c.columns {
		b = c.columns[i].appendAligned(b, e)
	}
	return c.keep(endLine(b))
}

// appendAligned appends the cell, filled up to its width, and a space.
func (c *column) appendAligned(b []byte, e *tcp.Event) []byte {
	start := len(b)
	limit := math.MaxInt
	if c.width > 0 {
		limit = c.width
	}
	if b = c.appendCell(b, e, limit); len(b) == start {
		b = append(b, '-')
	}
	return c.pad(b, start)
}

// pad fills b[start:] up to the width of the column, and appends a space.
func (c *column) pad(b []byte, start int) []byte {
	const spaces = "                                                "
	fill := c.width - utf8.RuneCount(b[start:])
	if fill > 0 {
		b = append(b, spaces[:fill]...)
		if c.right {
			copy(b[start+fill:], b[start:])
			copy(b[start:], spaces[:fill])
		}
	}
	return append(b, ' ')
}

// endLine puts a newline in the place of what separates the cells.
func endLine(b []byte) []byte {
	b[len(b)-1] = '\n'
	return b
}

// Write writes e as one record, when the buffer is full or with the next Flush.
// It keeps nothing of e.
func (c *CSV) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	b := c.lines
	for i := range c.columns {
		start := len(b)
		b = c.columns[i].appendCell(b, e, math.MaxInt)
		if c.columns[i].text != nil {
			b = quoteCSV(b, start)
		}
		b = append(b, ',')
	}
	return c.keep(endLine(b))
}

// appendCell appends what the column tells of e, and nothing if that is nothing.
// Text is made visible and cut after limit characters.
func (c *column) appendCell(b []byte, e *tcp.Event, limit int) []byte {
	switch {
	case !c.on.has(e.Kind):
		return b
	case c.number != nil:
		if v, ok := c.number(e); ok {
			b = strconv.AppendUint(b, v, 10)
		}
		return b
	case c.text != nil:
		if s, ok := c.text(e); ok {
			b = appendVisible(b, s, limit)
		}
		return b
	}
	return c.append(b, e)
}

// quoteCSV puts b[start:], which is printable, in quotes where encoding/csv does.
func quoteCSV(b []byte, start int) []byte {
	cell, end := b[start:], len(b)
	if len(cell) == 0 || cell[0] != ' ' && !bytes.ContainsAny(cell, `",`) && string(cell) != `\.` {
		return b
	}
	b = append(b, '"')
	for _, c := range cell {
		if c == '"' {
			b = append(b, '"')
		}
		b = append(b, c)
	}
	b = append(b, '"')
	return b[:start+copy(b[start:], b[end:])]
}

package output

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/terminal"
)

// column is one fact about a T, on the terminal and in CSV. Exactly one of number, text
// and append yields its value, and each can say that there is none: the CSV cell is
// empty then, the column "-".
type column[T any] struct {
	name        string // of the field, as in JSON; in upper case it is the title
	width, wide int    // in characters, wide with Options.Wide; 0: as long as it gets
	right       bool   // aligned to the right

	number func(*T) (uint64, bool)
	text   func(*T) (string, bool) // may be hostile: escaped by each writer, cut to width on the terminal
	append func([]byte, *T) []byte // plain ASCII; appending nothing says that there is no value

	foreign bool // append yields text from outside, made visible
}

// table is some columns, in order.
type table[T any] []column[T]

// choose returns the columns of these names, which the table holds.
func (t table[T]) choose(names []string) table[T] {
	chosen := make(table[T], len(names))
	for i, name := range names {
		chosen[i] = t[slices.IndexFunc(t, func(c column[T]) bool { return c.name == name })]
	}
	return chosen
}

// forTheEye lists the names that stand for others on the terminal alone: a number in
// CSV must stay one, and an address and its port stay apart.
var forTheEye = map[string][]string{
	"->":       nil,
	"local":    {"laddr", "lport"},
	"remote":   {"raddr", "rport"},
	"age":      {"duration_ms"},
	"owner":    {"pid", "comm", "fd"},
	"oldest":   {"oldest_s", "oldest_at_least"},
	"median":   {"median_s"},
	"open/max": {"open_files", "max_files"},
	"of_range": {"ports_held", "local_ports"},
	"states":   slices.Concat(stays...),
}

// plain puts names of fields in the place of those that are for the eye.
func plain(names []string) (fields []string) {
	for _, name := range names {
		if instead, found := forTheEye[name]; found {
			fields = append(fields, instead...)
		} else {
			fields = append(fields, name)
		}
	}
	return fields
}

// fit gives the columns their width. The last has all the room that is left, and no
// trailing spaces.
func (t table[T]) fit(wide bool) {
	for i := range t {
		if t[i].wide > 0 && wide {
			t[i].width = t[i].wide
		}
	}
	t[len(t)-1].width = 0
}

// widen makes room for the cells of v, whose last column needs none. scratch is used for them.
func (t table[T]) widen(scratch []byte, v *T) []byte {
	for i := range t[:len(t)-1] {
		scratch = t[i].appendCell(scratch[:0], v, math.MaxInt)
		t[i].width = max(t[i].width, utf8.RuneCount(scratch))
	}
	return scratch
}

// asNeeded returns the columns as wide as their titles, for widen.
func (t table[T]) asNeeded() table[T] {
	t = slices.Clone(t)
	for i := range t {
		t[i].width = len(t[i].name)
	}
	t[len(t)-1].width = 0
	return t
}

func (t table[T]) appendHeader(b []byte) []byte {
	for i := range t {
		start := len(b)
		b = t[i].pad(append(b, strings.ToUpper(t[i].name)...), start)
	}
	return endLine(b)
}

func (t table[T]) appendLine(b []byte, v *T) []byte {
	for i := range t {
		b = t[i].appendAligned(b, v)
	}
	return endLine(b)
}

func (t table[T]) appendCSVHeader(b []byte) []byte {
	for i := range t {
		b = append(append(b, strings.ToUpper(t[i].name)...), ',')
	}
	return endLine(b)
}

func (t table[T]) appendRecord(b []byte, v *T) []byte {
	for i := range t {
		b = append(t[i].appendCSV(b, v), ',')
	}
	return endLine(b)
}

// appendAligned appends the cell, filled up to its width, and a space.
func (c *column[T]) appendAligned(b []byte, v *T) []byte {
	start := len(b)
	limit := math.MaxInt
	if c.width > 0 {
		limit = c.width
	}
	if b = c.appendCell(b, v, limit); len(b) == start {
		b = append(b, '-')
	}
	return c.pad(b, start)
}

// pad fills b[start:] up to the width of the column, and appends a space.
func (c *column[T]) pad(b []byte, start int) []byte {
	const spaces = "                                                "
	fill, end := c.width-utf8.RuneCount(b[start:]), len(b)
	for left := fill; left > 0; left -= len(spaces) {
		b = append(b, spaces[:min(left, len(spaces))]...)
	}
	if fill > 0 && c.right {
		copy(b[start+fill:], b[start:end])
		for i := range fill {
			b[start+i] = ' '
		}
	}
	return append(b, ' ')
}

// endLine puts a newline in the place of what separates the cells.
func endLine(b []byte) []byte {
	b[len(b)-1] = '\n'
	return b
}

// appendCell appends the value of the column, and nothing if there is none. Text is
// made visible and cut after limit characters.
func (c *column[T]) appendCell(b []byte, v *T, limit int) []byte {
	switch {
	case c.number != nil:
		if n, ok := c.number(v); ok {
			b = strconv.AppendUint(b, n, 10)
		}
		return b
	case c.text != nil:
		if s, ok := c.text(v); ok {
			b = terminal.AppendVisible(b, s, limit)
		}
		return b
	}
	return c.append(b, v)
}

func (c *column[T]) appendCSV(b []byte, v *T) []byte {
	start := len(b)
	b = c.appendCell(b, v, math.MaxInt)
	if c.text != nil || c.foreign {
		b = quoteCSV(b, start)
	}
	return b
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

package output

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// DiagramOptions says how the state diagram is drawn as text.
type DiagramOptions struct {
	Time   bool     // the time of day, HH:MM:SS
	Role   tcp.Role // Client or Server: its path alone
	ASCII  bool     // no other characters
	Styled bool     // with styles of package terminal, which only a terminal takes
}

// Diagram draws reports as the state diagram of TCP, 80 characters wide.
type Diagram struct {
	w io.Writer
	o DiagramOptions
}

// NewDiagram returns a writer of text to w. What it writes holds no text from outside.
func NewDiagram(w io.Writer, o DiagramOptions) *Diagram { return &Diagram{w, o} }

// Write writes a report at once.
func (d *Diagram) Write(r *stats.Report) error {
	var b []byte
	if d.o.Time {
		b = append(append(b, timeOfDay(r.Time)...), ' ')
	}
	b = append(append(b, statsTitle(r)...), "\n\n"...)
	drawn := draw(r, d.o.Role)
	c := newCanvas(d.o)
	for i := range drawn.states {
		c.state(&drawn.states[i])
	}
	for i := range drawn.edges {
		c.edge(&drawn.edges[i])
	}
	b = append(c.appendText(b), d.o.key()...)
	for _, line := range drawn.below {
		b = append(append(b, line...), '\n')
	}
	_, err := d.w.Write(appendUncounted(b, r))
	return err
}

// key says what the diagram shows.
func (o *DiagramOptions) key() string {
	if o.ASCII {
		return "State: sockets now, time in it. Edge: times taken; #: most, dotted: never.\n"
	}
	return "State: sockets now, time in it. Edge: times taken; heavy: most, dotted: never.\n"
}

// strokes are the characters of a line, by the sides of a character that it joins.
type strokes map[side]rune

type side uint8

const (
	up side = 1 << iota
	down
	left
	right
)

// The lines.
var (
	light  = strokes{left | right: '─', up | down: '│', right | down: '┌', left | down: '┐', up | right: '└', up | left: '┘'}
	heavy  = strokes{left | right: '━', up | down: '┃', right | down: '┏', left | down: '┓', up | right: '┗', up | left: '┛'}
	dotted = strokes{left | right: '┈', up | down: '┊', right | down: '┌', left | down: '┐', up | right: '└', up | left: '┘'}
	heads  = strokes{up: '▲', down: '▼', left: '◀', right: '▶'}

	asciiLight  = strokes{left | right: '-', up | down: '|', right | down: '+', left | down: '+', up | right: '+', up | left: '+'}
	asciiHeavy  = strokes{left | right: '#', up | down: '#', right | down: '#', left | down: '#', up | right: '#', up | left: '#'}
	asciiDotted = strokes{left | right: '.', up | down: ':', right | down: '.', left | down: '.', up | right: '.', up | left: '.'}
	asciiHeads  = strokes{up: '^', down: 'v', left: '<', right: '>'}
)

// canvas is a picture of characters.
type canvas struct {
	rows                        [diagramHeight][diagramWidth]glyph
	styled                      bool
	light, heavy, dotted, heads strokes
}

type glyph struct {
	r     rune // 0: nothing
	style terminal.Style
}

func newCanvas(o DiagramOptions) *canvas {
	if o.ASCII {
		return &canvas{styled: o.Styled, light: asciiLight, heavy: asciiHeavy, dotted: asciiDotted, heads: asciiHeads}
	}
	return &canvas{styled: o.Styled, light: light, heavy: heavy, dotted: dotted, heads: heads}
}

func (c *canvas) put(x, y int, r rune, style terminal.Style) { c.rows[y][x] = glyph{r, style} }

func (c *canvas) text(x, y int, s string, style terminal.Style) {
	for _, r := range s {
		c.put(x, y, r, style)
		x++
	}
}

// state draws a box: the name and the sockets on its border, the times within.
func (c *canvas) state(s *drawnState) {
	last, bottom := s.x+s.width-1, s.y+s.height-1
	for x := s.x + 1; x < last; x++ {
		c.put(x, s.y, c.light[left|right], "")
		c.put(x, bottom, c.light[left|right], "")
	}
	for y := s.y + 1; y < bottom; y++ {
		c.put(s.x, y, c.light[up|down], "")
		c.put(last, y, c.light[up|down], "")
	}
	c.put(s.x, s.y, c.light[right|down], "")
	c.put(last, s.y, c.light[left|down], "")
	c.put(s.x, bottom, c.light[up|right], "")
	c.put(last, bottom, c.light[up|left], "")
	c.text(s.x+1, s.y, " "+s.state.String()+" ", terminal.Bold)
	if s.now != "" {
		c.text(last-len(s.now)-2, s.y, " "+s.now+" ", terminal.Bold)
	}
	room := s.width - 2
	times := s.times
	if len(times) > room {
		times = strings.Replace(times, "p99 ", "", 1)
	}
	c.text(s.x+1+(room-len(times))/2, s.y+1, times, "")
}

// edge draws a line with an arrow, and its count.
func (c *canvas) edge(e *drawnEdge) {
	lines, style := c.look(e)
	for i := 1; i < len(e.way); i++ {
		from, to := e.way[i-1], e.way[i]
		toward := direction(from, to)
		if i > 1 {
			c.put(from.x, from.y, lines[opposite(direction(e.way[i-2], from))|toward], style)
		}
		for at := from.step(toward); at != to; at = at.step(toward) {
			r := lines[toward|opposite(toward)]
			if i == len(e.way)-1 && at.step(toward) == to {
				r = c.heads[toward]
			}
			c.put(at.x, at.y, r, style)
		}
	}
	if e.count > 0 {
		c.text(e.label.x, e.label.y, e.route.text(e.figure), style)
	}
}

// look is how the line of an edge looks.
func (c *canvas) look(e *drawnEdge) (strokes, terminal.Style) {
	lines, style := c.light, terminal.Style("")
	switch {
	case e.count == 0:
		lines, style = c.dotted, terminal.Faint
	case e.hot:
		lines, style = c.heavy, terminal.Bold
	}
	if e.unusual {
		style += terminal.Red
	}
	return lines, style
}

// direction is where one corner is from the one before.
func direction(from, to point) side {
	switch {
	case to.y < from.y:
		return up
	case to.y > from.y:
		return down
	case to.x < from.x:
		return left
	}
	return right
}

func opposite(s side) side {
	switch s {
	case up:
		return down
	case down:
		return up
	case left:
		return right
	}
	return left
}

func (p point) step(toward side) point {
	switch toward {
	case up:
		p.y--
	case down:
		p.y++
	case left:
		p.x--
	case right:
		p.x++
	}
	return p
}

// appendText appends the rows, without spaces at their ends.
func (c *canvas) appendText(b []byte) []byte {
	for y := range c.rows {
		row, end := &c.rows[y], 0
		for x := range row {
			if row[x].r != 0 {
				end = x + 1
			}
		}
		style := terminal.Style("")
		for _, g := range row[:end] {
			if c.styled && g.style != style {
				if style != "" {
					b = append(b, terminal.Plain...)
				}
				b, style = append(b, g.style...), g.style
			}
			b = utf8.AppendRune(b, max(g.r, ' '))
		}
		if style != "" {
			b = append(b, terminal.Plain...)
		}
		b = append(b, '\n')
	}
	return b
}

package output

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The size of a character of the layout in the picture, and the margin around it.
const (
	cellWidth, cellHeight = 9, 20
	margin                = 18
)

// svgStyle has the colours, for a light and for a dark background. Where a viewer knows
// nothing of dark it is light.
const svgStyle = `
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1f2328}
.paper{fill:#fff}
.state{fill:#f6f8fa;stroke:#59636e;stroke-width:1.2}
.name{font-weight:bold}
.times,.key{fill:#59636e;font-size:11px}
.way{fill:none;stroke:#59636e;stroke-width:1.4}
.head{fill:#59636e}
.count{fill:#1f2328}
.hot .way{stroke:#0969da;stroke-width:3}
.hot .head,.hot .count{fill:#0969da}
.hot .count{font-weight:bold}
.never .way{stroke:#afb8c1;stroke-dasharray:2 4}
.never .head{fill:#afb8c1}
.unusual .way{stroke:#cf222e}
.unusual .head,.unusual .count{fill:#cf222e}
@media (prefers-color-scheme:dark){
text,.count{fill:#e6edf3}
.paper{fill:#0d1117}
.state{fill:#161b22;stroke:#8b949e}
.times,.key{fill:#8b949e}
.way{stroke:#8b949e}
.head{fill:#8b949e}
.hot .way{stroke:#58a6ff}
.hot .head,.hot .count{fill:#58a6ff}
.never .way{stroke:#3d444d}
.never .head{fill:#3d444d}
.unusual .way{stroke:#ff7b72}
.unusual .head,.unusual .count{fill:#ff7b72}
}
`

// Picture draws a report as an SVG file of the state diagram. It holds all that it needs.
type Picture struct {
	w    io.Writer
	role tcp.Role
}

// NewPicture returns a writer of one picture to w; a role other than "" is drawn alone.
func NewPicture(w io.Writer, role tcp.Role) *Picture { return &Picture{w, role} }

// Write writes a report at once.
func (p *Picture) Write(r *stats.Report) error {
	drawn := draw(r, p.role)
	above := strings.Split(statsTitle(r), "\n")
	below := append([]string{
		"State: sockets now, time in it. Edge: times taken.",
		"Thick: taken most. Dotted: never. Red: resets, timeouts, extensions.",
	}, drawn.below...)
	for line := range strings.Lines(string(appendUncounted(nil, r))) {
		below = append(below, strings.TrimSuffix(line, "\n"))
	}
	top := margin + (len(above)+1)*cellHeight
	width := diagramWidth*cellWidth + 2*margin
	height := top + (diagramHeight+len(below)+1)*cellHeight + margin
	s := &svg{top: top}
	fmt.Fprintf(&s.b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="TCP state diagram">`+"\n", width, height)
	fmt.Fprintf(&s.b, "<style>%s</style>\n", svgStyle)
	fmt.Fprintf(&s.b, `<rect class="paper" width="%d" height="%d" rx="6"/>`+"\n", width, height)
	s.lines(above, "name", margin+cellHeight/2)
	for i := range drawn.edges {
		s.edge(&drawn.edges[i])
	}
	for i := range drawn.states {
		s.state(&drawn.states[i])
	}
	s.lines(below, "key", top+(diagramHeight+1)*cellHeight)
	s.b.WriteString("</svg>\n")
	_, err := io.WriteString(p.w, s.b.String())
	return err
}

// svg is a picture that is being drawn.
type svg struct {
	b   strings.Builder
	top int // where the layout begins
}

// at is the middle of a character.
func (s *svg) at(p point) (x, y int) {
	return margin + p.x*cellWidth + cellWidth/2, s.top + p.y*cellHeight + cellHeight/2
}

// text writes a text in the place of characters; anchor is start, middle or end of it.
func (s *svg) text(x, y int, class, anchor, text string) {
	fmt.Fprintf(&s.b, `<text class="%s" x="%d" y="%d" text-anchor="%s">`, class, x, y, anchor)
	_ = xml.EscapeText(&s.b, []byte(text)) // a strings.Builder takes everything
	s.b.WriteString("</text>\n")
}

func (s *svg) lines(lines []string, class string, y int) {
	for i, line := range lines {
		s.text(margin, y+i*cellHeight, class, "start", line)
	}
}

func (s *svg) state(d *drawnState) {
	x, y := s.at(point{d.x, d.y})
	width, height := (d.width-1)*cellWidth, (d.height-1)*cellHeight
	fmt.Fprintf(&s.b, `<rect class="state" x="%d" y="%d" width="%d" height="%d" rx="6"/>`+"\n", x, y, width, height)
	first, second := y+height/2-3, y+height/2+13
	if d.times == "" {
		first = y + height/2 + 4
	}
	s.text(x+cellWidth, first, "name", "start", d.state.String())
	if d.now != "" {
		s.text(x+width-cellWidth, first, "name", "end", d.now)
	}
	if d.times != "" {
		s.text(x+cellWidth, second, "times", "start", d.times)
	}
}

// edge draws the line up to the base of its arrow.
func (s *svg) edge(e *drawnEdge) {
	var classes []string
	for _, class := range []struct {
		name string
		is   bool
	}{{"edge", true}, {"hot", e.hot}, {"never", e.count == 0}, {"unusual", e.unusual}} {
		if class.is {
			classes = append(classes, class.name)
		}
	}
	fmt.Fprintf(&s.b, `<g class="%s"><title>`, strings.Join(classes, " "))
	_ = xml.EscapeText(&s.b, []byte(titleOf(e)))
	s.b.WriteString("</title>\n")
	const long, half = 10, 5 // of the arrow
	last := len(e.way) - 1
	toward := direction(e.way[last-1], e.way[last])
	dx, dy := unit(toward)
	x, y := s.at(e.way[last])
	if e.stub { // it ends beside its label, before it reaches anything
		x, y = s.at(e.way[last].step(opposite(toward)))
		x, y = x+dx*half, y+dy*half
	}
	var points []string
	for _, p := range e.way[:last] {
		px, py := s.at(p)
		points = append(points, fmt.Sprintf("%d,%d", px, py))
	}
	points = append(points, fmt.Sprintf("%d,%d", x-dx*long, y-dy*long))
	fmt.Fprintf(&s.b, `<polyline class="way" points="%s"/>`+"\n", strings.Join(points, " "))
	fmt.Fprintf(&s.b, `<polygon class="head" points="%d,%d %d,%d %d,%d"/>`+"\n", x, y,
		x-dx*long+dy*half, y-dy*long+dx*half, x-dx*long-dy*half, y-dy*long-dx*half)
	if e.count > 0 {
		tx, ty := s.at(e.label)
		s.text(tx-cellWidth/2, ty+4, "count", "start", e.route.text(e.count))
	}
	s.b.WriteString("</g>\n")
}

// titleOf is what a viewer shows of an edge that is pointed at.
func titleOf(e *drawnEdge) string {
	title := fmt.Sprintf("%s > %s: %s", e.from, e.to, e.edge.Name)
	if len(e.edge.Reasons) > 0 {
		title += " (" + string(appendReasons(nil, e.edge, 1000)) + ")"
	}
	return title
}

// unit is one step in a direction.
func unit(toward side) (dx, dy int) {
	p := point{}.step(toward)
	return p.x, p.y
}

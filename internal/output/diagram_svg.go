package output

import (
	"fmt"
	"io"
	"strings"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The size of a character of the layout in the picture.
const cellWidth, cellHeight = 9, 20

var diagramColors = svgColors{
	light: `.state{fill:#f6f8fa;stroke:#59636e;stroke-width:1.2}
.count{fill:#1f2328}
.hot .way{stroke:#0969da;stroke-width:3}
.hot .head,.hot .count{fill:#0969da}
.hot .count{font-weight:bold}
.never .way{stroke:#afb8c1;stroke-dasharray:2 4}
.never .head{fill:#afb8c1}
.unusual .way{stroke:#cf222e}
.unusual .head,.unusual .count{fill:#cf222e}
`,
	dark: `.state{fill:#161b22;stroke:#8b949e}
.count{fill:#e6edf3}
.hot .way{stroke:#58a6ff}
.hot .head,.hot .count{fill:#58a6ff}
.never .way{stroke:#3d444d}
.never .head{fill:#3d444d}
.unusual .way{stroke:#ff7b72}
.unusual .head,.unusual .count{fill:#ff7b72}
`,
}

// Picture draws a report as an SVG file of the state diagram.
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
	d := &diagramSVG{top: svgMargin + (len(above)+1)*cellHeight}
	d.lines(above, "name", svgMargin+cellHeight/2, cellHeight)
	for i := range drawn.edges {
		d.edge(&drawn.edges[i])
	}
	for i := range drawn.states {
		d.state(&drawn.states[i])
	}
	d.lines(below, "key", d.top+(diagramHeight+1)*cellHeight, cellHeight)
	width := diagramWidth*cellWidth + 2*svgMargin
	height := d.top + (diagramHeight+len(below)+1)*cellHeight + svgMargin
	return d.writeTo(p.w, "TCP state diagram", width, height, diagramColors)
}

// diagramSVG is a diagram that is being drawn.
type diagramSVG struct {
	svg
	top  int  // where the layout begins
	live bool // every text has a place, also one that is empty now
}

// at is the middle of a character.
func (d *diagramSVG) at(p point) pixel {
	return pixel{svgMargin + p.x*cellWidth + cellWidth/2, d.top + p.y*cellHeight + cellHeight/2}
}

func (d *diagramSVG) state(s *drawnState) {
	at := d.at(point{s.x, s.y})
	width, height := (s.width-1)*cellWidth, (s.height-1)*cellHeight
	fmt.Fprintf(&d.b, `<rect class="state" x="%d" y="%d" width="%d" height="%d" rx="6"/>`+"\n", at.x, at.y, width, height)
	first, second := at.y+height/2-3, at.y+height/2+13
	if s.times == "" && !d.live {
		first = at.y + height/2 + 4
	}
	d.text(at.x+cellWidth, first, "name", "start", s.state.String())
	if s.now != "" || d.live {
		d.text(at.x+width-cellWidth, first, "name", "end", s.now)
	}
	if s.times != "" || d.live {
		d.text(at.x+cellWidth, second, "times", "start", s.times)
	}
}

func (d *diagramSVG) edge(e *drawnEdge) {
	if d.live {
		fmt.Fprintf(&d.b, `<g data-edge="%s" class="%s">`, nameOfEdge(e.from, e.to), e.liveClasses())
	} else {
		fmt.Fprintf(&d.b, `<g class="%s">`, e.classes())
	}
	d.title(titleOf(e))
	var way []pixel
	for _, p := range e.way {
		way = append(way, d.at(p))
	}
	last := len(e.way) - 1
	toward := direction(e.way[last-1], e.way[last])
	if e.stub { // it ends beside its label, before it reaches anything
		dx, dy := unit(toward)
		end := d.at(e.way[last].step(opposite(toward)))
		way[last] = pixel{end.x + dx*headHalf, end.y + dy*headHalf}
	}
	d.arrow(way, toward)
	if e.count > 0 || d.live {
		at := d.at(e.label)
		d.text(at.x-cellWidth/2, at.y+4, "count", "start", e.text())
	}
	d.b.WriteString("</g>\n")
}

// text is the label of an edge, which has none before it is taken.
func (e *drawnEdge) text() string {
	if e.count == 0 {
		return ""
	}
	return e.route.text(e.figure)
}

// classes are what the colours of an edge depend on.
func (e *drawnEdge) classes() string {
	classes := []string{"edge"}
	for _, class := range []struct {
		name string
		is   bool
	}{{"hot", e.hot}, {"never", e.count == 0}, {"unusual", e.unusual}} {
		if class.is {
			classes = append(classes, class.name)
		}
	}
	return strings.Join(classes, " ")
}

// titleOf says what an edge is and why it was taken.
func titleOf(e *drawnEdge) string {
	title := fmt.Sprintf("%s > %s: %s", e.from, e.to, e.edge.Name)
	if len(e.edge.Reasons) > 0 {
		title += " (" + string(appendReasons(nil, e.edge, 1000)) + ")"
	}
	return title
}

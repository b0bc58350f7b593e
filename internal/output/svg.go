package output

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// svgMargin is what stays free around a picture.
const svgMargin = 18

// svgColors are rules of CSS for a light and for a dark background. Where a viewer knows
// nothing of dark it is light.
type svgColors struct{ light, dark string }

// svgCommon are the rules of every picture.
var svgCommon = svgColors{
	light: `text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1f2328}
.paper{fill:#fff}
.name{font-weight:bold}
.times,.key{fill:#59636e;font-size:11px}
.way{fill:none;stroke:#59636e;stroke-width:1.4}
.head{fill:#59636e}
`,
	dark: `text{fill:#e6edf3}
.paper{fill:#0d1117}
.times,.key{fill:#8b949e}
.way{stroke:#8b949e}
.head{fill:#8b949e}
`,
}

// svg is a picture that is being drawn. Text gets into it through text, named and title alone,
// which escape it.
type svg struct{ b strings.Builder }

// writeTo writes the picture as a file, which holds all that it needs.
func (s *svg) writeTo(w io.Writer, label string, width, height int, own svgColors) error {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="%[3]s">`+"\n", width, height, label)
	fmt.Fprintf(&b, "<style>\n%s%s@media (prefers-color-scheme:dark){\n%s%s}\n</style>\n", svgCommon.light, own.light, svgCommon.dark, own.dark)
	fmt.Fprintf(&b, `<rect class="paper" width="%d" height="%d" rx="6"/>`+"\n", width, height)
	for _, part := range []string{b.String(), s.b.String(), "</svg>\n"} {
		if _, err := io.WriteString(w, part); err != nil {
			return err
		}
	}
	return nil
}

// pixel is a place in the picture.
type pixel struct{ x, y int }

// text writes a text whose baseline is at y; anchor says which of its parts is at x: start,
// middle or end.
func (s *svg) text(x, y int, class, anchor, text string) {
	s.named(x, y, class, anchor, "", text)
}

// named is a text that begins with a name in bold; either part may be empty.
func (s *svg) named(x, y int, class, anchor, name, rest string) {
	fmt.Fprintf(&s.b, `<text class="%s" x="%d" y="%d" text-anchor="%s">`, class, x, y, anchor)
	if name != "" {
		s.b.WriteString(`<tspan class="name">`)
		s.escaped(name)
		s.b.WriteString("</tspan>")
	}
	if name != "" && rest != "" {
		s.b.WriteByte(' ')
	}
	s.escaped(rest)
	s.b.WriteString("</text>\n")
}

// title is what a viewer shows of a group that is pointed at.
func (s *svg) title(text string) {
	s.b.WriteString("<title>")
	s.escaped(text)
	s.b.WriteString("</title>\n")
}

func (s *svg) escaped(text string) {
	_ = xml.EscapeText(&s.b, []byte(text)) // a strings.Builder takes everything
}

// lines writes lines of text one below the other.
func (s *svg) lines(lines []string, class string, y, height int) {
	for i, line := range lines {
		s.text(svgMargin, y+i*height, class, "start", line)
	}
}

// The size of the head of an arrow.
const headLength, headHalf = 10, 5

// arrow draws a line that ends with an arrow, which points into a direction.
func (s *svg) arrow(way []pixel, toward side) {
	last := len(way) - 1
	x, y := way[last].x, way[last].y
	dx, dy := unit(toward)
	var points []string
	for _, p := range way[:last] {
		points = append(points, fmt.Sprintf("%d,%d", p.x, p.y))
	}
	points = append(points, fmt.Sprintf("%d,%d", x-dx*headLength, y-dy*headLength)) // the base of the arrow
	fmt.Fprintf(&s.b, `<polyline class="way" points="%s"/>`+"\n", strings.Join(points, " "))
	fmt.Fprintf(&s.b, `<polygon class="head" points="%d,%d %d,%d %d,%d"/>`+"\n", x, y,
		x-dx*headLength+dy*headHalf, y-dy*headLength+dx*headHalf, x-dx*headLength-dy*headHalf, y-dy*headLength-dx*headHalf)
}

// unit is one step in a direction.
func unit(toward side) (dx, dy int) {
	p := point{}.step(toward)
	return p.x, p.y
}

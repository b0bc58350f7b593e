package output

import (
	"fmt"
	"io"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/terminal"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// MaxPictured is how many stories a picture has at most: a page that can still be read, and
// that every viewer takes.
const MaxPictured = 20

// The sizes of a picture. A character is at most 7.5 wide in the fonts that are asked for.
const (
	storyWidth   = 840
	storyColumns = 104 // characters in a line of text
	storyLine    = 17  // from one line of text to the next
)

var timelineColors = svgColors{
	light: `.life,.rule{stroke:#d1d9e0;stroke-width:2}
.bar{stroke-width:1.2}
.opening{fill:#fff3c4;stroke:#9a6700}
.established{fill:#d2f4d9;stroke:#1a7f37}
.closing{fill:#ddf4ff;stroke:#0969da}
.timewait{fill:#eaeef2;stroke:#59636e}
.unseen{fill:#fff;stroke-dasharray:4 3}
.tick{stroke:#1f2328;stroke-width:1.4}
.guess .way{stroke-dasharray:5 4}
.broken{fill:#cf222e;font-weight:bold}
`,
	dark: `.life,.rule{stroke:#30363d}
.opening{fill:#3b2e08;stroke:#d29922}
.established{fill:#12361f;stroke:#3fb950}
.closing{fill:#0c2d4d;stroke:#58a6ff}
.timewait{fill:#21262d;stroke:#8b949e}
.unseen{fill:#0d1117}
.tick{stroke:#e6edf3}
.broken{fill:#ff7b72}
`,
}

// TimelinePicture draws stories as one SVG file, each below the one before. Close writes it.
type TimelinePicture struct {
	w      io.Writer
	names  [2]string // of the recordings
	clocks []string  // what is known of their clocks; nil: there is one recording
	drawn  int
	more   int // stories that have no place
	y      int // where the next story begins
	svg    svg // the stories
}

// NewTimelinePicture returns a writer of one picture to w. names are those of two recordings,
// empty otherwise.
func NewTimelinePicture(w io.Writer, names [2]string) *TimelinePicture {
	p := &TimelinePicture{w: w}
	for i, name := range names {
		p.names[i] = string(terminal.AppendVisible(nil, name, storyColumns-len("1: ")))
	}
	return p
}

// Clocks says what two recordings tell about the clocks of their hosts. It comes before the
// stories.
func (p *TimelinePicture) Clocks(c timeline.Clocks) {
	p.clocks = clockLines(c, p.names, unicodeMarks.plusMinus, storyColumns)
}

// Write draws a story, or counts it where the picture has as many as it takes.
func (p *TimelinePicture) Write(s *timeline.Story) {
	if p.drawn == MaxPictured {
		p.more++
		return
	}
	p.drawn++
	if p.drawn == 1 {
		p.y = p.legendY() + len(legend)*storyLine
	}
	fmt.Fprintf(&p.svg.b, `<path class="rule" d="M%d,%d H%d"/>`+"\n", svgMargin, p.y, storyWidth-svgMargin)
	d := storySVG{svg: &p.svg, story: s, rows: storyRows(s), pair: p.clocks != nil, y: p.y + 2*storyLine}
	d.draw()
	p.y = d.y + storyLine
}

// Close writes the picture.
func (p *TimelinePicture) Close() error {
	title := "Timeline of " + leak.Counted(p.drawn, "connection")
	if p.more > 0 {
		title = fmt.Sprintf("Timeline of the first %d of %d connections", p.drawn, p.drawn+p.more)
	}
	if p.drawn == 0 {
		p.y = p.legendY() + len(legend)*storyLine
	}
	var all svg
	all.lines([]string{title}, "name", svgMargin+storyLine, storyLine)
	all.lines(p.clocks, "key", svgMargin+2*storyLine, storyLine)
	all.legend(p.legendY())
	all.b.WriteString(p.svg.b.String())
	return all.writeTo(p.w, "Timeline of TCP connections", storyWidth, p.y+svgMargin, timelineColors)
}

// legendY is where the legend begins.
func (p *TimelinePicture) legendY() int { return svgMargin + (3+len(p.clocks))*storyLine }

// legend says what is drawn how, above all what was not seen.
var legend = []string{
	"Dashed arrow: not seen, but inferred from the change that it points to. It was sent before that.",
	"Dashed bar: the state was not seen from its beginning to its end. It took at least so long, or ?.",
	"Open bar: the state goes on, or its end was not seen.",
	fmt.Sprintf("Times are in ms and run down, not to scale: %d pixels more between two changes for ten times as long.", decadeHeight),
}

// legend draws what its lines are about beside them.
func (s *svg) legend(y int) {
	const text = svgMargin + 64
	for i, line := range legend {
		s.text(text, y+i*storyLine, "key", "start", line)
	}
	y -= 4 // the middle of the first line
	s.guess(svgMargin, svgMargin+52, y)
	fmt.Fprintf(&s.b, `<rect class="bar established unseen" x="%d" y="%d" width="52" height="10"/>`+"\n", svgMargin, y+storyLine-5)
	fmt.Fprintf(&s.b, `<path class="bar established" d="M%d,%d h-26 v10 h26"/>`+"\n", svgMargin+26, y+2*storyLine-5)
	fmt.Fprintf(&s.b, `<path class="bar established unseen" d="M%d,%d h26 m0,10 h-26"/>`+"\n", svgMargin+26, y+2*storyLine-5)
}

// guess draws what came from the other end, which was not seen.
func (s *svg) guess(from, to, y int) {
	toward := right
	if to < from {
		toward = left
	}
	s.b.WriteString(`<g class="guess">`)
	s.arrow([]pixel{{from, y}, {to, y}}, toward)
	s.b.WriteString("</g>\n")
}

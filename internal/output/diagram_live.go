package output

import (
	"fmt"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Live is a report as the state diagram of a page shows it. The picture is drawn once, with
// every edge that a socket can take; from then on its texts alone change, so it never grows.
type Live struct{ drawn *drawing }

// NewLive lays a report out. Its edges show how often a second they are taken of late, as rate
// knows it; false: not known.
func NewLive(r *stats.Report, rate func(from, to tcp.State) (perSecond float64, known bool)) *Live {
	drawn := layOut(r, "", true)
	for i := range drawn.edges {
		e := &drawn.edges[i]
		e.figure = "?"
		if perSecond, known := rate(e.from, e.to); known {
			e.figure = shortRate(perSecond)
		}
	}
	return &Live{drawn}
}

// LiveState are the texts of a state: the sockets in it now, and how long they stay. Empty: not
// known.
type LiveState struct {
	State      tcp.State
	Now, Times string
}

// States returns those of the eleven states. CLOSE is drawn twice.
func (l *Live) States() (all []LiveState) {
	seen := make(map[tcp.State]bool)
	for i := range l.drawn.states {
		if s := &l.drawn.states[i]; !seen[s.state] {
			seen[s.state] = true
			all = append(all, LiveState{s.state, s.now, s.times})
		}
	}
	return all
}

// LiveEdge are the texts of an edge. Its classes say how it looks; they are words of ours.
type LiveEdge struct {
	From, To              tcp.State
	Label, Title, Classes string
}

// Edges returns those of the edges that have a place in the picture.
func (l *Live) Edges() (all []LiveEdge) {
	for i := range l.drawn.edges {
		e := &l.drawn.edges[i]
		all = append(all, LiveEdge{e.from, e.to, e.text(), titleOf(e), e.liveClasses()})
	}
	return all
}

// Below returns lines about what was taken and has no place in the picture.
func (l *Live) Below() []string { return l.drawn.below }

// SVG returns the picture as an element of HTML, in the layout of Picture. Its colours are in
// LiveStyle, for a page that takes style sheets alone. An element with data-state or data-edge has the
// texts of a LiveState or a LiveEdge. Text in it is escaped.
func (l *Live) SVG() string {
	d := &diagramSVG{top: svgMargin, live: true}
	width, height := diagramWidth*cellWidth+2*svgMargin, diagramHeight*cellHeight+2*svgMargin
	fmt.Fprintf(&d.b, `<svg viewBox="0 0 %d %d" role="img" aria-labelledby="diagram-name" aria-describedby="diagram-key">`+"\n", width, height)
	for i := range l.drawn.edges {
		d.edge(&l.drawn.edges[i])
	}
	for i := range l.drawn.states {
		s := &l.drawn.states[i]
		fmt.Fprintf(&d.b, `<g data-state="%s">`, s.state)
		d.state(s)
		d.b.WriteString("</g>\n")
	}
	d.b.WriteString("</svg>\n")
	return d.b.String()
}

// LiveStyle is a style sheet for the picture, with the colours of Picture.
func LiveStyle() string {
	return svgCommon.light + diagramColors.light + ".stub.never{display:none}\n" +
		"@media (prefers-color-scheme:dark){\n" + svgCommon.dark + diagramColors.dark + "}\n"
}

// liveClasses also tell which edges are hidden as long as nobody takes them.
func (e *drawnEdge) liveClasses() string {
	if e.stub {
		return e.classes() + " stub"
	}
	return e.classes()
}

func nameOfEdge(from, to tcp.State) string { return from.String() + "-" + to.String() }

// shortRate is a rate a second in six characters: 0/s, 0.25/s, 12.5/s, 123k/s, 4.5M/s.
func shortRate(perSecond float64) string {
	for _, unit := range []string{"", "k", "M", "G"} {
		if digits, fits := shortNumber(perSecond, 4-len(unit)); fits {
			return digits + unit + "/s"
		}
		perSecond /= 1000
	}
	return "many"
}

// shortNumber writes a number with two decimals, or fewer, so that it has no more than so many
// characters; false: it has more before the point alone.
func shortNumber(n float64, width int) (string, bool) {
	if n == 0 {
		return "0", true
	}
	for decimals := 2; decimals >= 0; decimals-- {
		if s := strconv.FormatFloat(n, 'f', decimals, 64); len(s) <= width {
			return s, true
		}
	}
	return "", false
}

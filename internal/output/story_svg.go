package output

import (
	"fmt"
	"math"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// The sizes in the drawing of a story.
const (
	laneX        = 320 // of the left lifeline, the right one is as far from the other side
	barHalf      = 7   // half as wide as a bar
	labelGap     = 8   // between a bar and its label, or an arrow that comes from there
	decadeHeight = 6   // what ten times as long adds between two changes
	openTail     = 14  // of a bar that has no end
	loneArrow    = 90  // from an end that was not seen
	otherInward  = 40  // where it is said that an end was not seen, from its lifeline inward
	laneOwner    = 18  // characters of a process name above a lifeline
	indentWidth  = 15  // two characters
	factsX       = 90  // of the facts of an end, beside its name
)

// storySVG is a story that is being drawn: two lifelines, on which time runs down.
type storySVG struct {
	*svg
	story *timeline.Story
	rows  []storyRow
	pair  bool // of two recordings
	y     int  // where the next line of text goes
	at    []int
}

func (d *storySVG) draw() {
	d.line(svgMargin, "name", fold("", headline(d.story), storyColumns)...)
	d.line(svgMargin, "key", since(d.story, unicodeMarks.plusMinus))
	for _, e := range d.story.Ends() {
		d.text(svgMargin+indentWidth, d.y, "name", "start", labelOf(e, d.pair))
		d.line(svgMargin+factsX, "fact", fold("", factsOf(e), storyColumns-factsX/indentWidth*2)...)
	}
	d.y += storyLine
	titles := d.y
	d.y += storyLine
	d.place()
	for i, e := range d.story.Ends() {
		d.lane(i, e, titles)
	}
	if len(d.story.Ends()) == 1 {
		other := 1 - d.side(0)
		d.text(laneAt(other)-outward(other)*otherInward, titles, "key", anchors[other], otherEnd(d.story))
	}
	for i := range d.rows {
		d.row(i)
	}
}

// line writes lines of text, indented where they begin with spaces.
func (d *storySVG) line(x int, class string, lines ...string) {
	for _, line := range lines {
		at, text := x, strings.TrimLeft(line, " ")
		if text != line {
			at += indentWidth
		}
		d.text(at, d.y, class, "start", text)
		d.y += storyLine
	}
}

// place says where each row goes: below the text of the one before, and further down the
// longer it took.
func (d *storySVG) place() {
	for i := range d.rows {
		if i > 0 {
			ns := float64(max(d.rows[i].at-d.rows[i-1].at, 1000))
			d.y += int(decadeHeight * math.Log10(ns/1000))
		}
		d.at = append(d.at, d.y)
		d.y += storyLine * len(d.rows[i].labels())
	}
}

// rowLabel is a line of text at a lifeline: what is bold of it, and the rest.
type rowLabel struct{ class, bold, text string }

// labels are the lines of a row.
func (r *storyRow) labels() []rowLabel {
	labels := []rowLabel{{"why", "", r.why}}
	if r.breaks {
		labels[0].class = "broken"
	}
	if r.errno != 0 {
		labels = append(labels, rowLabel{"broken", "", string(errnoName(nil, r.errno))})
	}
	switch {
	case r.stay != nil:
		labels = append(labels, rowLabel{"stay", r.state.String(), lasted(r.stay)})
	case r.state == tcp.Close:
		labels = append(labels, rowLabel{"stay", r.state.String(), ""})
	}
	if r.owner != nil {
		labels = append(labels, rowLabel{"key", "", "now of " + ownerName(r.owner.PID, r.owner.Comm, laneOwner)})
	}
	return labels
}

// side is that of an end: 0 on the left, where the client is, or 1.
func (d *storySVG) side(end int) int {
	if ends := d.story.Ends(); len(ends) == 1 && ends[0].Role == tcp.Server {
		return 1
	}
	return end
}

// laneAt is the middle of a lifeline.
func laneAt(side int) int { return [2]int{laneX, storyWidth - laneX}[side] }

// outward is the direction from a lifeline to its labels.
func outward(side int) int { return 2*side - 1 }

// anchors are those of labels, which stand outside of the lifelines.
var anchors = [2]string{"end", "start"}

func (d *storySVG) labelX(side int) int { return laneAt(side) + outward(side)*(barHalf+labelGap) }

// lane draws the lifeline of an end with its states.
func (d *storySVG) lane(end int, e *timeline.End, titles int) {
	side := d.side(end)
	owner := ""
	if e.OwnerSource != "" {
		owner = ownerName(e.PID, e.Comm, laneOwner)
	}
	d.named(d.labelX(side), titles, "lane", anchors[side], strings.ToUpper(labelOf(e, d.pair)), owner)
	fmt.Fprintf(&d.b, `<path class="life" d="M%d,%d V%d"/>`+"\n", laneAt(side), titles-4, d.y)
	before := -1 // the row of this end before
	for i := range d.rows {
		if d.rows[i].end != end {
			continue
		}
		if before >= 0 {
			d.bar(side, &d.rows[before], d.at[before], d.at[i])
		}
		before = i
	}
	if last := &d.rows[before]; last.stay != nil { // its end was not seen
		bottom := d.at[before] + storyLine
		d.bar(side, last, d.at[before], bottom)
		d.open(side, last.state, bottom)
	} else if last.state != tcp.Close {
		d.open(side, last.state, d.at[before])
	}
}

// bar draws the time in a state.
func (d *storySVG) bar(side int, r *storyRow, from, to int) {
	class := "bar " + phase(r.state)
	if r.stay.Kind != tcp.Exact {
		class += " unseen"
	}
	fmt.Fprintf(&d.b, `<rect class="%s" x="%d" y="%d" width="%d" height="%d"/>`+"\n", class, laneAt(side)-barHalf, from, 2*barHalf, to-from)
}

// open draws that a bar has no end.
func (d *storySVG) open(side int, s tcp.State, y int) {
	fmt.Fprintf(&d.b, `<path class="bar %s unseen" d="M%d,%d v%d m%d,0 v%d"/>`+"\n", phase(s),
		laneAt(side)-barHalf, y, openTail, 2*barHalf, -openTail)
}

// phase is what the colour of a state depends on.
func phase(s tcp.State) string {
	switch s {
	case tcp.SynSent, tcp.SynRecv:
		return "opening"
	case tcp.Established:
		return "established"
	case tcp.TimeWait:
		return "timewait"
	}
	return "closing"
}

// row draws what happened, and what is known of it.
func (d *storySVG) row(i int) {
	r, y := &d.rows[i], d.at[i]
	side := d.side(r.end)
	x, out := laneAt(side), outward(side)
	if r.packet {
		from := laneAt(1-side) + out*(barHalf+labelGap)
		if len(d.story.Ends()) == 1 {
			from = x - out*loneArrow
		}
		d.guess(from, x-out*barHalf, y)
	}
	if r.stay != nil || r.state == tcp.Close {
		fmt.Fprintf(&d.b, `<path class="tick" d="M%d,%d h%d"/>`+"\n", x-barHalf-3, y, 2*barHalf+6)
	}
	edge, anchor := svgMargin, anchors[1-side]
	if side == 1 {
		edge = storyWidth - svgMargin
	}
	d.text(edge, y+4, "times", anchor, r.moment())
	for j, l := range r.labels() {
		d.named(d.labelX(side), y+4+j*storyLine, l.class, anchors[side], l.bold, l.text)
	}
}

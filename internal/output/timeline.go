package output

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Timeline writes stories of connections for 80 columns: who had them, what happened at each
// end in order, and how long each state lasted.
type Timeline struct {
	w     io.Writer
	marks timelineMarks
	begun bool
	lines strings.Builder
	names [2]string // of the recordings
	pair  bool      // there are two
}

// timelineMarks are what a story is drawn with.
type timelineMarks struct{ line, dash, bar, plusMinus string }

var (
	asciiMarks   = timelineMarks{"|", "-", "#", "+-"}
	unicodeMarks = timelineMarks{"│", "╌", "■", "±"}
)

// The widths of what stands in a line.
const (
	timelineWidth = 80
	lane          = 31 // room of one end
	maxBar        = 33
	perDecade     = 3 // characters of a bar for ten times as long
)

// NewTimeline returns a writer to w, of plain ASCII if asked for. names are those of two
// recordings, empty otherwise.
func NewTimeline(w io.Writer, ascii bool, names [2]string) *Timeline {
	t := &Timeline{w: w, marks: unicodeMarks, names: names}
	if ascii {
		t.marks = asciiMarks
	}
	return t
}

// Clocks says what two recordings tell about the clocks of their hosts. It comes before the
// stories.
func (t *Timeline) Clocks(c timeline.Clocks) error {
	t.print(clockLines(c, t.names, t.marks.plusMinus, timelineWidth))
	t.pair = true
	t.printf("\n")
	return t.flush()
}

// Flush writes what stands before the stories, if it has not been written yet.
func (t *Timeline) Flush() error {
	if t.begun {
		return nil
	}
	t.begun = true
	t.printf("%s dashed: not seen, but inferred from the change that it points to\n", strings.Repeat(t.marks.dash, 4)+">")
	t.printf("%s time in a state, not to scale: %d characters more for ten times as long\n", strings.Repeat(t.marks.bar, 5), perDecade)
	return t.flush()
}

// Write writes a story.
func (t *Timeline) Write(s *timeline.Story) error {
	if err := t.Flush(); err != nil {
		return err
	}
	t.printf("\n")
	t.print(fold("", headline(s), timelineWidth))
	t.printf("%s\n", since(s, t.marks.plusMinus))
	for _, e := range s.Ends() {
		t.print(fold(fmt.Sprintf("  %-9s", labelOf(e, t.pair)), factsOf(e), timelineWidth))
	}
	t.printf("\n")
	t.rows(s)
	t.printf("\n")
	for _, e := range s.Ends() {
		t.bars(e)
	}
	return t.flush()
}

func (t *Timeline) printf(format string, args ...any) { fmt.Fprintf(&t.lines, format, args...) }

func (t *Timeline) print(lines []string) {
	for _, line := range lines {
		t.printf("%s\n", line)
	}
}

func (t *Timeline) flush() error {
	_, err := io.WriteString(t.w, t.lines.String())
	t.lines.Reset()
	return err
}

// rows draws the lifelines.
func (t *Timeline) rows(s *timeline.Story) {
	ends := s.Ends()
	if len(ends) == 2 {
		t.printf("%12s %s %-*s%s %s\n", "TIME_MS", t.marks.line, lane, strings.ToUpper(endName(ends[0])), t.marks.line, strings.ToUpper(endName(ends[1])))
	} else {
		t.printf("%12s %s %s (%s)\n", "TIME_MS", t.marks.line, strings.ToUpper(endName(ends[0])), otherEnd(s))
	}
	for _, r := range storyRows(s) {
		text := r.state.String() + " " + r.why
		if r.errno != 0 && len(ends) == 1 {
			text += " " + string(errnoName(nil, r.errno))
		}
		t.row(&r, len(ends), text, r.packet)
		if r.owner != nil {
			t.row(&r, len(ends), "  now of "+ownerName(r.owner.PID, r.owner.Comm, lane-20), false)
		}
	}
}

// row draws one row. The dashes stand on the other end's side, and point to where it arrived.
func (t *Timeline) row(r *storyRow, ends int, text string, packet bool) {
	t.printf("%12s %s ", r.moment(), t.marks.line)
	dashes := strings.Repeat(t.marks.dash, lane-1)
	switch {
	case ends == 1 && packet:
		t.printf("%s  <%s\n", text, strings.Repeat(t.marks.dash, 4))
	case ends == 1:
		t.printf("%s\n", text)
	case r.end == 1 && packet:
		t.printf("%s>%s %s\n", dashes, t.marks.line, text)
	case r.end == 1:
		t.printf("%*s%s %s\n", lane, "", t.marks.line, text)
	case packet:
		t.printf("%-*s%s<%s\n", lane, text, t.marks.line, dashes)
	default:
		t.printf("%-*s%s\n", lane, text, t.marks.line)
	}
}

// bars draws how long an end was in each state.
func (t *Timeline) bars(e *timeline.End) {
	label := endName(e)
	for i := range e.Stays {
		stay := &e.Stays[i]
		bar := strings.Repeat(t.marks.bar, barLength(stay.End-min(stay.Begin, stay.End)))
		switch stay.Kind {
		case tcp.Exact:
		case tcp.AtLeast:
			bar = strings.Repeat(t.marks.dash, 2) + bar
		default:
			bar = strings.Repeat(t.marks.dash, 4)
		}
		if e.Open && i == len(e.Stays)-1 {
			bar += "..."
		}
		t.printf("  %-9s%-11s %14s ms  %s\n", label, stay.State, lasted(stay), bar)
		label = ""
	}
}

// barLength is how many characters stand for a time: its logarithm, counted from 1 µs.
func barLength(ns uint64) int {
	length := 1 + int(perDecade*math.Log10(float64(max(ns, 1000))/1000))
	return min(length, maxBar)
}

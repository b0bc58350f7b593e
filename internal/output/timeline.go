package output

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
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
	t.printf("1: %s\n2: %s\n", t.names[0], t.names[1])
	switch {
	case c.Handshakes == 0:
		t.printf("No handshake is whole in both recordings: the offset of the clocks is not known,\nand no ends are joined.\n")
	case c.Drift > 0:
		t.wrap("The clocks drift: ", strings.Fields(fmt.Sprintf("%s contradict each other by %s ms. Ends are joined "+
			"where no others have their addresses, each by its own handshake.", leak.Counted(c.Handshakes, "handshake"), ms(c.Drift))))
	default:
		than := "ahead of"
		if c.Offset < 0 {
			than = "behind"
		}
		t.printf("The clock of 2 is %s %s %s ms %s that of 1, by %s.\n",
			ms(uint64(max(c.Offset, -c.Offset))), t.marks.plusMinus, ms(c.Error), than, leak.Counted(c.Handshakes, "handshake"))
	}
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
	t.head(s)
	for _, e := range s.Ends() {
		t.end(e)
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

func (t *Timeline) flush() error {
	_, err := io.WriteString(t.w, t.lines.String())
	t.lines.Reset()
	return err
}

// head says which connection it is and what became of it.
func (t *Timeline) head(s *timeline.Story) {
	first := s.Ends()[0]
	begin, exact := s.Begin()
	from, to := first.Local, first.Remote
	between := " -"
	if first.Role == tcp.Server {
		from, to = to, from
	}
	if first.Role != "" {
		between = " >"
	}
	duration := ms(uint64(s.Finish()-begin)) + " ms"
	if !exact {
		duration = "at least " + duration
	}
	if slices.ContainsFunc(s.Ends(), func(e *timeline.End) bool { return e.Open && e.Stays[len(e.Stays)-1].State != tcp.TimeWait }) {
		duration += " so far"
	}
	facts := []string{duration}
	verdict := timelineVerdict(s)
	if verdict.outcome != "" && (verdict.outcome != tcp.Closed || verdict.closer == "") {
		facts = append(facts, string(verdict.outcome))
	}
	if verdict.closer != "" {
		facts = append(facts, "closed first by "+verdict.closer)
	}
	if verdict.reason != "" {
		facts = append(facts, string(verdict.reason))
	}
	t.wrap("", append([]string{from.String() + between, to.String() + ":"}, listed(facts)...))
	since := "  began "
	if !exact {
		since = "  known since "
	}
	t.printf("%s%s", since, time.Unix(0, first.Wall(0)+begin).Format("2006-01-02 15:04:05.000000"))
	if s.Error != 0 || s.Offset != 0 {
		t.printf(" by the clock of %d; times of %d: %s %s ms", first.Recording+1, 2-first.Recording, t.marks.plusMinus, ms(s.Error))
	}
	t.printf("\n")
}

// verdict is what became of a connection.
type verdict struct {
	outcome tcp.Outcome
	closer  string // as "the client"
	word    string // as JSON has it
	reason  tcp.Reason
	errno   uint32
}

// timelineVerdict says what ended a connection: what the end says that was over first.
func timelineVerdict(s *timeline.Story) (v verdict) {
	ended, at := (*timeline.Stay)(nil), int64(0)
	for _, e := range s.Ends() {
		last, over := e.Last()
		if over && (ended == nil || s.At(e, last.End) < at) {
			ended, at = last, s.At(e, last.End)
		}
		if v.word == "" || v.word == string(connection.Unknown) {
			v.closer, v.word = closerOf(e)
		}
	}
	if ended == nil {
		return v
	}
	change := tcp.Event{Old: ended.State, New: ended.Next, Reason: ended.Reason}
	v.reason, v.errno = ended.Reason, ended.Errno
	if change.Finishes() {
		v.outcome = change.Outcome()
	}
	return v
}

func closerOf(e *timeline.End) (name, word string) {
	client, server := "client", "server"
	if e.Role != tcp.Client {
		client, server = server, client
	}
	closer := e.ClosedFirst()
	switch {
	case closer == connection.Simultaneous:
		return "both at once", string(closer)
	case closer == connection.Unknown:
		return "", string(closer)
	case closer == "", e.Role == "":
		return "", ""
	case closer == connection.Local:
		return "the " + client, client
	}
	return "the " + server, server
}

// end says who had an end, and what is known of it.
func (t *Timeline) end(e *timeline.End) {
	var facts []string
	if e.OwnerSource != "" {
		facts = append(facts, ownerName(e.PID, e.Comm, maxName))
	} else {
		facts = append(facts, "owner not known")
	}
	if e.UID != tcp.NoUID {
		facts = append(facts, "uid "+strconv.FormatUint(uint64(e.UID), 10))
	}
	if e.FD >= 0 {
		facts = append(facts, "fd "+strconv.Itoa(int(e.FD)))
	}
	if e.HasCounters {
		facts = append(facts, fmt.Sprintf("%d bytes sent", e.BytesSent), fmt.Sprintf("%d received", e.BytesReceived),
			leak.Counted(int(e.Retransmits), "retransmit"))
	}
	if e.HasCounters && e.SRTT != 0 {
		facts = append(facts, "srtt "+ms(uint64(e.SRTT)*1000)+" ms")
	}
	if e.Cookie != 0 {
		facts = append(facts, "cookie "+strconv.FormatUint(e.Cookie, 16))
	}
	if e.ContainerID != "" {
		facts = append(facts, "container "+terminal.Visible(e.ContainerID[:min(12, len(e.ContainerID))]))
	}
	if e.Lost {
		facts = append(facts, "its end was not seen")
	}
	if e.Missing {
		facts = append(facts, "some changes were not seen")
	}
	label := endName(e)
	if t.pair {
		label += " " + strconv.Itoa(e.Recording+1)
	}
	t.wrap(fmt.Sprintf("  %-9s", label), listed(facts))
}

func endName(e *timeline.End) string { return cmp.Or(string(e.Role), "end") }

// maxName is what is shown of a process name.
const maxName = 32

func ownerName(pid uint32, comm string, limit int) string {
	return string(terminal.AppendVisible(nil, comm, limit)) + " (" + strconv.FormatUint(uint64(pid), 10) + ")"
}

// listed is facts with commas between them.
func listed(facts []string) []string {
	for i := range facts[:len(facts)-1] {
		facts[i] += ","
	}
	return facts
}

// wrap writes pieces behind a title, in as many lines as they take.
func (t *Timeline) wrap(title string, pieces []string) {
	column := utf8.RuneCountInString(title)
	indent := min(max(column, 2), 11)
	t.printf("%s", title)
	for i, piece := range pieces {
		width := utf8.RuneCountInString(piece)
		switch {
		case i == 0:
		case column+1+width > timelineWidth:
			t.printf("\n%*s", indent, "")
			column = indent
		default:
			t.printf(" ")
			column++
		}
		t.printf("%s", piece)
		column += width
	}
	t.printf("\n")
}

// timelineRow is something that happened at one end.
type timelineRow struct {
	at     int64
	end    int // 0: on the first lifeline
	text   string
	packet bool // it is inferred that something from the other end arrived
	late   bool // it happened then at the latest
}

// rows draws the lifelines.
func (t *Timeline) rows(s *timeline.Story) {
	ends := s.Ends()
	begin, _ := s.Begin()
	var rows []timelineRow
	for i, e := range ends {
		for _, r := range t.rowsOf(e, len(ends) == 1) {
			r.at, r.end = s.At(e, uint64(r.at))-begin, i
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b timelineRow) int { return cmp.Compare(a.at, b.at) })
	if len(ends) == 2 {
		t.printf("%12s %s %-*s%s %s\n", "TIME_MS", t.marks.line, lane, strings.ToUpper(endName(ends[0])), t.marks.line, strings.ToUpper(endName(ends[1])))
	} else {
		other := "the other end was not seen"
		if s.Ambiguous {
			other = "several could be the other end: none is shown"
		}
		t.printf("%12s %s %s (%s)\n", "TIME_MS", t.marks.line, strings.ToUpper(endName(ends[0])), other)
	}
	for _, r := range rows {
		t.row(r, len(ends))
	}
}

// row draws one row. The dashes stand on the other end's side, and point to where it arrived.
func (t *Timeline) row(r timelineRow, ends int) {
	at := signedMS(r.at)
	if r.late {
		at = "<=" + at
	}
	t.printf("%12s %s ", at, t.marks.line)
	dashes := strings.Repeat(t.marks.dash, lane-1)
	switch {
	case ends == 1 && r.packet:
		t.printf("%s  <%s\n", r.text, strings.Repeat(t.marks.dash, 4))
	case ends == 1:
		t.printf("%s\n", r.text)
	case r.end == 1 && r.packet:
		t.printf("%s>%s %s\n", dashes, t.marks.line, r.text)
	case r.end == 1:
		t.printf("%*s%s %s\n", lane, "", t.marks.line, r.text)
	case r.packet:
		t.printf("%-*s%s<%s\n", lane, r.text, t.marks.line, dashes)
	default:
		t.printf("%-*s%s\n", lane, r.text, t.marks.line)
	}
}

// rowsOf returns what happened at one end, at times of its host.
func (t *Timeline) rowsOf(e *timeline.End, alone bool) (rows []timelineRow) {
	why, errno := cmp.Or(string(e.Opened), "?"), uint32(0)
	if _, exact := e.Begin(); !e.Begun && exact {
		why = "not seen how"
	} else if !e.Begun {
		why = "before the trace"
	}
	var owner timeline.Owner
	change := func(at uint64, to tcp.State) {
		text := to.String() + " " + why
		if errno != 0 && alone {
			text += " " + string(errnoName(nil, errno))
		}
		rows = append(rows, timelineRow{at: int64(at), text: text, packet: byPacket(tcp.Reason(why))})
	}
	for i := range e.Stays {
		stay := &e.Stays[i]
		at := stay.Begin
		if i > 0 {
			at = max(at, e.Stays[i-1].End)
		}
		change(at, stay.State)
		rows[len(rows)-1].late = stay.Kind != tcp.Exact && (i == 0 || e.Stays[i-1].Next == 0)
		if i > 0 && changedHands(owner, e.Stays[i-1].Owner) {
			owner = e.Stays[i-1].Owner
			rows = append(rows, timelineRow{at: int64(at), text: "  now of " + ownerName(owner.PID, owner.Comm, lane-20)})
		} else if owner.Source == "" {
			owner = stay.Owner
		}
		why, errno = cmp.Or(string(stay.Reason), "?"), stay.Errno
		if stay.Next == 0 {
			why = "not seen how"
		}
	}
	last := e.Stays[len(e.Stays)-1]
	switch {
	case last.Next == tcp.Close:
		change(last.End, tcp.Close)
	case e.Open:
		rows = append(rows, timelineRow{at: int64(last.End), text: last.State.String() + " goes on"})
	}
	return rows
}

// changedHands reports whether another process has an end than before.
func changedHands(was, is timeline.Owner) bool {
	return was.Source != "" && is.Source != "" && (was.PID != is.PID || was.Comm != is.Comm)
}

// byPacket reports whether a state ended because something came from the other end.
func byPacket(r tcp.Reason) bool {
	return slices.Contains([]tcp.Reason{tcp.SynReceived, tcp.HandshakeDone, tcp.FinReceived, tcp.FinAcked, tcp.RSTReceived}, r)
}

// bars draws how long an end was in each state.
func (t *Timeline) bars(e *timeline.End) {
	label := endName(e)
	for i := range e.Stays {
		stay := &e.Stays[i]
		ns, bar := stay.End-min(stay.Begin, stay.End), ""
		var text string
		switch stay.Kind {
		case tcp.Exact:
			text, bar = ms(ns), strings.Repeat(t.marks.bar, barLength(ns))
		case tcp.AtLeast:
			text, bar = ">="+ms(ns), strings.Repeat(t.marks.dash, 2)+strings.Repeat(t.marks.bar, barLength(ns))
		default:
			text, bar = "?", strings.Repeat(t.marks.dash, 4)
		}
		if e.Open && i == len(e.Stays)-1 {
			bar += "..."
		}
		t.printf("  %-9s%-11s %14s ms  %s\n", label, stay.State, text, bar)
		label = ""
	}
}

// barLength is how many characters stand for a time: its logarithm, counted from 1 µs.
func barLength(ns uint64) int {
	length := 1 + int(perDecade*math.Log10(float64(max(ns, 1000))/1000))
	return min(length, maxBar)
}

// ms is a time in milliseconds, cut to the microsecond.
func ms(ns uint64) string { return string(appendFixed(nil, ns, 6, 3)) }

func signedMS(ns int64) string {
	if ns < 0 {
		return "-" + ms(uint64(-ns))
	}
	return ms(uint64(ns))
}

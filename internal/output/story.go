package output

import (
	"cmp"
	"fmt"
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

// What a story says, for the text and for the picture. Sentences come in pieces that fold puts
// into lines.

// fold puts pieces behind a title, in as many lines as they take.
func fold(title string, pieces []string, width int) (lines []string) {
	line, column := title, utf8.RuneCountInString(title)
	indent := min(max(column, 2), 11)
	for i, piece := range pieces {
		room := utf8.RuneCountInString(piece)
		switch {
		case i == 0:
		case column+1+room > width:
			lines = append(lines, line)
			line, column = strings.Repeat(" ", indent), indent
		default:
			line += " "
			column++
		}
		line += piece
		column += room
	}
	return append(lines, line)
}

// listed is facts with commas between them.
func listed(facts []string) []string {
	for i := range facts[:len(facts)-1] {
		facts[i] += ","
	}
	return facts
}

// clockLines say what two recordings tell about the clocks of their hosts.
func clockLines(c timeline.Clocks, names [2]string, plusMinus string, width int) []string {
	var pieces string
	switch {
	case c.Handshakes == 0:
		pieces = "No handshake is whole in both recordings: the offset of the clocks is not known, and no ends are joined."
	case c.Drift > 0:
		pieces = fmt.Sprintf("The clocks drift: %s contradict each other by %s ms. Ends are joined "+
			"where no others have their addresses, each by its own handshake.", leak.Counted(c.Handshakes, "handshake"), ms(c.Drift))
	default:
		than := "ahead of"
		if c.Offset < 0 {
			than = "behind"
		}
		pieces = fmt.Sprintf("The clock of 2 is %s %s %s ms %s that of 1, by %s.",
			ms(uint64(max(c.Offset, -c.Offset))), plusMinus, ms(c.Error), than, leak.Counted(c.Handshakes, "handshake"))
	}
	return append([]string{"1: " + names[0], "2: " + names[1]}, fold("", strings.Fields(pieces), width)...)
}

// headline says which connection it is and what became of it.
func headline(s *timeline.Story) []string {
	first := s.Ends()[0]
	from, to := first.Local, first.Remote
	between := " -"
	if first.Role == tcp.Server {
		from, to = to, from
	}
	if first.Role != "" {
		between = " >"
	}
	facts := []string{lengthOf(s)}
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
	return append([]string{from.String() + between, to.String() + ":"}, listed(facts)...)
}

// lengthOf says how long a connection lasted.
func lengthOf(s *timeline.Story) string {
	begin, exact := s.Begin()
	duration := ms(uint64(s.Finish()-begin)) + " ms"
	if !exact {
		duration = "at least " + duration
	}
	if slices.ContainsFunc(s.Ends(), func(e *timeline.End) bool { return e.Open && e.Stays[len(e.Stays)-1].State != tcp.TimeWait }) {
		duration += " so far"
	}
	return duration
}

// since says when it began.
func since(s *timeline.Story, plusMinus string) string {
	first := s.Ends()[0]
	begin, exact := s.Begin()
	text := "  began "
	if !exact {
		text = "  known since "
	}
	text += time.Unix(0, first.Wall(0)+begin).Format("2006-01-02 15:04:05.000000")
	if s.Error != 0 || s.Offset != 0 {
		text += fmt.Sprintf(" by the clock of %d; times of %d: %s %s ms", first.Recording+1, 2-first.Recording, plusMinus, ms(s.Error))
	}
	return text
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

// factsOf says who had an end, and what is known of it.
func factsOf(e *timeline.End) []string {
	facts := []string{"owner not known"}
	if e.OwnerSource != "" {
		facts[0] = ownerName(e.PID, e.Comm, maxName)
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
	if n := e.Named(); n.Pod != "" {
		facts = append(facts, "pod "+terminal.Visible(n.Namespace+"/"+n.Pod))
	}
	if name := e.Named().Container; name != "" {
		facts = append(facts, "container "+terminal.Visible(name))
	} else if e.ContainerID != "" {
		facts = append(facts, "container "+terminal.Visible(e.ContainerID[:min(12, len(e.ContainerID))]))
	}
	if e.Lost {
		facts = append(facts, "its end was not seen")
	}
	if e.Missing {
		facts = append(facts, "some changes were not seen")
	}
	return listed(facts)
}

// labelOf names an end, and the recording that it is of if there are two.
func labelOf(e *timeline.End, pair bool) string {
	if pair {
		return endName(e) + " " + strconv.Itoa(e.Recording+1)
	}
	return endName(e)
}

func endName(e *timeline.End) string { return cmp.Or(string(e.Role), "end") }

// otherEnd says why one end is alone.
func otherEnd(s *timeline.Story) string {
	if s.Ambiguous {
		return "several could be the other end: none is shown"
	}
	return "the other end was not seen"
}

// maxName is what is shown of a process name.
const maxName = 32

func ownerName(pid uint32, comm string, limit int) string {
	return string(terminal.AppendVisible(nil, comm, limit)) + " (" + strconv.FormatUint(uint64(pid), 10) + ")"
}

// storyRow is something that happened at one end: it entered a state, or was still in it when
// the run ended.
type storyRow struct {
	at     int64 // since the beginning of the story
	end    int   // of Ends
	state  tcp.State
	why    string
	errno  uint32
	stay   *timeline.Stay  // the time in the state; nil: it is not told
	owner  *timeline.Owner // another process than before has the end now; nil: the same
	packet bool            // it is inferred that something from the other end arrived
	late   bool            // it happened then at the latest
	breaks bool            // the connection was reset, failed or was given up
}

// storyRows returns what happened, in order.
func storyRows(s *timeline.Story) (rows []storyRow) {
	begin, _ := s.Begin()
	for i, e := range s.Ends() {
		for _, r := range rowsOf(e) {
			r.at, r.end = s.At(e, uint64(r.at))-begin, i
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b storyRow) int { return cmp.Compare(a.at, b.at) })
	return rows
}

// rowsOf returns what happened at one end, at times of its host.
func rowsOf(e *timeline.End) (rows []storyRow) {
	row := beginning(e)
	var owner timeline.Owner
	for i := range e.Stays {
		stay := &e.Stays[i]
		row.at, row.state, row.stay = int64(stay.Begin), stay.State, stay
		row.late = stay.Kind != tcp.Exact && (i == 0 || e.Stays[i-1].Next == 0)
		if i > 0 {
			row.at = max(row.at, int64(e.Stays[i-1].End))
		}
		switch {
		case i > 0 && changedHands(owner, e.Stays[i-1].Owner):
			row.owner = &e.Stays[i-1].Owner
			owner = *row.owner
		case owner.Source == "":
			owner = stay.Owner
		}
		rows = append(rows, row)
		row = causeOf(stay)
	}
	last := &e.Stays[len(e.Stays)-1]
	row.at = int64(last.End)
	switch {
	case last.Next == tcp.Close:
		row.state = tcp.Close
		rows = append(rows, row)
	case e.Open:
		rows = append(rows, storyRow{at: row.at, state: last.State, why: "goes on"})
	}
	return rows
}

// beginning is why the first state that is known of an end began.
func beginning(e *timeline.End) storyRow {
	_, exact := e.Begin()
	switch {
	case e.Begun:
		return storyRow{why: cmp.Or(string(e.Opened), "?"), packet: byPacket(e.Opened)}
	case exact:
		return storyRow{why: "not seen how"}
	}
	return storyRow{why: "before the trace"}
}

// causeOf is why a state was left.
func causeOf(stay *timeline.Stay) storyRow {
	if stay.Next == 0 {
		return storyRow{why: "not seen how", errno: stay.Errno}
	}
	change := tcp.Event{Old: stay.State, New: stay.Next, Reason: stay.Reason}
	return storyRow{
		why: cmp.Or(string(stay.Reason), "?"), errno: stay.Errno,
		packet: byPacket(stay.Reason), breaks: change.Breaks(),
	}
}

// changedHands reports whether another process has an end than before.
func changedHands(was, is timeline.Owner) bool {
	return was.Source != "" && is.Source != "" && (was.PID != is.PID || was.Comm != is.Comm)
}

// byPacket reports whether a state ended because something came from the other end.
func byPacket(r tcp.Reason) bool {
	return slices.Contains([]tcp.Reason{tcp.SynReceived, tcp.HandshakeDone, tcp.FinReceived, tcp.FinAcked, tcp.RSTReceived}, r)
}

// lasted says how long an end was in a state.
func lasted(stay *timeline.Stay) string {
	ns := stay.End - min(stay.Begin, stay.End)
	switch stay.Kind {
	case tcp.Exact:
		return ms(ns)
	case tcp.AtLeast:
		return ">=" + ms(ns)
	}
	return "?"
}

// moment is when something happened.
func (r *storyRow) moment() string {
	if r.late {
		return "<=" + signedMS(r.at)
	}
	return signedMS(r.at)
}

// ms is a time in milliseconds, cut to the microsecond.
func ms(ns uint64) string { return string(appendFixed(nil, ns, 6, 3)) }

func signedMS(ns int64) string {
	if ns < 0 {
		return "-" + ms(uint64(-ns))
	}
	return ms(uint64(ns))
}

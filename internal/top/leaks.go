package top

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// LeakName names a group of sockets that may leak, or a destination of TIME_WAITs, from one look
// to the next. The zero value names none.
type LeakName struct {
	group       *leak.Group // not to be looked into: the Watch goes on
	destination *leak.Destination
}

// LeakRow is a group or a destination. Text is raw.
type LeakRow struct {
	LeakName
	Verdict   string // of a destination: whether it uses up the ports
	Count     int
	Comm      string
	PID       uint32 // 0: several, or not known
	State     tcp.State
	Local     netip.Addr // of a destination
	Remote    netip.AddrPort
	LocalPort uint16
	Container string
	Unit      string

	Oldest, Median uint64 // ns
	AtLeast        bool   // or more
	Growth         float64
	GrowthKnown    bool
	Files          leak.Files
	FilesKnown     bool

	PerSecond      float64 // of a destination, as is what follows
	PerSecondKnown bool
	Share          float64 // of the range of ports
	ShareKnown     bool
	Ends           [4]uint64 // expired, reused, overflow, other

	Notes     []string // what is the matter with it
	Sentences []string // the same, without the code that opened the sockets
	Stacks    []LeakStack
}

// LeakStack is code that opened so many sockets of a group, the innermost frame first.
type LeakStack struct {
	Count  int
	Frames []string
}

// LeakSocket is a socket of a group.
type LeakSocket struct {
	Local, Remote netip.AddrPort
	PID           uint32
	FD            int32
	Age           uint64 // ns in the state
	AtLeast       bool   // or more
	Queues        bool   // what follows is known
	Unread        uint32 // bytes; the FIN counts as one
	Unsent        uint32
}

// LeakReport is what was found at one time of sockets that may leak. Nothing changes it later.
type LeakReport struct {
	Title   string
	Rows    []LeakRow // the worst first
	Missing []string  // what they do not show
	Of      LeakName  // whose sockets are listed
	Sockets []LeakSocket
	More    int // sockets that are not among them
}

// leakLook looks at sockets that may leak.
type leakLook struct {
	watch *leak.Watch
	max   int // rows
}

// look makes a report, with the sockets of one group.
func (l *leakLook) look(now uint64, of LeakName) (*leak.Report, *LeakReport, error) {
	found := &LeakReport{Of: of}
	var visit func(*leak.Group, *tcp.Event)
	if of.group != nil {
		visit = func(g *leak.Group, row *tcp.Event) {
			if g == of.group {
				found.add(row)
			}
		}
	}
	report, err := l.watch.Report(now, visit)
	if err != nil {
		return nil, nil, err
	}
	found.fill(report, l.max)
	slices.SortStableFunc(found.Sockets, func(a, b LeakSocket) int { return cmp.Compare(b.Age, a.Age) })
	return report, found, nil
}

func (f *LeakReport) add(row *tcp.Event) {
	if len(f.Sockets) == maxRows {
		f.More++
		return
	}
	f.Sockets = append(f.Sockets, LeakSocket{
		Local: row.Local, Remote: row.Remote, PID: row.PID, FD: row.FD, Age: row.Duration, AtLeast: row.DurationKind == tcp.AtLeast,
		Queues: row.HasQueues, Unread: row.RxQueue, Unsent: row.TxQueue,
	})
}

// fill copies what it takes of a report, which the next one overwrites.
func (f *LeakReport) fill(r *leak.Report, most int) {
	f.Title, f.Missing = output.ReportTitle(r), output.ReportMissing(r, most)
	for _, g := range r.Groups[:min(len(r.Groups), most)] {
		f.Rows = append(f.Rows, groupLeak(g))
	}
	for _, d := range r.Destinations[:min(len(r.Destinations), most)] {
		f.Rows = append(f.Rows, destinationLeak(d))
	}
	if rest := len(r.Groups) + len(r.Destinations) - len(f.Rows); rest > 0 {
		f.Missing = append([]string{"and " + leak.Counted(rest, "more group")}, f.Missing...)
	}
}

func groupLeak(g *leak.Group) LeakRow {
	row := LeakRow{
		LeakName: LeakName{group: g}, Verdict: string(g.Verdict), Count: g.Count, Comm: g.Comm, PID: g.PID, State: g.State,
		Remote: g.Remote, LocalPort: g.LocalPort, Container: cmp.Or(g.Names.Container, g.Container), Unit: tcp.Unit(g.Cgroup),
		Oldest: g.Oldest, Median: g.Median, AtLeast: g.AtLeast, Growth: g.Growth, GrowthKnown: g.GrowthKnown,
		Files: g.Files, FilesKnown: g.FilesKnown, Notes: output.GroupNotes(g), Sentences: output.GroupSentences(g),
	}
	for _, s := range g.Stacks {
		stack := LeakStack{Count: s.Count}
		for _, frame := range s.Frames {
			stack.Frames = append(stack.Frames, frame.String())
		}
		row.Stacks = append(row.Stacks, stack)
	}
	return row
}

func destinationLeak(d *leak.Destination) LeakRow {
	row := LeakRow{
		LeakName: LeakName{destination: d}, Count: d.Count, State: tcp.TimeWait, Local: d.Local, Remote: d.Remote, LocalPort: d.LocalPort,
		Ends: [4]uint64{d.Expired, d.Reused, d.Overflow, d.Other}, Notes: output.DestinationNotes(d),
	}
	if d.Exhausts() {
		row.Verdict = "exhausts"
	}
	row.Sentences = row.Notes
	row.PerSecond, row.PerSecondKnown = d.PerSecond()
	row.Share, row.ShareKnown = d.Share()
	return row
}

// leakColumns are those of groups, behind the verdict.
func leakColumns() []column[LeakRow] {
	return []column[LeakRow]{
		leakNumber("COUNT", "sockets that have been in the state for long enough", 6,
			func(r *LeakRow) (float64, string) { return float64(r.Count), countText(uint64(r.Count)) }),
		leakText("COMM", "the process", 12, 15, func(r *LeakRow) string { return cmp.Or(r.Comm, none) }),
		leakText("STATE", "of the sockets", 10, 0, func(r *LeakRow) string { return r.State.String() }),
		leakNumber("OLDEST", "how long the oldest has been in it", 7, func(r *LeakRow) (float64, string) { return float64(r.Oldest), span(r.Oldest, r.AtLeast) }),
		leakNumber("GROW/M", "how many more there are a minute, of late", 6,
			func(r *LeakRow) (float64, string) { return r.Growth, unless(!r.GrowthKnown, growthText(r.Growth)) }),
		leakText("REMOTE", "the other end; of a server, the address of its clients", 21, 47, func(r *LeakRow) string { return remoteText(r.Remote) }),
		leakNumber("PID", "of the process", 8, func(r *LeakRow) (float64, string) {
			return float64(r.PID), unless(r.PID == 0, strconv.Itoa(int(r.PID)))
		}),
		leakNumber("LPORT", "local port", 5, portOf),
		leakNumber("OPEN/MAX", "files that the process has open, and may have", 13, filesOf),
		leakNumber("MEDIAN", "how long half of them have been in the state", 7, func(r *LeakRow) (float64, string) { return float64(r.Median), leak.Span(r.Median) }),
		leakText("UNIT", "the systemd unit", 20, 30, func(r *LeakRow) string { return cmp.Or(r.Unit, none) }),
		leakText("CONTAINER", "its name or its id", 20, 30, func(r *LeakRow) string { return cmp.Or(r.Container, none) }),
	}
}

// destinationColumns are those of destinations, behind the verdict.
func destinationColumns() []column[LeakRow] {
	columns := []column[LeakRow]{
		leakNumber("COUNT", "sockets in TIME_WAIT", 6, func(r *LeakRow) (float64, string) { return float64(r.Count), countText(uint64(r.Count)) }),
		leakText("REMOTE", "where the connections led", 21, 47, func(r *LeakRow) string { return remoteText(r.Remote) }),
		leakNumber("RANGE", "how much of the range of local ports is taken", 6, func(r *LeakRow) (float64, string) {
			return r.Share, unless(!r.ShareKnown, fmt.Sprintf("%.1f%%", 100*r.Share))
		}),
		leakNumber("NEW/S", "new ones per second", 7, func(r *LeakRow) (float64, string) {
			return r.PerSecond, unless(!r.PerSecondKnown, rateText(r.PerSecond))
		}),
		leakText("LOCAL", "local address", 15, 39, func(r *LeakRow) string { return r.Local.String() }),
		leakNumber("LPORT", "local port, of a server", 5, portOf),
	}
	for i, c := range [4][2]string{
		{"EXPIRED", "that ended after their minute"}, {"REUSED", "whose ports a new connection took"},
		{"OVERFL", "that there was no room for: tcp_max_tw_buckets"}, {"OTHER", "that were reset or killed"},
	} {
		columns = append(columns, leakNumber(c[0], c[1], 7, func(r *LeakRow) (float64, string) { return float64(r.Ends[i]), countText(r.Ends[i]) }))
	}
	return columns
}

func leakNumber(name, about string, width int, of func(*LeakRow) (float64, string)) column[LeakRow] {
	return column[LeakRow]{
		name: name, about: about, width: width,
		text:  func(r *LeakRow, _ bool) string { _, text := of(r); return text },
		value: func(r *LeakRow, _ bool) float64 { value, _ := of(r); return value },
	}
}

func leakText(name, about string, width, most int, of func(*LeakRow) string) column[LeakRow] {
	return column[LeakRow]{name: name, about: about, width: width, most: most, order: of, text: func(r *LeakRow, _ bool) string { return of(r) }}
}

func span(ns uint64, atLeast bool) string {
	if atLeast {
		return ">" + leak.Span(ns)
	}
	return leak.Span(ns)
}

// growthText writes a growth in six characters.
func growthText(perMinute float64) string {
	if perMinute > -999.95 && perMinute < 999.95 {
		return fmt.Sprintf("%+.1f", perMinute)
	}
	return fmt.Sprintf("%+.0f", perMinute)
}

func remoteText(remote netip.AddrPort) string {
	switch {
	case !remote.Addr().IsValid():
		return none
	case remote.Port() == 0:
		return remote.Addr().String()
	}
	return remote.String()
}

func portOf(r *LeakRow) (float64, string) {
	return float64(r.LocalPort), unless(r.LocalPort == 0, strconv.Itoa(int(r.LocalPort)))
}

func filesOf(r *LeakRow) (float64, string) {
	limit := strconv.FormatUint(r.Files.Limit, 10)
	if r.Files.Limit == 1<<64-1 {
		limit = "none"
	}
	return float64(r.Files.Open), unless(!r.FilesKnown, fmt.Sprintf("%d/%s", r.Files.Open, limit))
}

// leakName is what stands for a group in a title.
func leakName(r *LeakRow) string {
	of := ""
	if r.Comm != "" {
		of += " of " + r.Comm
	}
	if r.PID != 0 {
		of += fmt.Sprintf(" (pid %d)", r.PID)
	}
	if r.Remote.Addr().IsValid() {
		of += " to " + remoteText(r.Remote)
	}
	return fmt.Sprintf("%s in %s%s", leak.Counted(r.Count, "socket"), r.State, of)
}

// leakRows are those that pass the filter, in order.
func (m *Model) leakRows() (rows []*LeakRow) {
	s := m.shown()
	for i := range s.Leaks.Rows {
		r := &s.Leaks.Rows[i]
		if contains(m.leaks.filter, r.Verdict, r.Comm, r.State.String(), remoteText(r.Remote), r.Unit, r.Container) {
			rows = append(rows, r)
		}
	}
	sortRows(rows, &m.leaks, false)
	return rows
}

func (m *Model) selectedLeak(rows []*LeakRow) int {
	return max(slices.IndexFunc(rows, func(r *LeakRow) bool { return r.LeakName == m.pickLeak }), 0)
}

// maxNotes is how many lines below the table tell of the group that is selected.
const maxNotes = 5

// leakLines are the table of groups, and what is the matter with the one that is selected; in a
// report, with all of them.
func (m *Model) leakLines(s *Snapshot, room int, selects bool) []string {
	rows := m.leakRows()
	t := layout(&m.leaks, m.width, leakVerdict, leakVerdict)
	lines := []string{m.header(t.head("verdict", false))}
	at := m.selectedLeak(rows)
	var notes []string
	if selects && len(rows) > 0 && room >= 3*maxNotes {
		notes = append([]string{""}, m.sentences(rows[at].Notes, output.Indent)...)
		notes = notes[:min(len(notes), 1+maxNotes)]
	}
	missing := m.rest(len(s.Leaks.Rows), len(rows), len(rows), "group")
	missing = append(missing, m.sentences(s.Leaks.Missing, "")...)
	first, last := m.window(len(rows), at, max(room-1-len(notes)-len(missing), 1))
	for i := first; i < last; i++ {
		r := rows[i]
		lines = append(lines, m.line(t.row(cmp.Or(r.Verdict, none), r, false, m.visible), selects && i == at, r.Verdict == string(leak.Leak)))
		if !selects {
			lines = append(lines, m.sentences(r.Notes, output.Indent)...)
		}
	}
	if last < len(rows) {
		lines = append(lines, leak.Counted(len(rows)-last, "group")+" below")
	}
	return append(append(lines, missing...), notes...)
}

// leakVerdict is how wide a verdict is.
const leakVerdict = 9

// sentences are foreign texts in lines of the width of the screen, the same way indented.
func (m *Model) sentences(texts []string, indent string) (lines []string) {
	for _, text := range texts {
		lines = append(lines, wrap(indent, m.visible(text), m.width)...)
	}
	return lines
}

// wrap breaks a text at spaces, and a word that is too long, as names of C++ are, anywhere.
func wrap(indent, text string, width int) (lines []string) {
	for line := range strings.SplitSeq(ansi.Wrap(text, max(width-len(indent), 1), ""), "\n") {
		lines = append(lines, indent+line)
	}
	return lines
}

// detailLines are all that is known of one group.
func (m *Model) detailLines(s *Snapshot) []string {
	r := s.leak()
	if r == nil {
		return []string{"its sockets have left the state"}
	}
	lines := append(append(m.factLines(r), ""), m.sentences(r.Sentences, "")...)
	for _, stack := range r.Stacks {
		lines = append(lines, "", m.header(fmt.Sprintf("%d opened by", stack.Count)))
		if len(stack.Frames) == 0 {
			lines = append(lines, output.Indent+"unknown code")
		}
		for _, frame := range stack.Frames {
			lines = append(lines, wrap(output.Indent, m.visible(frame), m.width)...)
		}
	}
	return append(lines, m.leakSockets(s.Leaks)...)
}

// factLines are what the columns of a group hold, whole, two in a line where they have room.
func (m *Model) factLines(r *LeakRow) (lines []string) {
	half, open := m.width/2, false
	for i := range m.leaks.columns {
		c := &m.leaks.columns[i]
		text := c.text(r, false)
		if text == none {
			continue
		}
		fact := fmt.Sprintf("%-10s %s", strings.ToLower(c.name), m.visible(text))
		fits := ansi.StringWidth(fact) < half
		if open && fits {
			lines[len(lines)-1] = pad(lines[len(lines)-1], half) + fact
			open = false
			continue
		}
		lines, open = append(lines, fact), fits
	}
	return lines
}

// leak is the group that was asked for; nil: it is gone.
func (s *Snapshot) leak() *LeakRow {
	i := slices.IndexFunc(s.Leaks.Rows, func(r LeakRow) bool { return r.LeakName == s.Request.Leak })
	if i < 0 {
		return nil
	}
	return &s.Leaks.Rows[i]
}

// leakSockets are the sockets of the group, the ones that are longest in the state first.
func (m *Model) leakSockets(r *LeakReport) []string {
	if len(r.Sockets) == 0 {
		return nil
	}
	ends := 12
	for i := range r.Sockets {
		ends = max(ends, len(socketEnds(&r.Sockets[i])))
	}
	lines := []string{"", m.header(pad("LOCAL REMOTE", ends) + "     AGE      FD     PID  UNREAD  UNSENT")}
	for i := range r.Sockets {
		s := &r.Sockets[i]
		lines = append(lines, fmt.Sprintf("%s %7s %7s %7s %7s %7s", pad(socketEnds(s), ends), span(s.Age, s.AtLeast),
			unless(s.FD == tcp.NoFD, strconv.Itoa(int(s.FD))), unless(s.PID == 0, strconv.Itoa(int(s.PID))),
			unless(!s.Queues, countText(uint64(s.Unread))), unless(!s.Queues, countText(uint64(s.Unsent)))))
	}
	if r.More > 0 {
		lines = append(lines, "and "+leak.Counted(r.More, "more socket"))
	}
	return lines
}

func socketEnds(s *LeakSocket) string { return s.Local.String() + " " + remoteText(s.Remote) }

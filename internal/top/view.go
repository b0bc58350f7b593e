package top

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// View draws the screen.
func (m *Model) View() tea.View {
	v := tea.NewView(m.Screen())
	v.AltScreen, v.DisableBracketedPasteMode = true, true
	return v
}

// Screen is what View draws: no line is longer and there are no more than the terminal has.
func (m *Model) Screen() string {
	head, foot := m.head(), m.keys()
	room := max(m.height-len(head)-1, 1)
	lines := append(head, m.body(room, true)...)
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:min(len(lines), max(m.height-1, 0))], foot)
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	return strings.Join(lines, "\n")
}

// Report is what is shown, as plain text: without what was selected, and without an end.
func (m *Model) Report() string {
	all := *m
	all.o.Styled, all.help, all.typing, all.paused = false, false, false, false
	lines := append(all.head(), all.body(math.MaxInt, false)...)
	for i := range lines {
		lines[i] = strings.TrimRight(ansi.Strip(lines[i]), " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// Report is the report of a Snapshot for a width, without a Model to look at it before.
func Report(o Options, s *Snapshot, width int, totals bool) string {
	m := NewModel(o)
	m.width, m.totals, m.snap = width, totals, s
	m.places[0].request = s.Request
	return m.Report()
}

// styled puts text in a style, where there are any.
func (m *Model) styled(s lipgloss.Style, text string) string {
	if !m.o.Styled || text == "" {
		return text
	}
	return s.Render(text)
}

var (
	bold     = lipgloss.NewStyle().Bold(true)
	faint    = lipgloss.NewStyle().Faint(true)
	reversed = lipgloss.NewStyle().Reverse(true)
	red      = lipgloss.NewStyle().Foreground(lipgloss.Red)
)

// visible is foreign text as a terminal shows it and does not act on it, in ASCII if asked for.
func (m *Model) visible(text string) string {
	text = terminal.Visible(text)
	if m.o.ASCII {
		text = strings.Trim(strconv.QuoteToASCII(strings.NewReplacer(`\`, "\x01", `"`, "\x02").Replace(text)), `"`)
		text = strings.NewReplacer(`\x01`, `\`, `\x02`, `"`).Replace(text)
	}
	return text
}

// head is the title, and what else is to be known.
func (m *Model) head() []string {
	s := m.shown()
	if s == nil {
		return []string{m.styled(bold, "waiting for the first look"), ""}
	}
	if s.Request.Kind == Leaks || s.Request.Kind == Leak {
		return m.leakHead(s)
	}
	parts := []string{fmt.Sprintf("%s watched", ago(s.Watched)), fmt.Sprintf("%d open", s.All.Open)}
	if s.Lost > 0 {
		parts = append(parts, leak.Counted(int(s.Lost), "event")+" lost")
	}
	if s.Forgotten > 0 {
		parts = append(parts, leak.Counted(int(s.Forgotten), "socket")+" not followed")
	}
	title := m.title(s) + ": " + strings.Join(parts, ", ")
	return []string{m.styled(bold, title), m.styled(faint, m.state(s))}
}

// title says what is shown.
func (m *Model) title(s *Snapshot) string {
	switch r := s.Request; r.Kind {
	case Sockets:
		return fmt.Sprintf("Sockets of %s %s", r.By, m.visible(groupName(&Row{GroupName: r.Group})))
	case Story:
		return "One connection"
	case Diagram:
		return "State diagram"
	default:
		return fmt.Sprintf("TCP by %s", r.By)
	}
}

// leakHead is the title of what leaks, however long, and what else is to be known.
func (m *Model) leakHead(s *Snapshot) (lines []string) {
	title := s.Leaks.Title
	if s.Request.Kind == Leak {
		title = "No group any more"
		if r := s.leak(); r != nil {
			title = strings.TrimPrefix(r.Verdict+": "+leakName(r), ": ")
		}
	}
	for _, line := range m.sentences([]string{title}, "") {
		lines = append(lines, m.styled(bold, line))
	}
	state := "" // rates are not known
	if !m.o.Alone {
		state = m.state(s)
	} else if m.paused {
		state = "PAUSED"
	}
	return append(lines, m.styled(faint, state))
}

// state is the second line: rates of all, how a recording is played, the filter.
func (m *Model) state(s *Snapshot) string {
	var parts []string
	if p := m.o.Player; p != nil {
		speed, ended := p.State()
		switch {
		case ended:
			parts = append(parts, "end of the recording")
		case m.paused:
			parts = append(parts, "paused")
		case speed == 0:
			parts = append(parts, "as fast as it can be read")
		default:
			parts = append(parts, fmt.Sprintf("speed %gx", speed))
		}
	} else if m.paused {
		parts = append(parts, "PAUSED")
	}
	all := &s.All
	if m.totals {
		parts = append(parts, fmt.Sprintf("since the start: %d opened, %d closed, %d reset, %d failed", all.Events[0], all.Events[1], all.Events[2], all.Events[3]))
	} else {
		parts = append(parts, fmt.Sprintf("per second: %s opened, %s closed, %s reset, %s failed",
			rateText(all.Rates[0]), rateText(all.Rates[1]), rateText(all.Rates[2]), rateText(all.Rates[3])))
	}
	return strings.Join(parts, "; ")
}

// keys is the last line.
func (m *Model) keys() string {
	if f := m.filter(); f != nil && m.typing {
		return "Filter: " + m.visible(*f) + "_"
	}
	keys := "q quit  ? help  d diagram  l leaks  space pause"
	switch m.here().request.Kind {
	case Groups:
		keys = "q quit  ? help  g group  < > sort  / filter  enter sockets  d diagram  l leaks"
	case Sockets:
		keys = "q quit  ? help  esc back  < > sort  / filter  enter its story"
	case Leaks:
		keys = "q quit  ? help  < > sort  / filter  enter sockets, code  space pause"
		if !m.o.Alone {
			keys = "q quit  ? help  esc back  < > sort  / filter  enter sockets, code  d diagram"
		}
	case Leak:
		keys = "esc back  q quit  ? help  space pause"
	default:
		keys = "esc back  " + keys
	}
	if f := m.filter(); f != nil && *f != "" {
		keys = fmt.Sprintf("Filter: %s (esc: none)  %s", m.visible(*f), keys)
	}
	return m.styled(faint, keys)
}

// body is what stands below the head, with or without a selected row.
func (m *Model) body(room int, selects bool) []string {
	s := m.shown()
	switch {
	case m.help:
		return m.scroll(m.helpLines(), room, &m.helpAt)
	case s == nil:
		return nil
	}
	switch s.Request.Kind {
	case Groups:
		return m.groupLines(room, selects)
	case Sockets:
		return m.socketLines(s, room, selects)
	case Leaks:
		return m.leakLines(s, room, selects)
	case Leak:
		return m.scroll(m.detailLines(s), room, &m.here().top)
	}
	return m.scroll(m.textLines(s), room, &m.here().top)
}

// scroll returns the lines that there is room for, and corrects where they begin.
func (m *Model) scroll(lines []string, room int, top *int) []string {
	if len(lines) <= room {
		*top = 0
		return lines
	}
	*top = min(*top, len(lines)-room)
	return lines[*top : *top+room]
}

// textLines are those of a text. The diagram has styles, and no foreign text.
func (m *Model) textLines(s *Snapshot) (lines []string) {
	for line := range strings.Lines(s.Text) {
		line = strings.TrimSuffix(line, "\n")
		if s.Request.Kind != Diagram {
			line = m.visible(line)
		}
		lines = append(lines, line)
	}
	return lines
}

func groupName(r *Row) string {
	switch {
	case r.Other:
		return stats.OtherGroup
	case r.Comm != "":
		return r.Name + " " + r.Comm
	}
	return cmp.Or(r.Name, none)
}

// groupLines are the table of groups.
func (m *Model) groupLines(room int, selects bool) []string {
	rows := m.groupRows()
	t := layout(&m.groups, m.width, 13, 40)
	lines := []string{m.header(t.head(string(m.here().request.By), m.totals))}
	at := m.selectedGroup(rows)
	first, last := m.window(len(rows), at, room-1)
	for i := first; i < last; i++ {
		lines = append(lines, m.line(t.row(m.visible(groupName(rows[i])), rows[i], m.totals, m.visible), selects && i == at, rows[i].Growth > 0))
	}
	return append(lines, m.rest(len(m.shown().Groups), len(rows), last, "group")...)
}

// socketName is where a connection leads.
func socketName(r *SocketRow) string { return r.Local.String() + " " + r.Remote.String() }

// socketLines are the table of sockets.
func (m *Model) socketLines(s *Snapshot, room int, selects bool) []string {
	rows := m.socketRows()
	t := layout(&m.sockets, m.width, 34, 80)
	lines := m.listenerLines(s, room/3)
	room = max(room-len(lines), 2)
	lines = append(lines, m.header(t.head("local remote", false)))
	at := m.selectedSocket(rows)
	first, last := m.window(len(rows), at, room-1)
	for i := first; i < last; i++ {
		lines = append(lines, m.line(t.row(m.visible(socketName(rows[i])), rows[i], false, m.visible), selects && i == at, false))
	}
	if s.Request.Group.Other {
		return append(lines, "these sockets are of many groups, and have no rows")
	}
	if s.More > 0 {
		lines = append(lines, fmt.Sprintf("and %s that are younger", leak.Counted(s.More, "socket")))
	}
	if s.Unlisted > 0 {
		lines = append(lines, fmt.Sprintf("and more of the %s, of all groups, that had to make room", leak.Counted(int(s.Unlisted), "socket")))
	}
	return append(lines, m.rest(len(s.Sockets), len(rows), last, "socket")...)
}

// window returns which rows are shown. The last line is for what is not.
func (m *Model) window(rows, selected, room int) (first, last int) {
	if rows <= room {
		return 0, rows
	}
	room = max(room-1, 1)
	h := m.here()
	h.top = min(max(h.top, selected-room+1, 0), selected, max(rows-room, 0))
	return h.top, min(h.top+room, rows)
}

// rest says how many rows are not shown, and why.
func (m *Model) rest(all, passed, last int, noun string) (lines []string) {
	if all == 0 {
		return []string{"no " + noun + "s"}
	}
	var parts []string
	if last < passed {
		parts = append(parts, leak.Counted(passed-last, noun)+" below")
	}
	if passed < all {
		parts = append(parts, leak.Counted(all-passed, noun)+" not shown by the filter")
	}
	if len(parts) == 0 {
		return nil
	}
	return []string{strings.Join(parts, ", ")}
}

func (m *Model) header(text string) string { return m.styled(bold, text) }

// line is a row. What is selected has a mark, where there are no styles as well.
func (m *Model) line(text string, selected, grows bool) string {
	switch {
	case selected:
		return m.styled(reversed, ">"+text)
	case grows:
		return m.styled(red, " "+text)
	}
	return " " + text
}

// laid is a table that was fitted into a width.
type laid[T any] struct {
	name    int // width of the first column
	columns []column[T]
	sort    int // index of columns, -1: by name
	before  bool
	after   bool // there are more columns on that side
}

// more says in the header that there are more columns on that side.
const more = " >"

// layout takes as many columns as there is room for, the one to sort by among them.
func layout[T any](t *table[T], width, least, most int) laid[T] {
	first, last := 0, 0
	fits := func() bool {
		used := 1 + least + len(more)
		for _, c := range t.columns[first:last] {
			used += c.width + 1
		}
		return used <= width
	}
	for last < len(t.columns) {
		last++
		if fits() {
			continue
		}
		if last-1 > t.sort || first == last-1 {
			last--
			break
		}
		for !fits() && first < last-1 {
			first++
		}
	}
	l := laid[T]{columns: t.columns[first:last], sort: t.sort - first, before: first > 0, after: last < len(t.columns)}
	if t.sort < 0 {
		l.sort = -1
	}
	l.name = width - 1 - len(more)
	for _, c := range l.columns {
		l.name -= c.width + 1
	}
	left := l.name - most
	l.name = max(min(l.name, most), 1)
	l.widen(left)
	return l
}

// widen gives what is left of the line to columns that can take it.
func (l *laid[T]) widen(left int) {
	l.columns = slices.Clone(l.columns)
	for i := range l.columns {
		c := &l.columns[i]
		if more := min(left, c.most-c.width); more > 0 {
			c.width += more
			left -= more
		}
	}
}

// fill fills a cell: numbers to the right.
func (c *column[T]) fill(text string) string {
	if c.order != nil {
		return pad(text, c.width)
	}
	return padLeft(text, c.width)
}

// head is the header. The column to sort by has a mark.
func (l *laid[T]) head(name string, totals bool) string {
	name = strings.ToUpper(name)
	if l.sort < 0 {
		name = "*" + name
	}
	if l.before {
		name += " <"
	}
	var b strings.Builder
	b.WriteString(" " + pad(name, l.name))
	for i := range l.columns {
		title := l.columns[i].title(totals)
		if i == l.sort {
			title = "*" + title
		}
		b.WriteString(" " + l.columns[i].fill(title))
	}
	if l.after {
		b.WriteString(more)
	}
	return b.String()
}

// row is a line. visible is what a text is to go through.
func (l *laid[T]) row(name string, r *T, totals bool, visible func(string) string) string {
	var b strings.Builder
	b.WriteString(pad(name, l.name))
	for i := range l.columns {
		b.WriteString(" " + l.columns[i].fill(visible(l.columns[i].text(r, totals))))
	}
	return b.String()
}

// pad fills text up to a width, or cuts it.
func pad(text string, width int) string {
	text = ansi.Truncate(text, width, "~")
	return text + strings.Repeat(" ", max(width-ansi.StringWidth(text), 0))
}

func padLeft(text string, width int) string {
	text = ansi.Truncate(text, width, "~")
	return strings.Repeat(" ", max(width-ansi.StringWidth(text), 0)) + text
}

// helpLines are all keys and columns.
func (m *Model) helpLines() []string {
	if m.o.Alone {
		return append(leakKeys(), columnLines("Columns:", m.leaks.columns)...)
	}
	lines := []string{
		"up, down, pgup, pgdown, home, end   select a row, or scroll",
		"enter       the sockets of a group; the story of a socket; of leaks, the",
		"            sockets and the code that opened them",
		"esc         back; without a filter, if there is one",
		"g, G        group by what comes next, or before, of",
		"            " + strings.Join(names(stats.Bys[:9]), ", ") + ",",
		"            " + strings.Join(names(stats.Bys[9:]), ", "),
		"<, >        sort by the next column on that side; r: the other way round",
		"/           show the rows that have a text in them, as you type it",
		"t           since the start, or per second",
		"d           the state diagram",
		"l           leaks, with their verdicts",
	}
	if m.o.Player != nil {
		lines = append(lines, "space       pause the recording", "+, -        play it faster, or slower: 0.1x to 600x, then as fast as can be")
	} else {
		lines = append(lines, "space       pause: the screen stays, and counting goes on")
	}
	lines = append(lines, endKeys()...)
	lines = append(lines, columnLines("Columns of groups, and behind a / what they are called since the start:", m.groups.columns)...)
	lines = append(lines, columnLines("Columns of sockets:", m.sockets.columns)...)
	return append(lines, columnLines("Columns of leaks:", m.leaks.columns)...)
}

// leakKeys are the keys of a view of leaks alone.
func leakKeys() []string {
	return append([]string{
		"up, down, pgup, pgdown, home, end   select a row, or scroll",
		"enter       the sockets of a group, and the code that opened them",
		"esc         back; without a filter, if there is one",
		"<, >        sort by the next column on that side; r: the other way round.",
		"            By the verdict: the worst first",
		"/           show the rows that have a text in them, as you type it",
		"space       pause: the screen stays, and watching goes on",
	}, endKeys()...)
}

func endKeys() []string {
	return []string{
		"ctrl-z      stop the program; fg has it go on",
		"q           end, and leave the last report on the terminal",
	}
}

// columnLines say what is in the columns of a table.
func columnLines[T any](title string, columns []column[T]) []string {
	lines := []string{"", title}
	for _, c := range columns {
		name := c.title(false)
		if c.rate != "" {
			name += " / " + c.name
		}
		lines = append(lines, fmt.Sprintf("  %-18s %s", name, c.about))
	}
	return lines
}

func names(bys []stats.By) (all []string) {
	for _, by := range bys {
		all = append(all, string(by))
	}
	return all
}

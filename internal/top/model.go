package top

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Options say how a Model looks, and what it may ask for.
type Options struct {
	By     stats.By
	ASCII  bool          // no other characters
	Styled bool          // with bold characters and the like
	Ask    func(Request) // asks for other Snapshots
	Player *Player       // plays a recording; nil: the kernel

	Alone    bool // leaks alone: there are no groups, and no diagram
	TimeWait bool // destinations of TIME_WAITs are what leaks
}

// Model is the state of the view. Update and View are pure but for what Options have it ask for.
type Model struct {
	o             Options
	width, height int
	snap          *Snapshot // nil: there is none yet
	places        []place   // from the groups to where we are
	totals        bool      // since the start, not per second
	paused        bool      // Snapshots do not change what is shown
	typing        bool      // a filter
	help          bool
	helpAt        int
	suspended     bool
	groups        table[Row]
	sockets       table[SocketRow]
	leaks         table[LeakRow]
	pick          *stats.GroupName // the group that is selected; nil: the first
	pickEnd       *timeline.End    // the socket that is selected; nil: the first
	pickLeak      LeakName         // the group of leaks that is selected; zero: the first
}

// place is where one is: what is asked for, and how far it is scrolled.
type place struct {
	request Request
	top     int // first line or row that is shown
}

// table is how rows are sorted and picked.
type table[T any] struct {
	columns []column[T]
	sort    int  // index of columns; -1: by name
	up      bool // the least first
	filter  string
}

// NewModel returns the Model of a view of groups.
func NewModel(o Options) *Model {
	m := &Model{o: o, width: 80, height: 24}
	m.groups.columns, m.sockets.columns, m.leaks.columns = groupColumns(), socketColumns(), leakColumns()
	if o.TimeWait {
		m.leaks.columns = destinationColumns()
	}
	m.sockets.sort, m.leaks.sort = 1, -1 // leaks: the worst first
	m.places = []place{{request: Request{Kind: Groups, By: o.By}}}
	if o.Alone {
		m.places[0].request = Request{Kind: Leaks}
	}
	return m
}

// Init asks for what is to be shown, also when it goes on after Suspended.
func (m *Model) Init() tea.Cmd {
	m.o.Ask(m.here().request)
	return nil
}

// here is the place where one is.
func (m *Model) here() *place { return &m.places[len(m.places)-1] }

// Update takes a key, a Snapshot, or a change of size.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case *Snapshot:
		m.take(msg)
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// take shows a Snapshot, unless it is the answer to what was asked for before. While the view
// is paused only the first answer is shown.
func (m *Model) take(s *Snapshot) {
	if s.Request != m.here().request {
		return
	}
	if m.paused && m.snap != nil && m.snap.Request == s.Request && m.o.Player == nil {
		return
	}
	m.snap = s
}

// shown is the Snapshot of where one is; nil: it has not come yet.
func (m *Model) shown() *Snapshot {
	if m.snap == nil || m.snap.Request != m.here().request {
		return nil
	}
	return m.snap
}

func (m *Model) key(msg tea.KeyPressMsg) tea.Cmd {
	key := msg.String()
	switch {
	case key == "ctrl+c" || key == "ctrl+\\":
		return tea.Quit
	case key == "ctrl+z":
		m.suspended = true
		return tea.Quit
	case m.typing:
		m.typed(key, msg.Text)
	case m.help:
		m.helpKey(key)
	case key == "q":
		return tea.Quit
	default:
		m.command(key)
	}
	return nil
}

// filter is that of the table that is shown; nil: there is none.
func (m *Model) filter() *string {
	switch m.here().request.Kind {
	case Groups:
		return &m.groups.filter
	case Sockets:
		return &m.sockets.filter
	case Leaks:
		return &m.leaks.filter
	}
	return nil
}

// maxFilter is how long a filter may be.
const maxFilter = 60

// typed adds a key to the filter.
func (m *Model) typed(key, text string) {
	f := m.filter()
	switch key {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, *f = false, ""
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(*f)
		*f = (*f)[:len(*f)-size]
	case "ctrl+u":
		*f = ""
	default:
		if text != "" && len(*f)+len(text) <= maxFilter && !strings.ContainsFunc(text, unicode.IsControl) {
			*f += text
		}
	}
	m.here().top = 0
}

func (m *Model) helpKey(key string) {
	switch key {
	case "q", "esc", "?", "enter":
		m.help, m.helpAt = false, 0
	default:
		m.helpAt = max(m.helpAt+m.lines(key), 0)
	}
}

// lines is how far a key scrolls.
func (m *Model) lines(key string) int {
	const end = 1 << 30
	page := max(m.height-6, 1)
	switch key {
	case "up", "k":
		return -1
	case "down", "j":
		return 1
	case "pgup", "ctrl+b":
		return -page
	case "pgdown", "ctrl+f":
		return page
	case "home":
		return -end
	case "end":
		return end
	}
	return 0
}

// command does what a key says that is not typed into a filter.
func (m *Model) command(key string) {
	switch key {
	case "?", "h":
		m.help = true
	case "/":
		m.typing = m.filter() != nil
	case " ", "space", "p":
		m.pause()
	case "t":
		m.totals = !m.totals
	case "g":
		m.regroup(1)
	case "G", "shift+g":
		m.regroup(-1)
	case "<", ",", "left":
		m.sortBy(-1)
	case ">", ".", "right":
		m.sortBy(1)
	case "r":
		m.reverse()
	case "d":
		if !m.o.Alone {
			m.open(Request{Kind: Diagram})
		}
	case "l":
		m.open(Request{Kind: Leaks})
	case "enter":
		m.enter()
	case "esc", "backspace":
		m.back()
	case "+", "=":
		m.speed(1)
	case "-":
		m.speed(-1)
	default:
		m.move(m.lines(key))
	}
}

func (m *Model) pause() {
	m.paused = !m.paused
	if m.o.Player != nil {
		m.o.Player.Pause(m.paused)
	}
	if !m.paused {
		m.o.Ask(m.here().request) // the one that is shown may be old
	}
}

func (m *Model) speed(by int) {
	if m.o.Player != nil {
		m.o.Player.Faster(by)
	}
}

// regroup groups by what comes next.
func (m *Model) regroup(by int) {
	h := m.here()
	if h.request.Kind != Groups {
		return
	}
	n := len(stats.Bys)
	at := (slices.Index(stats.Bys, h.request.By) + by + n) % n
	*h = place{request: Request{Kind: Groups, By: stats.Bys[at]}}
	m.pick = nil
	m.o.Ask(h.request)
}

func (m *Model) sortBy(by int) {
	switch m.here().request.Kind {
	case Groups:
		m.groups.sortBy(by)
	case Sockets:
		m.sockets.sortBy(by)
	case Leaks:
		m.leaks.sortBy(by)
	}
}

func (t *table[T]) sortBy(by int) { t.sort = min(max(t.sort+by, -1), len(t.columns)-1) }

func (m *Model) reverse() {
	switch m.here().request.Kind {
	case Groups:
		m.groups.up = !m.groups.up
	case Sockets:
		m.sockets.up = !m.sockets.up
	case Leaks:
		m.leaks.up = !m.leaks.up
	}
}

// open goes to another place.
func (m *Model) open(r Request) {
	if m.here().request.Kind == r.Kind {
		return
	}
	aside := []Kind{Diagram, Leaks, Leak}
	for r.Kind != Leak && len(m.places) > 1 && slices.Contains(aside, m.here().request.Kind) {
		m.places = m.places[:len(m.places)-1] // from one to the other, not deeper and deeper
	}
	if m.here().request != r {
		m.places = append(m.places, place{request: r})
	}
	m.o.Ask(r)
}

// enter goes to what is selected.
func (m *Model) enter() {
	r := m.here().request
	switch {
	case m.shown() == nil:
	case r.Kind == Groups:
		if rows := m.groupRows(); len(rows) > 0 {
			m.pickEnd, m.sockets.filter = nil, ""
			m.open(Request{Kind: Sockets, By: r.By, Group: rows[m.selectedGroup(rows)].GroupName})
		}
	case r.Kind == Sockets:
		if rows := m.socketRows(); len(rows) > 0 {
			m.open(Request{Kind: Story, End: rows[m.selectedSocket(rows)].End})
		}
	case r.Kind == Leaks:
		if rows := m.leakRows(); len(rows) > 0 {
			m.pickLeak = rows[m.selectedLeak(rows)].LeakName
			m.open(Request{Kind: Leak, Leak: m.pickLeak})
		}
	}
}

// back leaves the place, or the filter.
func (m *Model) back() {
	if f := m.filter(); f != nil && *f != "" {
		*f = ""
		return
	}
	if len(m.places) > 1 {
		m.places = m.places[:len(m.places)-1]
		m.o.Ask(m.here().request)
	}
}

// move selects another row, or scrolls.
func (m *Model) move(by int) {
	if by == 0 || m.shown() == nil {
		return
	}
	switch m.here().request.Kind {
	case Groups:
		if rows := m.groupRows(); len(rows) > 0 {
			m.pick = &rows[min(max(m.selectedGroup(rows)+by, 0), len(rows)-1)].GroupName
		}
	case Sockets:
		if rows := m.socketRows(); len(rows) > 0 {
			m.pickEnd = rows[min(max(m.selectedSocket(rows)+by, 0), len(rows)-1)].End
		}
	case Leaks:
		if rows := m.leakRows(); len(rows) > 0 {
			m.pickLeak = rows[min(max(m.selectedLeak(rows)+by, 0), len(rows)-1)].LeakName
		}
	default:
		m.here().top = max(m.here().top+by, 0) // View knows how far it goes
	}
}

// groupRows are those that pass the filter, in order.
func (m *Model) groupRows() (rows []*Row) {
	s := m.shown()
	for i := range s.Groups {
		if r := &s.Groups[i]; contains(m.groups.filter, groupName(r)) {
			rows = append(rows, r)
		}
	}
	sortRows(rows, &m.groups, m.totals)
	return rows
}

// socketRows are those that pass the filter, in order.
func (m *Model) socketRows() (rows []*SocketRow) {
	s := m.shown()
	for i := range s.Sockets {
		if r := &s.Sockets[i]; contains(m.sockets.filter, socketName(r), socketState(r), r.Comm) {
			rows = append(rows, r)
		}
	}
	sortRows(rows, &m.sockets, false)
	return rows
}

// sortRows sorts by the chosen column; what is equal stays in the order of the Snapshot.
func sortRows[T any](rows []*T, t *table[T], totals bool) {
	sign := -1
	if t.up {
		sign = 1
	}
	if t.sort < 0 {
		if t.up {
			slices.Reverse(rows)
		}
		return
	}
	value, order := t.columns[t.sort].value, t.columns[t.sort].order
	if order != nil {
		slices.SortStableFunc(rows, func(a, b *T) int { return -sign * cmp.Compare(order(a), order(b)) })
		return
	}
	slices.SortStableFunc(rows, func(a, b *T) int { return sign * cmp.Compare(value(a, totals), value(b, totals)) })
}

// contains reports whether one of the texts has the filter in it, in either case.
func contains(filter string, texts ...string) bool {
	filter = strings.ToLower(filter)
	return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(strings.ToLower(text), filter) })
}

// selectedGroup is the row that is selected; the first, if it is gone.
func (m *Model) selectedGroup(rows []*Row) int {
	if m.pick == nil {
		return 0
	}
	return max(slices.IndexFunc(rows, func(r *Row) bool { return r.GroupName == *m.pick }), 0)
}

func (m *Model) selectedSocket(rows []*SocketRow) int {
	return max(slices.IndexFunc(rows, func(r *SocketRow) bool { return r.End == m.pickEnd }), 0)
}

// Suspended reports whether the view has quit to be stopped, and shown again later. It is said once.
func (m *Model) Suspended() bool {
	was := m.suspended
	m.suspended = false
	return was
}

// ago is a time of the source for people.
func ago(ns uint64) string { return time.Duration(ns).Truncate(time.Second).String() }

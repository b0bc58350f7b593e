package output

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// ReportOptions says what the writers of reports show.
type ReportOptions struct {
	Time bool // the time of day, HH:MM:SS
	Top  int  // so many groups, the worst; columns only, the others have all
}

// groupRow is a group of a report, destinationRow one of TIME_WAIT.
type (
	groupRow struct {
		*leak.Group
		report *leak.Report
	}
	destinationRow struct {
		*leak.Destination
		report *leak.Report
	}
)

// The layouts, by name. What has no bound, as fds, comes last.
const (
	groupLayout = "pid comm state remote lport sockets oldest median growth_per_min open/max verdict fds"
	groupFields = "boot_ns state pid comm uid cgroup container_id unit container image pod pod_uid namespace role holder netns lport raddr rport sockets " +
		"oldest_s oldest_at_least median_s watched_s growth_per_min fds open_files max_files limit_reached_s " +
		"unread_bytes eof_read eof_unread data_unread sending unaccepted acked reset verdict cause diagnosis stacks"
	destinationLayout = "laddr lport remote sockets of_range new_per_s expired reused overflow other"
	destinationFields = "boot_ns state netns laddr lport raddr rport sockets ports_held local_ports watched_s new_per_s exhausted_s " +
		"new expired reused overflow other closed_first_by diagnosis"
)

func groups() table[groupRow] {
	return slices.Concat(reportColumns(func(r *groupRow) *leak.Report { return r.report }), groupOwner, groupFigures, groupVerdict)
}

func destinations() table[destinationRow] {
	return slices.Concat(reportColumns(func(r *destinationRow) *leak.Report { return r.report }), destinationColumns)
}

// reportColumns are those that all groups of a report share.
func reportColumns[T any](of func(*T) *leak.Report) table[T] {
	return table[T]{
		{name: "time", width: 8, append: func(b []byte, v *T) []byte { return append(b, timeOfDay(of(v).Time)...) }},
		{name: "boot_ns", number: func(v *T) (uint64, bool) { return of(v).BootNS, true }},
	}
}

var groupOwner = table[groupRow]{
	{name: "state", width: 10, text: func(r *groupRow) (string, bool) { return r.State.String(), true }},
	{name: "pid", width: 7, number: func(r *groupRow) (uint64, bool) { return uint64(r.PID), r.PID != 0 }},
	{name: "comm", width: 15, text: func(r *groupRow) (string, bool) { return known(r.Comm) }},
	{name: "uid", number: func(r *groupRow) (uint64, bool) { return uint64(r.UID), r.UID != tcp.NoUID }},
	{name: "cgroup", text: func(r *groupRow) (string, bool) { return known(r.Cgroup) }},
	{name: "container_id", text: func(r *groupRow) (string, bool) { return known(r.Container) }},
	{name: "unit", text: func(r *groupRow) (string, bool) { return known(tcp.Unit(r.Cgroup)) }},
	{name: "container", text: func(r *groupRow) (string, bool) { return known(r.Names.Container) }},
	{name: "image", text: func(r *groupRow) (string, bool) { return known(r.Names.Image) }},
	{name: "pod", text: func(r *groupRow) (string, bool) { return known(r.Names.Pod) }},
	{name: "pod_uid", text: func(r *groupRow) (string, bool) { return known(r.Names.PodUID) }},
	{name: "namespace", text: func(r *groupRow) (string, bool) { return known(r.Names.Namespace) }},
	{name: "role", text: func(r *groupRow) (string, bool) { return known(r.Role) }},
	{name: "holder", text: func(r *groupRow) (string, bool) { return known(r.Holder) }},
	{name: "netns", number: func(r *groupRow) (uint64, bool) { return uint64(r.NetNS), r.NetNS != 0 }},
	{name: "lport", width: 5, number: func(r *groupRow) (uint64, bool) { return uint64(r.LocalPort), r.LocalPort != 0 }},
	{name: "raddr", append: func(b []byte, r *groupRow) []byte { return appendValid(b, r.Remote.Addr()) }},
	{name: "rport", number: func(r *groupRow) (uint64, bool) { return uint64(r.Remote.Port()), r.Remote.Port() != 0 }},
	{name: "remote", width: 21, append: func(b []byte, r *groupRow) []byte { return append(b, remoteText(r.Remote)...) }},
	{name: "fds", append: func(b []byte, r *groupRow) []byte { return appendFDs(b, r.Group) }},
	{name: "open_files", number: func(r *groupRow) (uint64, bool) { return r.Files.Open, r.FilesKnown }},
	{name: "max_files", number: func(r *groupRow) (uint64, bool) {
		return r.Files.Limit, r.FilesKnown && r.Files.Limit != math.MaxUint64
	}},
	{name: "open/max", width: 12, right: true, append: func(b []byte, r *groupRow) []byte { return appendFiles(b, r.Group) }},
}

var groupFigures = table[groupRow]{
	{name: "sockets", width: 7, right: true, number: func(r *groupRow) (uint64, bool) { return uint64(r.Count), true }},
	{name: "oldest_s", append: func(b []byte, r *groupRow) []byte { return appendFixed(b, r.Oldest, 9, 9) }},
	{name: "oldest_at_least", append: func(b []byte, r *groupRow) []byte { return strconv.AppendBool(b, r.AtLeast) }},
	{name: "oldest", width: 8, right: true, append: func(b []byte, r *groupRow) []byte { return appendOldest(b, r.Group) }},
	{name: "median_s", append: func(b []byte, r *groupRow) []byte { return appendFixed(b, r.Median, 9, 9) }},
	{name: "median", width: 8, right: true, append: func(b []byte, r *groupRow) []byte { return append(b, leak.Span(r.Median)...) }},
	{name: "watched_s", append: func(b []byte, r *groupRow) []byte { return appendFixed(b, r.Watched, 9, 9) }},
	{name: "growth_per_min", width: 14, right: true, append: func(b []byte, r *groupRow) []byte { return appendGrowth(b, r.Group) }},
	{name: "limit_reached_s", append: func(b []byte, r *groupRow) []byte {
		if !r.LeftKnown {
			return b
		}
		return appendFixed(b, r.Left, 9, 9)
	}},
	{name: "unread_bytes", number: func(r *groupRow) (uint64, bool) { return r.Unread, true }},
	{name: "eof_read", number: func(r *groupRow) (uint64, bool) { return uint64(r.Read), true }},
	{name: "eof_unread", number: func(r *groupRow) (uint64, bool) { return uint64(r.FinUnread), true }},
	{name: "data_unread", number: func(r *groupRow) (uint64, bool) { return uint64(r.Data), true }},
	{name: "sending", number: func(r *groupRow) (uint64, bool) { return uint64(r.Sending), true }},
	{name: "unaccepted", number: func(r *groupRow) (uint64, bool) { return uint64(r.Unaccepted), true }},
	{name: "acked", number: func(r *groupRow) (uint64, bool) { return uint64(r.Acked), true }},
	{name: "reset", number: func(r *groupRow) (uint64, bool) { return uint64(r.Reset), true }},
}

var groupVerdict = table[groupRow]{
	{name: "verdict", width: 9, text: func(r *groupRow) (string, bool) { return known(r.Verdict) }},
	{name: "cause", text: func(r *groupRow) (string, bool) { return known(r.Cause) }},
	{name: "diagnosis", text: func(r *groupRow) (string, bool) { return known(r.Diagnosis) }},
	{name: "stacks", text: func(r *groupRow) (string, bool) { return known(strings.Join(stackLines(r.Group), "; ")) }},
}

var destinationColumns = table[destinationRow]{
	{name: "state", text: func(*destinationRow) (string, bool) { return tcp.TimeWait.String(), true }},
	{name: "netns", number: func(r *destinationRow) (uint64, bool) { return uint64(r.NetNS), r.NetNS != 0 }},
	{name: "laddr", width: 15, append: func(b []byte, r *destinationRow) []byte { return appendValid(b, r.Local) }},
	{name: "lport", width: 5, number: func(r *destinationRow) (uint64, bool) { return uint64(r.LocalPort), r.Server() }},
	{name: "raddr", append: func(b []byte, r *destinationRow) []byte { return appendValid(b, r.Remote.Addr()) }},
	{name: "rport", number: func(r *destinationRow) (uint64, bool) { return uint64(r.Remote.Port()), r.Remote.Port() != 0 }},
	{name: "remote", width: 21, append: func(b []byte, r *destinationRow) []byte { return append(b, remoteText(r.Remote)...) }},
	{name: "sockets", width: 7, right: true, number: func(r *destinationRow) (uint64, bool) { return uint64(r.Count), true }},
	{name: "ports_held", number: func(r *destinationRow) (uint64, bool) { return uint64(r.Held), r.Ports != 0 && !r.Server() }},
	{name: "local_ports", number: func(r *destinationRow) (uint64, bool) { return uint64(r.Ports), r.Ports != 0 }},
	{name: "of_range", width: 8, right: true, append: func(b []byte, r *destinationRow) []byte {
		share, ok := r.Share()
		if !ok {
			return b
		}
		return append(strconv.AppendFloat(b, 100*share, 'f', 1, 64), '%')
	}},
	{name: "watched_s", append: func(b []byte, r *destinationRow) []byte { return appendFixed(b, r.Watched, 9, 9) }},
	{name: "new_per_s", width: 9, right: true, append: func(b []byte, r *destinationRow) []byte {
		rate, ok := r.PerSecond()
		if !ok {
			return b
		}
		return strconv.AppendFloat(b, rate, 'f', 1, 64)
	}},
	{name: "exhausted_s", append: func(b []byte, r *destinationRow) []byte {
		left, ok := r.Left()
		if !ok {
			return b
		}
		return appendFixed(b, left, 9, 9)
	}},
	{name: "new", number: func(r *destinationRow) (uint64, bool) { return r.New, true }},
	{name: "expired", width: 9, right: true, number: func(r *destinationRow) (uint64, bool) { return r.Expired, true }},
	{name: "reused", width: 9, right: true, number: func(r *destinationRow) (uint64, bool) { return r.Reused, true }},
	{name: "overflow", width: 9, right: true, number: func(r *destinationRow) (uint64, bool) { return r.Overflow, true }},
	{name: "other", width: 9, right: true, number: func(r *destinationRow) (uint64, bool) { return r.Other, true }},
	{name: "closed_first_by", text: func(r *destinationRow) (string, bool) { return known(strings.Join(closerLines(r.Destination), "; ")) }},
	{name: "diagnosis", text: func(r *destinationRow) (string, bool) { return known(r.Diagnosis) }},
}

func timeOfDay(ns int64) string { return time.Unix(0, ns).In(time.Local).Format(time.TimeOnly) }

func appendValid(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	return a.AppendTo(b)
}

func remoteText(remote netip.AddrPort) string {
	switch {
	case !remote.IsValid():
		return "*"
	case remote.Port() == 0:
		return string(endpoint(nil, remote))
	}
	return remote.String()
}

func appendFDs(b []byte, g *leak.Group) []byte {
	for i, fd := range g.FDs {
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendInt(b, int64(fd), 10)
	}
	if len(g.FDs) > 0 && g.Count > len(g.FDs) {
		b = append(b, " ..."...)
	}
	return b
}

func appendFiles(b []byte, g *leak.Group) []byte {
	switch {
	case !g.FilesKnown:
		return b
	case g.Files.Limit == math.MaxUint64:
		return append(strconv.AppendUint(b, g.Files.Open, 10), "/none"...)
	}
	return strconv.AppendUint(append(strconv.AppendUint(b, g.Files.Open, 10), '/'), g.Files.Limit, 10)
}

func appendOldest(b []byte, g *leak.Group) []byte {
	if g.AtLeast {
		b = append(b, ">="...)
	}
	return append(b, leak.Span(g.Oldest)...)
}

func appendGrowth(b []byte, g *leak.Group) []byte {
	if !g.GrowthKnown {
		return b
	}
	return fmt.Appendf(b, "%+.1f", g.Growth)
}

// ReportColumns writes reports as text: a line about all, then a table, and below each
// group what is the matter with it.
type ReportColumns struct {
	w            io.Writer
	o            ReportOptions
	groups       table[groupRow]
	destinations table[destinationRow]
}

// NewReportColumns returns a writer of text to w.
func NewReportColumns(w io.Writer, o ReportOptions) *ReportColumns {
	c := &ReportColumns{w: w, o: o, groups: groups().choose(strings.Fields(groupLayout)), destinations: destinations().choose(strings.Fields(destinationLayout))}
	c.groups.fit(false)
	c.destinations.fit(false)
	return c
}

// Indent is before what is said of a group below its figures.
const Indent = "        "

// Write writes a report at once.
func (c *ReportColumns) Write(r *leak.Report) error {
	_, err := c.w.Write(c.text(r))
	return err
}

func (c *ReportColumns) text(r *leak.Report) []byte {
	var b []byte
	if c.o.Time {
		b = append(append(b, timeOfDay(r.Time)...), ' ')
	}
	b = append(b, ReportTitle(r)+"\n"...)
	if len(r.Groups) > 0 {
		b = c.groups.appendHeader(b)
	}
	for i, g := range r.Groups {
		if i == c.o.Top {
			rest := 0
			for _, g := range r.Groups[i:] {
				rest += g.Count
			}
			b = fmt.Appendf(b, "and %s with %s; --top shows more, --by pid sums up\n", leak.Counted(len(r.Groups)-i, "more group"), leak.Counted(rest, "socket"))
			break
		}
		b = appendNotes(c.groups.appendLine(b, &groupRow{g, r}), GroupNotes(g))
	}
	if len(r.Destinations) > 0 {
		b = c.destinations.appendHeader(b)
	}
	for i, d := range r.Destinations {
		if i == c.o.Top {
			b = fmt.Appendf(b, "and %s; --top shows more\n", leak.Counted(len(r.Destinations)-i, "more destination"))
			break
		}
		b = appendNotes(c.destinations.appendLine(b, &destinationRow{d, r}), DestinationNotes(d))
	}
	for _, sentence := range ReportMissing(r, c.o.Top) {
		b = append(b, sentence+"\n"...)
	}
	return b
}

// ReportMissing says what the groups do not show, of which so many are shown at most.
func ReportMissing(r *leak.Report, top int) (sentences []string) {
	if r.Unplaced > 0 {
		sentences = append(sentences, fmt.Sprintf("and %s without a group, for lack of room", leak.Counted(r.Unplaced, "socket")))
	}
	if n := r.Unresolved - max(0, len(r.Groups)-top); n > 0 {
		sentences = append(sentences, leak.Counted(n, "group")+" without open files and stacks, for lack of time")
	}
	for _, sentence := range Unjudged(r.Unjudged) {
		sentences = append(sentences, "and "+sentence)
	}
	return sentences
}

func appendNotes(b []byte, notes []string) []byte {
	for _, note := range notes {
		b = append(terminal.AppendVisible(append(b, Indent...), note, math.MaxInt), '\n')
	}
	return b
}

// ReportTitle is the line about all.
func ReportTitle(r *leak.Report) string {
	var b strings.Builder
	if r.TimeWait {
		fmt.Fprintf(&b, "TIME_WAIT: %s, %s; watched %s", leak.Counted(r.Sockets, "socket"), leak.Counted(len(r.Destinations), "destination"), leak.Span(r.Watched))
	} else {
		leaks := "no leaks"
		if r.Leaks > 0 {
			leaks = leak.Counted(r.Leaks, "leak")
		}
		if r.Undecided > 0 { // "no leaks" alone would clear them
			leaks += fmt.Sprintf(", %d undecided", r.Undecided)
		}
		fmt.Fprintf(&b, "%s for %s or longer: %s, %s, %s; watched %s", StateNames(r.States), leak.Span(r.OlderThan),
			leak.Counted(r.Sockets, "socket"), leak.Counted(len(r.Groups), "group"), leaks, leak.Span(r.Watched))
	}
	if r.UnknownAge > 0 {
		fmt.Fprintf(&b, "; %s of unknown age", leak.Counted(r.UnknownAge, "more socket"))
	}
	if r.Lost > 0 {
		fmt.Fprintf(&b, "; %s lost", leak.Counted(int(r.Lost), "event"))
	}
	if r.Lost > 0 && r.TimeWait {
		b.WriteString(", so rates are too low")
	}
	return b.String()
}

// StateNames writes states for a sentence: "FIN_WAIT1, LAST_ACK and CLOSING".
func StateNames(states []tcp.State) string {
	var b strings.Builder
	for i, s := range states {
		switch i {
		case 0:
		case len(states) - 1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(s.String())
	}
	return b.String()
}

// placeNotes say where a group is, by the names that people use.
func placeNotes(g *leak.Group) (notes []string) {
	if n := &g.Names; n.Pod != "" {
		notes = append(notes, fmt.Sprintf("Pod %s/%s.", n.Namespace, n.Pod))
	}
	switch {
	case g.Names.Container != "":
		notes = append(notes, fmt.Sprintf("Container %s (%s).", g.Names.Container, g.Container[:min(12, len(g.Container))]))
	case g.Container != "":
		notes = append(notes, fmt.Sprintf("Container %s.", g.Container))
	}
	return notes
}

// GroupNotes is what is said below the figures of a group; it may be hostile.
func GroupNotes(g *leak.Group) []string { return append(GroupSentences(g), stackLines(g)...) }

// GroupSentences is GroupNotes without stacks.
func GroupSentences(g *leak.Group) []string {
	notes := []string{g.Diagnosis}
	notes = append(notes, placeNotes(g)...)
	switch {
	case g.FilesKnown && g.Files.Open >= g.Files.Limit:
		notes = append(notes, fmt.Sprintf("The process has reached its limit of %d open files: socket() and accept() fail with EMFILE.", g.Files.Limit))
	case g.LeftKnown:
		notes = append(notes, fmt.Sprintf("At this growth its limit of %d open files is reached in %s.", g.Files.Limit, leak.Span(g.Left)))
	}
	return notes
}

// stackLines says where the sockets were opened. Stacks whose own code is the same are
// one line.
func stackLines(g *leak.Group) (lines []string) {
	var texts []string
	var counts []int
	for _, s := range g.Stacks {
		text := stackText(s.Frames)
		if at := slices.Index(texts, text); at >= 0 {
			counts[at] += s.Count
		} else {
			texts, counts = append(texts, text), append(counts, s.Count)
		}
	}
	for i, text := range texts {
		lines = append(lines, fmt.Sprintf("%d opened by %s", counts[i], text))
	}
	return lines
}

// DestinationNotes is what is said below the figures of a destination; it may be hostile.
func DestinationNotes(d *leak.Destination) []string {
	return append([]string{d.Diagnosis}, closerLines(d)...)
}

func closerLines(d *leak.Destination) (lines []string) {
	for _, c := range d.Closers {
		lines = append(lines, fmt.Sprintf("%d closed first by pid %d (%s)", c.Count, c.PID, c.Comm))
	}
	return lines
}

// shownFrames is how many frames of a stack are printed; JSON has all.
const shownFrames = 5

// stackText is a stack on one line, innermost first: the program's own code, or where
// there is none, as on a goroutine of a library, the outermost.
func stackText(frames []symbolize.Frame) string {
	if len(frames) == 0 {
		return "unknown code"
	}
	own := slices.DeleteFunc(slices.Clone(frames), symbolize.Frame.IsPlumbing)
	if len(own) == 0 {
		own = frames[max(0, len(frames)-shownFrames):]
	}
	var calls []string
	for _, frame := range own[:min(len(own), shownFrames)] {
		calls = append(calls, frame.String())
	}
	return strings.Join(calls, " < ")
}

// Findings returns one line for each finding, not escaped: names in it may be hostile.
func Findings(findings []leak.Finding) (lines []string) {
	for _, f := range findings {
		if d := f.Destination; d != nil {
			lines = append(lines, fmt.Sprintf("%s: %s in TIME_WAIT from %s to %s: %s",
				f.Why, leak.Counted(d.Count, "socket"), d.Local, remoteText(d.Remote), d.Diagnosis))
			continue
		}
		g := f.Group
		owner, growth := "", "unknown growth"
		if g.PID != 0 {
			owner = fmt.Sprintf("pid %d (%s) has ", g.PID, g.Comm)
		} else if g.Comm != "" {
			owner = fmt.Sprintf("processes named %s have ", g.Comm)
		}
		if g.GrowthKnown {
			growth = fmt.Sprintf("%+.1f a minute", g.Growth)
		}
		lines = append(lines, fmt.Sprintf("%s: %s%s in %s to %s, %s: %s", f.Why, owner,
			leak.Counted(g.Count, "socket"), g.State, remoteText(g.Remote), growth, g.Diagnosis))
	}
	return lines
}

// ReportCSV writes one record per group and report, under a header.
type ReportCSV struct {
	w            io.Writer
	groups       table[groupRow]
	destinations table[destinationRow]
	begun        bool
}

// NewReportCSV returns a writer of CSV to w.
func NewReportCSV(w io.Writer, o ReportOptions) *ReportCSV {
	names := func(layout string) []string {
		names := strings.Fields(layout)
		if o.Time {
			names = slices.Insert(names, 0, "time")
		}
		return names
	}
	return &ReportCSV{w: w, groups: groups().choose(names(groupFields)), destinations: destinations().choose(names(destinationFields))}
}

// Write writes a report at once.
func (c *ReportCSV) Write(r *leak.Report) error {
	var b []byte
	if !c.begun {
		c.begun = true
		if r.TimeWait {
			b = c.destinations.appendCSVHeader(b)
		} else {
			b = c.groups.appendCSVHeader(b)
		}
	}
	for _, g := range r.Groups {
		b = c.groups.appendRecord(b, &groupRow{g, r})
	}
	for _, d := range r.Destinations {
		b = c.destinations.appendRecord(b, &destinationRow{d, r})
	}
	_, err := c.w.Write(b)
	return err
}

// ReportJSON writes one object per group and report, one a line.
type ReportJSON struct{ w io.Writer }

// NewReportJSON returns a writer of JSON to w.
func NewReportJSON(w io.Writer) *ReportJSON { return &ReportJSON{w} }

// Write writes a report at once.
func (j *ReportJSON) Write(r *leak.Report) error {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	for _, g := range r.Groups {
		if err := encoder.Encode(newGroupObject(g, r)); err != nil {
			return err
		}
	}
	for _, d := range r.Destinations {
		if err := encoder.Encode(newDestinationObject(d, r)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(j.w, b.String())
	return err
}

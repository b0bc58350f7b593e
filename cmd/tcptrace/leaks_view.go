package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// stackLines is how many stacks of a group are printed; JSON has as many.
const stackLines = 3

// leakView shows groups of sockets that are in a state for too long.
type leakView struct {
	cmd    *leaksCmd
	table  *leak.LeakTable
	stacks *stackReader // nil: not wanted, or a recording
	now    uint64
	first  uint64
	groups []*leak.LeakGroup
	files  map[uint32]enrich.Files // by process, read once per refresh
	growth map[uint32]float64      // of all groups of a process, per minute
	target func(*leak.LeakGroup, *tcp.Event)
	live   bool
}

func newLeakView(c *leaksCmd, p *probe.Probe) *leakView {
	by := leak.ByOwner
	if c.By != nil {
		by = leak.LeakBy(*c.By)
	}
	v := &leakView{cmd: c, live: p != nil, table: leak.NewLeakTable(leak.LeakRule{
		State: c.State.State(), OlderThan: uint64(c.OlderThan), By: by, NoQueues: p == nil,
	})}
	if p != nil && c.Stacks {
		v.stacks = newStackReader(p)
	}
	return v
}

func (v *leakView) event(e *tcp.Event) {
	v.table.Event(e)
	if v.stacks != nil && e.Stack != 0 {
		v.stacks.remember(e.PID)
	}
}

func (v *leakView) begin(now uint64) {
	if v.first == 0 {
		v.first = now
	}
	v.now = now
	v.table.Begin(now)
}

func (v *leakView) row(row *tcp.Event) {
	g := v.table.Add(row)
	if g == nil {
		return
	}
	if v.stacks != nil && row.Stack != 0 {
		v.stacks.remember(row.PID)
	}
	if v.target != nil {
		v.target(g, row)
	}
}

func (v *leakView) end() {
	v.groups = v.table.End()
	v.files = make(map[uint32]enrich.Files)
	v.growth = make(map[uint32]float64)
	for _, g := range v.groups {
		if g.PID != 0 && g.GrowthKnown {
			v.growth[g.PID] += g.Growth
		}
	}
}

func (v *leakView) title() string {
	sockets, leaks := v.table.Unplaced(), 0
	for _, g := range v.groups {
		sockets += g.Count
		if g.Verdict == leak.Leak {
			leaks++
		}
	}
	return fmt.Sprintf("%s for %s or longer: %s, %s, %s; watched %s", v.cmd.State.State(), leak.Span(uint64(v.cmd.OlderThan)),
		counted(sockets, "socket"), counted(len(v.groups), "group"), leaking(leaks), leak.Span(v.now-v.first))
}

func leaking(n int) string {
	switch n {
	case 0:
		return "none leaks"
	case 1:
		return "1 leaks"
	}
	return fmt.Sprintf("%d leak", n)
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

const leakColumns = "%-7s %-15s %-21s %-5s %7s %8s %8s %8s %12s %-9s %s\n"

// report prints a block per group: the figures, the verdict in words, and where the
// sockets were opened.
func (v *leakView) report(w io.Writer, top int) {
	if len(v.groups) == 0 {
		return
	}
	fmt.Fprintf(w, leakColumns, "PID", "COMM", "REMOTE", "LPORT", "COUNT", "OLDEST", "MEDIAN", "PER-MIN", "OPEN/LIMIT", "VERDICT", "FD")
	for i, g := range v.groups {
		if i == top {
			rest := 0
			for _, g := range v.groups[i:] {
				rest += g.Count
			}
			fmt.Fprintf(w, "and %s with %s; --top shows more, --by pid sums up\n", counted(len(v.groups)-i, "more group"), counted(rest, "socket"))
			break
		}
		v.group(w, g)
	}
	if n := v.table.Unplaced(); n > 0 {
		fmt.Fprintf(w, "and %s in no group, for want of room\n", counted(n, "socket"))
	}
}

func (v *leakView) group(w io.Writer, g *leak.LeakGroup) {
	files, known := v.filesOf(g.PID)
	use := "-"
	if known {
		use = fmt.Sprintf("%d/%s", files.Open, limitText(files.Limit))
	}
	fmt.Fprintf(w, leakColumns,
		dash(g.PID), visible(g.Comm, 15), remoteText(g.Remote), dash(uint32(g.LocalPort)), strconv.Itoa(g.Count),
		oldest(g), leak.Span(g.Median), perMinute(g), use, g.Verdict, fdText(g))
	fmt.Fprintf(w, indent+"%s\n", g.Diagnosis())
	if g.Container != "" {
		fmt.Fprintf(w, indent+"Container %s.\n", visible(g.Container, 64))
	}
	if left, ok := v.left(g); ok {
		fmt.Fprintf(w, indent+"At this growth its limit of %d open files is reached in %s.\n", files.Limit, leak.Span(left))
	}
	for i, s := range g.Stacks {
		if v.stacks == nil || i == stackLines {
			break
		}
		fmt.Fprintf(w, indent+"%d opened by %s\n", s.Count, stackText(v.stacks.frames(s)))
	}
}

// left is the time until the process of the group runs out of file descriptors, at
// the growth of all its groups, in ns.
func (v *leakView) left(g *leak.LeakGroup) (uint64, bool) {
	files, known := v.filesOf(g.PID)
	rate := v.growth[g.PID]
	if !known || files.Limit == math.MaxUint64 || !g.GrowthKnown || g.Verdict != leak.Leak || rate <= 0 {
		return 0, false
	}
	free := files.Limit - min(files.Open, files.Limit)
	return uint64(min(float64(free)/rate*60e9, math.MaxInt64)), true
}

// filesOf reads the files of a process, of a live one only.
func (v *leakView) filesOf(pid uint32) (enrich.Files, bool) {
	if files, known := v.files[pid]; known || pid == 0 || !v.live {
		return files, known && files.Limit != 0
	}
	files, err := enrich.ReadFiles("/proc", pid)
	if err != nil {
		files = enrich.Files{} // it has exited meanwhile
	}
	v.files[pid] = files
	return files, err == nil && files.Limit != 0
}

func dash(n uint32) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(n), 10)
}

// visible returns s for a column of so many characters.
func visible(s string, width int) string {
	text := []rune(output.Visible(s))
	return cmp.Or(string(text[:min(len(text), width)]), "-")
}

func remoteText(remote netip.AddrPort) string {
	switch {
	case !remote.IsValid():
		return "*"
	case remote.Port() == 0:
		return remote.Addr().String() + ":*"
	}
	return remote.String()
}

func oldest(g *leak.LeakGroup) string {
	if g.AtLeast {
		return ">=" + leak.Span(g.Oldest)
	}
	return leak.Span(g.Oldest)
}

func perMinute(g *leak.LeakGroup) string {
	if !g.GrowthKnown {
		return "-"
	}
	return fmt.Sprintf("%+.1f", g.Growth)
}

func limitText(limit uint64) string {
	if limit == math.MaxUint64 {
		return "none"
	}
	return strconv.FormatUint(limit, 10)
}

func fdText(g *leak.LeakGroup) string {
	if len(g.FDs) == 0 {
		return "-"
	}
	var b strings.Builder
	for i, fd := range g.FDs {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(fd)))
	}
	if g.Count > len(g.FDs) {
		b.WriteString(",...")
	}
	return b.String()
}

// findings are the groups that leak; with thresholds, instead of those, the groups
// that pass one.
func (v *leakView) findings() (lines []string) {
	for _, g := range v.groups {
		why := ""
		switch {
		case v.cmd.MaxCount == nil && v.cmd.MaxGrowth == nil:
			if g.Verdict == leak.Leak {
				why = "leak"
			}
		case v.cmd.MaxCount != nil && g.Count > int(*v.cmd.MaxCount):
			why = fmt.Sprintf("more than %d", *v.cmd.MaxCount)
		case v.cmd.MaxGrowth != nil && g.GrowthKnown && g.Growth > float64(*v.cmd.MaxGrowth):
			why = fmt.Sprintf("growth above %g a minute", *v.cmd.MaxGrowth)
		}
		if why != "" {
			lines = append(lines, fmt.Sprintf("%s: pid %s (%s) has %s in %s to %s, %s a minute: %s", why, dash(g.PID), visible(g.Comm, 15),
				counted(g.Count, "socket"), v.cmd.State.State(), remoteText(g.Remote), perMinute(g), g.Diagnosis()))
		}
	}
	return lines
}

package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// timeWaitView shows which destinations eat the local ports.
type timeWaitView struct {
	cmd    *leaksCmd
	probe  *probe.Probe // nil: a recording
	table  *leak.TimeWaitTable
	first  uint64
	now    uint64
	groups []*leak.TimeWaitGroup
	ports  map[uint32]int // size of the port range by namespace, read once per refresh; 0: not known
	lost   uint64
}

func newTimeWaitView(c *leaksCmd, p *probe.Probe, first uint64) *timeWaitView {
	return &timeWaitView{cmd: c, probe: p, first: first, table: leak.NewTimeWaitTable(first)}
}

func (v *timeWaitView) event(e *tcp.Event) {
	if e.Kind == tcp.Lost {
		v.lost += e.Lost
	} else {
		v.table.Event(e)
	}
}

func (v *timeWaitView) begin(now uint64) {
	v.now = now
	v.table.Begin(now)
}

func (v *timeWaitView) row(row *tcp.Event) { v.table.Add(row) }

func (v *timeWaitView) end() {
	v.groups = v.table.End()
	v.ports = make(map[uint32]int)
}

// portsOf is the size of the range that connect() picks from; 0: not known.
func (v *timeWaitView) portsOf(netns uint32) int {
	if n, known := v.ports[netns]; known || v.probe == nil {
		return n
	}
	n := 0
	if first, last, err := v.probe.PortRange(netns); err == nil && last >= first {
		n = int(last) - int(first) + 1
	}
	v.ports[netns] = n
	return n
}

func (v *timeWaitView) title() string {
	sockets := v.table.Unplaced()
	for _, g := range v.groups {
		sockets += g.Count
	}
	lost := ""
	if v.lost > 0 {
		lost = fmt.Sprintf("; %d events lost, so rates are too low", v.lost)
	}
	return fmt.Sprintf("TIME_WAIT: %s, %s; watched %s%s", counted(sockets, "socket"), counted(len(v.groups), "destination"),
		leak.Span(v.now-v.first), lost)
}

const timeWaitColumns = "%-15s %-5s %-21s %7s %8s %8s %9s %9s %9s %9s\n"

func (v *timeWaitView) report(w io.Writer, top int) {
	if len(v.groups) == 0 {
		return
	}
	fmt.Fprintf(w, timeWaitColumns, "LADDR", "LPORT", "REMOTE", "COUNT", "OF-RANGE", "NEW/S", "EXPIRED", "REUSED", "OVERFLOW", "OTHER")
	for i, g := range v.groups {
		if i == top {
			fmt.Fprintf(w, "and %s; --top shows more\n", counted(len(v.groups)-i, "more destination"))
			break
		}
		v.group(w, g)
	}
}

func (v *timeWaitView) group(w io.Writer, g *leak.TimeWaitGroup) {
	share, rate := "-", "-"
	if s, known := v.share(g); known {
		share = fmt.Sprintf("%.1f%%", 100*s)
	}
	if r, known := g.PerSecond(); known {
		rate = fmt.Sprintf("%.1f", r)
	}
	count := func(n uint64) string { return strconv.FormatUint(n, 10) }
	fmt.Fprintf(w, timeWaitColumns, g.Local, dash(uint32(g.LocalPort)), remoteText(g.Remote), strconv.Itoa(g.Count),
		share, rate, count(g.Expired), count(g.Reused), count(g.Overflow), count(g.Other))
	fmt.Fprintf(w, indent+"%s\n", v.diagnosis(g))
	for _, c := range g.Closers {
		fmt.Fprintf(w, indent+"%d closed first by pid %d (%s)\n", c.Count, c.PID, output.Visible(c.Comm))
	}
}

// share is how much of the port range the group occupies; false: it takes none, as
// a server, or that is not known.
func (v *timeWaitView) share(g *leak.TimeWaitGroup) (float64, bool) {
	ports := v.portsOf(g.NetNS)
	if ports == 0 || g.LocalPort != 0 {
		return 0, false
	}
	return float64(g.Count) / float64(ports), true
}

// exhausts reports whether the group uses up its port range, at the rate seen.
func (v *timeWaitView) exhausts(g *leak.TimeWaitGroup) bool {
	ports := v.portsOf(g.NetNS)
	if ports == 0 || g.LocalPort != 0 {
		return false
	}
	settles, known := g.Settles()
	return g.Count >= ports || known && settles > float64(ports)
}

func (v *timeWaitView) diagnosis(g *leak.TimeWaitGroup) string {
	ports, settles, known := v.portsOf(g.NetNS), 0.0, false
	if settles, known = g.Settles(); g.LocalPort != 0 {
		return "A server that closes first: it takes memory, no ports."
	}
	left, runsOut := g.Left(ports)
	switch {
	case ports == 0:
		return "The range of local ports is not known."
	case g.Count >= ports:
		return fmt.Sprintf("All %d local ports are taken: connect() fails with EADDRNOTAVAIL or has to reuse.", ports)
	case runsOut:
		return fmt.Sprintf("At this rate the %d local ports run out in %s: keep connections open and use them again.", ports, leak.Span(left))
	case !known:
		return "Watch for longer to see the rate."
	}
	return fmt.Sprintf("At this rate it settles at about %.0f of %d local ports (%.0f%%).", settles, ports, 100*settles/float64(ports))
}

// findings are the destinations that use up their ports or pass a threshold.
func (v *timeWaitView) findings() (lines []string) {
	for _, g := range v.groups {
		rate, known := g.PerSecond()
		why := ""
		switch {
		case v.cmd.MaxCount == nil && v.cmd.MaxGrowth == nil:
			if v.exhausts(g) {
				why = "exhaustion"
			}
		case v.cmd.MaxCount != nil && g.Count > int(*v.cmd.MaxCount):
			why = fmt.Sprintf("more than %d", *v.cmd.MaxCount)
		case v.cmd.MaxGrowth != nil && known && 60*rate > float64(*v.cmd.MaxGrowth):
			why = fmt.Sprintf("more than %g new ones a minute", *v.cmd.MaxGrowth)
		}
		if why != "" {
			lines = append(lines, fmt.Sprintf("%s: %s in TIME_WAIT from %s to %s: %s",
				why, counted(g.Count, "socket"), g.Local, remoteText(g.Remote), v.diagnosis(g)))
		}
	}
	return lines
}

// timeWaitObject is a destination in JSON.
type timeWaitObject struct {
	V        int            `json:"v"`
	Type     string         `json:"type"`
	BootNS   string         `json:"boot_ns"`
	State    string         `json:"state"`
	NetNS    uint32         `json:"netns,omitempty"`
	LAddr    string         `json:"laddr"`
	LPort    uint16         `json:"lport,omitempty"`
	RAddr    string         `json:"raddr"`
	RPort    uint16         `json:"rport,omitempty"`
	Sockets  int            `json:"sockets"`
	Ports    int            `json:"local_ports,omitempty"`
	Watched  float64        `json:"watched_s"`
	Rate     *float64       `json:"new_per_s,omitempty"`
	Left     *float64       `json:"exhausted_s,omitempty"`
	New      uint64         `json:"new"`
	Expired  uint64         `json:"expired"`
	Reused   uint64         `json:"reused"`
	Overflow uint64         `json:"overflow"`
	Other    uint64         `json:"other"`
	Closers  []closerObject `json:"closed_first_by,omitempty"`
}

type closerObject struct {
	PID     uint32      `json:"pid"`
	Comm    output.Text `json:"comm"`
	Sockets uint64      `json:"sockets"`
}

func (v *timeWaitView) objects(emit func(any) error) error {
	for _, g := range v.groups {
		o := timeWaitObject{
			V: 1, Type: "time_wait", BootNS: strconv.FormatUint(v.now, 10), State: tcp.TimeWait.String(),
			NetNS: g.NetNS, LAddr: g.Local.String(), LPort: g.LocalPort, RAddr: g.Remote.Addr().String(), RPort: g.Remote.Port(),
			Sockets: g.Count, Ports: v.portsOf(g.NetNS), Watched: seconds(g.Watched),
			New: g.New, Expired: g.Expired, Reused: g.Reused, Overflow: g.Overflow, Other: g.Other,
		}
		if rate, known := g.PerSecond(); known {
			o.Rate = &rate
		}
		if left, runsOut := g.Left(o.Ports); o.Ports != 0 && runsOut {
			s := seconds(left)
			o.Left = &s
		}
		for _, c := range g.Closers {
			o.Closers = append(o.Closers, closerObject{c.PID, output.Text(c.Comm), c.Count})
		}
		if err := emit(o); err != nil {
			return err
		}
	}
	return nil
}

package output

import (
	"fmt"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The layout of the state diagram, as figure 5 of RFC 9293 has it, in characters of a
// terminal: the text and the picture are both drawn from it. It is data; a test sees to it
// that nothing in it overlaps.

// point is a character, from the top left.
type point struct{ x, y int }

// box is a rectangle of characters.
type box struct{ x, y, width, height int }

// spot is where a state is drawn, its border included. CLOSE has two, as in the figure: where
// connections begin and where they end.
type spot struct {
	state tcp.State
	box
}

// route is how an edge is drawn: from the border of one state to that of another.
type route struct {
	from, to tcp.State
	label    point   // where its count begins, labelWidth long
	way      []point // its corners, from the first to the last
	// stub is for an edge that leaves the figure's usual ways: an arrow with the name of the
	// state that it leads to, which it does not reach: it ends one character before its last
	// corner. It is drawn only if it was taken.
	stub bool
}

const (
	diagramWidth, diagramHeight = 80, 34
	nodeWidth                   = 24
	labelWidth                  = 6 // see shortCount
)

var spots = []spot{
	{tcp.Close, box{28, 0, nodeWidth, 4}},
	{tcp.Listen, box{28, 6, nodeWidth, 3}},
	{tcp.SynRecv, box{0, 10, nodeWidth, 4}},
	{tcp.SynSent, box{56, 10, nodeWidth, 4}},
	{tcp.Established, box{28, 16, nodeWidth, 3}},
	{tcp.FinWait1, box{0, 21, nodeWidth, 3}},
	{tcp.CloseWait, box{56, 21, nodeWidth, 3}},
	{tcp.FinWait2, box{0, 26, nodeWidth, 3}},
	{tcp.Closing, box{28, 26, nodeWidth, 3}},
	{tcp.LastAck, box{56, 26, nodeWidth, 3}},
	{tcp.TimeWait, box{28, 31, nodeWidth, 3}},
	{tcp.Close, box{63, 31, 17, 3}},
}

// routes are of all edges that sockets of Linux take; what has none is listed below.
var routes = []route{
	{from: tcp.Close, to: tcp.Listen, label: point{36, 4}, way: []point{{34, 3}, {34, 6}}},
	{from: tcp.Listen, to: tcp.Close, label: point{47, 4}, way: []point{{45, 6}, {45, 3}}},
	{from: tcp.Close, to: tcp.SynSent, label: point{60, 0}, way: []point{{51, 1}, {74, 1}, {74, 10}}},
	{from: tcp.SynSent, to: tcp.Close, label: point{64, 6}, way: []point{{62, 10}, {62, 2}, {51, 2}}},
	{from: tcp.Listen, to: tcp.SynRecv, label: point{16, 6}, way: []point{{28, 7}, {12, 7}, {12, 10}}},
	{from: tcp.SynSent, to: tcp.SynRecv, label: point{38, 10}, way: []point{{56, 11}, {23, 11}}},
	{from: tcp.SynRecv, to: tcp.Established, label: point{26, 13}, way: []point{{23, 12}, {34, 12}, {34, 16}}},
	{from: tcp.SynSent, to: tcp.Established, label: point{48, 13}, way: []point{{56, 12}, {45, 12}, {45, 16}}},
	{from: tcp.SynRecv, to: tcp.FinWait1, label: point{5, 18}, way: []point{{3, 13}, {3, 21}}},
	{from: tcp.Established, to: tcp.FinWait1, label: point{20, 19}, way: []point{{28, 17}, {18, 17}, {18, 21}}},
	{from: tcp.Established, to: tcp.CloseWait, label: point{64, 19}, way: []point{{51, 17}, {62, 17}, {62, 21}}},
	{from: tcp.FinWait1, to: tcp.FinWait2, label: point{5, 24}, way: []point{{3, 23}, {3, 26}}},
	{from: tcp.FinWait1, to: tcp.Closing, label: point{42, 24}, way: []point{{23, 22}, {40, 22}, {40, 26}}},
	{from: tcp.CloseWait, to: tcp.LastAck, label: point{60, 24}, way: []point{{58, 23}, {58, 26}}},
	{from: tcp.FinWait2, to: tcp.TimeWait, label: point{5, 30}, way: []point{{3, 28}, {3, 32}, {28, 32}}},
	{from: tcp.Closing, to: tcp.TimeWait, label: point{33, 29}, way: []point{{31, 28}, {31, 31}}},
	{from: tcp.LastAck, to: tcp.Close, label: point{73, 29}, way: []point{{71, 28}, {71, 31}}},
	{from: tcp.TimeWait, to: tcp.Close, label: point{54, 31}, way: []point{{51, 32}, {63, 32}}},

	{from: tcp.SynRecv, to: tcp.CloseWait, label: point{15, 14}, way: []point{{13, 13}, {13, 15}}, stub: true},
	{from: tcp.SynRecv, to: tcp.Close, label: point{8, 15}, way: []point{{6, 13}, {6, 16}}, stub: true},
	{from: tcp.Established, to: tcp.Close, label: point{42, 20}, way: []point{{40, 18}, {40, 21}}, stub: true},
	{from: tcp.FinWait1, to: tcp.Close, label: point{16, 25}, way: []point{{14, 23}, {14, 26}}, stub: true},
	{from: tcp.FinWait2, to: tcp.Close, label: point{16, 30}, way: []point{{14, 28}, {14, 31}}, stub: true},
	{from: tcp.CloseWait, to: tcp.Close, label: point{68, 25}, way: []point{{66, 23}, {66, 26}}, stub: true},
	{from: tcp.Closing, to: tcp.Close, label: point{43, 30}, way: []point{{41, 28}, {41, 31}}, stub: true},
}

// room is what the label of a route may take.
func (r *route) room() box {
	width := labelWidth
	if r.stub {
		width += len(r.to.String()) + 1
	}
	return box{r.label.x, r.label.y, width, 1}
}

// text is its label with a figure of labelWidth characters at most.
func (r *route) text(figure string) string {
	if r.stub {
		return r.to.String() + " " + figure
	}
	return figure
}

// drawing is a report as the diagram shows it.
type drawing struct {
	states []drawnState
	edges  []drawnEdge
	below  []string // edges without a route, and what is not shown
}

// drawnState is a spot with its figures.
type drawnState struct {
	spot
	now, times string // empty: not known
}

// drawnEdge is a route with its count.
type drawnEdge struct {
	*route
	edge    *stats.Edge
	count   uint64
	figure  string // beside the line, if it was taken
	hot     bool   // one of those that are taken most: half as often as the first, or more
	unusual bool   // see stats.Edge
}

// draw lays a report out. A role other than "" is drawn alone: the edges of its path, with
// the counts of the sockets that are known to have it.
func draw(r *stats.Report, role tcp.Role) *drawing { return layOut(r, role, false) }

// layOut is draw; with stubs, those that were never taken are drawn as well.
func layOut(r *stats.Report, role tcp.Role, stubs bool) *drawing {
	d := &drawing{}
	elsewhere, most := uint64(0), uint64(0)
	for i := range r.Edges {
		e := &r.Edges[i]
		count := e.CountOf(role)
		way := routeOf(e)
		switch {
		case !e.OnPath(role):
			elsewhere += count
		case way != nil && (count > 0 || stubs || !way.stub):
			most = max(most, count)
			d.edges = append(d.edges, drawnEdge{route: way, edge: e, count: count, figure: shortCount(count), unusual: count > 0 && e.Unusual()})
		case count > 0:
			d.below = append(d.below, belowLine(e, count))
		}
	}
	for i := range d.edges {
		e := &d.edges[i]
		e.hot = e.count > 0 && e.count >= most-most/2
	}
	d.addStates(r, role)
	if role != "" {
		d.below = append(d.below, fmt.Sprintf("Edges: sockets known as %s, which took others %d times. States: all sockets.", role, elsewhere))
	}
	return d
}

// routeOf returns nil for an edge that has no place in the diagram.
func routeOf(e *stats.Edge) *route {
	for i := range routes {
		if routes[i].from == e.From && routes[i].to == e.To {
			return &routes[i]
		}
	}
	return nil
}

func belowLine(e *stats.Edge, count uint64) string {
	line := e.From.String() + " > " + e.To.String() + " " + strconv.FormatUint(count, 10)
	if !e.Legal {
		return line + ": not an edge of the diagram"
	}
	return line
}

// addStates adds the spots that an edge leads to or comes from.
func (d *drawing) addStates(r *stats.Report, role tcp.Role) {
	for _, p := range spots {
		if role != "" && !d.touches(p) {
			continue
		}
		for i := range r.States {
			if s := &r.States[i]; s.State == p.state {
				d.states = append(d.states, drawnState{p, nowOf(s), timesOf(s)})
			}
		}
	}
}

// touches reports whether an edge begins or ends at the spot.
func (d *drawing) touches(p spot) bool {
	for i := range d.edges {
		way := d.edges[i].way
		if p.has(way[0]) || p.has(way[len(way)-1]) {
			return true
		}
	}
	return false
}

func (b box) has(p point) bool {
	return p.x >= b.x && p.x < b.x+b.width && p.y >= b.y && p.y < b.y+b.height
}

func nowOf(s *stats.State) string {
	if !s.NowKnown {
		return ""
	}
	return shortCount(uint64(max(s.Now, 0)))
}

// timesOf is what is known of the times in a state, in 20 characters or, for months, 23.
func timesOf(s *stats.State) string {
	if s.Exact.Count == 0 {
		return ""
	}
	b := appendShort([]byte("p50 "), s.Exact.Quantile(0.5))
	return string(appendShort(append(b, " p99 "...), s.Exact.Quantile(0.99)))
}

// shortCount is a count in six characters: 999999, 1.23M, 4.56G.
func shortCount(n uint64) string {
	switch {
	case n < 1e6:
		return strconv.FormatUint(n, 10)
	case n < 1e9:
		return string(appendDigits3(nil, n, 6)) + "M"
	}
	return string(appendDigits3(nil, n, 9)) + "G"
}

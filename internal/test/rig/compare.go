package rig

import (
	"fmt"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Diff is what Compare found. The two lists agree when Err returns nil.
type Diff struct {
	Oracle, Tracer int      // edges compared
	Sockets        int      // socket addresses that the oracle saw
	Missing        int      // edges that only the oracle has
	Extra          int      // edges that only the tracer has
	Reordered      int      // addresses whose edges come in another order
	Examples       []string // some of the differences
}

// Err says in one sentence how the lists differ, or returns nil.
func (d Diff) Err() error {
	if d.Missing+d.Extra+d.Reordered == 0 {
		return nil
	}
	return fmt.Errorf("of %d edges on %d sockets the tracer misses %d, invents %d, and has %d sockets in another order, such as %q",
		d.Oracle, d.Sockets, d.Missing, d.Extra, d.Reordered, d.Examples)
}

// Compare compares two lists of edges: the multiset of (socket, old, new), and the order
// for each socket address. The ports are not compared: the kernel
// reports some as 0.
func Compare(oracle, tracer []Edge) Diff {
	a, b := byAddress(oracle), byAddress(tracer)
	d := Diff{Oracle: len(oracle), Tracer: len(tracer), Sockets: len(a)}
	for sk, seen := range a {
		missing, extra := surplus(seen, b[sk]), surplus(b[sk], seen)
		d.Missing += len(missing)
		d.Extra += len(extra)
		d.note("missing", missing)
		d.note("invented", extra)
		if len(missing)+len(extra) == 0 && !slices.EqualFunc(seen, b[sk], sameStep) {
			d.Reordered++
			d.note("reordered", seen)
		}
	}
	for sk, told := range b {
		if _, ok := a[sk]; !ok {
			d.Extra += len(told)
			d.note("invented", told)
		}
	}
	return d
}

func (d *Diff) note(what string, edges []Edge) {
	const enough = 8
	for _, e := range edges {
		if len(d.Examples) < enough {
			d.Examples = append(d.Examples, what+" "+e.String())
		}
	}
}

func byAddress(edges []Edge) map[uint64][]Edge {
	m := map[uint64][]Edge{}
	for _, e := range edges {
		m[e.Sk] = append(m[e.Sk], e)
	}
	return m
}

func sameStep(a, b Edge) bool { return a.Old == b.Old && a.New == b.New }

// surplus returns the edges of a that b does not have, counted.
func surplus(a, b []Edge) (only []Edge) {
	left := map[[2]uint8]int{}
	for _, e := range b {
		left[[2]uint8{uint8(e.Old), uint8(e.New)}]++
	}
	for _, e := range a {
		step := [2]uint8{uint8(e.Old), uint8(e.New)}
		if left[step]--; left[step] < 0 {
			only = append(only, e)
		}
	}
	return only
}

// Connection names a connection by the ports of its ends, the lower one first. The zero
// value says that one of them is not known.
type Connection [2]uint16

func connection(a, b uint16) Connection {
	if a == 0 || b == 0 {
		return Connection{}
	}
	return Connection{min(a, b), max(a, b)}
}

// history is what one socket did from its birth to its end, in order.
type history struct {
	connection Connection
	edges      []Edge
}

// histories takes a record apart. The order among sockets is lost.
func histories(edges []Edge) (all []history) {
	for _, rest := range byAddress(edges) {
		for len(rest) > 0 {
			n := 1 + slices.IndexFunc(rest, func(e Edge) bool { return e.New == tcp.Close })
			if n == 0 {
				n = len(rest)
			}
			h := history{edges: rest[:n]}
			for _, e := range h.edges {
				if c := connection(e.Local, e.Remote); c != (Connection{}) {
					h.connection = c
				}
			}
			all, rest = append(all, h), rest[n:]
		}
	}
	return all
}

// Under returns the connections of which something happened while one of these threads
// was current.
func Under(tasks map[uint32]bool, edges []Edge) map[Connection]bool {
	under := map[Connection]bool{}
	for _, h := range histories(edges) {
		if slices.ContainsFunc(h.edges, func(e Edge) bool { return tasks[e.Task] }) {
			under[h.connection] = true
		}
	}
	delete(under, Connection{}) // a listener: it is in no connection
	return under
}

// Without returns what other connections did. The order among sockets is lost.
func Without(except map[Connection]bool, edges []Edge) (rest []Edge) {
	for _, h := range histories(edges) {
		if !except[h.connection] {
			rest = append(rest, h.edges...)
		}
	}
	return rest
}

// Ports is an inclusive range of port numbers.
type Ports struct{ Lo, Hi uint16 }

// Has reports whether either end of a connection is in the range.
func (p Ports) Has(local, remote uint16) bool {
	return p.Lo <= local && local <= p.Hi || p.Lo <= remote && remote <= p.Hi
}

// Diagram keeps of an oracle's record what is an edge of the state diagram on one of
// the ports: other programs use TCP too, and the kernel also reports steps from a
// state to itself.
func Diagram(edges []Edge, ports Ports) (kept []Edge) {
	for _, e := range edges {
		if e.Old != e.New && ports.Has(e.Local, e.Remote) {
			kept = append(kept, e)
		}
	}
	return kept
}

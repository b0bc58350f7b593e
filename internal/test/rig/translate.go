package rig

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Translation is the tracer's JSON in the oracle's words.
type Translation struct {
	Edges    []Edge // what tracefs must have seen, per socket in order
	Written  int    // transitions on the ports that the tracer wrote
	Lost     int    // events that the tracer counted as lost, on any port
	Unseen   int    // ... and those that the kernel kept from it, as far as it found out
	Mini     int    // of Written: steps of TIME_WAIT mini-sockets, which tracefs does not see
	HalfOpen int    // of Written: steps of request socks, which tracefs does not see
	Pending  int    // request socks that had not ended
}

// Translate reads what `tcptrace -j -x` wrote and turns it into the edges that
// tracefs shows for the same connections. They differ in exactly this:
//
//   - X>TIME_WAIT is X>CLOSE in tracefs, where the full socket ends and a mini-socket
//     takes over; what the mini-socket does later is not in tracefs. A FIN_WAIT2 may
//     live in the mini-socket too: then the edge comes later here than there, when
//     the address of the full socket may long be in use again.
//   - LISTEN>SYN_RECV is written when the first SYN made a request sock, without a
//     cookie; tracefs has it for the child, when the handshake is done.
//
// So the edges are gathered by life (see tcp.Tracker), and the lives of full sockets are
// laid out in the order of their birth. An event that cannot follow the one before it in
// its life is an error, as is a life that another event proves to be over before its end
// was written. Connections in except are left out.
func Translate(r io.Reader, ports Ports, except map[Connection]bool) (*Translation, error) {
	t := translator{except: except}
	t.open = tcp.NewTracker(math.MaxInt, t.unended)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		var e event
		err := json.Unmarshal(lines.Bytes(), &e)
		if err == nil {
			err = t.add(&e, ports)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %s", n, err, lines.Bytes())
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	for _, l := range t.lives {
		t.Edges = append(t.Edges, l.edges...)
	}
	for l := range t.open.All() {
		if l.Value == nil {
			t.Pending++
		}
	}
	return &t.Translation, nil
}

// event is the part of the JSON that matters here. It is read with encoding/json, so
// that a mistake of the tracer's own reader cannot hide one of its writer.
type event struct {
	Type, Cookie, SkAddr, Where string
	Events                      int
	NetNS, Device               uint32
	LAddr, RAddr                string
	LPort, RPort                uint16
	OldState                    string `json:"old_state"`
	NewState                    string `json:"new_state"`
}

// transition is the event as the Tracker takes it.
func (e *event) transition() (ev tcp.Event, err error) {
	ev = tcp.Event{Kind: tcp.Transition, NetNS: e.NetNS, Device: e.Device}
	if e.Cookie != "" {
		if ev.Cookie, err = strconv.ParseUint(e.Cookie, 16, 64); err != nil || ev.Cookie == 0 {
			return ev, fmt.Errorf("not a cookie: %q", e.Cookie)
		}
	}
	local, err := netip.ParseAddr(e.LAddr)
	if err != nil {
		return ev, err
	}
	remote, err := netip.ParseAddr(e.RAddr)
	if err != nil {
		return ev, err
	}
	ev.Local, ev.Remote = netip.AddrPortFrom(local, e.LPort), netip.AddrPortFrom(remote, e.RPort)
	if ev.Old, err = tcp.ParseState(e.OldState); err != nil {
		return ev, err
	}
	ev.New, err = tcp.ParseState(e.NewState)
	return ev, err
}

// life is one full socket from its birth to CLOSE, mini-socket included.
type life struct {
	sk    uint64
	edges []Edge
}

type translator struct {
	Translation
	except map[Connection]bool
	lives  []*life             // in the order of their birth
	open   *tcp.Tracker[*life] // nil: half-open
	broken []string            // lives that went without an end in this step
}

// unended is what the Tracker calls for a life that goes without its end.
func (t *translator) unended(l *tcp.Life[*life]) {
	t.broken = append(t.broken, fmt.Sprintf("the socket was in %v", l.State))
}

func (t *translator) add(e *event, ports Ports) error {
	if e.Type == "lost" {
		t.addLost(e)
		return nil
	}
	if e.Type != "transition" || !ports.Has(e.LPort, e.RPort) {
		return nil
	}
	ev, err := e.transition()
	if err != nil {
		return err
	}
	if t.except[connection(e.LPort, e.RPort)] {
		t.leaveOut(&ev)
		return nil
	}
	t.Written++
	step := t.open.Observe(&ev)
	switch {
	case len(t.broken) > 0:
		err = fmt.Errorf("%v>%v cannot happen: %s", ev.Old, ev.New, strings.Join(t.broken, ", "))
	case step.Missing:
		err = fmt.Errorf("%v>%v cannot happen: the socket was in %v", ev.Old, ev.New, step.From)
	case ev.Cookie == 0:
		err = t.addHalfOpen(&ev, step)
	default:
		err = t.addFull(&ev, e.SkAddr, step)
	}
	return err
}

func (t *Translation) addLost(e *event) {
	if e.Where == "hook" {
		t.Unseen += e.Events
	} else {
		t.Lost += e.Events
	}
}

// leaveOut takes back CLOSE>SYN_SENT, which came before there was a port to tell by.
func (t *translator) leaveOut(ev *tcp.Event) {
	l := t.open.Find(ev)
	if l == nil {
		return
	}
	if l.Value != nil {
		t.Written -= len(l.Value.edges)
		l.Value.edges = nil
	}
	t.open.Drop(l)
}

// addHalfOpen takes an event of a request sock. All full sockets have a cookie here.
func (t *translator) addHalfOpen(ev *tcp.Event, step tcp.Step[*life]) error {
	t.HalfOpen++
	begins := step.Began && ev.Old == tcp.Listen && ev.New == tcp.SynRecv
	ends := !step.Began && ev.Old == tcp.SynRecv && ev.New == tcp.Close && step.Life.Value == nil
	if !begins && !ends {
		return fmt.Errorf("%v>%v cannot happen to this half-open connection", ev.Old, ev.New)
	}
	return nil
}

// addFull takes an event of a full socket, which may be the first.
func (t *translator) addFull(ev *tcp.Event, sk string, step tcp.Step[*life]) error {
	if step.Life.Value == nil {
		if err := t.born(ev, sk, step); err != nil {
			return err
		}
	}
	if ev.Old == tcp.TimeWait {
		t.Mini++
		return nil
	}
	l, seen := step.Life.Value, ev.New
	if seen == tcp.TimeWait {
		seen = tcp.Close
	}
	l.edges = append(l.edges, Edge{Sk: l.sk, Old: ev.Old, New: seen, Local: ev.Local.Port(), Remote: ev.Remote.Port()})
	return nil
}

// born starts the life of a full socket. One that leaves SYN_RECV first is the child of a
// half-open connection, and tracefs had its LISTEN>SYN_RECV just before.
func (t *translator) born(ev *tcp.Event, address string, step tcp.Step[*life]) error {
	sk, err := strconv.ParseUint(address, 0, 64)
	if err != nil {
		return fmt.Errorf("no address of the socket (is -x missing?)")
	}
	l := &life{sk: sk}
	switch {
	case !step.Began: // the Tracker knew it as half-open
		l.edges = []Edge{{Sk: sk, Old: tcp.Listen, New: tcp.SynRecv, Local: ev.Local.Port(), Remote: ev.Remote.Port()}}
	case ev.Old == tcp.SynRecv:
		return fmt.Errorf("no SYN was seen of this connection")
	case ev.Old != tcp.Close && ev.Old != tcp.Listen:
		return fmt.Errorf("the birth of this socket is missing")
	}
	step.Life.Value = l
	t.lives = append(t.lives, l)
	return nil
}

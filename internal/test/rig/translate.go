package rig

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

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
//   - LISTEN>SYN_RECV is told when the first SYN made a request sock, without a
//     cookie; tracefs tells it of the child, when the handshake is done.
//
// So the edges are gathered by life (one cookie from birth to CLOSE), and the lives
// are laid out in the order of their birth. An event that cannot follow the one before
// it in its life is an error. Connections in except are left out.
func Translate(r io.Reader, ports Ports, except map[Connection]bool) (*Translation, error) {
	t := translator{except: except, open: map[string]*life{}, half: map[ends]bool{}}
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
	t.Pending = len(t.half)
	return &t.Translation, nil
}

// event is the part of the JSON that matters here. It is read with encoding/json, so
// that a mistake of the tracer's own reader cannot hide one of its writer.
type event struct {
	Type, Cookie, SkAddr, Where string
	Events                      int
	ends
	OldState string `json:"old_state"`
	NewState string `json:"new_state"`
}

// ends names a half-open connection.
type ends struct {
	NetNS        uint32
	LAddr, RAddr string
	LPort, RPort uint16
}

// life is one socket from its birth to CLOSE, mini-socket included.
type life struct {
	sk    uint64
	state tcp.State
	edges []Edge
}

type translator struct {
	Translation
	except map[Connection]bool
	lives  []*life          // in the order of their birth
	open   map[string]*life // by cookie
	half   map[ends]bool    // half-open connections
}

func (t *translator) add(e *event, ports Ports) error {
	if e.Type == "lost" {
		t.addLost(e)
		return nil
	}
	if e.Type != "transition" || !ports.Has(e.LPort, e.RPort) {
		return nil
	}
	if t.except[connection(e.LPort, e.RPort)] {
		t.leaveOut(e.Cookie)
		return nil
	}
	t.Written++
	from, err := tcp.ParseState(e.OldState)
	if err != nil {
		return err
	}
	to, err := tcp.ParseState(e.NewState)
	if err != nil {
		return err
	}
	if e.Cookie == "" {
		return t.addHalfOpen(e, from, to)
	}
	l := t.open[e.Cookie]
	if l == nil {
		if l, err = t.born(e, from); err != nil {
			return err
		}
	}
	if l.state != from {
		return fmt.Errorf("the socket was in %v", l.state)
	}
	t.step(l, e, to)
	return nil
}

func (t *Translation) addLost(e *event) {
	if e.Where == "hook" {
		t.Unseen += e.Events
	} else {
		t.Lost += e.Events
	}
}

// leaveOut takes back CLOSE>SYN_SENT, which came before there was a port to tell by.
func (t *translator) leaveOut(cookie string) {
	if l := t.open[cookie]; l != nil {
		t.Written -= len(l.edges)
		l.edges = nil
		delete(t.open, cookie)
	}
}

func (t *translator) addHalfOpen(e *event, from, to tcp.State) error {
	t.HalfOpen++
	switch {
	case from == tcp.Listen && to == tcp.SynRecv && !t.half[e.ends]:
		t.half[e.ends] = true
	case from == tcp.SynRecv && to == tcp.Close && t.half[e.ends]:
		delete(t.half, e.ends)
	default:
		return fmt.Errorf("%v>%v cannot happen to this half-open connection", from, to)
	}
	return nil
}

// born starts the life of a full socket. One that begins in SYN_RECV is the child of
// a half-open connection, and tracefs told its LISTEN>SYN_RECV just before.
func (t *translator) born(e *event, from tcp.State) (*life, error) {
	sk, err := strconv.ParseUint(e.SkAddr, 0, 64)
	if err != nil {
		return nil, fmt.Errorf("no address of the socket (is -x missing?)")
	}
	l := &life{sk: sk, state: from}
	switch from {
	case tcp.Close, tcp.Listen:
	case tcp.SynRecv:
		if !t.half[e.ends] {
			return nil, fmt.Errorf("no SYN was told of this connection")
		}
		delete(t.half, e.ends)
		l.edges = []Edge{{Sk: sk, Old: tcp.Listen, New: tcp.SynRecv, Local: e.LPort, Remote: e.RPort}}
	default:
		return nil, fmt.Errorf("the birth of this socket is missing")
	}
	t.lives = append(t.lives, l)
	t.open[e.Cookie] = l
	return l, nil
}

func (t *translator) step(l *life, e *event, to tcp.State) {
	if l.state == tcp.TimeWait {
		t.Mini++
	} else {
		seen := to
		if to == tcp.TimeWait {
			seen = tcp.Close
		}
		l.edges = append(l.edges, Edge{Sk: l.sk, Old: l.state, New: seen, Local: e.LPort, Remote: e.RPort})
	}
	l.state = to
	if to == tcp.Close {
		delete(t.open, e.Cookie)
	}
}

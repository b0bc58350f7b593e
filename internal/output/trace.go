package output

import (
	"cmp"
	"io"
	"net/netip"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Trace writes Chrome's trace-event JSON, which Perfetto and chrome://tracing open: a track
// for each connection below its process, a slice for each state, and an arrow from the
// client's SYN_SENT to the server's SYN_RECV where both ends are seen. It is the "JSON Array
// Format" of Google's "Trace Event Format", of which a file that was cut off can be opened
// too. Times are CLOCK_BOOTTIME in µs.
//
// A track is a thread of its own, because asynchronous slices (ph b and e) of one name are
// drawn as if they were one. Of more than maxTraced connections at a time the states that
// the oldest are in are not drawn, see Forgotten.
type Trace struct {
	buffer
	lives     *tcp.Tracker[track]
	processes map[uint32]bool // those that were given a name
	clients   map[ends][]*tcp.Life[track]
	tracks    uint32 // numbers that were given out
	flows     uint64 // likewise
	now       uint64 // of the latest event
	more      bool   // an event stands before the next one
}

// nobody stands for the process where none is known, and the numbers behind it for tracks:
// no process has them (PID_MAX_LIMIT), and readers of the format take a thread for a main
// thread if it has the number of a process.
const nobody = 1 << 22

const (
	maxTraced    = 1 << 18
	maxProcesses = 1 << 16 // after that they are named again, which does no harm
)

// track is what a Trace knows of a connection.
type track struct {
	tid    uint32 // 0: it has none yet
	pid    uint32 // the process; 0: none is known
	netns  uint32
	ported bool   // its name has the local port
	since  uint64 // when its state began; 0: not known
	syn    uint64 // when SYN_SENT began; 0: not known
	ends   ends   // the key in clients; zero: it is not there
}

// ends are the two addresses of a connection.
type ends struct{ client, server netip.AddrPort }

// NewTrace returns a writer of trace events to w.
func NewTrace(w io.Writer) *Trace {
	t := &Trace{buffer: newBuffer(w), processes: map[uint32]bool{}, clients: map[ends][]*tcp.Life[track]{}}
	t.lives = tcp.NewTracker(maxTraced, t.forget)
	t.lines = append(t.lines, '[')
	t.name("process_name", nobody, nobody, "owner not known")
	return t
}

// Forgotten returns how many connections were too many.
func (t *Trace) Forgotten() uint64 { return t.lives.Forgotten() }

// Write draws the state that the event ends. It keeps nothing of e.
func (t *Trace) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	t.now = max(t.now, e.BootNS)
	if !e.Kind.OfSocket() {
		t.lost(e)
		return t.keep(t.lines)
	}
	step := t.lives.Observe(e)
	t.follow(step.Life, e)
	begin, known := began(e)
	switch {
	case e.Kind == tcp.Transition && known:
		t.slice(&step.Life.Value, e.Old, begin, e)
	case e.DurationKind == tcp.Unknown && e.Kind == tcp.Transition:
		t.instant(&step.Life.Value, e)
	case !known:
		begin = 0
	}
	t.join(step.Life, e, begin)
	step.Life.Value.since = begin
	if e.Kind == tcp.Transition {
		step.Life.Value.since = e.BootNS
	}
	if step.Ended {
		t.forget(step.Life)
	}
	return t.keep(t.lines)
}

// began returns when the state began that the duration is of. Of one that is older than the
// trace, that is the latest time at which it can have begun.
func began(e *tcp.Event) (begin uint64, known bool) {
	return e.BootNS - min(e.Duration, e.BootNS), e.DurationKind.Known()
}

// Close draws the states that have not ended, and ends the list.
func (t *Trace) Close() error {
	for life := range t.lives.All() {
		var e tcp.Event
		life.Identify(&e)
		e.BootNS = t.now
		if life.Value.since != 0 {
			t.slice(&life.Value, life.State, life.Value.since, &e)
		}
		if err := t.keep(t.lines); err != nil {
			return err
		}
	}
	t.lines = append(t.lines, "\n]\n"...)
	return t.Flush()
}

// follow gives a connection a track, and another one where another process has it: what a
// listener began goes on in the process that accepted.
func (t *Trace) follow(life *tcp.Life[track], e *tcp.Event) {
	track := &life.Value
	track.netns = e.NetNS
	pid := cmp.Or(track.pid, nobody)
	if e.OwnerSource != "" {
		pid = e.PID
	}
	if track.tid == 0 || track.pid != pid {
		t.tracks++
		track.tid, track.pid, track.ported = nobody+t.tracks, pid, false
	} else if track.ported {
		return
	}
	if len(t.processes) == maxProcesses {
		clear(t.processes)
	}
	if pid != nobody && !t.processes[pid] {
		t.processes[pid] = true
		t.name("process_name", pid, pid, e.Comm)
	}
	track.ported = e.Local.Port() != 0
	t.name("thread_name", pid, track.tid, label(e))
}

// label names a connection.
func label(e *tcp.Event) string {
	between := " - "
	switch {
	case e.Role == tcp.Listener || e.Old == tcp.Listen && e.Role == "":
		return e.Local.String()
	case e.Role == tcp.Client:
		between = " > "
	case e.Role == tcp.Server:
		between = " < "
	}
	return e.Local.String() + between + e.Remote.String()
}

// join draws an arrow from a client to its server when the server's handshake is done. The
// addresses of a connection are unique within a network namespace alone: another one's
// client is taken only if there is no second.
func (t *Trace) join(life *tcp.Life[track], e *tcp.Event, begin uint64) {
	if e.Kind != tcp.Transition || e.New != tcp.Established || e.DurationKind != tcp.Exact {
		return
	}
	track := &life.Value
	switch {
	case e.Old == tcp.SynSent:
		track.syn, track.ends = begin, ends{e.Local, e.Remote}
		t.clients[track.ends] = append(t.clients[track.ends], life)
	case e.Old == tcp.SynRecv && e.Role == tcp.Server:
		client := peer(t.clients[ends{e.Remote, e.Local}], e.NetNS)
		if client == nil || client.syn > begin {
			return
		}
		t.flows++
		t.lines = append(t.flow(t.event("s", client.pid, client.tid, client.syn)), '}')
		t.lines = append(t.flow(t.event("f", track.pid, track.tid, begin)), `,"bp":"e"}`...)
	}
}

// peer returns the one client that may be the other end of a server in a namespace.
func peer(clients []*tcp.Life[track], netns uint32) *track {
	here := slices.IndexFunc(clients, func(l *tcp.Life[track]) bool { return l.Value.netns == netns })
	switch {
	case here >= 0:
		return &clients[here].Value
	case len(clients) == 1:
		return &clients[0].Value
	}
	return nil
}

// forget takes a connection that is over from the clients.
func (t *Trace) forget(life *tcp.Life[track]) {
	key := life.Value.ends
	rest := slices.DeleteFunc(t.clients[key], func(l *tcp.Life[track]) bool { return l == life })
	if len(rest) == 0 {
		delete(t.clients, key)
		return
	}
	t.clients[key] = rest
}

// slice draws a state, which the event ended, or none if it has no reason.
func (t *Trace) slice(on *track, state tcp.State, begin uint64, e *tcp.Event) {
	b := appendWord(append(t.event("X", on.pid, on.tid, begin), `,"cat":"tcp","name":"`...), state.String())
	b = appendFixed(append(b, `,"dur":`...), e.BootNS-min(begin, e.BootNS), 3, 3)
	t.lines = append(appendArgs(append(b, `,"args":{`...), e), "}}"...)
}

// instant marks the end of a state of which nobody knows when it began.
func (t *Trace) instant(on *track, e *tcp.Event) {
	b := appendWord(append(t.event("i", on.pid, on.tid, e.BootNS), `,"s":"t","cat":"tcp","name":"to `...), e.New.String())
	t.lines = append(appendArgs(append(b, `,"args":{`...), e), "}}"...)
}

func (t *Trace) lost(e *tcp.Event) {
	b := append(t.event("i", nobody, nobody, e.BootNS), `,"s":"g","name":"events `...)
	b = append(append(b, e.Kind.String()...), `","args":{"events":`...)
	b = appendText(append(strconv.AppendUint(b, e.Lost, 10), `,"where":"`...), e.Where)
	t.lines = append(b, "}}"...)
}

// name names a process, or a thread of it.
func (t *Trace) name(what string, pid, tid uint32, name string) {
	b := appendText(append(t.event("M", pid, tid, 0), `,"name":"`...), what)
	t.lines = append(appendText(append(b, `,"args":{"name":"`...), name), "}}"...)
}

// event begins an event: "M" names something, "X" is a slice, "i" an instant, "s" and "f"
// are the ends of an arrow.
func (t *Trace) event(phase string, pid, tid uint32, boot uint64) []byte {
	b := t.lines
	if t.more {
		b = append(b, ',')
	}
	t.more = true
	b = appendWord(append(b, "\n{\"ph\":\""...), phase)
	b = strconv.AppendUint(append(b, `,"pid":`...), uint64(pid), 10)
	b = strconv.AppendUint(append(b, `,"tid":`...), uint64(tid), 10)
	return appendFixed(append(b, `,"ts":`...), boot, 3, 3)
}

func (t *Trace) flow(b []byte) []byte {
	return strconv.AppendUint(append(b, `,"cat":"tcp","name":"connection","id":`...), t.flows, 10)
}

// appendArgs appends what is known at the end of a state, as JSON names it.
func appendArgs(b []byte, e *tcp.Event) []byte {
	start := len(b)
	if e.Cookie != 0 {
		b = append(strconv.AppendUint(append(b, `,"cookie":"`...), e.Cookie, 16), '"')
	}
	if e.Kind == tcp.Transition && e.New != 0 {
		b = appendWord(append(b, `,"new_state":"`...), e.New.String())
	}
	b = appendMeasures(appendCause(b, e), e)
	return append(b[:start], b[min(start+1, len(b)):]...) // without the first comma
}

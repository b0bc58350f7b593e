package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// traceEvent is an event as the Trace Event Format describes it.
type traceEvent struct {
	Ph, Name, Cat, S, Bp string
	Pid, Tid             *int64
	Ts, Dur              *json.Number
	ID                   *int64
	Args                 map[string]any
}

type place struct{ pid, tid int64 }

// span is a slice in ns.
type span struct {
	name       string
	begin, end int64
}

// opened is a trace as a viewer sees it.
type opened struct {
	processes map[int64]string
	threads   map[place]string
	slices    map[place][]span
	instants  map[place][]string
	arrows    [][2]place
}

// open reads a trace, and fails where it is not what the format asks for: the fields of
// each phase, slices that overlap on a track, arrows of one end or outside of slices.
func open(t testing.TB, text []byte) opened {
	t.Helper()
	var events []traceEvent
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&events); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	o := opened{map[int64]string{}, map[place]string{}, map[place][]span{}, map[place][]string{}, nil}
	starts := map[int64]place{}
	at := map[int64]int64{}
	for _, e := range events {
		if e.Pid == nil || e.Tid == nil || e.Ts == nil || e.Name == "" {
			t.Errorf("ph %q lacks pid, tid, ts or name: %+v", e.Ph, e)
			continue
		}
		where, ts := place{*e.Pid, *e.Tid}, nanoseconds(t, *e.Ts)
		switch e.Ph {
		case "M":
			name, _ := e.Args["name"].(string)
			if e.Name == "process_name" {
				o.processes[where.pid] = name
			} else {
				o.threads[where] = name
			}
		case "X":
			o.slices[where] = append(o.slices[where], span{e.Name, ts, ts + nanoseconds(t, *e.Dur)})
		case "i":
			o.instants[where] = append(o.instants[where], e.Name)
		case "s":
			starts[*e.ID], at[*e.ID] = where, ts
		case "f":
			from, ok := starts[*e.ID]
			if !ok || at[*e.ID] > ts || e.Bp != "e" || !o.within(from, at[*e.ID]) || !o.within(where, ts) {
				t.Errorf("an arrow from %v to %v is not between two slices, or goes back in time", from, where)
			}
			o.arrows = append(o.arrows, [2]place{from, where})
		default:
			t.Errorf("unknown phase %q", e.Ph)
		}
	}
	for where, spans := range o.slices {
		if o.threads[where] == "" || o.processes[where.pid] == "" {
			t.Errorf("track %v has no name", where)
		}
		slices.SortStableFunc(spans, func(a, b span) int { return int(a.begin - b.begin) })
		for i := 1; i < len(spans); i++ {
			if spans[i].begin < spans[i-1].end {
				t.Errorf("on track %v %v overlaps %v", where, spans[i], spans[i-1])
			}
		}
	}
	return o
}

func (o *opened) within(where place, ts int64) bool {
	return slices.ContainsFunc(o.slices[where], func(s span) bool { return s.begin <= ts && ts <= s.end })
}

func nanoseconds(t testing.TB, us json.Number) int64 {
	t.Helper()
	whole, decimals, _ := strings.Cut(string(us), ".")
	ns, err := strconv.ParseInt(whole+decimals, 10, 64)
	if err != nil || len(decimals) != 3 {
		t.Errorf("%q is not a time in µs with three decimals", us)
	}
	return ns
}

// tracks returns a line for each track: its process, its name, its slices.
func (o *opened) tracks() (lines []string) {
	for where, name := range o.threads {
		line := fmt.Sprintf("%s: %s:", o.processes[where.pid], name)
		for _, s := range o.slices[where] {
			line += fmt.Sprintf(" %s %d-%d", s.name, s.begin, s.end)
		}
		for _, i := range o.instants[where] {
			line += fmt.Sprintf(" (%s)", i)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// step makes a transition at a time, after a duration.
func step(at, duration uint64, cookie uint64, from, to tcp.State, local, remote string, role tcp.Role, pid uint32) tcp.Event {
	e := tcp.Event{
		Kind: tcp.Transition, BootNS: at, Cookie: cookie, NetNS: 1, Old: from, New: to, Role: role,
		Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), UID: tcp.NoUID, FD: tcp.NoFD,
	}
	if pid != 0 {
		e.PID, e.Comm, e.OwnerSource = pid, fmt.Sprintf("p\"%d\x1b", pid), tcp.FromUse
	}
	if from != tcp.Close && from != tcp.Listen {
		e.Duration, e.DurationKind = duration, tcp.Exact
	}
	return e
}

func traced(t testing.TB, events ...tcp.Event) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewTrace(&b)
	for i := range events {
		if err := w.Write(&events[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTrace(t *testing.T) {
	const c, c0, s = "10.0.0.7:40", "10.0.0.7:0", "10.0.0.1:80"
	old := step(9000, 0, 9, tcp.Close, tcp.CloseWait, "10.0.0.1:81", "10.0.0.2:50", tcp.Server, 3)
	old.Kind, old.Old, old.Duration, old.DurationKind = tcp.Socket, 0, 4000, tcp.AtLeast
	unknown := step(9700, 0, 8, tcp.Established, tcp.CloseWait, "10.0.0.1:82", "10.0.0.2:51", "", 0)
	unknown.DurationKind = tcp.Unknown
	o := open(t, traced(t,
		old,
		step(9100, 0, 1, tcp.Close, tcp.SynSent, c0, s, tcp.Client, 7),
		step(9110, 0, 0, tcp.Listen, tcp.SynRecv, s, c, tcp.Server, 1),
		step(9200, 100, 1, tcp.SynSent, tcp.Established, c, s, tcp.Client, 7),
		step(9210, 100, 2, tcp.SynRecv, tcp.Established, s, c, tcp.Server, 1),
		tcp.Event{Kind: tcp.Lost, BootNS: 9300, Lost: 5, Where: "ring"},
		tcp.Event{Kind: tcp.Unseen, BootNS: 9300, NetNS: 1, Lost: 5, Where: tcp.WhereCookie},
		step(9400, 190, 2, tcp.Established, tcp.CloseWait, s, c, tcp.Server, 2), // accepted by another process
		step(9500, 300, 1, tcp.Established, tcp.FinWait1, c, s, tcp.Client, 7),
		step(9600, 200, 2, tcp.CloseWait, tcp.LastAck, s, c, tcp.Server, 2),
		unknown,
		step(9800, 200, 2, tcp.LastAck, tcp.Close, s, c, tcp.Server, 2),
	))
	want := []string{
		`owner not known: 10.0.0.1:82 - 10.0.0.2:51: CLOSE_WAIT 9700-9800 (to CLOSE_WAIT)`,
		"p\"1\x1b: 10.0.0.1:80 < 10.0.0.7:40: SYN_RECV 9110-9210",
		"p\"2\x1b: 10.0.0.1:80 < 10.0.0.7:40: ESTABLISHED 9210-9400 CLOSE_WAIT 9400-9600 LAST_ACK 9600-9800",
		"p\"3\x1b: 10.0.0.1:81 < 10.0.0.2:50: CLOSE_WAIT 5000-9800",
		"p\"7\x1b: 10.0.0.7:40 > 10.0.0.1:80: SYN_SENT 9100-9200 ESTABLISHED 9200-9500 FIN_WAIT1 9500-9800",
	}
	if diff := cmp.Diff(want, o.tracks()); diff != "" {
		t.Error(diff)
	}
	if len(o.arrows) != 1 || o.processes[o.arrows[0][0].pid] != "p\"7\x1b" || o.processes[o.arrows[0][1].pid] != "p\"1\x1b" {
		t.Errorf("arrows %v, want one from the client to the server", o.arrows)
	}
	if got := o.instants[place{nobody, nobody}]; !slices.Equal(got, []string{"events lost", "events unseen"}) {
		t.Errorf("losses are %q", got)
	}
}

// An address pair of two namespaces joins nobody, unless the client is in the server's own.
func TestTraceJoinsNoStranger(t *testing.T) {
	const c, s = "127.0.0.1:40", "127.0.0.1:80"
	client := func(cookie uint64, netns uint32) tcp.Event {
		e := step(200, 100, cookie, tcp.SynSent, tcp.Established, c, s, tcp.Client, 7)
		e.NetNS = netns
		return e
	}
	server := step(210, 50, 3, tcp.SynRecv, tcp.Established, s, c, tcp.Server, 1)
	early := server
	early.Duration = 150 // it began before the client's SYN
	for name, test := range map[string]struct {
		events []tcp.Event
		want   int
	}{
		"its own namespace":         {[]tcp.Event{client(1, 1), server}, 1},
		"another namespace":         {[]tcp.Event{client(1, 2), server}, 1},
		"two others":                {[]tcp.Event{client(1, 2), client(2, 3), server}, 0},
		"another and its own":       {[]tcp.Event{client(1, 2), client(2, 1), server}, 1},
		"a client that came later":  {[]tcp.Event{client(1, 1), early}, 0},
		"a client that has gone":    {[]tcp.Event{client(1, 1), step(205, 5, 1, tcp.Established, tcp.Close, c, s, tcp.Client, 7), server}, 0},
		"a client that is not seen": {[]tcp.Event{server}, 0},
	} {
		if o := open(t, traced(t, test.events...)); len(o.arrows) != test.want {
			t.Errorf("%s: %d arrows, want %d", name, len(o.arrows), test.want)
		}
	}
}

// What a viewer does with a trace that was cut off is to take the last line away and to
// close the list. Nothing is kept of connections that have ended.
func TestTraceCutOff(t *testing.T) {
	var b bytes.Buffer
	w := NewTrace(&b)
	for i := range 3000 {
		port := uint16(1000 + i)
		local, remote := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.7"), port).String(), "10.0.0.1:80"
		for _, e := range []tcp.Event{
			step(uint64(1000*i), 0, uint64(i+1), tcp.Close, tcp.SynSent, "10.0.0.7:0", remote, tcp.Client, uint32(i%70000+1)),
			step(uint64(1000*i+100), 100, uint64(i+1), tcp.SynSent, tcp.Established, local, remote, tcp.Client, uint32(i%70000+1)),
			step(uint64(1000*i+200), 100, uint64(i+1), tcp.Established, tcp.Close, local, remote, tcp.Client, uint32(i%70000+1)),
		} {
			if err := w.Write(&e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	cut := bytes.LastIndex(b.Bytes(), []byte(",\n"))
	if o := open(t, append(slices.Clone(b.Bytes()[:cut]), ']')); len(o.slices) < 2999 {
		t.Errorf("%d tracks, want 3000", len(o.slices))
	}
	if len(w.clients) != 0 || w.lives.Len() != 0 {
		t.Errorf("%d clients and %d lives are left of connections that have ended", len(w.clients), w.lives.Len())
	}
	if err := NewTrace(io.Discard).Close(); err != nil {
		t.Error(err)
	}
	open(t, traced(t))
}

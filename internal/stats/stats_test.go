package stats

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// tally returns the report of the events, at the time of the last one.
func tally(t testing.TB, cfg Config, events []tcp.Event) (last *Report) {
	t.Helper()
	if cfg.Max == 0 {
		cfg.Max = 100
	}
	cfg.Show = func(r *Report) error { last = r; return nil }
	counter := NewTally(cfg)
	now := uint64(0)
	for i := range events {
		if err := counter.Event(&events[i]); err != nil {
			t.Fatal(err)
		}
		now = max(now, events[i].BootNS)
	}
	if err := counter.Close(now); err != nil {
		t.Fatal(err)
	}
	return last
}

// brief describes a report, a line for each state, edge and group in which something is.
func brief(r *Report) string {
	var b strings.Builder
	for _, s := range r.States {
		if s.Now != 0 || s.Entered != 0 || s.Unknown != 0 {
			fmt.Fprintf(&b, "%v: %d now, %d entered, %d exact", s.State, s.Now, s.Entered, s.Exact.Count)
			if s.Exact.Count > 0 {
				fmt.Fprintf(&b, " %d..%d us", s.Exact.Min/1000, s.Exact.Max/1000)
			}
			if s.AtLeast.Count > 0 {
				fmt.Fprintf(&b, ", %d at least %d..%d us", s.AtLeast.Count, s.AtLeast.Min/1000, s.AtLeast.Max/1000)
			}
			if s.Unknown > 0 {
				fmt.Fprintf(&b, ", %d unknown", s.Unknown)
			}
			b.WriteByte('\n')
		}
	}
	for _, e := range r.Edges {
		if e.Count > 0 {
			fmt.Fprintf(&b, "%v>%v %d (%d client, %d server)", e.From, e.To, e.Count, e.Client, e.Server)
			for _, why := range e.Reasons {
				fmt.Fprintf(&b, " %s %d", why.Reason, why.Count)
			}
			if !e.Legal {
				b.WriteString(" illegal")
			}
			b.WriteByte('\n')
		}
	}
	for _, g := range append(r.Groups, Group{GroupName{Name: "TOTAL"}, r.Total}) {
		b.WriteString(briefGroup(&g) + "\n")
	}
	return b.String()
}

func briefGroup(g *Group) string {
	return fmt.Sprintf("%s%s: opened %d, closed %d, reset %d, failed %d, broken %d, unknown %d, open %d",
		g.Name, g.Comm, g.Opened, g.Closed, g.Reset, g.Failed, g.Broken, g.Unknown, g.Open)
}

func TestMixed(t *testing.T) {
	got := brief(tally(t, Config{By: ByComm}, capture.Events(t, capture.Mixed)))
	want := `CLOSE: 0 now, 9 entered, 0 exact
LISTEN: 0 now, 0 entered, 0 exact, 1 unknown
SYN_SENT: 0 now, 6 entered, 6 exact 100..500 us
SYN_RECV: 0 now, 3 entered, 3 exact 100..63000000 us
ESTABLISHED: 0 now, 7 entered, 7 exact 100000..2000000 us, 1 unknown
FIN_WAIT1: 0 now, 4 entered, 4 exact 50..200 us
FIN_WAIT2: 0 now, 3 entered, 3 exact 59..60000000 us
CLOSING: 0 now, 1 entered, 1 exact 100..100 us
TIME_WAIT: 2 now, 3 entered, 1 exact 60000000..60000000 us, 1 at least 61200000..61200000 us
CLOSE_WAIT: 1 now, 2 entered, 1 exact 60..60 us
LAST_ACK: 0 now, 1 entered, 1 exact 40..40 us
LISTEN>CLOSE 1 (0 client, 0 server) local_close 1
CLOSE>SYN_SENT 6 (6 client, 0 server) connect 6
SYN_SENT>CLOSE 1 (1 client, 0 server) rst_received 1
LISTEN>SYN_RECV 3 (0 client, 3 server) syn_received 3
SYN_SENT>ESTABLISHED 5 (5 client, 0 server) handshake_done 5
SYN_RECV>ESTABLISHED 2 (0 client, 2 server) handshake_done 2
ESTABLISHED>FIN_WAIT1 4 (3 client, 1 server) local_close 3 local_shutdown 1
ESTABLISHED>CLOSE_WAIT 2 (1 client, 1 server) fin_received 2
FIN_WAIT1>FIN_WAIT2 3 (2 client, 1 server) fin_acked 3
FIN_WAIT1>CLOSING 1 (1 client, 0 server) fin_received 1
CLOSE_WAIT>LAST_ACK 1 (0 client, 1 server) local_close 1
FIN_WAIT2>TIME_WAIT 2 (1 client, 1 server) fin_received 2
CLOSING>TIME_WAIT 1 (1 client, 0 server) fin_acked 1
LAST_ACK>CLOSE 1 (0 client, 1 server) fin_acked 1
TIME_WAIT>CLOSE 2 (1 client, 0 server) expired 2
SYN_RECV>CLOSE 1 (0 client, 1 server) syn_timeout 1
ESTABLISHED>CLOSE 2 (2 client, 0 server) rst_received 1 aborted_linger 1
FIN_WAIT2>CLOSE 1 (1 client, 0 server) timeout 1
nginx: opened 2, closed 2, reset 0, failed 1, broken 0, unknown 0, open 0
job: opened 2, closed 0, reset 2, failed 0, broken 0, unknown 0, open 0
curl: opened 1, closed 1, reset 0, failed 1, broken 0, unknown 0, open 0
billing: opened 1, closed 0, reset 0, failed 0, broken 1, unknown 0, open 1
sync: opened 1, closed 1, reset 0, failed 0, broken 0, unknown 0, open 0
TOTAL: opened 7, closed 4, reset 2, failed 2, broken 1, unknown 0, open 1
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// The sums of a report are those of the stream: each transition is in one edge and in one
// state that it enters, each duration in one distribution, each connection in one group.
func agrees(t testing.TB, r *Report, events []tcp.Event) {
	t.Helper()
	var transitions, finished, durations uint64
	for i := range events {
		if e := &events[i]; e.Kind == tcp.Transition {
			transitions++
			if e.Finishes() {
				finished++
			}
			if e.DurationKind != "" {
				durations++
			}
		}
	}
	var edges, reasons, entered, stays uint64
	for _, e := range r.Edges {
		edges += e.Count
		for _, why := range e.Reasons {
			reasons += why.Count
		}
	}
	for _, s := range r.States {
		entered += s.Entered
		stays += s.Exact.Count + s.AtLeast.Count + s.Unknown
		if s.Now < 0 {
			t.Errorf("%d in %v", s.Now, s.State)
		}
	}
	var sum Counts
	for _, g := range r.Groups {
		sum.Opened, sum.Closed, sum.Reset, sum.Failed = sum.Opened+g.Opened, sum.Closed+g.Closed, sum.Reset+g.Reset, sum.Failed+g.Failed
		sum.Broken, sum.Unknown, sum.Open = sum.Broken+g.Broken, sum.Unknown+g.Unknown, sum.Open+g.Open
		if g.Open < 0 {
			t.Errorf("%d are open in %q", g.Open, g.Name)
		}
	}
	if r.Transitions != transitions || edges != transitions || reasons != transitions || entered != transitions {
		t.Errorf("%d transitions, in the report %d; in edges %d, for reasons %d, into states %d", transitions, r.Transitions, edges, reasons, entered)
	}
	if stays != durations || r.Total.Ended() < finished || sum != r.Total {
		t.Errorf("%d durations of %d, %d ended of %d, total %+v, groups %+v", stays, durations, r.Total.Ended(), finished, r.Total, sum)
	}
}

func TestReportAgreesWithTheStream(t *testing.T) {
	events := capture.Events(t, capture.Mixed)
	for _, by := range Bys {
		agrees(t, tally(t, Config{By: by}, events), events)
		agrees(t, tally(t, Config{By: by, Max: 2}, events), events)
	}
}

func TestGroups(t *testing.T) {
	events := capture.Events(t, capture.Mixed)
	for by, want := range map[By]string{
		ByHost:      "host: opened 7, closed 4, reset 2, failed 2, broken 1, unknown 0, open 1",
		ByPID:       "11nginx: opened 2, closed 2, reset 0, failed 0, broken 0, unknown 0, open 0", // not of 10, which listens
		ByUnit:      "nginx.service: opened 2, closed 2, reset 0, failed 1, broken 0, unknown 0, open 0",
		ByContainer: ": opened 7, closed 4, reset 2, failed 2, broken 1, unknown 0, open 1",
		ByRemote:    "10.0.0.2:443: opened 3, closed 1, reset 2, failed 0, broken 0, unknown 0, open 0",
		ByLocalPort: "80: opened 2, closed 2, reset 0, failed 1, broken 0, unknown 0, open 0",
		ByNetNS:     "4026531840: opened 7, closed 4, reset 2, failed 2, broken 1, unknown 0, open 1",
		ByCgroup:    "/system.slice/nginx.service: opened 2, closed 2, reset 0, failed 1, broken 0, unknown 0, open 0",
	} {
		r := tally(t, Config{By: by}, events)
		found := slices.ContainsFunc(r.Groups, func(g Group) bool { return briefGroup(&g) == want })
		if !found {
			t.Errorf("by %s there is no %s in\n%s", by, want, brief(r))
		}
		if by == ByLocalPort && len(r.Groups) != 2 { // 80, and clients
			t.Errorf("%d groups by local port:\n%s", len(r.Groups), brief(r))
		}
	}
}

// Past the bound what is new has one group together.
func TestGroupsAreBounded(t *testing.T) {
	var events []tcp.Event
	for i := range MaxGroups + 10 {
		events = append(events, capture.Events(t, fmt.Sprintf(`
			%ds c%d CLOSE>SYN_SENT 10.0.0.7:%d 10.0.0.2:443 role=client pid=%[2]d/p%[2]d`, i, i, i+1))...)
	}
	r := tally(t, Config{By: ByPID, Max: 1 << 12}, events)
	last := r.Groups[len(r.Groups)-1]
	if len(r.Groups) != MaxGroups+1 || !last.Other || last.Name != OtherGroup || last.Open != 10 {
		t.Errorf("%d groups, the last is %+v", len(r.Groups), last)
	}
	agrees(t, r, events)
}

// An end that was not seen is not counted as one, and what is proved to be over is not open.
func TestUnended(t *testing.T) {
	r := tally(t, Config{}, capture.Events(t, `
		0s a CLOSE>SYN_SENT        1.0.0.1:40 1.0.0.2:80 role=client
		1s a CLOSE>SYN_SENT        1.0.0.1:41 1.0.0.2:80 role=client
		2s a SYN_SENT>ESTABLISHED  1.0.0.1:41 1.0.0.2:80 role=client
		3s a TIME_WAIT>CLOSE       1.0.0.1:41 1.0.0.2:80 expired unknown= role=client`))
	if r.Unended != 1 || r.Forgotten != 0 || r.Total != (Counts{Opened: 1, Closed: 1}) {
		t.Errorf("%d unended, %d forgotten, %+v", r.Unended, r.Forgotten, r.Total)
	}
	for _, s := range r.States {
		if s.Now != 0 {
			t.Errorf("%d are in %v", s.Now, s.State)
		}
	}
}

// Reports are shown when they are due, and at the end.
func TestInterval(t *testing.T) {
	var shown []uint64
	counter := NewTally(Config{Max: 9, Interval: 10, Show: func(r *Report) error {
		if shown = append(shown, r.BootNS); r.Last != (r.BootNS == 25) {
			t.Errorf("%d is the last", r.BootNS)
		}
		return nil
	}})
	for _, now := range []uint64{0, 4, 10, 19, 23} {
		if err := counter.Tick(now); err != nil {
			t.Fatal(err)
		}
	}
	if err := counter.Close(25); err != nil || !slices.Equal(shown, []uint64{0, 10, 23, 25}) {
		t.Errorf("shown at %v: %v", shown, err)
	}
}

func FuzzTally(f *testing.F) {
	source := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		var events []byte
		for range 100 {
			events = binary.LittleEndian.AppendUint32(events, source.Uint32())
		}
		f.Add(events)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var events []tcp.Event
		for ; len(data) >= 4; data = data[4:] {
			events = append(events, anything(binary.LittleEndian.Uint32(data)))
		}
		agrees(t, tally(t, Config{By: ByPID, Max: 4}, events), events)
	})
}

// anything makes an event of one of the eleven states.
func anything(n uint32) tcp.Event {
	pick := func(among uint32) uint32 {
		defer func() { n /= among }()
		return n % among
	}
	e := tcp.Event{
		Kind: tcp.Kind(pick(3)), Old: tcp.State(1 + pick(11)), New: tcp.State(1 + pick(11)), Cookie: uint64(pick(4)),
		PID: pick(3), OwnerSource: []tcp.OwnerSource{"", tcp.FromUse}[pick(2)], Duration: 7,
		DurationKind: []tcp.DurationKind{tcp.Exact, tcp.AtLeast, tcp.Unknown}[pick(3)],
		Local:        netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 1}), uint16(pick(3))),
		Remote:       netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 2}), 80),
	}
	return e
}

// Config.Max promises this size.
func TestLifeBytes(t *testing.T) {
	if n := unsafe.Sizeof(tcp.Life[life]{}); n > LifeBytes {
		t.Errorf("a life takes %d bytes", n)
	}
}

// churn is the life of a client and of its server.
const churn = `
	1s          c  CLOSE>SYN_SENT         10.0.0.7:0     10.0.0.1:80    connect role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	1.000040s   s  LISTEN>SYN_RECV        10.0.0.1:80    10.0.0.7:40000 syn_received role=server pid=10/nginx cgroup=/system.slice/nginx.service
	1.000250s   c  SYN_SENT>ESTABLISHED   10.0.0.7:40000 10.0.0.1:80    handshake_done role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	1.000263s   s  SYN_RECV>ESTABLISHED   10.0.0.1:80    10.0.0.7:40000 handshake_done role=server pid=10/nginx cgroup=/system.slice/nginx.service
	2.5s        c  ESTABLISHED>FIN_WAIT1  10.0.0.7:40000 10.0.0.1:80    local_close role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	2.500030s   s  ESTABLISHED>CLOSE_WAIT 10.0.0.1:80    10.0.0.7:40000 fin_received role=server pid=11/nginx cgroup=/system.slice/nginx.service
	2.500061s   c  FIN_WAIT1>FIN_WAIT2    10.0.0.7:40000 10.0.0.1:80    fin_acked role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	2.500090s   s  CLOSE_WAIT>LAST_ACK    10.0.0.1:80    10.0.0.7:40000 local_close role=server pid=11/nginx cgroup=/system.slice/nginx.service
	2.500120s   c  FIN_WAIT2>TIME_WAIT    10.0.0.7:40000 10.0.0.1:80    fin_received role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	2.500130s   s  LAST_ACK>CLOSE         10.0.0.1:80    10.0.0.7:40000 fin_acked role=server pid=11/nginx cgroup=/system.slice/nginx.service
	62.5s       c  TIME_WAIT>CLOSE        10.0.0.7:40000 10.0.0.1:80    expired role=client pid=30/curl`

func TestTallyDoesNotAllocate(t *testing.T) {
	events := capture.Events(t, churn)
	for _, by := range Bys {
		counter := NewTally(Config{By: by, Max: 1 << 10})
		all := func() {
			for i := range events {
				if err := counter.Event(&events[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := testing.AllocsPerRun(1000, all); n != 0 {
			t.Errorf("by %s: %v allocations for a connection", by, n)
		}
		if n := counter.lives.Len(); n != 0 {
			t.Errorf("%d lives are left", n)
		}
	}
}

func BenchmarkTally(b *testing.B) {
	events := capture.Events(b, churn)
	for _, by := range []By{ByComm, ByUnit, ByRemote} {
		b.Run(string(by), func(b *testing.B) {
			counter := NewTally(Config{By: by, Max: 1 << 10})
			b.ReportAllocs()
			for i := range b.N {
				if err := counter.Event(&events[i%len(events)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// An edge is unusual if one connection was reset, failed or was given up on it, or if figure 5
// does not have it.
func TestUnusualEdges(t *testing.T) {
	for _, c := range []struct {
		from, to tcp.State
		reasons  []tcp.Reason
		unusual  bool
	}{
		{tcp.LastAck, tcp.Close, []tcp.Reason{tcp.FinAcked}, false},
		{tcp.LastAck, tcp.Close, []tcp.Reason{tcp.FinAcked, tcp.RSTReceived}, true},
		{tcp.LastAck, tcp.Close, []tcp.Reason{tcp.Timeout}, true},
		{tcp.LastAck, tcp.Close, []tcp.Reason{""}, false},
		{tcp.TimeWait, tcp.Close, []tcp.Reason{tcp.Expired, tcp.ReusedByConnect}, false},
		{tcp.TimeWait, tcp.Close, []tcp.Reason{tcp.RSTReceived}, true},
		{tcp.SynSent, tcp.Close, []tcp.Reason{tcp.LocalClose}, true},
		{tcp.SynSent, tcp.Established, []tcp.Reason{tcp.HandshakeDone}, false},
		{tcp.Listen, tcp.Close, []tcp.Reason{tcp.LocalClose}, false},
		{tcp.FinWait1, tcp.Close, []tcp.Reason{tcp.FinAcked}, true},
		{tcp.CloseWait, tcp.Listen, []tcp.Reason{""}, true},
	} {
		edge, legal := tcp.FindEdge(c.from, c.to)
		e := Edge{Edge: edge, Legal: legal, Count: 1}
		for _, why := range c.reasons {
			e.Reasons = append(e.Reasons, Reason{why, 1})
		}
		if got := e.Unusual(); got != c.unusual {
			t.Errorf("%v > %v by %q: got %v", c.from, c.to, c.reasons, got)
		}
	}
}

// A listener is a server, without being the server of a connection.
func TestCountOfRole(t *testing.T) {
	opened := Edge{Edge: tcp.Edge{From: tcp.Close, To: tcp.Listen, Path: tcp.ServerPath}, Count: 3}
	closed := Edge{Edge: tcp.Edge{From: tcp.Established, To: tcp.CloseWait, Path: tcp.ServerPath}, Count: 9, Client: 2, Server: 5}
	for _, c := range []struct {
		edge Edge
		role tcp.Role
		want uint64
		on   bool
	}{
		{opened, "", 3, true}, {opened, tcp.Server, 3, true}, {opened, tcp.Client, 0, false},
		{closed, "", 9, true}, {closed, tcp.Server, 5, true}, {closed, tcp.Client, 2, false},
	} {
		if got, on := c.edge.CountOf(c.role), c.edge.OnPath(c.role); got != c.want || on != c.on {
			t.Errorf("%v > %v of %q: got %d, %v", c.edge.From, c.edge.To, c.role, got, on)
		}
	}
}

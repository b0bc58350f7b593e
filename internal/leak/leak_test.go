package leak

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

const second = 1e9

// leaker makes rows as the kernel would give them: one socket per interval from
// start on, each in CLOSE_WAIT until it has been there for closed (0: for ever).
type leaker struct {
	pid                     uint32
	start, interval, closed uint64 // ns
	unread                  uint32
}

func (l leaker) rows(now uint64) (rows []tcp.Event) {
	for i, since := 0, l.start; since <= now; i, since = i+1, since+l.interval {
		if age := now - since; l.closed == 0 || age < l.closed {
			rows = append(rows, tcp.Event{
				Kind: tcp.Socket, BootNS: now, Cookie: uint64(i + 1), New: tcp.CloseWait,
				Local:  netip.AddrPortFrom(netip.MustParseAddr("10.0.0.7"), uint16(40000+i)),
				Remote: netip.MustParseAddrPort("10.0.0.1:80"), Role: tcp.Client,
				Duration: age, DurationKind: tcp.Exact, PID: l.pid, Comm: "leaker", OwnerSource: tcp.FromConnect,
				FD: int32(5 + i), HasQueues: true, RxQueue: l.unread, Stack: uint32(1 + i%2),
			})
		}
	}
	return rows
}

// watchLeakers refreshes every 2 s from one time to another, and returns the last.
func watchLeakers(t *Table, from, to uint64, leakers ...leaker) (groups []*Group) {
	for now := from; now <= to; now += 2 * second {
		t.Begin(now)
		for _, l := range leakers {
			for _, row := range l.rows(now) {
				t.Add(&row)
			}
		}
		groups = t.End()
	}
	return groups
}

var closeWait = Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 10 * second, By: ByOwner}

func TestVerdicts(t *testing.T) {
	const hour = 3600 * second
	for name, c := range map[string]struct {
		leaker   leaker
		from, to uint64
		verdict  Verdict
		cause    Cause
		says     string
	}{
		"old, one look": {leaker{1, hour, 1000 * second, 0, 0}, 3 * hour, 3 * hour, Leak, MissingClose,
			"The peer closed 2h00m ago; the application read the end of file and never called close(): a missing close()."},
		"young, one look": {leaker{1, hour, second, 0, 0}, hour + 15*second, hour + 15*second, Undecided, MissingClose,
			"Too early to tell: the oldest is 15s."},
		"young, grows": {leaker{1, hour, second, 0, 0}, hour + 15*second, hour + 26*second, Leak, MissingClose, "25s ago"},
		"closed after 12 s": {leaker{1, hour, second / 4, 12 * second, 0}, 2 * hour, 2*hour + 30*second, Slow, MissingClose,
			"Slow, not leaking: sockets leave the state, the oldest is 11s."},
		"closed after 2 min": {leaker{1, hour, second, 120 * second, 0}, 2 * hour, 2*hour + 100*second, Slow, MissingClose,
			"Slow, not leaking: sockets leave the state"},
		"young, steady": {leaker{1, hour, hour, 0, 0}, hour + 12*second, hour + 24*second, Slow, MissingClose,
			"Slow, not leaking: the oldest is 24s and the count does not grow."},
		"old, steady": {leaker{1, hour, 10 * hour, 0, 0}, 2 * hour, 2*hour + 20*second, Leak, MissingClose, "1h00m ago"},
		"data waits": {leaker{1, hour, 10 * hour, 0, 1449}, 2 * hour, 2 * hour, Leak, NotReading,
			"1448 bytes and the end of file wait: an idle connection, such as one in a pool, to which the peer said something last, or a blocked or forgotten reader."},
		"end of file waits": {leaker{1, hour, 10 * hour, 0, 1}, 2 * hour, 2 * hour, Leak, EOFUnread, "not the end of file"},
	} {
		t.Run(name, func(t *testing.T) {
			groups := watchLeakers(NewTable(closeWait), c.from, c.to, c.leaker)
			if len(groups) != 1 {
				t.Fatalf("got %d groups, want 1", len(groups))
			}
			g := groups[0]
			if g.Verdict != c.verdict || g.Cause != c.cause || !strings.Contains(g.Diagnosis, c.says) {
				t.Errorf("got %s, %s: %s\nwant %s, %s: %s", g.Verdict, g.Cause, g.Diagnosis, c.verdict, c.cause, c.says)
			}
		})
	}
}

func TestFigures(t *testing.T) {
	groups := watchLeakers(NewTable(closeWait), 1000*second, 1060*second, leaker{7, 900 * second, second, 0, 11})
	g := groups[0]
	type figures struct {
		Count            int
		Oldest, Median   uint64
		Growth           float64
		FDs              []int32
		Unread           uint64
		Openers          []opener
		PID, Remote, Age string
	}
	got := figures{g.Count, g.Oldest, g.Median, g.Growth, g.FDs, g.Unread, g.openers, fmt.Sprint(g.PID), g.Remote.String(), Span(g.Oldest)}
	want := figures{151, 160 * second, 85 * second, 60, []int32{5, 6, 7, 8, 9, 10, 11, 12}, 1510,
		[]opener{{1, 7, 76}, {2, 7, 75}}, "7", "10.0.0.1:80", "2m40s"}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(opener{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A sample still tells the median, and memory does not grow with the sockets.
func TestMedianOfMany(t *testing.T) {
	table := NewTable(closeWait)
	groups := watchLeakers(table, 100000*second, 100000*second, leaker{1, 50000 * second, second, 0, 0})
	if got, want := float64(groups[0].Median), 25005.0*second; got < 0.99*want || got > 1.01*want {
		t.Errorf("median %s, want %s", Span(uint64(got)), Span(uint64(want)))
	}
	if got := cap(groups[0].ages); got > maxAges {
		t.Errorf("%d ages are kept, want %d at most", got, maxAges)
	}
}

func TestOrder(t *testing.T) {
	groups := watchLeakers(NewTable(closeWait), 1000*second, 1030*second,
		leaker{1, 500 * second, second, 12 * second, 0}, leaker{2, 1000 * second, 5 * second, 0, 0}, leaker{3, 900 * second, 5 * second, 0, 0})
	var pids []uint32
	for _, g := range groups {
		pids = append(pids, g.PID)
	}
	if want := []uint32{3, 2, 1}; !slices.Equal(pids, want) {
		t.Errorf("got %v, want %v", pids, want)
	}
}

func TestBy(t *testing.T) {
	row := tcp.Event{
		Kind: tcp.Socket, BootNS: 100 * second, New: tcp.CloseWait, Duration: 50 * second, DurationKind: tcp.Exact,
		PID: 1, Comm: "a", OwnerSource: tcp.FromConnect, FD: 3, ContainerID: "c1", Role: tcp.Client, Stack: 1,
		Local: netip.MustParseAddrPort("10.0.0.7:40000"), Remote: netip.MustParseAddrPort("10.0.0.1:80"),
	}
	otherPID, otherRemote, server := row, row, row
	otherPID.PID = 2
	otherRemote.Remote = netip.MustParseAddrPort("10.0.0.2:80")
	server.Role, server.Local, server.Remote, server.Stack = tcp.Server, netip.MustParseAddrPort("10.0.0.7:80"), netip.MustParseAddrPort("10.0.0.1:50000"), 2
	server2 := server
	server2.Remote = netip.MustParseAddrPort("10.0.0.1:50001")
	for by, want := range map[By]int{
		ByOwner: 4, ByPID: 2, ByComm: 1, ByContainer: 1, ByRemote: 3, ByLocalPort: 2, ByStack: 3,
	} {
		table := NewTable(Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 10 * second, By: by})
		table.Begin(100 * second)
		for _, r := range []tcp.Event{row, otherPID, otherRemote, server, server2} {
			table.Add(&r)
		}
		if got := len(table.End()); got != want {
			t.Errorf("by %s: got %d groups, want %d", by, got, want)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	table := NewTable(closeWait)
	table.Begin(100 * second)
	row := tcp.Event{Kind: tcp.Socket, BootNS: 100 * second, New: tcp.CloseWait, Duration: 50 * second, DurationKind: tcp.Exact, Role: tcp.Client, OwnerSource: tcp.FromConnect}
	const sockets = 4 * maxGroups
	for i := range sockets {
		row.PID = uint32(1 + i)
		table.Add(&row)
	}
	count := table.Unplaced()
	groups := table.End()
	for _, g := range groups {
		count += g.Count
	}
	if len(groups) != maxGroups+maxFolds || count != sockets {
		t.Errorf("got %d groups with %d sockets, want %d and %d", len(groups), count, maxGroups+maxFolds, sockets)
	}
}

func TestTimeWaitTable(t *testing.T) {
	table := NewTimeWaitTable(100*second, nil)
	client := tcp.Event{
		Kind: tcp.Transition, BootNS: 101 * second, Old: tcp.FinWait2, New: tcp.TimeWait, PID: 9, Comm: "curl", OwnerSource: tcp.FromConnect, Role: tcp.Client,
		Local: netip.MustParseAddrPort("10.0.0.7:40000"), Remote: netip.MustParseAddrPort("10.0.0.1:80"),
	}
	for range 100 {
		table.Event(&client)
	}
	for reason, n := range map[tcp.Reason]int{tcp.Expired: 10, tcp.ReusedByConnect: 5, tcp.Killed: 1} {
		e := client
		e.Old, e.New, e.Reason = tcp.TimeWait, tcp.Close, reason
		for range n {
			table.Event(&e)
		}
	}
	overflow := client
	overflow.New, overflow.Reason = tcp.Close, tcp.TimewaitOverflow
	table.Event(&overflow)
	table.Begin(110 * second)
	row := client
	row.Kind, row.Old, row.New = tcp.Socket, 0, tcp.TimeWait
	for range 84 {
		table.Add(&row)
	}
	groups := table.End()
	if len(groups) != 1 {
		t.Fatalf("got %d groups, want 1", len(groups))
	}
	want := Destination{
		Local: client.Local.Addr(), Remote: client.Remote, Count: 84, Watched: 10 * second,
		New: 100, Expired: 10, Reused: 5, Other: 1, Overflow: 1, Closers: []Closer{{9, "curl", 101}},
		Diagnosis: "The range of local ports is not known.",
	}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePort := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, *groups[0], compare, comparePort, cmpopts.IgnoreUnexported(Destination{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if rate, known := groups[0].PerSecond(); rate != 10 || !known {
		t.Errorf("got %v new ones a second, %v, want 10", rate, known)
	}
	d := groups[0]
	d.Ports, d.Held = 100, 84
	if left, runsOut := d.Left(); !runsOut || left < second || left > 3*second {
		t.Errorf("got %s left of 100 ports, %v, want about 2 s", Span(left), runsOut)
	}
	d.Ports = 28232
	if _, runsOut := d.Left(); runsOut {
		t.Error("10 a second never use up 28232 ports")
	}
}

func BenchmarkRefresh(b *testing.B) {
	rows := leaker{1, 0, second / 10, 0, 0}.rows(10000 * second)
	table := NewTable(closeWait)
	b.ReportAllocs()
	for b.Loop() {
		table.Begin(10000 * second)
		for i := range rows {
			table.Add(&rows[i])
		}
		table.End()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(rows)), "ns/row")
}

package leak

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// row returns a socket that a process holds, in a state for a while.
func row(state tcp.State, now, age uint64) tcp.Event {
	return tcp.Event{
		Kind: tcp.Socket, BootNS: now, New: state, Duration: age, DurationKind: tcp.Exact, PID: 7, Comm: "app", OwnerSource: tcp.FromAccept,
		FD: 5, UID: tcp.NoUID, Holder: tcp.Held, Role: tcp.Server,
		Local: netip.MustParseAddrPort("10.0.0.7:80"), Remote: netip.MustParseAddrPort("10.0.0.1:40000"),
	}
}

// look returns the one group that a table makes of rows.
func look(t *testing.T, rule Rule, rows ...tcp.Event) *Group {
	t.Helper()
	table := NewTable(rule)
	table.Begin(1000 * second)
	for i := range rows {
		if rows[i].New == tcp.Listen {
			table.AddListener(&rows[i])
		} else {
			table.Add(&rows[i])
		}
	}
	groups := table.End()
	if len(groups) != 1 {
		t.Fatalf("got %d groups, want 1", len(groups))
	}
	return groups[0]
}

func stuckIn(states ...tcp.State) Rule { return Rule{States: states, OlderThan: 10 * second} }

// Sockets that a reset or a timeout takes out of CLOSE_WAIT were closed, or not: it
// shows in CLOSE, if anywhere.
func TestResetIsNotEvidence(t *testing.T) {
	for name, c := range map[string]struct {
		reason  tcp.Reason
		held    bool // CLOSE keeps them
		visible bool // the kernel says who holds a socket
		want    map[tcp.State]Verdict
	}{
		"closed after a reset":   {tcp.RSTReceived, false, true, map[tcp.State]Verdict{tcp.CloseWait: Slow}},
		"closed after a timeout": {tcp.Timeout, false, true, map[tcp.State]Verdict{tcp.CloseWait: Slow}},
		"held after a reset":     {tcp.RSTReceived, true, true, map[tcp.State]Verdict{tcp.CloseWait: Slow, tcp.Close: Leak}},
		"held after a timeout":   {tcp.Timeout, true, true, map[tcp.State]Verdict{tcp.CloseWait: Slow, tcp.Close: Leak}},
		"nobody knows":           {tcp.RSTReceived, false, false, map[tcp.State]Verdict{tcp.CloseWait: Undecided}},
	} {
		t.Run(name, func(t *testing.T) {
			table := NewTable(stuckIn(tcp.CloseWait, tcp.Close))
			const stay = 40 * second // in CLOSE_WAIT; a new socket comes each second
			var groups []*Group
			for now := uint64(200 * second); now <= 320*second; now += 2 * second {
				table.Begin(now)
				for since := uint64(100 * second); since <= now; since += second {
					e := row(tcp.CloseWait, now, now-since)
					if now-since >= stay {
						e.New, e.Duration, e.Reason = tcp.Close, now-since-stay, c.reason
					}
					if !c.visible {
						e.Holder = ""
					}
					if e.New == tcp.CloseWait || c.held {
						table.Add(&e)
					}
				}
				groups = table.End()
				for range 2 { // between two refreshes
					e := row(tcp.Close, now+second, stay)
					e.Kind, e.Old, e.Reason = tcp.Transition, tcp.CloseWait, c.reason
					table.Event(&e)
				}
			}
			got := map[tcp.State]Verdict{}
			for _, g := range groups {
				got[g.State] = g.Verdict
				if strings.Contains(g.Diagnosis, "still holds") != (g.State == tcp.Close) {
					t.Errorf("%s says %s", g.State, g.Diagnosis)
				}
			}
			if len(got) != len(c.want) || got[tcp.CloseWait] != c.want[tcp.CloseWait] || got[tcp.Close] != c.want[tcp.Close] {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// In CLOSE only a descriptor that is still open is a leak.
func TestCloseCountsWhatIsHeld(t *testing.T) {
	held, gone, unknown := row(tcp.Close, 1000*second, 60*second), row(tcp.Close, 1000*second, 60*second), row(tcp.Close, 1000*second, 60*second)
	held.Reason, gone.Holder, unknown.Holder = tcp.Timeout, tcp.Gone, ""
	g := look(t, stuckIn(tcp.Close), held, gone, unknown)
	if g.Count != 1 || g.Cause != DescriptorOpen || g.Verdict != Leak ||
		g.Diagnosis != "The connection timed out 1m00s ago; the process still holds the descriptor: a missing close()." {
		t.Errorf("got %d, %s, %s: %s", g.Count, g.Cause, g.Verdict, g.Diagnosis)
	}
	table := NewTable(Rule{States: []tcp.State{tcp.Close}, OlderThan: 10 * second, Recorded: true})
	table.Begin(1000 * second)
	if table.Add(&held) != nil {
		t.Error("a recording cannot know that a descriptor is still open")
	}
}

// A socket that has forgotten its peer may be kept for another connect(): age alone does not
// accuse, growth does.
func TestCloseForgotItsPeer(t *testing.T) {
	forgot := func(now, since uint64) tcp.Event {
		e := row(tcp.Close, now, now-since)
		e.Remote = netip.AddrPortFrom(e.Remote.Addr(), 0)
		return e
	}
	g := look(t, stuckIn(tcp.Close), forgot(1000*second, 100*second))
	if g.Cause != DescriptorOpen || g.Verdict != Undecided || !strings.Contains(g.Diagnosis, "kept for another connect()") {
		t.Errorf("got %s, %s: %s", g.Cause, g.Verdict, g.Diagnosis)
	}
	for name, test := range map[string]struct {
		every uint64 // another comes each time
		want  Verdict
	}{"grows": {3 * second, Leak}, "stays": {1000 * second, Slow}} {
		table := NewTable(stuckIn(tcp.Close))
		var groups []*Group
		for now := uint64(1000 * second); now <= 1060*second; now += 2 * second {
			table.Begin(now)
			for since := uint64(900 * second); since <= now; since += test.every {
				e := forgot(now, since)
				table.Add(&e)
			}
			groups = table.End()
		}
		if len(groups) != 1 || groups[0].Verdict != test.want {
			t.Errorf("%s: got %+v, want %s", name, groups, test.want)
		}
	}
}

// growing returns the last groups of a watch over sockets that stay for ever, and that
// came at these times.
func growing(rule Rule, from, to uint64, state tcp.State, came []uint64) []*Group {
	table := NewTable(rule)
	var groups []*Group
	for now := from; now <= to; now += 2 * second {
		table.Begin(now)
		for _, since := range came {
			if since <= now {
				e := row(state, now, now-since)
				table.Add(&e)
			}
		}
		groups = table.End()
	}
	return groups
}

// every returns n times, a span apart.
func every(span, first uint64, n int) (times []uint64) {
	for i := range n {
		times = append(times, first+uint64(i)*span)
	}
	return times
}

func TestGrowthThatHasEnded(t *testing.T) {
	old := Rule{States: []tcp.State{tcp.CloseWait}, OlderThan: 60 * second}
	for name, c := range map[string]struct {
		rule  Rule
		state tcp.State
		came  []uint64
		watch uint64
		want  Verdict
	}{
		"a pool that has warmed up":        {stuckIn(tcp.Established), tcp.Established, every(second, 1001*second, 8), 30 * second, Slow},
		"a pool that warms up":             {stuckIn(tcp.Established), tcp.Established, every(second, 1001*second, 30), 30 * second, Leak},
		"a burst an hour ago":              {stuckIn(tcp.Established), tcp.Established, every(second, 1001*second, 500), 3600 * second, Slow},
		"one more in an hour":              {stuckIn(tcp.Established), tcp.Established, append(every(second, 1001*second, 8), 2000*second), 3600 * second, Slow},
		"it leaks in bursts":               {stuckIn(tcp.Established), tcp.Established, slices.Concat(every(second, 1100*second, 10), every(second, 1400*second, 10), every(second, 1700*second, 10)), 900 * second, Leak},
		"a burst after an old one":         {stuckIn(tcp.Established), tcp.Established, slices.Concat(every(second, 10*second, 10), every(second, 1700*second, 10)), 900 * second, Slow},
		"a slow leak":                      {stuckIn(tcp.Established), tcp.Established, every(30*second, 1001*second, 30), 600 * second, Leak},
		"young in CLOSE_WAIT, and no more": {old, tcp.CloseWait, every(second, 1001*second, 20), 110 * second, Slow},
		"young in CLOSE_WAIT, and more":    {old, tcp.CloseWait, every(second, 1001*second, 110), 110 * second, Leak},
		"its end is younger than the rest": {old, tcp.CloseWait, every(second, 1001*second, 90), 110 * second, Slow},
	} {
		groups := growing(c.rule, 1000*second, 1000*second+c.watch, c.state, c.came)
		resolve(groups, &Facts{Files: func(uint32) (Files, error) { return Files{100, 1024}, nil }}, 1)
		if g := groups[0]; g.Verdict != c.want || g.LeftKnown != (c.want == Leak) {
			t.Errorf("%s: got %s, %+.1f a minute, limit reached in %s: %s", name, g.Verdict, g.Growth, Span(g.Left), g.Diagnosis)
		}
	}
}

// A sentence says that a process keeps a socket only if it does.
func TestHolder(t *testing.T) {
	for holder, want := range map[tcp.Holder]string{
		tcp.Held: "The application shut down its side 1m00s ago and keeps the socket open; the peer has not closed.",
		tcp.Gone: "Closed here 1m00s ago; the peer has not closed.",
		"":       "Closed or shut down here 1m00s ago; the peer has not closed.",
	} {
		e := row(tcp.FinWait2, 1000*second, 60*second)
		e.Holder = holder
		if g := look(t, stuckIn(tcp.FinWait2), e); g.Diagnosis != want {
			t.Errorf("%q: got %s", holder, g.Diagnosis)
		}
		other := row(tcp.FinWait2, 1000*second, 60*second)
		other.Holder = tcp.Gone
		if g := look(t, stuckIn(tcp.FinWait2), e, other); strings.Contains(g.Diagnosis, "keeps") {
			t.Errorf("%q and gone: got %s", holder, g.Diagnosis)
		}
	}
}

// Nobody has read, or failed to read, what nobody has accepted.
func TestUnaccepted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tcp.Event)
		unread uint32
		want   Cause
	}{
		"in the accept queue":         {func(e *tcp.Event) { e.Unaccepted, e.OwnerSource = true, tcp.FromInherited }, 1, Unaccepted},
		"in the accept queue, data":   {func(e *tcp.Event) { e.Unaccepted, e.OwnerSource = true, tcp.FromInherited }, 19, Unaccepted},
		"not seen in use":             {func(e *tcp.Event) { e.OwnerSource = tcp.FromInherited }, 1, CauseUnknown},
		"not seen in use, data":       {func(e *tcp.Event) { e.OwnerSource = tcp.FromInherited }, 19, CauseUnknown},
		"owner unknown":               {func(e *tcp.Event) { e.OwnerSource, e.PID = "", 0 }, 19, CauseUnknown},
		"owner unknown, but it read":  {func(e *tcp.Event) { e.OwnerSource, e.PID = "", 0 }, 0, MissingClose},
		"inherited, but it is held":   {func(e *tcp.Event) { e.OwnerSource, e.Holder = tcp.FromInherited, tcp.Held }, 1, EOFUnread},
		"inherited, but a descriptor": {func(e *tcp.Event) { e.OwnerSource, e.FD = tcp.FromInherited, 9 }, 19, NotReading},
	} {
		e := row(tcp.CloseWait, 1000*second, 60*second)
		e.FD, e.Holder, e.HasQueues, e.RxQueue = tcp.NoFD, "", true, c.unread
		c.change(&e)
		g := look(t, stuckIn(tcp.CloseWait), e)
		claims := strings.Contains(g.Diagnosis, "application")
		if g.Cause != c.want || claims && (c.want == Unaccepted || c.want == CauseUnknown) {
			t.Errorf("%s: got %s: %s", name, g.Cause, g.Diagnosis)
		}
	}
}

// A half-open connection that waits for us is not the peer's fault.
func TestHalfOpen(t *testing.T) {
	listener := func(local string, queue uint32) tcp.Event {
		e := row(tcp.Listen, 1000*second, 900*second)
		e.Local, e.Remote, e.HasQueues, e.RxQueue, e.TxQueue = netip.MustParseAddrPort(local), netip.AddrPort{}, true, queue, 2
		return e
	}
	acked, silent := row(tcp.SynRecv, 1000*second, 60*second), row(tcp.SynRecv, 1000*second, 60*second)
	acked.Acked = true
	for name, c := range map[string]struct {
		rows []tcp.Event
		want Cause
	}{
		"the peer is silent":                   {[]tcp.Event{listener("10.0.0.7:80", 0), silent}, PeerSilent},
		"the queue is full":                    {[]tcp.Event{listener("10.0.0.7:80", 3), acked}, AcceptQueueFull},
		"it is full and the ACK has not come":  {[]tcp.Event{listener("10.0.0.7:80", 3), silent}, AcceptQueueFull},
		"the queue of any address is full":     {[]tcp.Event{listener("0.0.0.0:80", 3), acked}, AcceptQueueFull},
		"that of a dual-stack listener":        {[]tcp.Event{listener("[::]:80", 3), silent}, AcceptQueueFull},
		"it waits for data":                    {[]tcp.Event{listener("10.0.0.7:80", 2), acked}, HandshakeComplete},
		"the full queue is another port's":     {[]tcp.Event{listener("10.0.0.7:81", 3), silent}, PeerSilent},
		"the address has a listener with room": {[]tcp.Event{listener("0.0.0.0:80", 3), listener("10.0.0.7:80", 0), silent}, PeerSilent},
		"one of two with SO_REUSEPORT":         {[]tcp.Event{listener("10.0.0.7:80", 3), listener("10.0.0.7:80", 0), silent}, PeerSilent},
	} {
		g := look(t, stuckIn(tcp.SynRecv), c.rows...)
		blames := strings.Contains(g.Diagnosis, "has not completed") || strings.Contains(g.Diagnosis, "flood")
		if g.Cause != c.want || blames != (c.want == PeerSilent) {
			t.Errorf("%s: got %s: %s", name, g.Cause, g.Diagnosis)
		}
	}
}

// A recording does not say whether the last ACK has come since.
func TestHalfOpenInRecording(t *testing.T) {
	rule := stuckIn(tcp.SynRecv)
	rule.Recorded = true
	if g := look(t, rule, row(tcp.SynRecv, 1000*second, 60*second)); g.Cause != CauseUnknown || strings.Contains(g.Diagnosis, "flood") {
		t.Errorf("got %s: %s", g.Cause, g.Diagnosis)
	}
}

// Data that waits behind a FIN may be a last word on an idle connection.
func TestUnreadIsTwoThings(t *testing.T) {
	e := row(tcp.CloseWait, 1000*second, 60*second)
	e.HasQueues, e.RxQueue = true, 2
	g := look(t, stuckIn(tcp.CloseWait), e)
	for _, want := range []string{"1 byte and", "idle connection", "pool", "blocked or forgotten reader"} {
		if !strings.Contains(g.Diagnosis, want) {
			t.Errorf("%s does not say %q", g.Diagnosis, want)
		}
	}
}

// What may be old enough is counted, if not in a group.
func TestUnknownAge(t *testing.T) {
	for _, state := range []tcp.State{tcp.LastAck, tcp.SynSent, tcp.FinWait1} {
		table := NewTable(stuckIn(state))
		table.Begin(1000 * second)
		for age, kind := range map[uint64]tcp.DurationKind{0: tcp.AtLeast, 1: tcp.Unknown, 2: tcp.Exact, 20 * second: tcp.AtLeast} {
			e := row(state, 1000*second, age)
			e.DurationKind = kind
			table.Add(&e)
		}
		if groups := table.End(); len(groups) != 1 || table.UnknownAge() != 2 {
			t.Errorf("%s: %d groups, %d of unknown age, want 1 and 2", state, len(groups), table.UnknownAge())
		}
	}
}

// A FIN that was sent does not mean that the socket was closed: shutdown() sends it too.
func TestShutDownIsNotClosed(t *testing.T) {
	for _, state := range []tcp.State{tcp.FinWait1, tcp.LastAck, tcp.Closing} {
		held, gone := row(state, 1000*second, 60*second), row(state, 1000*second, 60*second)
		gone.Holder = tcp.Gone
		if g := look(t, stuckIn(state), held); !strings.HasPrefix(g.Diagnosis, "The application shut down its side") {
			t.Errorf("%s, held: %s", state, g.Diagnosis)
		}
		if g := look(t, stuckIn(state), gone); !strings.HasPrefix(g.Diagnosis, "Closed here") {
			t.Errorf("%s, closed: %s", state, g.Diagnosis)
		}
		if g := look(t, stuckIn(state), held, gone); !strings.HasPrefix(g.Diagnosis, "Closed or shut down here") {
			t.Errorf("%s, one of each: %s", state, g.Diagnosis)
		}
	}
}

// Nobody has read an end of file that has not come.
func TestEndOfFileHasToCome(t *testing.T) {
	for state, fin := range map[tcp.State]int{
		tcp.Established: 0, tcp.FinWait1: 0, tcp.FinWait2: 0, tcp.SynSent: 0, tcp.SynRecv: 0, tcp.Close: 0,
		tcp.CloseWait: 1, tcp.LastAck: 1, tcp.Closing: 1,
	} {
		read, unread := row(state, 1000*second, 60*second), row(state, 1000*second, 60*second)
		read.HasQueues, unread.HasQueues, unread.RxQueue = true, true, 1
		g := look(t, stuckIn(state), read, unread)
		if g.Read != fin || g.FinUnread != fin {
			t.Errorf("%s: %d have read the end of file, %d have not, want %d of each", state, g.Read, g.FinUnread, fin)
		}
		if data := g.Data == 1; data != (state == tcp.Established || state == tcp.FinWait1 || state == tcp.FinWait2) {
			t.Errorf("%s: data waits: %v", state, data)
		}
	}
}

// A limit of open files is reached by what takes descriptors. A pid of the past is
// not asked for anything.
func TestLimitIsOfDescriptors(t *testing.T) {
	for name, c := range map[string]struct {
		change             func(*tcp.Event)
		asked, limitIsNear bool
	}{
		"held":                {func(*tcp.Event) {}, true, true},
		"nobody knows":        {func(e *tcp.Event) { e.Holder = "" }, true, true},
		"closed":              {func(e *tcp.Event) { e.Holder = tcp.Gone }, false, false},
		"in the accept queue": {func(e *tcp.Event) { e.Holder, e.Unaccepted, e.FD = "", true, tcp.NoFD }, true, false},
	} {
		table := NewTable(stuckIn(tcp.CloseWait))
		var groups []*Group
		for now := uint64(1000 * second); now <= 1060*second; now += 2 * second {
			table.Begin(now)
			for since := uint64(990 * second); since <= now; since += second {
				e := row(tcp.CloseWait, now, now-since)
				c.change(&e)
				table.Add(&e)
			}
			groups = table.End()
		}
		asked := false
		resolve(groups, &Facts{Files: func(uint32) (Files, error) {
			asked = true
			return Files{100, 1024}, nil
		}}, 1)
		if g := groups[0]; g.Verdict != Leak || g.Growth <= 0 || asked != c.asked || g.LeftKnown != c.limitIsNear {
			t.Errorf("%s: %s, %+.1f a minute, files asked for: %v, limit known: %v", name, g.Verdict, g.Growth, asked, g.LeftKnown)
		}
	}
}

// A port is taken by whoever holds it, not by TIME_WAIT alone.
func TestPortsHeld(t *testing.T) {
	table := NewTimeWaitTable(1000*second, func(uint32) (PortRange, error) { return PortRange{First: 40000, Last: 40499}, nil })
	client := row(tcp.TimeWait, 1010*second, second)
	client.Role, client.Remote = tcp.Client, netip.MustParseAddrPort("10.0.0.1:5432")
	at := func(state tcp.State, port int, remote string) *tcp.Event {
		e := client
		e.New, e.Local, e.Remote = state, netip.AddrPortFrom(client.Local.Addr(), uint16(port)), netip.MustParseAddrPort(remote)
		return &e
	}
	table.Begin(1010 * second)
	table.Add(at(tcp.TimeWait, 40000, "10.0.0.1:5432"))
	if !table.Again() {
		t.Error("the range of a namespace that is new was read in the midst of a walk")
	}
	table.Begin(1010 * second)
	for i := range 20 {
		table.Add(at(tcp.TimeWait, 40000+i, "10.0.0.1:5432"))
	}
	for i := range 450 {
		table.AddOther(at(tcp.Established, 40020+i, "10.0.0.1:5432"))
	}
	table.AddOther(at(tcp.CloseWait, 30000, "10.0.0.1:5432"))  // bound outside of the range
	table.AddOther(at(tcp.Established, 40490, "10.0.0.2:443")) // its port is free for this destination
	groups := table.End()
	if len(groups) != 1 || groups[0].Count != 20 || groups[0].Held != 470 || groups[0].Ports != 500 {
		t.Fatalf("got %+v", groups[0])
	}
	if share, known := groups[0].Share(); !known || share != 0.94 {
		t.Errorf("the share is %v, %v, want 0.94", share, known)
	}
}

// What connect() cannot have, whatever the destination, is taken: what the administrator
// has reserved is not of the range at all, and it passes over the ports of servers.
func TestPortsOutOfReach(t *testing.T) {
	ports := PortRange{First: 40000, Last: 40099, Reserved: [][2]uint16{{22, 22}, {39990, 40009}, {40050, 40059}, {40099, 40200}}}
	table := NewTimeWaitTable(1000*second, func(uint32) (PortRange, error) { return ports, nil })
	at := func(state tcp.State, role tcp.Role, port int) *tcp.Event {
		e := row(state, 1010*second, second)
		e.Role, e.Local, e.Remote = role, netip.AddrPortFrom(e.Local.Addr(), uint16(port)), netip.MustParseAddrPort("10.0.0.1:5432")
		return &e
	}
	for look := range 3 { // the first knows no range yet; the others forget what was before
		table.Begin(1010 * second)
		for _, port := range []int{40010, 40011, 40055, 39990} { // the last two were reserved later
			table.Add(at(tcp.TimeWait, tcp.Client, port))
		}
		for _, port := range []int{40020, 40021, 40050} { // the last is reserved
			table.AddOther(at(tcp.Listen, tcp.Listener, port))
		}
		for range 5 {
			table.AddOther(at(tcp.Established, tcp.Server, 40020)) // all on the port of one listener
		}
		table.AddOther(at(tcp.CloseWait, tcp.Server, 40022)) // the listener is gone, the port is not free
		groups := table.End()
		if look == 0 && table.Again() {
			continue
		}
		if len(groups) != 1 || groups[0].Count != 4 || groups[0].Held != 5 || groups[0].Ports != 79 {
			t.Fatalf("got %+v", groups[0])
		}
	}
}

func TestCounted(t *testing.T) {
	var got []string
	for _, n := range []int{0, 1, 2} {
		got = append(got, Counted(n, "socket"))
	}
	if want := []string{"0 sockets", "1 socket", "2 sockets"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

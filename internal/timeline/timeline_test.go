package timeline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// follow hands events to a Collector, and ends the run at the time of the last one.
func follow(t *testing.T, c *Collector, events []tcp.Event) {
	t.Helper()
	now := uint64(0)
	for i := range events {
		now = max(now, events[i].BootNS)
		if err := c.Event(&events[i]); err == pipeline.Enough {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(now); err != nil {
		t.Fatal(err)
	}
}

func tell(t *testing.T, cfg Config, events []tcp.Event) (stories []*Story) {
	t.Helper()
	if cfg.Max == 0 {
		cfg.Max = 100
	}
	cfg.Show = func(s *Story) error { stories = append(stories, s); return nil }
	cfg.Flush = func() error { return nil }
	follow(t, NewCollector(cfg), events)
	return stories
}

// brief describes a story in a line: of each end its ports, or "-" where there is none, and
// its states.
func brief(s *Story) string {
	var parts []string
	for _, e := range []*End{s.Client, s.Server} {
		if e == nil {
			parts = append(parts, "-")
			continue
		}
		text := fmt.Sprintf("%d>%d", e.Local.Port(), e.Remote.Port())
		for _, stay := range e.Stays {
			text += " " + stay.State.String()
		}
		if e.Open {
			text += "..."
		}
		parts = append(parts, text)
	}
	if s.Ambiguous {
		parts = append(parts, "ambiguous")
	}
	return strings.Join(parts, " | ")
}

func check(t *testing.T, stories []*Story, want ...string) {
	t.Helper()
	var got []string
	for _, s := range stories {
		got = append(got, brief(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// One connection as both of its ends see it.
const both = `
	0s    c CLOSE>SYN_SENT         10.0.0.7:4000 10.0.0.1:80   connect role=client pid=30/curl
	40us  s LISTEN>SYN_RECV        10.0.0.1:80   10.0.0.7:4000 syn_received role=server pid=10/nginx
	90us  c SYN_SENT>ESTABLISHED   10.0.0.7:4000 10.0.0.1:80   handshake_done role=client pid=30/curl
	130us s SYN_RECV>ESTABLISHED   10.0.0.1:80   10.0.0.7:4000 handshake_done role=server pid=10/nginx
	1s    c ESTABLISHED>FIN_WAIT1  10.0.0.7:4000 10.0.0.1:80   local_close role=client pid=30/curl
	1.1s  s ESTABLISHED>CLOSE_WAIT 10.0.0.1:80   10.0.0.7:4000 fin_received role=server pid=10/nginx
	1.2s  c FIN_WAIT1>FIN_WAIT2    10.0.0.7:4000 10.0.0.1:80   fin_acked role=client pid=30/curl
	1.3s  s CLOSE_WAIT>LAST_ACK    10.0.0.1:80   10.0.0.7:4000 local_close role=server pid=10/nginx
	1.4s  c FIN_WAIT2>TIME_WAIT    10.0.0.7:4000 10.0.0.1:80   fin_received role=client pid=30/curl
	1.5s  s LAST_ACK>CLOSE         10.0.0.1:80   10.0.0.7:4000 fin_acked role=server pid=10/nginx
	61.4s c TIME_WAIT>CLOSE        10.0.0.7:4000 10.0.0.1:80   expired role=client pid=30/curl
`

const (
	clientPath = "4000>80 SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 TIME_WAIT"
	serverPath = "80>4000 SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK"
)

func TestBothEnds(t *testing.T) {
	stories := tell(t, Config{}, capture.Events(t, both))
	check(t, stories, clientPath+" | "+serverPath)
	s := stories[0]
	if begin, exact := s.Begin(); begin != capture.BootNS || !exact {
		t.Errorf("it began at %d, exactly: %v", begin, exact)
	}
	if got := s.Finish() - int64(capture.BootNS); got != 1.5e9 {
		t.Errorf("it was over after %d ns", got)
	}
	if got := s.Client.Stays[2]; got.Reason != tcp.FinAcked || got.Begin != uint64(capture.BootNS+1e9) || got.Owner.Comm != "curl" {
		t.Errorf("FIN_WAIT1 is %+v", got)
	}
}

// The filter selects a connection by either end, by any of its events, and tells both.
func TestFilterTakesEitherEnd(t *testing.T) {
	for name, f := range map[string]tcp.Filter{
		"the client's process": {Comm: []string{"curl"}}, "the server's process": {PIDs: []uint32{10}},
		"a reason of the server": {Reasons: []tcp.Reason{tcp.SynReceived}},
	} {
		stories := tell(t, Config{Filter: f}, capture.Events(t, both))
		t.Run(name, func(t *testing.T) { check(t, stories, clientPath+" | "+serverPath) })
	}
	check(t, tell(t, Config{Filter: tcp.Filter{Comm: []string{"wget"}}}, capture.Events(t, both)))
}

// Ends are joined in a namespace, or across namespaces if no other one fits; where a second
// one does, all stay apart, whichever is over first.
func TestJoin(t *testing.T) {
	c := func(at, netns string) string {
		return fmt.Sprintf("%s c%s CLOSE>SYN_SENT 10.0.0.7:4000 10.0.0.1:80 connect role=client netns=%s\n", at, netns, netns)
	}
	cEnd := func(at, netns string) string {
		return fmt.Sprintf("%s c%s SYN_SENT>CLOSE 10.0.0.7:4000 10.0.0.1:80 timeout role=client netns=%s\n", at, netns, netns)
	}
	s := func(at, netns string) string {
		return fmt.Sprintf("%s s%s LISTEN>SYN_RECV 10.0.0.1:80 10.0.0.7:4000 syn_received role=server netns=%s\n", at, netns, netns)
	}
	sEnd := func(at, netns string) string {
		return fmt.Sprintf("%s s%s SYN_RECV>CLOSE 10.0.0.1:80 10.0.0.7:4000 timeout role=server netns=%s\n", at, netns, netns)
	}
	const (
		alone, other    = "4000>80 SYN_SENT", "80>4000 SYN_RECV"
		joined          = alone + " | " + other
		clientAlone     = alone + " | -"
		serverAlone     = "- | " + other
		clientOfSeveral = alone + " | - | ambiguous"
		serverOfSeveral = "- | " + other + " | ambiguous"
	)
	for _, test := range []struct {
		name, capture string
		want          []string
	}{
		{"one namespace", c("0s", "1") + s("1ms", "1") + cEnd("5ms", "1") + sEnd("6ms", "1"), []string{joined}},
		{"two namespaces", c("0s", "1") + s("1ms", "2") + sEnd("5ms", "2") + cEnd("6ms", "1"), []string{joined}},
		{"the same namespace first", c("0s", "2") + c("0s", "1") + s("1ms", "1") + cEnd("5ms", "1") + sEnd("6ms", "1") + cEnd("7ms", "2"),
			[]string{joined, clientAlone}},
		{"two fit, a client is over first", c("0s", "1") + c("0s", "2") + s("1ms", "3") + cEnd("5ms", "1") + cEnd("6ms", "2") + sEnd("7ms", "3"),
			[]string{clientOfSeveral, clientOfSeveral, serverOfSeveral}},
		{"two fit, the server is over first", c("0s", "1") + c("0s", "2") + s("1ms", "3") + sEnd("5ms", "3") + cEnd("6ms", "2") + cEnd("7ms", "1"),
			[]string{serverOfSeveral, clientOfSeveral, clientOfSeveral}},
		{"loopback of two namespaces", strings.NewReplacer("10.0.0.7:", "127.0.0.1:", "10.0.0.1:", "127.0.0.1:").Replace(
			c("0s", "1") + s("1ms", "2") + cEnd("5ms", "1") + sEnd("6ms", "2")), []string{clientAlone, serverAlone}},
		{"the port of the second is known late", "0s c2 CLOSE>SYN_SENT 10.0.0.7:0 10.0.0.1:80 connect role=client netns=2\n" +
			c("0s", "1") + s("1ms", "3") + sEnd("5ms", "3") + cEnd("6ms", "2") + cEnd("7ms", "1"),
			[]string{clientOfSeveral, serverOfSeveral, clientOfSeveral}},
		{"the port of one in the same namespace is known late", "0s c3 CLOSE>SYN_SENT 10.0.0.7:0 10.0.0.1:80 connect role=client netns=3\n" +
			c("0s", "1") + s("1ms", "3") + cEnd("5ms", "1") + cEnd("6ms", "3") + sEnd("7ms", "3"), []string{clientAlone, joined}},
		{"the server was there first", s("0s", "2") + c("1ms", "1") + cEnd("5ms", "1") + sEnd("6ms", "2"), []string{clientAlone, serverAlone}},
		{"one after the other", c("0s", "1") + cEnd("1ms", "1") + s("2ms", "2") + sEnd("3ms", "2"), []string{clientAlone, serverAlone}},
	} {
		t.Run(test.name, func(t *testing.T) { check(t, tell(t, Config{}, capture.Events(t, test.capture)), test.want...) })
	}
}

func TestOpenAndForgotten(t *testing.T) {
	events := capture.Events(t, both)
	check(t, tell(t, Config{}, events[:4]), "4000>80 SYN_SENT ESTABLISHED... | 80>4000 SYN_RECV ESTABLISHED...")
	check(t, tell(t, Config{Filter: tcp.Filter{MinDuration: 1e6}}, events[:4]))
	check(t, tell(t, Config{Filter: tcp.Filter{MinDuration: 4e3}}, events[:3]),
		"4000>80 SYN_SENT ESTABLISHED... | 80>4000 SYN_RECV...")

	c := NewCollector(Config{Max: 1, Show: func(*Story) error { return nil }})
	follow(t, c, events)
	if c.Forgotten() == 0 {
		t.Error("nothing was forgotten of two ends where one has room")
	}
	if len(c.ends) != 0 {
		t.Errorf("%d ends are left behind", len(c.ends))
	}
}

// A state that was left unseen has no duration, and a row of a state that is known adds nothing.
func TestMissing(t *testing.T) {
	stories := tell(t, Config{}, capture.Events(t, `
		0s a >ESTABLISHED           10.0.0.7:4000 10.0.0.1:80 role=client at_least=5s
		1s a >ESTABLISHED           10.0.0.7:4000 10.0.0.1:80 role=client at_least=6s
		2s lost 3
		3s a FIN_WAIT1>FIN_WAIT2    10.0.0.7:4000 10.0.0.1:80 fin_acked role=client exact=100ms
		9s a FIN_WAIT2>CLOSE        10.0.0.7:4000 10.0.0.1:80 timeout role=client`))
	check(t, stories, "4000>80 ESTABLISHED FIN_WAIT1 FIN_WAIT2 | -")
	e := stories[0].Client
	if got := e.Stays[0].Kind; got != tcp.Unknown || !e.Missing {
		t.Errorf("ESTABLISHED is %s, missing: %v", got, e.Missing)
	}
	if got := e.Stays[1]; got.Kind != tcp.Exact || got.End-got.Begin != 100e6 {
		t.Errorf("FIN_WAIT1 is %+v", got)
	}
}

// hosts splits events into those of a client's host and those of a server's, whose
// CLOCK_BOOTTIME is ahead by offset, and its wall clock by half of that.
func hosts(events []tcp.Event, offset int64) (client, server []tcp.Event) {
	for _, e := range events {
		if e.Role == tcp.Server {
			e.BootNS += uint64(offset)
			e.Time += offset / 2
			server = append(server, e)
		} else {
			client = append(client, e)
		}
	}
	return client, server
}

// join joins the recordings of two hosts.
func join(t *testing.T, first, second []tcp.Event) ([]*Story, Clocks) {
	t.Helper()
	pair := NewPair(Config{Max: 1000})
	follow(t, pair.Collector(0), first)
	follow(t, pair.Collector(1), second)
	return pair.Join()
}

// handshakeAt is a connection from a port, with times of arrival in µs after its beginning.
func handshakeAt(begin float64, name string, port int, syn, answer, done int, netns string) string {
	at := func(us int) string { return fmt.Sprintf("%fs", begin+float64(us)/1e6) }
	ends := fmt.Sprintf("10.0.0.7:%d 10.0.0.1:80", port)
	back := fmt.Sprintf("10.0.0.1:80 10.0.0.7:%d", port)
	return at(0) + " c" + name + " CLOSE>SYN_SENT " + ends + " connect role=client\n" +
		at(syn) + " s" + name + " LISTEN>SYN_RECV " + back + " syn_received role=server netns=" + netns + "\n" +
		at(answer) + " c" + name + " SYN_SENT>ESTABLISHED " + ends + " handshake_done role=client\n" +
		at(done) + " s" + name + " SYN_RECV>ESTABLISHED " + back + " handshake_done role=server netns=" + netns + "\n" +
		at(done+1000) + " c" + name + " ESTABLISHED>CLOSE " + ends + " aborted_linger role=client\n" +
		at(done+1400) + " s" + name + " ESTABLISHED>CLOSE " + back + " rst_received role=server netns=" + netns + "\n"
}

// The true offset of two clocks lies between the bounds, whichever recording is named first
// and whichever clock is ahead, and more handshakes narrow them.
func TestOffsetOfClocks(t *testing.T) {
	one := handshakeAt(1, "a", 4001, 700, 900, 1500, "7")
	more := one + handshakeAt(2, "b", 4002, 300, 1100, 1500, "7") + handshakeAt(3, "c", 4003, 900, 1200, 1400, "7")
	for _, offset := range []int64{0, 3600e9, -5e9, 12_345_678} {
		client, server := hosts(capture.Events(t, one), offset)
		_, wide := join(t, client, server)
		client, server = hosts(capture.Events(t, more), offset)
		stories, clocks := join(t, client, server)
		wantWall := offset / 2
		if clocks.Handshakes != 3 || clocks.Drift != 0 || clocks.Error != 200e3 || clocks.Error >= wide.Error {
			t.Errorf("%d: %+v, of one handshake %+v", offset, clocks, wide)
		}
		if distance(clocks.Offset, wantWall) > clocks.Error || distance(wide.Offset, wantWall) > wide.Error {
			t.Errorf("%d: %+v and %+v do not hold the true offset", offset, clocks, wide)
		}
		if len(stories) != 3 || stories[0].Client == nil || stories[0].Server == nil {
			t.Fatalf("%d: not joined: %d stories", offset, len(stories))
		}
		for _, s := range stories {
			if distance(s.Offset, offset) > s.Error {
				t.Errorf("%d: the server is moved by %d, give or take %d", offset, s.Offset, s.Error)
			}
		}
		reversed, back := join(t, server, client)
		if len(reversed) != 3 || distance(back.Offset, -wantWall) > back.Error || distance(reversed[0].Offset, offset) > reversed[0].Error {
			t.Errorf("%d: the other way round: %+v, moved by %d", offset, back, reversed[0].Offset)
		}
	}
}

func distance(a, b int64) uint64 { return uint64(max(a-b, b-a)) }

// What the clocks cannot decide is not joined, and neither is what has other addresses.
func TestPairsThatStayApart(t *testing.T) {
	base := handshakeAt(1, "a", 4001, 700, 900, 1500, "7")
	again := handshakeAt(5, "d", 4005, 700, 900, 1500, "7") + handshakeAt(100, "e", 4005, 700, 900, 1500, "7")
	twice := handshakeAt(5, "d", 4005, 700, 900, 1500, "7") +
		"5.000710s x LISTEN>SYN_RECV 10.0.0.1:80 10.0.0.7:4005 syn_received role=server netns=8\n" +
		"5.001510s x SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.7:4005 handshake_done role=server netns=8\n" +
		"6s x ESTABLISHED>CLOSE 10.0.0.1:80 10.0.0.7:4005 aborted role=server netns=8\n"
	nat := handshakeAt(5, "d", 4005, 700, 900, 1500, "7")
	cookies := handshakeAt(5, "d", 4005, 1490, 900, 1500, "7")
	count := func(stories []*Story) (joined, apart, ambiguous int) {
		for _, s := range stories {
			if len(s.Ends()) == 2 {
				joined++
			} else if apart++; s.Ambiguous {
				ambiguous++
			}
		}
		return joined, apart, ambiguous
	}
	for _, test := range []struct {
		name, capture                string
		change                       func(*tcp.Event)
		joined, apart, several, hand int
		drift                        bool
	}{
		{name: "addresses come again later", capture: base + again, joined: 3, hand: 1},
		{name: "two servers at the same time", capture: base + twice, joined: 1, apart: 3, several: 3, hand: 1},
		{name: "behind NAT", capture: base + nat, joined: 1, apart: 2, hand: 1, change: func(e *tcp.Event) {
			if e.Role == tcp.Server && e.Remote.Port() == 4005 {
				e.Remote = netip.MustParseAddrPort("198.51.100.3:6000")
			}
		}},
		{name: "no handshake", capture: base, apart: 2, change: func(e *tcp.Event) {
			if e.New == tcp.SynRecv {
				e.Kind, e.Old, e.Reason = tcp.Socket, 0, ""
			}
		}},
		{name: "a SYN cookie", capture: base + cookies, joined: 2, hand: 1, change: func(e *tcp.Event) {
			if e.New == tcp.SynRecv && e.Remote.Port() == 4005 {
				e.Cookie = 77
			}
			if e.Role == tcp.Server && e.Remote.Port() == 4005 {
				e.Cookie = 77
			}
		}},
		{name: "the clocks drift", capture: base + nat, joined: 2, hand: 2, drift: true, change: func(e *tcp.Event) {
			if e.Role == tcp.Server && e.Remote.Port() == 4005 {
				e.BootNS += 5e6
			}
		}},
		{name: "the clocks drift, addresses come again", capture: base + again + handshakeAt(7, "f", 4006, 700, 900, 1500, "7"),
			joined: 2, apart: 4, several: 4, hand: 2, drift: true, change: func(e *tcp.Event) {
				if e.Role == tcp.Server && e.Remote.Port() == 4006 {
					e.BootNS += 5e6
				}
			}},
		{name: "the clocks drift, addresses come again without a handshake", capture: base + again + handshakeAt(7, "f", 4006, 700, 900, 1500, "7"),
			joined: 2, apart: 4, several: 4, hand: 2, drift: true, change: func(e *tcp.Event) {
				switch {
				case e.Role == tcp.Server && e.Remote.Port() == 4006:
					e.BootNS += 5e6
				case e.New == tcp.SynRecv && e.BootNS > capture.BootNS+50e9:
					e.Kind, e.Old, e.Reason = tcp.Socket, 0, ""
				}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			events := capture.Events(t, test.capture)
			slices.SortStableFunc(events, func(a, b tcp.Event) int { return int(int64(a.BootNS) - int64(b.BootNS)) })
			for i := range events {
				if test.change != nil {
					test.change(&events[i])
				}
			}
			client, server := hosts(events, 77e9)
			stories, clocks := join(t, client, server)
			joined, apart, several := count(stories)
			if joined != test.joined || apart != test.apart || several != test.several || clocks.Handshakes != test.hand || clocks.Drift > 0 != test.drift {
				t.Errorf("%d joined, %d apart, %d of these ambiguous, %+v", joined, apart, several, clocks)
			}
			for _, s := range stories {
				if len(s.Ends()) == 2 && s.Client.Local.Port() != s.Server.Remote.Port() {
					t.Errorf("joined: %s", brief(s))
				}
			}
		})
	}
}

// A story can be looked at while it goes on, which changes nothing.
func TestPeek(t *testing.T) {
	events := capture.Events(t, `
		1s     c CLOSE>SYN_SENT          10.0.0.1:4000 10.0.0.2:80   connect role=client
		1.1s   s LISTEN>SYN_RECV         10.0.0.2:80   10.0.0.1:4000 syn_received role=server
		1.2s   c SYN_SENT>ESTABLISHED    10.0.0.1:4000 10.0.0.2:80   handshake_done role=client
		1.3s   s SYN_RECV>ESTABLISHED    10.0.0.2:80   10.0.0.1:4000 handshake_done role=server
		2s     c ESTABLISHED>CLOSE       10.0.0.1:4000 10.0.0.2:80   rst_received role=client
		3s     s ESTABLISHED>CLOSE       10.0.0.2:80   10.0.0.1:4000 rst_received role=server
	`)
	var told, peeked []string
	c := NewCollector(Config{Max: 10, Flush: func() error { return nil }, Show: func(s *Story) error {
		told = append(told, brief(s))
		return nil
	}})
	var client *End
	var first *Story
	for i := range events {
		if err := c.Event(&events[i]); err != nil {
			t.Fatal(err)
		}
		for e := range c.Ends() {
			if client == nil {
				client = e
			}
		}
		s := c.Peek(client, events[i].BootNS)
		if first == nil {
			first = s
		}
		peeked = append(peeked, brief(s))
	}
	want := []string{
		"4000>80 SYN_SENT... | -",
		"4000>80 SYN_SENT... | 80>4000 SYN_RECV...",
		"4000>80 SYN_SENT ESTABLISHED... | 80>4000 SYN_RECV...",
		"4000>80 SYN_SENT ESTABLISHED... | 80>4000 SYN_RECV ESTABLISHED...",
		"4000>80 SYN_SENT ESTABLISHED | 80>4000 SYN_RECV ESTABLISHED...",
		"4000>80 SYN_SENT ESTABLISHED | 80>4000 SYN_RECV ESTABLISHED",
	}
	if !slices.Equal(peeked, want) {
		t.Errorf("it is\n%s\nwant\n%s", strings.Join(peeked, "\n"), strings.Join(want, "\n"))
	}
	if got := brief(first); got != want[0] {
		t.Errorf("what was seen first has become %s", got)
	}
	if !slices.Equal(told, want[5:]) {
		t.Errorf("told are %q", told)
	}
}

package serve

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// move is an event of a socket.
func move(cookie uint64, cgroup string, at time.Duration, old, new tcp.State) *tcp.Event {
	return &tcp.Event{
		BootNS: capture.BootNS + uint64(at), Time: capture.Start + int64(at), Cookie: cookie, Cgroup: cgroup, ContainerID: tcp.ContainerID(cgroup), Old: old, New: new,
		Duration: 1e6, DurationKind: tcp.Exact, UID: tcp.NoUID, FD: tcp.NoFD,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"),
	}
}

// worstSeries is the formula of the manual: so many series have a service at most.
func worstSeries(services int) int { return SeriesPerService * (services + 2) }

// 100,000 services come and go: there are no more series than the formula allows, no socket is
// left out of the counts, memory does not grow with them, and names are used again.
func TestChurn(t *testing.T) {
	const services, most = 100_000, 500
	c := newCollector(collectorConfig{source: newFeed(), maxServices: most, maxSockets: 1 << 10})
	all := func(i int, step func(cgroup string)) { step(fmt.Sprintf("/system.slice/s%06d.service", i)) }
	run := func(from, to int) {
		for i := from; i < to; i++ {
			at, cookie := time.Duration(i)*2*time.Millisecond, uint64(i+1)
			all(i, func(cgroup string) {
				for _, e := range []*tcp.Event{
					move(cookie, cgroup, at, tcp.Close, tcp.SynSent), move(cookie, cgroup, at, tcp.SynSent, tcp.Established),
					move(cookie, cgroup, at, tcp.Established, tcp.FinWait1), move(cookie, cgroup, at, tcp.FinWait1, tcp.Close),
				} {
					if err := c.Event(e); err != nil {
						t.Fatal(err)
					}
				}
			})
			if i%250 == 0 {
				c.meter.expire(capture.BootNS + uint64(at))
			}
		}
	}
	run(0, services/2)
	before := heap()
	run(services/2, services)
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("it has grown by %d bytes", grown)
	}
	s := c.snapshot(capture.BootNS + uint64(2*services*time.Millisecond))
	if got := len(s.services); got > most+2 || got < most {
		t.Fatalf("%d services", got)
	}
	ch := make(chan prometheus.Metric, worstSeries(most))
	if series := s.collectServices(ch) + s.collectLeaks(ch); series > worstSeries(most) {
		t.Errorf("%d series, the manual says %d at most", series, worstSeries(most))
	}
	late := 0
	for _, one := range s.services {
		if strings.HasPrefix(one.name, "s09") {
			late++
		}
	}
	if late == 0 {
		t.Error("no name was used again: the services are those of the start")
	}
	sum := uint64(0)
	for _, tr := range s.transitions {
		sum += tr.count
	}
	if sum != 4*services {
		t.Errorf("%d transitions, want %d", sum, 4*services)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The formula is that of the worst case: a service with each state and each leak.
func TestWorstSeries(t *testing.T) {
	one := serviceCounts{name: "a.service"}
	var s snapshot
	for state := tcp.Established; state <= tcp.Closing; state++ {
		one.seen[state] = true
		if state != tcp.Close { // no time in it is ever known
			one.dwell[state] = new(stats.Histogram)
		}
	}
	for _, state := range []tcp.State{tcp.CloseWait, tcp.Close} {
		s.leaks = append(s.leaks, leaks{service: one.name, state: state, growthKnown: true})
	}
	s.services, s.exhausted = []serviceCounts{one}, []exhausted{{one.name, 1}}
	ch := make(chan prometheus.Metric, 1000)
	if got := s.collectServices(ch) + s.collectLeaks(ch); got*3 != worstSeries(1) {
		t.Errorf("%d series of a service, the formula has %d", got, worstSeries(1)/3)
	}
}

// A rate is that of the time since the mark before the last, of each service and of all.
func TestRates(t *testing.T) {
	const cgroup = "/system.slice/a.service"
	m := newMeter(1, 100)
	cookie := uint64(0)
	open := func(n int) {
		for range n {
			cookie++
			m.event(move(cookie, cgroup, 0, tcp.Close, tcp.SynSent))
		}
	}
	rate := func(at float64) string {
		now := uint64(at*1e9) + 1e9
		m.mark(now)
		since := now - m.before
		all, known := m.taken.perSecond(tcp.Close, tcp.SynSent, since)
		one, _ := m.services["a.service"].taken.perSecond(tcp.Close, tcp.SynSent, since)
		if all != one {
			t.Errorf("at %g s: %g of all, %g of the only service", at, all, one)
		}
		return fmt.Sprintf("%.1f %v", all, known)
	}
	open(7) // before the first mark
	for _, step := range []struct {
		at   float64
		open int
		want string
	}{{0, 0, "0.0 false"}, {2, 10, "5.0 true"}, {4, 0, "2.5 true"}, {5, 0, "2.0 true"}, {8, 6, "2.0 true"}, {10, 0, "1.2 true"}, {15, 0, "0.0 true"}} {
		open(step.open)
		if got := rate(step.at); got != step.want {
			t.Errorf("at %g s: got %s, want %s", step.at, got, step.want)
		}
	}
}

// The counts of a service follow its sockets, also to another service, and out of it.
func TestMeter(t *testing.T) {
	m := newMeter(1, 2)
	now := func() string {
		var b strings.Builder
		for _, s := range m.all() {
			for at, n := range s.sockets {
				if n != 0 {
					fmt.Fprintf(&b, "%s %s %d, ", s.name, tcp.State(at), n)
				}
			}
		}
		return b.String()
	}
	const a, b = "/system.slice/a.service", "/system.slice/b.service"
	for _, step := range []struct {
		e    *tcp.Event
		want string
	}{
		{move(1, "", 0, tcp.Close, tcp.SynSent), "~unknown SYN_SENT 1, "},
		{move(1, a, 1, tcp.SynSent, tcp.Established), "a.service ESTABLISHED 1, "},
		{move(2, b, 2, tcp.Close, tcp.SynSent), "a.service ESTABLISHED 1, ~other SYN_SENT 1, "},
		{move(1, "", 3, tcp.Established, tcp.CloseWait), "a.service CLOSE_WAIT 1, ~other SYN_SENT 1, "},
		{move(3, b, 4, tcp.Close, tcp.SynSent), "~other SYN_SENT 2, "}, // the oldest socket makes room
		{move(2, b, 5, tcp.SynSent, tcp.Close), "~other SYN_SENT 1, "},
		{move(3, b, 6, tcp.SynSent, tcp.Close), ""},
	} {
		m.event(step.e)
		if got := now(); got != step.want {
			t.Errorf("after %v>%v of %d: %q, want %q", step.e.Old, step.e.New, step.e.Cookie, got, step.want)
		}
	}
	if h := m.services["a.service"].dwell[tcp.SynSent]; h == nil || h.Count != 1 {
		t.Errorf("the time in SYN_SENT is in %v", h)
	}
	m.expire(capture.BootNS + uint64(expiry))
	if len(m.services) != 1 {
		t.Error("a.service has gone too early")
	}
	if m.expire(capture.BootNS + uint64(expiry) + 10); len(m.services) != 0 {
		t.Error("a.service is still there")
	}
	m.event(move(4, b, 2*expiry, tcp.Close, tcp.SynSent))
	if got := now(); got != "b.service SYN_SENT 1, " {
		t.Errorf("in the place of a.service: %q", got)
	}
	if m.expire(capture.BootNS + uint64(time.Hour)); len(m.services) != 1 {
		t.Error("a service with a socket has gone")
	}
}

func TestServiceOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	long := "/" + strings.Repeat("x", 300)
	for cgroup, want := range map[string]string{
		"":                                      "~unknown",
		"/":                                     "/",
		"/system.slice/nginx.service":           "nginx.service",
		"/system.slice/docker-" + id + ".scope": "0123456789ab",
		"/lxc.payload.web/init.scope":           "web",
		"/lxc.payload.~other/init.scope":        `\x7eother`,
		"/lxc.payload.~unknown":                 `\x7eunknown`,
		"/custom/group":                         "/custom/group",
		"/a\nb\x1b[31m\xff\u202e":               `/a\nb\x1b[31m\xff\u202e`,
		`/system.slice/dev-disk\x2dby.mount/x`:  `dev-disk\x2dby.mount`,
		"/ümlaut":                               "/ümlaut",
		"/" + strings.Repeat("ü", 100):          "",
		long:                                    "",
		long + "y":                              "",
		"/" + strings.Repeat("\xff", 200):       "",
	} {
		got := serviceOf(&tcp.Event{Cgroup: cgroup, ContainerID: tcp.ContainerID(cgroup)})
		if want != "" && got != want || len(got) > maxLabel || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x1b") {
			t.Errorf("%q is %q, want %q", cgroup, got, want)
		}
	}
	if label(long) == label(long+"y") {
		t.Error("long names that differ at their end are the same")
	}
}

// The counts of services cost no allocation for an event.
func TestNoAllocation(t *testing.T) {
	c := newCollector(collectorConfig{source: newFeed(), maxServices: 500, maxSockets: 1 << 10})
	fill, n := load(500), uint64(0)
	var e tcp.Event
	step := func() {
		for range 10_000 {
			fill(n, &e)
			e.BootNS = capture.BootNS + n*1000
			n++
			if err := c.Event(&e); err != nil {
				t.Fatal(err)
			}
		}
	}
	step() // it grows once
	if got := testing.AllocsPerRun(5, step); got > 10 {
		t.Errorf("%v allocations for 10,000 events", got)
	}
}

// BenchmarkEvent is what the daemon adds to an event; with readers, what a stream costs.
func BenchmarkEvent(b *testing.B) {
	for _, readers := range []string{"", topicTransition, topicConnection} {
		b.Run("readers="+readers, func(b *testing.B) {
			c := newCollector(collectorConfig{source: newFeed(), maxServices: 500, maxSockets: 1 << 16})
			if readers != "" {
				t := map[string]*topic{topicTransition: &c.events, topicConnection: &c.conns.topic}[readers]
				reader, err := t.join()
				if err != nil {
					b.Fatal(err)
				}
				go func() {
					for b := range reader.queue {
						reader.took(b)
					}
				}()
			}
			fill := load(200)
			var e tcp.Event
			b.ReportAllocs()
			for n := range uint64(b.N) {
				fill(n, &e)
				e.BootNS = capture.BootNS + n*1000
				if err := c.Event(&e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What is remembered is bounded, and the oldest goes first.
func TestHistory(t *testing.T) {
	h := newHistory(4)
	for i := range uint64(6) {
		e := move(i, "", 0, tcp.Close, tcp.SynSent)
		e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(1000+i))
		h.add(e)
	}
	var got []uint64
	h.each(func(e *tcp.Event) { got = append(got, e.Cookie) })
	if fmt.Sprint(got) != "[2 3 4 5]" {
		t.Errorf("got %v", got)
	}
	if h.of(1) != nil || len(h.of(5)) != 1 {
		t.Errorf("of 1: %v, of 5: %v", h.of(1), h.of(5))
	}
}

// The other end and the half-open time of a connection are part of its story.
func TestHistoryOfBothEnds(t *testing.T) {
	h := newHistory(10)
	all := capture.Events(t, `
0s   c CLOSE>SYN_SENT        127.0.0.1:40001 127.0.0.1:80 connect role=client
1ms  s LISTEN>SYN_RECV       127.0.0.1:80 127.0.0.1:40001 syn_received role=server
2ms  s SYN_RECV>ESTABLISHED  127.0.0.1:80 127.0.0.1:40001 handshake_done role=server exact=1ms
3ms  x CLOSE>SYN_SENT        127.0.0.1:40002 127.0.0.1:80 connect role=client
`)
	for i := range all {
		h.add(&all[i])
	}
	for _, i := range []int{0, 2} {
		if got := h.of(all[i].Cookie); len(got) != 3 {
			t.Errorf("of %x: %d events, want 3", all[i].Cookie, len(got))
		}
	}
}

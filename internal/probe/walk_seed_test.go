package probe_test

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Sockets that are older than the trace.
var seedScenarios = []scenario{
	{name: "older than the trace", run: older},
	{name: "another's, older than the trace", run: olderElsewhere},
	{name: "CLOSE_WAIT older than the trace", run: olderLeak},
	{name: "CLOSE_WAIT older than the trace, kept alive", slow: true, run: olderKeptAlive},
	{name: "TIME_WAIT and half-open older than the trace", run: olderMini},
	{name: "roles older than the trace", run: func(n *netns) { olderRoles(n, web) }},
	{name: "roles older than the trace, IPv6", run: func(n *netns) { olderRoles(n, "[::1]:80") }},
	{name: "a client that listened before, older than the trace", run: olderListened},
	{name: "half-open older than the trace, SYN-ACK sent again", run: olderHalfOpen},
}

// trace begins a second trace. The scenario is held against this one: the lines
// written so far are not wanted of it.
func (n *netns) trace() { n.traceAfter(func() {}) }

// traceAfter calls attached between attaching and seeding.
func (n *netns) traceAfter(attached func()) {
	w, err := attachWalk(probe.Config{NetNS: n.inode, OwnerRefresh: -1})
	check(err, "begin a second trace")
	attached()
	check(w.seed(), "begin a second trace")
	n.undo = append(n.undo, func() {
		_, err := w.close()
		check(err, "end the second trace")
	})
	n.walk = w
	for _, s := range n.socks {
		s.want = nil
	}
}

// isSeeded holds the row of s in the second trace's snapshot, and in the one-shot
// table, against what the test knows.
func (s *sock) isSeeded(state tcp.State, role tcp.Role, source tcp.OwnerSource) (row tcp.Event) {
	s.learnCookie()
	s.role = role
	var table []tcp.Event
	err := probe.Sockets(probe.Config{NetNS: s.n.inode}, func(e *tcp.Event) error {
		table = append(table, *e)
		return nil
	})
	check(err, "list the sockets")
	s.row("listed", table, state, source)
	return s.row("seeded", s.n.walk.seeded, state, source)
}

func (s *sock) row(how string, rows []tcp.Event, state tcp.State, source tcp.OwnerSource) tcp.Event {
	rows = slices.DeleteFunc(slices.Clone(rows), func(e tcp.Event) bool { return !s.hasEnds(&e) })
	if len(rows) != 1 {
		fail("%s %v > %v is %s in %d rows, want 1", s.name, s.local, s.remote, how, len(rows))
	}
	e := rows[0]
	if e.Kind != tcp.Socket || e.Old != 0 || e.New != state || e.Role != s.role {
		fail("%s is %s as kind %d, %v>%v, role %s; want %v, role %s", s.name, how, e.Kind, e.Old, e.New, e.Role, state, s.role)
	}
	if s.cookie != 0 && e.Cookie != 0 && e.Cookie != s.cookie {
		fail("%s is %s with cookie %x, want %x", s.name, how, e.Cookie, s.cookie)
	}
	who, fd := s.n.procs[s.holder], tcp.NoFD
	if source == tcp.FromSnapshot { // found by its descriptor
		fd = int32(max(s.fd, s.holderFD))
	}
	if e.OwnerSource != source || e.FD != fd || source != "" && (owner{e.PID, e.Comm}) != who {
		fail("%s is %s as of %+v by %q with fd %d, want %+v by %q with fd %d", s.name, how,
			owner{e.PID, e.Comm}, e.OwnerSource, e.FD, who, source, fd)
	}
	return e
}

func older(n *netns) {
	l, c, s := n.established(web)
	n.trace()
	l.isSeeded(tcp.Listen, tcp.Listener, tcp.FromSnapshot)
	c.isSeeded(tcp.Established, tcp.Client, tcp.FromSnapshot)
	s.isSeeded(tcp.Established, tcp.Server, tcp.FromSnapshot)
	n.rest()
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	n.step("end", l.close)
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close   by=snapshot since=connect
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received  by=snapshot since=connect
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
	l.wants(`
end     LISTEN>CLOSE            local_close   by=snapshot since=listen`)
}

// olderElsewhere: as older, with an owner that never runs while it is traced.
func olderElsewhere(n *netns) {
	l := n.listener(web)
	victim := n.agent("victim")
	c := victim.client(n, l.local)
	s := n.served(c)
	s.accept(l)
	n.trace()
	c.isSeeded(tcp.Established, tcp.Client, tcp.FromSnapshot)
	n.step("close", s.close, c.in(tcp.CloseWait), s.in(tcp.FinWait2))
	n.rest()
	n.step("kill", victim.kill, c.in(tcp.Close), s.in(tcp.TimeWait))
	c.wants(`
close  ESTABLISHED>CLOSE_WAIT  fin_received  by=snapshot:victim since=connect
kill   CLOSE_WAIT>LAST_ACK     local_close
kill   LAST_ACK>CLOSE          fin_acked`)
	s.wants(`
close  ESTABLISHED>FIN_WAIT1   local_close   by=snapshot since=connect
close  FIN_WAIT1>FIN_WAIT2     fin_acked
kill   FIN_WAIT2>TIME_WAIT     fin_received`)
}

// olderLeak: the age of a CLOSE_WAIT is known from the kernel's own clock, to
// a tick of it.
func olderLeak(n *netns) {
	_, c, s := n.established(web)
	n.step("left", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	time.Sleep(300 * time.Millisecond)
	n.trace()
	c.isSeeded(tcp.FinWait2, "", "")
	s.isLeaked(0)
	n.step("abort", s.abort, s.in(tcp.Close), c.in(tcp.Close))
	s.wants(`abort  CLOSE_WAIT>CLOSE  aborted_linger  by=snapshot since=left`)
	c.wants(`abort  FIN_WAIT2>CLOSE   rst_received  by=         since=left`)
}

// olderKeptAlive: where the last ACK answers a keepalive probe, or data that is still
// sent, the age is known to a delayed ACK.
func olderKeptAlive(n *netns) {
	_, c, s := n.established(web)
	s.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	s.set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
	s.set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1)
	n.step("left", func() { c.shutdown(unix.SHUT_WR) }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	time.Sleep(1500 * time.Millisecond)
	s.write("late")
	time.Sleep(1500 * time.Millisecond)
	info := must(unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO))
	if last := time.Duration(info.Last_ack_recv) * time.Millisecond; last > 1200*time.Millisecond {
		fail("the last ACK came %v ago: no keepalive probe was answered", last)
	}
	n.trace()
	s.isLeaked(delayedACK)
	n.step("abort", s.abort, s.in(tcp.Close), c.in(tcp.Close))
	s.wants(`abort  CLOSE_WAIT>CLOSE  aborted_linger  by=snapshot since=left`)
	c.wants(`abort  FIN_WAIT2>CLOSE   rst_received  by=snapshot since=left errno=ECONNRESET`)
}

// delayedACK is the longest that an ACK waits for data to go with: TCP_DELACK_MAX, ns.
const delayedACK = 200e6

// isLeaked holds the age of s, in CLOSE_WAIT since the step "left" and older than the
// trace, against the test's clock. It may be too low by that many ns.
func (s *sock) isLeaked(low uint64) {
	row := s.isSeeded(tcp.CloseWait, tcp.Server, tcp.FromSnapshot)
	left := s.n.steps["left"]
	// The kernel's clock for it ticks, and lags where the host stops the guest.
	least, most := row.BootNS-left.to-low, row.BootNS-left.from
	if slack := 2*tick + most/100; row.Duration+slack < least || row.Duration > most+slack {
		fail("CLOSE_WAIT is seeded with an age of %v, want %v to %v",
			time.Duration(row.Duration), time.Duration(least), time.Duration(most))
	}
	s.n.steps["left"] = span{left.from - 2*tick, left.to + low}
}

// olderMini: nobody holds what has no descriptor.
func olderMini(n *netns) {
	p := n.peer()
	waiting := inTimeWait(n, p)
	p.seq += 100
	half := halfOpen(n, n.listener(hostWeb), p)
	n.rest()
	n.trace()
	waiting.isSeeded(tcp.TimeWait, "", "")
	if !half.hasRow() { // opening took so long that this happened by chance
		half.wantsSentAgain(n, p)
		return
	}
	half.isSeeded(tcp.SynRecv, tcp.Server, tcp.FromInherited)
	n.step("reset", func() { p.send(flagRST) }, half.in(tcp.Close))
	half.wants(`reset  SYN_RECV>CLOSE  rst_received  by=inherited since=syn age=exact`)
}

// olderRoles: nothing of the listener's is left in a child whose backlog is 0. What was sent
// and closed meanwhile must not matter.
func olderRoles(n *netns, addr string) {
	l, c, s := n.established(addr)
	check(unix.Listen(l.fd, 0), "set the backlog to 0")
	c2 := n.client(l.local)
	check(c2.connect(l.local), "connect")
	c2.await(tcp.Established)
	s2 := n.served(c2)
	s2.await(tcp.Established)
	s2.accept(l)
	for _, pair := range [][2]*sock{{c, s}, {c2, s2}} {
		pair[0].write("request")
		pair[1].read("request")
		pair[1].write("a longer answer")
	}
	c2.shutdown(unix.SHUT_WR)
	s2.await(tcp.CloseWait)
	c2.await(tcp.FinWait2)
	n.trace()
	c.isSeeded(tcp.Established, tcp.Client, tcp.FromSnapshot)
	s.isSeeded(tcp.Established, tcp.Server, tcp.FromSnapshot)
	c2.isSeeded(tcp.FinWait2, tcp.Client, tcp.FromSnapshot)
	s2.isSeeded(tcp.CloseWait, tcp.Server, tcp.FromSnapshot)
}

// olderListened: a backlog limit is not a proof of being a server, either.
func olderListened(n *netns) {
	l := n.listener(web)
	c := n.client(l.local)
	c.bind("127.0.0.1:4000")
	check(unix.Listen(c.fd, 8), "listen")
	c.shutdown(unix.SHUT_RDWR)
	check(c.connect(l.local), "connect")
	c.await(tcp.Established)
	n.trace()
	c.isSeeded(tcp.Established, tcp.Client, tcp.FromSnapshot)
}

// olderHalfOpen: when the SYN-ACK is sent again between attaching and seeding, an event
// shows the half-open connection, with the time of its SYN, and no row does. Here it is sent
// again for one more SYN: on a slow machine the timer's next turn may be far away.
func olderHalfOpen(n *netns) {
	p := n.peer()
	half := halfOpen(n, n.listener(hostWeb), p)
	n.traceAfter(func() {
		p.drain()
		p.seq--
		p.send(flagSYN)
		p.receive(flagSYN | flagACK)
	})
	if half.hasRow() {
		fail("%v > %v has a row, although an event has shown it", half.local, half.remote)
	}
	half.wantsSentAgain(n, p)
}

func (s *sock) hasRow() bool {
	return slices.ContainsFunc(s.n.walk.seeded, func(e tcp.Event) bool { return s.hasEnds(&e) })
}

// wantsSentAgain ends a half-open connection that an event shows in place of a row. Its
// listener is older than the trace, too, and was not seeded yet.
func (s *sock) wantsSentAgain(n *netns, p *peer) {
	n.step("reset", func() { p.send(flagRST) }, s.in(tcp.Close))
	s.wants(`
syn    LISTEN>SYN_RECV  syn_received  by=
reset  SYN_RECV>CLOSE   rst_received`)
}

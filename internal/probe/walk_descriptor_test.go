package probe_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Descriptors that outlive their connection, and connections that have none.
var descriptorScenarios = []scenario{
	{name: "reset and kept open", run: resetAndKept},
	{name: "closed both ways and kept open", run: closedAndKept},
	{name: "reset and kept open, older than the trace", run: olderKept},
	{name: "refused and kept open", run: refusedAndKept},
	{name: "disconnected and kept open", run: disconnectedAndKept},
	{name: "handed on, renamed, closed", run: rowsAreFresh},
	{name: "nobody accepts", run: nobodyAccepts},
	{name: "nobody accepts, older than the trace", run: nobodyAcceptsOlder},
}

// tracked begins a second trace that can list sockets.
func (n *netns) tracked() *probe.Probe {
	p, err := probe.Open(probe.Config{NetNS: n.inode, Tracked: true, OwnerRefresh: -1})
	check(err, "begin a second trace")
	n.undo = append(n.undo, func() { check(p.Close(), "end the second trace") })
	check(p.Seed(func(*tcp.Event) error { return nil }), "seed the second trace")
	return p
}

// rows lists the sockets in a state.
func (n *netns) rows(p *probe.Probe, state tcp.State) (rows []tcp.Event) {
	check(p.TrackedSockets([]tcp.State{state}, func(e *tcp.Event) error {
		rows = append(rows, *e)
		return nil
	}), "list the tracked sockets")
	return rows
}

// keptBy holds the only row in CLOSE against who keeps the descriptor.
func (s *sock) keptBy(rows []tcp.Event, name string, fd int, age tcp.DurationKind) {
	if len(rows) != 1 {
		fail("%d rows in CLOSE, want 1 of %s: %+v", len(rows), s.name, rows)
	}
	e := rows[0]
	if !s.hasEnds(&e) || e.New != tcp.Close || e.Holder != tcp.Held || e.FD != int32(fd) ||
		(owner{e.PID, e.Comm}) != s.n.procs[name] || e.DurationKind != age {
		fail("got %s, holder %q, fd %d; want it held by %+v, fd %d, age %s", describe(&e), e.Holder, e.FD, s.n.procs[name], fd, age)
	}
}

func resetAndKept(n *netns) {
	p := n.tracked()
	_, c, s := n.established(web)
	n.socket("never connected", "", c.local.Addr())
	n.step("reset", c.abort, s.in(tcp.Close), c.in(tcp.Close))
	s.keptBy(n.rows(p, tcp.Close), self, s.fd, tcp.Exact)
	child := n.agent("child", s) // which has it as its descriptor 4
	check(unix.Close(s.fd), "close")
	s.fd = -1
	s.keptBy(n.rows(p, tcp.Close), "child", 4, tcp.Exact)
	child.kill()
	eventually(patience, "the row goes with the descriptor", func() bool { return len(n.rows(p, tcp.Close)) == 0 })
	c.wants(`reset  ESTABLISHED>CLOSE  aborted_linger`)
	s.wants(`reset  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

// closedAndKept: shutdown() ends the connection, and not the socket.
func closedAndKept(n *netns) {
	p := n.tracked()
	_, c, s := n.established(web)
	n.step("shutdown", func() { s.shutdown(unix.SHUT_RDWR) }, c.in(tcp.CloseWait), s.in(tcp.FinWait2))
	n.step("close", c.close, s.in(tcp.TimeWait), c.in(tcp.Close))
	eventually(patience, "the socket is in CLOSE", func() bool { return len(n.rows(p, tcp.Close)) == 1 })
	s.keptBy(n.rows(p, tcp.Close), self, s.fd, tcp.Exact)
	s.wants(`
shutdown  ESTABLISHED>FIN_WAIT1  local_shutdown  by=use
shutdown  FIN_WAIT1>FIN_WAIT2    fin_acked
close     FIN_WAIT2>TIME_WAIT    fin_received`)
	c.wants(`
shutdown  ESTABLISHED>CLOSE_WAIT fin_received
close     CLOSE_WAIT>LAST_ACK    local_close
close     LAST_ACK>CLOSE         fin_acked`)
}

func olderKept(n *netns) {
	_, c, s := n.established(web)
	victim := n.agent("victim")
	mine := s
	refused := n.client(s.remote) // nobody listens there
	check(refused.connect(refused.remote), "connect")
	refused.failsWith(unix.ECONNREFUSED)
	check(unix.Close(refused.fd), "close")
	refused.fd = -1
	n.step("reset", c.abort, s.in(tcp.Close), c.in(tcp.Close))
	fd := must(strconv.Atoi(victim.do("take", mine)))
	check(unix.Close(mine.fd), "close")
	mine.fd = -1
	mine.keptBy(n.closed(), "victim", fd, tcp.AtLeast)
	mine.keptBy(n.rows(n.tracked(), tcp.Close), "victim", fd, tcp.AtLeast)
	n.trace() // nothing more is wanted
}

// refusedAndKept: connect() takes the port of the peer away when it fails.
func refusedAndKept(n *netns) {
	p := n.tracked()
	n.socket("never connected", "", must(netip.ParseAddr("127.0.0.1")))
	l := n.listener(web)
	check(unix.Shutdown(l.fd, unix.SHUT_RD), "shut down the listener")
	c := n.socket("refused", "", l.local.Addr())
	check(unix.SetNonblock(c.fd, false), "let connect() wait")
	if err := c.connect(l.local); err != unix.ECONNREFUSED {
		fail("connect: %v", err)
	}
	c.keptWithoutPeer(n, n.rows(p, tcp.Close), tcp.Exact)
	c.keptWithoutPeer(n, n.closed(), tcp.AtLeast)
	n.trace() // nothing more is wanted
}

// disconnectedAndKept: of a socket that accept() gave, too.
func disconnectedAndKept(n *netns) {
	_, c, s := n.established(web)
	check(connectUnspec(s.fd), "connect to AF_UNSPEC")
	eventually(patience, "the peer is reset", func() bool { return len(n.closed()) == 2 })
	check(unix.Close(c.fd), "close")
	c.fd = -1
	s.keptWithoutPeer(n, n.closed(), tcp.AtLeast)
	s.keptWithoutPeer(n, n.rows(n.tracked(), tcp.Close), tcp.AtLeast)
	n.trace()
}

// closed lists the sockets in CLOSE without a trace.
func (n *netns) closed() (rows []tcp.Event) {
	check(probe.Sockets(probe.Config{NetNS: n.inode}, func(e *tcp.Event) error {
		if e.New == tcp.Close {
			rows = append(rows, *e)
		}
		return nil
	}), "list the sockets")
	return rows
}

// keptWithoutPeer holds the only row in CLOSE against the socket, whose peer is not known.
func (s *sock) keptWithoutPeer(n *netns, rows []tcp.Event, age tcp.DurationKind) {
	if len(rows) != 1 {
		fail("%d rows in CLOSE, want 1 of %s: %+v", len(rows), s.name, rows)
	}
	e := rows[0]
	known := e.Cookie != 0 || !kernelBefore(5, 12) // see needsCookie
	if known && e.Cookie != cookieOf(s.fd) || e.Remote.Port() != 0 || e.HasQueues || e.Holder != tcp.Held || e.FD != int32(s.fd) ||
		(owner{e.PID, e.Comm}) != n.procs[self] || e.DurationKind != age {
		fail("got %s, holder %q, fd %d; want it held by %+v, fd %d, age %s", describe(&e), e.Holder, e.FD, n.procs[self], s.fd, age)
	}
}

// rowsAreFresh: what a row says of the owner holds at that moment.
func rowsAreFresh(n *netns) {
	p := n.tracked()
	_, c, s := n.established(web)
	s.learnCookie()
	row := func() tcp.Event {
		for _, e := range n.rows(p, tcp.Established) {
			if s.hasEnds(&e) {
				return e
			}
		}
		fail("there is no row of %s", s.name)
		panic("not reached")
	}
	worker := n.agent("worker")
	fd := must(strconv.Atoi(worker.do("take", s)))
	check(unix.Close(s.fd), "close")
	s.fd = -1
	if e := row(); (owner{e.PID, e.Comm}) != n.procs["worker"] || e.FD != int32(fd) || e.Holder != tcp.Held {
		fail("after it was handed on the row says %s, fd %d, holder %q", describe(&e), e.FD, e.Holder)
	}
	worker.do("rename other")
	if e := row(); e.Comm != "other" {
		fail("the owner is called %q, want its new name", e.Comm)
	}
	n.step("close", func() {
		worker.do(fmt.Sprint("close ", fd))
		c.await(tcp.CloseWait) // or the FINs may cross
		c.close()
	}, s.in(tcp.TimeWait), c.in(tcp.Close))
	n.procs["worker"] = owner{n.procs["worker"].pid, "other"}
	s.wants(`
close  ESTABLISHED>FIN_WAIT1   local_close   by=close:worker
close  FIN_WAIT1>FIN_WAIT2     fin_acked
close  FIN_WAIT2>TIME_WAIT     fin_received`)
	c.wants(`
close  ESTABLISHED>CLOSE_WAIT  fin_received
close  CLOSE_WAIT>LAST_ACK     local_close
close  LAST_ACK>CLOSE          fin_acked`)
}

// nobodyAccepts: the connection is the listener's owner's, who has no descriptor of it.
func nobodyAccepts(n *netns) {
	p := n.tracked()
	l := n.listener(web)
	c := n.client(l.local)
	s := n.queued(c, l.local)
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	s.isUnaccepted(n.rows(p, tcp.CloseWait))
	s.accept(l)
	if e := n.rows(p, tcp.CloseWait)[0]; e.Unaccepted || e.Holder != tcp.Held || e.FD != int32(s.fd) {
		fail("once accepted, the row says unaccepted %v, holder %q, fd %d", e.Unaccepted, e.Holder, e.FD)
	}
	c.wants(`
close  ESTABLISHED>FIN_WAIT1   local_close
close  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(`close  ESTABLISHED>CLOSE_WAIT  fin_received`)
	n.await(s, tcp.CloseWait, func(e *tcp.Event) {
		if !e.Unaccepted {
			fail("the transition says that it was accepted: %s", describe(e))
		}
	})
}

func (s *sock) isUnaccepted(rows []tcp.Event) {
	if len(rows) != 1 || !rows[0].Unaccepted || rows[0].FD != tcp.NoFD || rows[0].Holder == tcp.Held ||
		rows[0].OwnerSource != tcp.FromInherited || (owner{rows[0].PID, rows[0].Comm}) != s.n.procs[self] {
		fail("got rows %+v, want one of %s, unaccepted, of the listener's owner", rows, s.name)
	}
}

// await waits for the event that leads s to a state.
func (n *netns) await(s *sock, state tcp.State, look func(*tcp.Event)) {
	eventually(patience, "the event is told", func() bool {
		for _, e := range n.walk.reported(n.inode) {
			if e.New == state && s.hasEnds(&e) {
				look(&e)
				return true
			}
		}
		return false
	})
}

// nobodyAcceptsOlder: the accept queue says whose they are.
func nobodyAcceptsOlder(n *netns) {
	l := n.listener(web)
	var waiting []*sock
	for range 3 {
		c := n.client(l.local)
		check(c.connect(l.local), "connect")
		c.await(tcp.Established)
		s := n.served(c)
		s.await(tcp.Established)
		waiting = append(waiting, s)
	}
	first := n.socks[1]
	first.close()
	waiting[0].await(tcp.CloseWait)
	time.Sleep(20 * time.Millisecond)
	n.trace()
	for i, s := range waiting {
		state := tcp.Established
		if i == 0 {
			state = tcp.CloseWait
		}
		if row := s.isSeeded(state, tcp.Server, tcp.FromInherited); !row.Unaccepted {
			fail("the row of a connection that nobody accepted does not say so: %s", describe(&row))
		}
	}
}

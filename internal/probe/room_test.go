package probe_test

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// A TIME_WAIT that finds no room is still entered; what is not shown is its end, and it
// counts as one socket.
func TestNoRoomForTimeWait(t *testing.T) {
	need.Kernel(t)
	const room, connections = 8, 40
	judge(t, func() {
		l := listenOnLoopback()
		defer unix.Close(l)
		port := addrPort(must(unix.Getsockname(l))).Port()
		p := must(probe.Open(probe.Config{MaxSockets: room, OwnerRefresh: -1, RemotePorts: []uint16{port}}))
		defer p.Close()
		for range connections {
			client := connectTo(l)
			server, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			check(err, "accept")
			halfCloseAndWait(client)
			check(unix.Close(server), "close the server")
			eventually(patience, "the client is in TIME_WAIT", func() bool { return stateOf(client) == tcp.Close })
			check(unix.Close(client), "close the client")
		}
		entered, untracked := 0, uint64(0)
		readUntil(p, "TIME_WAIT of all connections", func(e *tcp.Event) bool {
			if e.Kind == tcp.Lost && e.Where == tcp.WhereMap {
				untracked += e.Lost
			}
			if e.Kind == tcp.Transition && e.New == tcp.TimeWait {
				entered++
			}
			if e.Reason == tcp.TimewaitOverflow {
				t.Errorf("%v>%v %s: the table that is full is ours", e.Old, e.New, e.Reason)
			}
			return entered == connections && untracked >= connections-room
		})
		if untracked != connections-room {
			fail("%d sockets are said to have found no room, want %d", untracked, connections-room)
		}
	})
}

// A connection that found no room, and whose mini-socket finds none either, is one socket.
func TestNoRoomCountsOnce(t *testing.T) {
	need.Kernel(t)
	const room, connections = 8, 40
	judge(t, func() {
		l := listenOnLoopback()
		defer unix.Close(l)
		port := addrPort(must(unix.Getsockname(l))).Port()
		p := must(probe.Open(probe.Config{MaxSockets: room, OwnerRefresh: -1, RemotePorts: []uint16{port}}))
		defer p.Close()
		var clients []int
		for range connections {
			clients = append(clients, connectTo(l))
			server, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			check(err, "accept")
			defer unix.Close(server)
		}
		for _, fd := range clients { // those that have room first: their mini-sockets have it, too
			halfCloseAndWait(fd)
			check(unix.Close(fd), "close the client")
		}
		done, untracked := 0, uint64(0)
		readUntil(p, "FIN_WAIT2 of all connections", func(e *tcp.Event) bool {
			if e.Kind == tcp.Lost && e.Where == tcp.WhereMap {
				untracked += e.Lost
			}
			if e.Kind == tcp.Transition && e.New == tcp.FinWait2 {
				done++
			}
			return done == connections && untracked >= connections-room
		})
		if untracked != connections-room {
			fail("%d sockets are said to have found no room, want %d", untracked, connections-room)
		}
	})
}

// Sockets outside the filter take no places at the start, connected or not.
func TestSeedTakesNoPlacesForOthers(t *testing.T) {
	need.Kernel(t)
	const room, others = 8, 40
	report(t, onOwnThread(func() {
		outside := listenOnLoopback()
		defer unix.Close(outside)
		gone := listenOnLoopback()
		nobody := must(unix.Getsockname(gone))
		check(unix.Close(gone), "close a listener")
		for range others {
			defer unix.Close(connectTo(outside))
			server, _, err := unix.Accept4(outside, unix.SOCK_CLOEXEC)
			check(err, "accept")
			defer unix.Close(server)
			refused := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
			defer unix.Close(refused)
			if err := unix.Connect(refused, nobody); err != unix.ECONNREFUSED {
				fail("connect to nobody: %v", err)
			}
		}
		l := listenOnLoopback() // its descriptor is looked at after the others
		defer unix.Close(l)
		port := addrPort(must(unix.Getsockname(l))).Port()
		p := must(probe.Open(probe.Config{MaxSockets: room, OwnerRefresh: -1, LocalPorts: []uint16{port}}))
		defer p.Close()
		rows := 0
		check(p.Seed(func(e *tcp.Event) error {
			rows++
			if e.Local.Port() != port || e.FD != int32(l) || e.Holder != tcp.Held {
				t.Errorf("got %s, fd %d, holder %q; want the listener, fd %d", describe(e), e.FD, e.Holder, l)
			}
			return nil
		}), "seed")
		if rows != 1 {
			t.Errorf("%d rows, want that of the listener", rows)
		}
	}))
}

// halfCloseAndWait sends the FIN of fd and waits for its ACK. Where close() sends it, the mini-socket
// is made by whoever handles the ACK, at once or much later, and those of others come before it.
func halfCloseAndWait(fd int) {
	check(unix.Shutdown(fd, unix.SHUT_WR), "shut down")
	eventually(patience, "the FIN is acknowledged", func() bool { return stateOf(fd) == tcp.FinWait2 })
}

// stateOf asks the kernel. A full socket is in CLOSE once its mini-socket is in TIME_WAIT.
func stateOf(fd int) tcp.State {
	return tcp.State(must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)).State)
}

// Sockets outside the filter leave the room to others. Up to 6.12 a connection's other end is not
// known yet when its server's socket is made.
func TestOthersTakeNoRoom(t *testing.T) {
	need.Kernel(t)
	const room, connections = 8, 4 // inside; twice the room outside
	report(t, onOwnThread(func() {
		var listeners []int
		for _, at := range []string{"127.0.0.1:0", "127.0.0.1:0", "[::1]:0"} {
			l, _, err := listenAt(at)
			check(err, "listen at "+at)
			defer unix.Close(l)
			listeners = append(listeners, l)
		}
		outside, inside, six := listeners[0], listeners[1], listeners[2]
		for _, c := range []struct {
			filter probe.Config
			inside int
		}{
			{probe.Config{RemotePorts: []uint16{addrPort(must(unix.Getsockname(inside))).Port()}}, inside},
			{probe.Config{Family: unix.AF_INET6}, six},
		} {
			c.filter.MaxSockets, c.filter.OwnerRefresh = room, -1
			p := must(probe.Open(c.filter))
			defer p.Close()
			for range 2 * room {
				defer unix.Close(connectTo(outside))
			}
			for range connections {
				defer unix.Close(connectTo(c.inside))
			}
			p.Stop()
			var e tcp.Event
			err := p.Read(&e)
			for err == nil {
				err = p.Read(&e)
			}
			if losses := p.Losses(); err != io.EOF || losses.Untracked != 0 {
				t.Errorf("with the filter %+v %d sockets found no room, want none; %v", c.filter, losses.Untracked, err)
			}
		}
	}))
}

// A request that finds no room is known by the kernel's own stamp once it is completed: the time
// that it lasted is not that of its last moment.
func TestNoRoomForRequest(t *testing.T) {
	need.Kernel(t)
	const room, connections, wait = 4, 8, 300 * time.Millisecond
	judge(t, func() {
		l := listenOnLoopback()
		defer unix.Close(l)
		// Its handshakes end with the first data, so connections stay half open.
		check(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 100), "set TCP_DEFER_ACCEPT")
		port := addrPort(must(unix.Getsockname(l))).Port()
		p := must(probe.Open(probe.Config{MaxSockets: room, OwnerRefresh: -1, LocalPorts: []uint16{port}}))
		defer p.Close()
		var clients []int
		for range connections {
			clients = append(clients, connectTo(l))
			defer unix.Close(clients[len(clients)-1])
		}
		time.Sleep(wait)
		for _, fd := range clients {
			_, err := unix.Write(fd, []byte("data"))
			check(err, "write")
			server, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			check(err, "accept")
			check(unix.Close(server), "close what was not read, with an RST")
		}
		done, untracked := 0, uint64(0)
		readUntil(p, "the handshakes' ends", func(e *tcp.Event) bool {
			if e.Kind == tcp.Lost && e.Where == tcp.WhereMap {
				untracked += e.Lost
			}
			if e.Kind == tcp.Transition && e.Old == tcp.SynRecv {
				done++
				if e.DurationKind != tcp.Exact || e.Duration < uint64(wait) || e.Duration > uint64(10*time.Second) {
					t.Errorf("SYN_RECV lasted %v, %s; it did so for %v at least", time.Duration(e.Duration), e.DurationKind, wait)
				}
			}
			return done == connections && untracked >= connections-room
		})
		if untracked != connections-room {
			fail("%d sockets are said to have found no room, want %d", untracked, connections-room)
		}
	})
}

// The kernel's own clocks tell how long a connection has been opening or closing, and a
// listener what it dropped. Half-open connections are found after their timer has run, too.
func TestKernelClocks(t *testing.T) {
	need.Kernel(t)
	w, err := openWalk(probe.Config{OwnerRefresh: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []scenario{
		{name: "SYN_SENT", run: func(n *netns) {
			c := silent(n, n.peer())
			c.bound = true // a row has the port that connect() chose
			time.Sleep(500 * time.Millisecond)
			n.isOld(c, tcp.SynSent, 0.9)
		}},
		{name: "LAST_ACK", run: func(n *netns) {
			p := n.peer()
			c := answered(n, p)
			n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.CloseWait))
			n.step("close", c.close, c.in(tcp.LastAck))
			time.Sleep(2 * time.Second)
			n.isOld(c, tcp.LastAck, 0.4)
		}},
		{name: "FIN_WAIT1", run: func(n *netns) {
			c := closing(n, n.peer())
			time.Sleep(2 * time.Second)
			n.isOld(c, tcp.FinWait1, 0.4)
		}},
		{name: "FIN_WAIT2", run: func(n *netns) {
			c := halfClosed(n, n.peer())
			time.Sleep(500 * time.Millisecond)
			n.isOld(c, tcp.FinWait2, 0.9)
		}},
		{name: "CLOSING", run: func(n *netns) {
			p := n.peer()
			c := closing(n, p)
			p.ack--
			n.step("cross", func() { p.send(flagFIN | flagACK) }, c.in(tcp.Closing))
			time.Sleep(500 * time.Millisecond)
			n.isOld(c, tcp.Closing, 0.9)
		}},
		{name: "full accept queue", run: acceptQueueFull},
	} {
		t.Run(s.name, func(t *testing.T) {
			err := onOwnThread(func() {
				n := w.newNetns(false)
				defer n.leave()
				s.run(n)
			})
			report(t, err)
		})
	}
	if _, err := w.close(); err != nil {
		t.Error(err)
	}
}

// isOld holds the age of s, older than the trace that it is looked at with, against the last
// step: it is a lower bound, and at least that part of the truth.
func (n *netns) isOld(s *sock, state tcp.State, part float64) {
	row := n.rowOf(s)
	began := span{^uint64(0), 0}
	for _, step := range n.steps {
		if step.to > began.to {
			began = step
		}
	}
	most, least := row.BootNS-began.from, float64(row.BootNS-began.to)*part
	if row.New != state || row.DurationKind != tcp.AtLeast || row.Duration > most+2*tick || float64(row.Duration) < least-float64(2*tick) {
		fail("%s is in %v for %v, %s; want %v, at least %v, at most %v", s.name, row.New, time.Duration(row.Duration), row.DurationKind,
			state, time.Duration(least), time.Duration(most))
	}
}

// rowOf is the row of s in the one-shot table.
func (n *netns) rowOf(s *sock) (row tcp.Event) {
	found := 0
	check(probe.Sockets(probe.Config{NetNS: n.inode}, func(e *tcp.Event) error {
		if s.hasEnds(e) {
			row = *e
			found++
		}
		return nil
	}), "list the sockets")
	if found != 1 {
		fail("%s is in %d rows, want 1", s.name, found)
	}
	return row
}

// acceptQueueFull: the peer has completed the handshake, and waits for us; the listener has
// dropped what it sent.
func acceptQueueFull(n *netns) {
	p := n.peer()
	l := n.listener(hostWeb)
	s := halfOpen(n, l, p)
	check(unix.Listen(l.fd, 0), "make the accept queue shorter")
	c := n.client(l.local)
	n.queued(c, l.local)
	if row := n.rowOf(s); row.New != tcp.SynRecv || row.Acked {
		fail("a half-open connection is shown in %v, acked %v", row.New, row.Acked)
	}
	p.send(flagACK)
	n.rest()
	if row := n.rowOf(s); row.New != tcp.SynRecv || !row.Acked || row.RxQueue != 1 || row.TxQueue != 0 {
		fail("a handshake without room is shown in %v, acked %v, accept queue %d of %d", row.New, row.Acked, row.RxQueue, row.TxQueue)
	}
	if row := n.rowOf(l); !row.HasDrops || row.Drops == 0 {
		fail("the listener has dropped %d, known %v; want 1 or more", row.Drops, row.HasDrops)
	}
	tracked := must(probe.Open(probe.Config{NetNS: n.inode, OwnerRefresh: -1, Tracked: true}))
	defer func() { check(tracked.Close(), "close the probe") }()
	check(tracked.Seed(func(*tcp.Event) error { return nil }), "seed the probe")
	time.Sleep(1500 * time.Millisecond) // the SYN-ACK timer runs
	found := 0
	check(tracked.TrackedSockets([]tcp.State{tcp.SynRecv}, func(e *tcp.Event) error {
		if e.New == tcp.SynRecv && e.Acked && e.Duration > uint64(time.Second) {
			found++
		}
		return nil
	}), "list the known sockets")
	if found != 1 {
		fail("%d half-open connections are known, want 1", found)
	}
}

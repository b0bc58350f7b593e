package probe_test

import (
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

const (
	web     = "127.0.0.1:80"
	hostWeb = "10.9.0.1:80" // where a peer can reach it
)

// Ways into a connection, and ways that lead to none.
var openScenarios = []scenario{
	{name: "listen and close", run: listenAndClose},
	{name: "listen and shutdown", run: listenAndShutdown},
	{name: "listen fails", run: listenFails},
	{name: "listen and connect to AF_UNSPEC", run: listenAndDisconnect},
	{name: "refused", run: refused},
	{name: "shut down before it connects, then refused", run: shutDownAndRefused},
	{name: "unreachable", run: unreachable},
	{name: "port unreachable", run: portUnreachable},
	{name: "SYN times out without a route", slow: true, run: synWithoutRoute},
	{name: "neighbor does not answer", slow: true, run: neighborSilent},
	{name: "connect given up by shutdown", run: connectShutDown},
	{name: "connect given up by AF_UNSPEC", run: connectDisconnected},
	{name: "no free port", run: noFreePort},
	{name: "connect given up", run: connectGivenUp},
	{name: "SYN times out", slow: true, run: synTimesOut},
	{name: "SYN times out by TCP_USER_TIMEOUT", slow: true, run: synUserTimeout},
	{name: "simultaneous open", run: simultaneousOpen},
	{name: "half-open completes late", run: halfOpenCompletes},
	{name: "half-open times out", slow: true, run: halfOpenTimesOut},
	{name: "half-open reset", run: halfOpenReset},
	{name: "half-open reset by us for a SYN", run: halfOpenGetsSyn},
	{name: "half-open unreachable", run: halfOpenUnreachable},
	{name: "half-open with a full accept queue", run: queueFull},
	{name: "half-open reset by the peer with a full accept queue", run: queueFullReset},
	{name: "half-open when the listener closes", slow: true, run: halfOpenListenerCloses},
	{name: "SYN cookies", run: synCookies},
	{name: "Fast Open", run: fastOpen},
	{name: "IPv6", run: overIPv6},
	{name: "v4-mapped server", run: mappedServer},
	{name: "v4-mapped client", run: mappedClient},
	{name: "MPTCP", run: overMPTCP},
	{name: "MPTCP, a second subflow", run: joinedMPTCP},
}

func listenAndClose(n *netns) {
	l := n.listener(web)
	n.rest()
	n.step("close", l.close)
	l.wants(`close  LISTEN>CLOSE  local_close`)
}

func listenAndShutdown(n *netns) {
	l := n.listener(web)
	n.rest()
	n.step("shutdown", func() { l.shutdown(unix.SHUT_RD) })
	l.wants(`shutdown  LISTEN>CLOSE  local_shutdown`)
}

func refused(n *netns) {
	nobody := netip.MustParseAddrPort(web)
	c := n.client(nobody)
	n.step("connect", func() { check(c.connect(nobody), "connect") }, c.in(tcp.Close))
	c.failsWith(unix.ECONNREFUSED)
	c.wants(`
connect  CLOSE>SYN_SENT  connect
connect  SYN_SENT>CLOSE  rst_received  errno=ECONNREFUSED`)
}

// shutdown() of a socket that is not connected fails, and shuts it down nevertheless. That stays
// so while it connects, and is no sign of a close().
func shutDownAndRefused(n *netns) {
	nobody := netip.MustParseAddrPort(web)
	c := n.client(nobody)
	if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != unix.ENOTCONN {
		fail("shutdown: %v", err)
	}
	n.step("connect", func() { check(c.connect(nobody), "connect") }, c.in(tcp.Close))
	c.failsWith(unix.ECONNREFUSED)
	c.wants(`
connect  CLOSE>SYN_SENT  connect
connect  SYN_SENT>CLOSE  rst_received  errno=ECONNREFUSED`)
}

// Two sockets may be bound to one port, with SO_REUSEADDR, while none listens.
func listenFails(n *netns) {
	second := n.socket("second", tcp.Listener, netip.IPv4Unspecified())
	second.bind("0.0.0.0:80")
	l := n.listener(web)
	n.rest()
	n.step("fail", func() {
		if err := unix.Listen(second.fd, 8); err != unix.EADDRINUSE {
			fail("listen on a port that is taken: %v", err)
		}
	})
	n.step("close", l.close)
	second.wants(`
fail   CLOSE>LISTEN  listen
fail   LISTEN>CLOSE  listen_failed`)
	l.wants(`close  LISTEN>CLOSE  local_close`)
}

func listenAndDisconnect(n *netns) {
	l := n.listener(web)
	n.rest()
	n.step("disconnect", func() { check(connectUnspec(l.fd), "connect to AF_UNSPEC") })
	l.wants(`disconnect  LISTEN>CLOSE  disconnected`)
}

// silent starts to connect to a peer that does not answer yet.
func silent(n *netns, p *peer) *sock {
	c := n.client(p.addr)
	n.step("connect", func() { check(c.connect(p.addr), "connect") }, c.in(tcp.SynSent))
	p.receive(flagSYN)
	c.wants(`connect  CLOSE>SYN_SENT  connect`)
	n.rest()
	return c
}

func unreachable(n *netns) {
	p := n.peer()
	c := silent(n, p)
	const hostUnreachable = 1
	n.step("icmp", func() { p.unreachable(hostUnreachable) }, c.in(tcp.Close))
	c.failsWith(unix.EHOSTUNREACH)
	c.wants(`icmp  SYN_SENT>CLOSE  icmp_received  errno=EHOSTUNREACH`)
}

// An ICMP port unreachable gives the same error as an RST.
func portUnreachable(n *netns) {
	p := n.peer()
	c := silent(n, p)
	const portUnreachable = 3
	n.step("icmp", func() { p.unreachable(portUnreachable) }, c.in(tcp.Close))
	c.failsWith(unix.ECONNREFUSED)
	c.wants(`icmp  SYN_SENT>CLOSE  icmp_received  errno=ECONNREFUSED`)
}

// The route to the peer is gone when the SYN is sent again: no message came.
func synWithoutRoute(n *netns) {
	n.sysctl("ipv4/tcp_syn_retries", "1")
	p := n.peer()
	c := silent(n, p)
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_DELROUTE, 0,
		hostRoute(), attr(unix.RTA_DST, peerAddr.AsSlice()), attr(unix.RTA_OIF, native32(uint32(must(ifIndex("lo"))))))
	n.watch("timeout", c, tcp.Close)
	if err := must(unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)); unix.Errno(err) != unix.ENETUNREACH && unix.Errno(err) != unix.EHOSTUNREACH {
		fail("SO_ERROR is %v, want that of a missing route", unix.Errno(err))
	} else {
		c.wants(`timeout  SYN_SENT>CLOSE  syn_timeout  errno=` + unix.ErrnoName(unix.Errno(err)))
	}
}

// Nobody on the link has the address: ARP fails, and the kernel tells itself so by ICMP.
func neighborSilent(n *netns) {
	n.veth()
	nobody := netip.MustParseAddrPort("10.9.1.7:80")
	c := n.client(nobody)
	n.step("connect", func() { check(c.connect(nobody), "connect") }, c.in(tcp.SynSent))
	n.watch("failed", c, tcp.Close)
	c.failsWith(unix.EHOSTUNREACH)
	c.wants(`
connect  CLOSE>SYN_SENT  connect
failed   SYN_SENT>CLOSE  neighbor_unreachable  errno=EHOSTUNREACH`)
}

func connectShutDown(n *netns) {
	c := silent(n, n.peer())
	n.step("shutdown", func() { c.shutdown(unix.SHUT_RDWR) }, c.in(tcp.Close))
	c.wants(`shutdown  SYN_SENT>CLOSE  local_shutdown`)
}

func connectDisconnected(n *netns) {
	c := silent(n, n.peer())
	n.step("disconnect", func() { check(connectUnspec(c.fd), "connect to AF_UNSPEC") })
	c.wants(`disconnect  SYN_SENT>CLOSE  disconnected`)
}

func noFreePort(n *netns) {
	n.sysctl("ipv4/ip_local_port_range", "40000 40000")
	l, _, _ := n.established(web)
	c := n.client(l.local)
	n.step("no-port", func() {
		if err := c.connect(l.local); err != unix.EADDRNOTAVAIL {
			fail("connect without a free port: %v", err)
		}
	})
	c.local = netip.AddrPortFrom(l.local.Addr(), 0)
	c.wants(`
no-port  CLOSE>SYN_SENT  connect
no-port  SYN_SENT>CLOSE  connect_failed`)
}

func connectGivenUp(n *netns) {
	c := silent(n, n.peer())
	n.step("close", c.close)
	c.wants(`close  SYN_SENT>CLOSE  local_close`)
}

func synTimesOut(n *netns) {
	n.sysctl("ipv4/tcp_syn_retries", "1")
	c := silent(n, n.peer())
	n.watch("timeout", c, tcp.Close)
	c.failsWith(unix.ETIMEDOUT)
	c.wants(`timeout  SYN_SENT>CLOSE  syn_timeout  errno=ETIMEDOUT`)
}

func synUserTimeout(n *netns) {
	p := n.peer()
	c := n.client(p.addr)
	c.set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500)
	n.step("connect", func() { check(c.connect(p.addr), "connect") }, c.in(tcp.SynSent))
	n.watch("timeout", c, tcp.Close)
	c.failsWith(unix.ETIMEDOUT)
	c.wants(`
connect  CLOSE>SYN_SENT  connect
timeout  SYN_SENT>CLOSE  syn_timeout  errno=ETIMEDOUT`)
}

func simultaneousOpen(n *netns) {
	p := n.peer()
	c := silent(n, p)
	n.step("cross", func() { p.send(flagSYN) }, c.in(tcp.SynRecv))
	n.rest()
	n.step("answer", func() { p.send(flagACK) }, c.in(tcp.Established))
	c.wants(`
cross    SYN_SENT>SYN_RECV     syn_received
answer   SYN_RECV>ESTABLISHED  handshake_done`)
}

// halfOpen sends the first SYN of a connection from a peer: step "syn".
func halfOpen(n *netns, l *sock, p *peer) *sock {
	p.addr, p.to = netip.AddrPortFrom(peerAddr, 5000), l.local
	s := n.declare("server", tcp.Server, l.local, p.addr)
	n.step("syn", func() { p.send(flagSYN) }, s.in(tcp.SynRecv))
	p.receive(flagSYN | flagACK)
	s.wants(`syn  LISTEN>SYN_RECV  syn_received`)
	return s
}

func halfOpenCompletes(n *netns) {
	p := n.peer()
	l := n.listener(hostWeb)
	s := halfOpen(n, l, p)
	time.Sleep(100 * time.Millisecond)
	n.step("ack", func() { p.send(flagACK) }, s.in(tcp.Established))
	s.wants(`ack  SYN_RECV>ESTABLISHED  handshake_done`)
}

func halfOpenTimesOut(n *netns) {
	n.sysctl("ipv4/tcp_synack_retries", "1")
	p := n.peer()
	s := halfOpen(n, n.listener(hostWeb), p)
	n.watch("timeout", s, tcp.Close)
	s.wants(`timeout  SYN_RECV>CLOSE  syn_timeout`)
}

func halfOpenReset(n *netns) {
	p := n.peer()
	s := halfOpen(n, n.listener(hostWeb), p)
	n.rest()
	n.step("reset", func() { p.send(flagRST) }, s.in(tcp.Close))
	s.wants(`reset  SYN_RECV>CLOSE  rst_received`)
}

// A second SYN within the window of the first: we answer it by an RST.
func halfOpenGetsSyn(n *netns) {
	p := n.peer()
	s := halfOpen(n, n.listener(hostWeb), p)
	n.rest()
	n.step("syn-again", func() { p.send(flagSYN | flagACK) }, s.in(tcp.Close))
	s.wants(`syn-again  SYN_RECV>CLOSE  rst_sent`)
}

func halfOpenUnreachable(n *netns) {
	p := n.peer()
	s := halfOpen(n, n.listener(hostWeb), p)
	n.rest()
	const hostUnreachable = 1
	n.step("icmp", func() { p.unreachable(hostUnreachable) }, s.in(tcp.Close))
	s.wants(`icmp  SYN_RECV>CLOSE  icmp_received`)
}

// full has a full accept queue, and answers what does not fit into it by an RST.
func full(n *netns) (*peer, *sock) {
	n.sysctl("ipv4/tcp_abort_on_overflow", "1")
	p := n.peer()
	l := n.listener(hostWeb)
	s := halfOpen(n, l, p)
	check(unix.Listen(l.fd, 0), "make the accept queue shorter")
	c := n.client(l.local)
	n.queued(c, l.local)
	return p, s
}

func queueFull(n *netns) {
	p, s := full(n)
	n.step("ack", func() { p.send(flagACK) }, s.in(tcp.Close))
	s.wants(`ack  SYN_RECV>CLOSE  backlog_full`)
}

func queueFullReset(n *netns) {
	p, s := full(n)
	n.step("reset", func() { p.send(flagRST) }, s.in(tcp.Close))
	s.wants(`reset  SYN_RECV>CLOSE  rst_received`)
}

// The request outlives its listener until its timer looks for it.
func halfOpenListenerCloses(n *netns) {
	p := n.peer()
	l := n.listener(hostWeb)
	s := halfOpen(n, l, p)
	n.rest()
	n.step("close", l.close)
	n.watch("gone", s, tcp.Close)
	l.wants(`close  LISTEN>CLOSE    local_close`)
	s.wants(`gone   SYN_RECV>CLOSE  listener_closed`)
}

// With cookies the kernel keeps nothing until the ACK brings it back.
func synCookies(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	p := n.peer()
	l := n.listener(hostWeb)
	p.addr, p.to = netip.AddrPortFrom(peerAddr, 5000), l.local
	s := n.declare("server", tcp.Server, l.local, p.addr)
	p.send(flagSYN)
	p.receive(flagSYN | flagACK)
	n.rest()
	n.step("ack", func() { p.send(flagACK) }, s.in(tcp.Established))
	s.wants(`
ack  LISTEN>SYN_RECV       syn_received
ack  SYN_RECV>ESTABLISHED  handshake_done`)
}

func fastOpen(n *netns) {
	const clientAndServer, noCookies = 0x003, 0x604
	n.sysctl("ipv4/tcp_fastopen", strconv.Itoa(clientAndServer|noCookies))
	l := n.listener(web)
	c := n.client(l.local)
	n.step("send", func() {
		err := unix.Sendto(c.fd, []byte("hello"), unix.MSG_FASTOPEN, sockaddr(l.local))
		if err != nil && err != unix.EINPROGRESS {
			check(err, "sendto with MSG_FASTOPEN")
		}
	}, c.in(tcp.Established))
	c.local = unmap(addrPort(must(unix.Getsockname(c.fd))))
	s := n.served(c)
	s.accept(l)
	n.rest()
	n.step("read", func() { s.read("hello") })
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	c.wants(`
send   CLOSE>SYN_SENT          connect
send   SYN_SENT>ESTABLISHED    handshake_done
close  ESTABLISHED>FIN_WAIT1   local_close
close  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(`
send   LISTEN>SYN_RECV         syn_received
send   SYN_RECV>ESTABLISHED    handshake_done
close  ESTABLISHED>CLOSE_WAIT  fin_received  by=use`)
}

// both closes c and then s: the way most connections go.
func both(n *netns, c, s *sock) {
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received
answer  CLOSE_WAIT>LAST_ACK     local_close   by=close
answer  LAST_ACK>CLOSE          fin_acked`)
}

func overIPv6(n *netns) {
	_, c, s := n.established("[::1]:80")
	both(n, c, s)
}

// Both ends are IPv4 on the wire, and shown as such.
func mappedServer(n *netns) {
	l := n.listener("[::]:80")
	c := n.client(netip.MustParseAddrPort(web))
	s := n.connect(l, c, c.remote)
	both(n, c, s)
}

func mappedClient(n *netns) {
	l := n.listener(web)
	mapped := netip.MustParseAddrPort("[::ffff:127.0.0.1]:80")
	c := n.client(mapped)
	s := n.connect(l, c, mapped)
	both(n, c, s)
}

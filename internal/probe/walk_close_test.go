package probe_test

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Ways out of a connection.
var closeScenarios = []scenario{
	{name: "client closes first", run: clientClosesFirst},
	{name: "server closes first", run: serverClosesFirst},
	{name: "half-close by shutdown", run: halfClose},
	{name: "both shut down", run: bothShutDown},
	{name: "simultaneous close", run: simultaneousClose},
	{name: "self-connect", run: selfConnect},
	{name: "FIN and ACK in one segment", run: finWithAck},
	{name: "orphaned FIN_WAIT2 ends by FIN", run: orphanEndsByFin},
	{name: "orphaned FIN_WAIT2 ends by tcp_fin_timeout", slow: true, run: orphanTimesOut},
	{name: "orphaned FIN_WAIT2 reset for late data", run: orphanGetsData},
	{name: "FIN_WAIT1 reset for late data", run: finWait1GetsData},
	{name: "linger 0", run: lingerZero},
	{name: "closed with unread data", run: closeUnread},
	{name: "connect to AF_UNSPEC", run: disconnect},
	{name: "peer resets", run: peerResets},
	{name: "peer resets in CLOSE_WAIT", run: peerResetsCloseWait},
	{name: "user timeout", slow: true, run: userTimeout},
	{name: "user timeout after an ICMP error", slow: true, run: softTimeout},
	{name: "half-closed, then linger 0", run: lingerAfterShutdown},
	{name: "half-closed, then closed with unread data", run: unreadAfterShutdown},
	{name: "two lives, the first one's error never read", run: unreadError},
	{name: "an old error, then closed with unread data", run: oldErrorUnread},
	{name: "an old error, then closed in order", run: oldErrorGraceful},
	{name: "an old error, then TCP_LINGER2 of -1", run: oldErrorNoLinger},
	{name: "an old error, then half-closed and closed with unread data", run: oldErrorUnreadHalfClosed},
	{name: "an old error, then no room for TIME_WAIT", run: oldErrorNoTimeWait},
	{name: "half-open destroyed", run: halfOpenDestroyed},
	{name: "listener destroyed", run: listenerDestroyed},
	{name: "SOCK_DESTROY", run: sockDestroy},
	{name: "listener closes before accept", run: unaccepted},
}

func clientClosesFirst(n *netns) {
	_, c, s := n.established(web)
	both(n, c, s)
}

func serverClosesFirst(n *netns) {
	_, c, s := n.established(web)
	n.step("close", s.close, c.in(tcp.CloseWait), s.in(tcp.FinWait2))
	n.rest()
	n.step("answer", c.close, s.in(tcp.TimeWait), c.in(tcp.Close))
	s.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close  by=close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	c.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
}

// The server still sends, and closes last.
func halfClose(n *netns) {
	_, c, s := n.established(web)
	n.step("shutdown", func() { c.shutdown(unix.SHUT_WR) }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("reply", func() { s.write("reply"); c.read("reply") })
	n.step("close", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	n.step("end", c.close)
	c.wants(`
shutdown  ESTABLISHED>FIN_WAIT1   local_shutdown
shutdown  FIN_WAIT1>FIN_WAIT2     fin_acked
close     FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
shutdown  ESTABLISHED>CLOSE_WAIT  fin_received
close     CLOSE_WAIT>LAST_ACK     local_close   by=close
close     LAST_ACK>CLOSE          fin_acked`)
}

func bothShutDown(n *netns) {
	_, c, s := n.established(web)
	n.step("client", func() { c.shutdown(unix.SHUT_RDWR) }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("server", func() { s.shutdown(unix.SHUT_WR) }, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
client  ESTABLISHED>FIN_WAIT1   local_shutdown
client  FIN_WAIT1>FIN_WAIT2     fin_acked
server  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
client  ESTABLISHED>CLOSE_WAIT  fin_received
server  CLOSE_WAIT>LAST_ACK     local_shutdown  by=use
server  LAST_ACK>CLOSE          fin_acked`)
}

// answered is a connection to a peer that has completed the handshake.
func answered(n *netns, p *peer) *sock {
	c := silent(n, p)
	n.step("answer", func() { p.send(flagSYN | flagACK) }, c.in(tcp.Established))
	p.receive(flagACK)
	c.wants(`answer  SYN_SENT>ESTABLISHED  handshake_done`)
	n.rest()
	return c
}

// closing has closed its end; the FIN is not acknowledged.
func closing(n *netns, p *peer) *sock {
	c := answered(n, p)
	n.step("close", c.close, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	c.wants(`close  ESTABLISHED>FIN_WAIT1  local_close`)
	n.rest()
	return c
}

// simultaneousClose has the FINs cross on the way.
func simultaneousClose(n *netns) {
	p := n.peer()
	c := closing(n, p)
	p.ack-- // as if our FIN had not arrived yet
	n.step("cross", func() { p.send(flagFIN | flagACK) }, c.in(tcp.Closing))
	n.rest()
	p.ack++
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.TimeWait))
	c.wants(`
cross  FIN_WAIT1>CLOSING  fin_received
ack    CLOSING>TIME_WAIT  fin_acked`)
}

// A socket that connects to itself opens and closes simultaneously.
func selfConnect(n *netns) {
	me := netip.MustParseAddrPort("127.0.0.1:4000")
	c := n.client(me)
	c.bind("127.0.0.1:4000")
	n.step("connect", func() { check(c.connect(me), "connect") }, c.in(tcp.Established))
	n.rest()
	n.step("close", c.close, c.in(tcp.TimeWait))
	c.wants(`
connect  CLOSE>SYN_SENT         connect
connect  SYN_SENT>SYN_RECV      syn_received
connect  SYN_RECV>ESTABLISHED   handshake_done
close    ESTABLISHED>FIN_WAIT1  local_close
close    FIN_WAIT1>CLOSING      fin_received
close    CLOSING>TIME_WAIT      fin_acked`)
}

func finWithAck(n *netns) {
	p := n.peer()
	c := closing(n, p)
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.TimeWait))
	c.wants(`
fin  FIN_WAIT1>FIN_WAIT2  fin_acked
fin  FIN_WAIT2>TIME_WAIT  fin_received`)
}

// orphan has closed its end; only the kernel remembers it, in a mini-socket.
func orphan(n *netns, p *peer) *sock {
	c := closing(n, p)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.FinWait2))
	c.wants(`ack  FIN_WAIT1>FIN_WAIT2  fin_acked`)
	n.rest()
	return c
}

func orphanEndsByFin(n *netns) {
	p := n.peer()
	c := orphan(n, p)
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.TimeWait))
	c.wants(`fin  FIN_WAIT2>TIME_WAIT  fin_received`)
}

func orphanTimesOut(n *netns) {
	n.sysctl("ipv4/tcp_fin_timeout", "2")
	c := orphan(n, n.peer())
	n.watch("timeout", c, tcp.Close)
	c.wants(`timeout  FIN_WAIT2>CLOSE  timeout`)
}

func orphanGetsData(n *netns) {
	p := n.peer()
	c := orphan(n, p)
	n.step("data", func() { p.send(flagPSH|flagACK, 'l', 'a', 't', 'e') }, c.in(tcp.Close))
	c.wants(`data  FIN_WAIT2>CLOSE  rst_sent`)
}

func finWait1GetsData(n *netns) {
	p := n.peer()
	c := closing(n, p)
	p.ack--
	n.step("data", func() { p.send(flagPSH|flagACK, 'l', 'a', 't', 'e') }, c.in(tcp.Close))
	c.wants(`data  FIN_WAIT1>CLOSE  rst_sent  errno=ECONNRESET`)
}

func lingerZero(n *netns) {
	_, c, s := n.established(web)
	n.step("abort", c.abort, s.in(tcp.Close), c.in(tcp.Close))
	s.failsWith(unix.ECONNRESET)
	c.wants(`abort  ESTABLISHED>CLOSE  aborted_linger`)
	s.wants(`abort  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func closeUnread(n *netns) {
	_, c, s := n.established(web)
	s.write("unread")
	c.unread()
	n.step("close", c.close, s.in(tcp.Close), c.in(tcp.Close))
	s.failsWith(unix.ECONNRESET)
	c.wants(`close  ESTABLISHED>CLOSE  aborted`)
	s.wants(`close  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func disconnect(n *netns) {
	_, c, s := n.established(web)
	c.learnCookie()
	n.step("disconnect", func() { check(connectUnspec(c.fd), "connect to AF_UNSPEC") }, s.in(tcp.Close))
	c.wants(`disconnect  ESTABLISHED>CLOSE  disconnected`)
	s.wants(`disconnect  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func peerResets(n *netns) {
	p := n.peer()
	c := answered(n, p)
	n.step("reset", func() { p.send(flagRST | flagACK) }, c.in(tcp.Close))
	c.failsWith(unix.ECONNRESET)
	c.wants(`reset  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func peerResetsCloseWait(n *netns) {
	p := n.peer()
	c := answered(n, p)
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.CloseWait))
	n.rest()
	n.step("reset", func() { p.send(flagRST | flagACK) }, c.in(tcp.Close))
	c.failsWith(unix.EPIPE)
	c.wants(`
fin    ESTABLISHED>CLOSE_WAIT  fin_received
reset  CLOSE_WAIT>CLOSE        rst_received  errno=EPIPE`)
}

func userTimeout(n *netns) {
	c := answered(n, n.peer())
	c.set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500)
	c.write("into the void")
	n.watch("timeout", c, tcp.Close)
	c.failsWith(unix.ETIMEDOUT)
	c.wants(`timeout  ESTABLISHED>CLOSE  timeout  errno=ETIMEDOUT`)
}

// The ICMP error is a soft one: it only names the error of the timeout that follows.
func softTimeout(n *netns) {
	p := n.peer()
	c := answered(n, p)
	c.set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000)
	c.write("into the void")
	p.receive(flagPSH)
	const hostUnreachable = 1
	p.unreachable(hostUnreachable)
	n.watch("timeout", c, tcp.Close)
	c.failsWith(unix.EHOSTUNREACH)
	c.wants(`timeout  ESTABLISHED>CLOSE  timeout  errno=EHOSTUNREACH`)
}

// halfClosed has sent its FIN, and it was acknowledged.
func halfClosed(n *netns, p *peer) *sock {
	c := answered(n, p)
	n.step("shutdown", func() { c.shutdown(unix.SHUT_WR) }, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.FinWait2))
	n.rest()
	c.wants(`
shutdown  ESTABLISHED>FIN_WAIT1  local_shutdown
ack       FIN_WAIT1>FIN_WAIT2    fin_acked`)
	return c
}

func lingerAfterShutdown(n *netns) {
	c := halfClosed(n, n.peer())
	n.step("abort", c.abort, c.in(tcp.Close))
	c.wants(`abort  FIN_WAIT2>CLOSE  aborted_linger`)
}

func unreadAfterShutdown(n *netns) {
	p := n.peer()
	c := halfClosed(n, p)
	p.send(flagPSH|flagACK, 'd', 'a', 't', 'a')
	c.unread()
	n.step("close", c.close, c.in(tcp.Close))
	c.wants(`close  FIN_WAIT2>CLOSE  aborted`)
}

// A socket that is disconnected keeps its error, ECONNRESET, through the next connection.
func unreadError(n *netns) {
	l := n.listener(web)
	c := n.client(l.local)
	c.bind("127.0.0.1:4000")
	first := n.connect(l, c, l.local)
	n.step("disconnect", func() { check(connectUnspec(c.fd), "connect to AF_UNSPEC") }, first.in(tcp.Close))
	var second *sock
	n.step("again", func() {
		check(c.connect(l.local), "connect again")
		second = n.served(c)
		second.await(tcp.Established)
	}, c.in(tcp.Established))
	second.accept(l)
	n.rest()
	n.step("end", func() { check(connectUnspec(c.fd), "connect to AF_UNSPEC") }, second.in(tcp.Close))
	c.wants(`
disconnect  ESTABLISHED>CLOSE     disconnected
again       CLOSE>SYN_SENT        connect         age=exact
again       SYN_SENT>ESTABLISHED  handshake_done
end         ESTABLISHED>CLOSE     disconnected`)
	first.wants(`disconnect  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
	second.wants(`
again  LISTEN>SYN_RECV       syn_received
again  SYN_RECV>ESTABLISHED  handshake_done
end    ESTABLISHED>CLOSE     rst_received  errno=ECONNRESET`)
}

// withOldError has an error that ended nothing, and that nobody has read.
func withOldError(n *netns, p *peer) *sock {
	c := answered(n, p)
	c.set(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	c.write("data")
	p.receive(flagPSH)
	const portUnreachable = 3
	p.unreachable(portUnreachable)
	p.send(flagACK)
	n.rest()
	return c
}

func oldErrorUnread(n *netns) {
	p := n.peer()
	c := withOldError(n, p)
	p.send(flagPSH|flagACK, 'd', 'a', 't', 'a')
	c.unread()
	n.step("close", c.close, c.in(tcp.Close))
	c.wants(`close  ESTABLISHED>CLOSE  aborted`)
}

func oldErrorGraceful(n *netns) {
	p := n.peer()
	c := withOldError(n, p)
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.CloseWait))
	n.rest()
	n.step("close", c.close, c.in(tcp.LastAck))
	p.receive(flagFIN)
	n.rest()
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.Close))
	c.wants(`
fin    ESTABLISHED>CLOSE_WAIT  fin_received
close  CLOSE_WAIT>LAST_ACK     local_close
ack    LAST_ACK>CLOSE          fin_acked`)
}

func oldErrorNoLinger(n *netns) {
	p := n.peer()
	c := withOldError(n, p)
	c.set(unix.IPPROTO_TCP, unix.TCP_LINGER2, -1)
	n.step("close", c.close, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.Close))
	c.wants(`
close  ESTABLISHED>FIN_WAIT1  local_close
ack    FIN_WAIT1>FIN_WAIT2    fin_acked
ack    FIN_WAIT2>CLOSE        aborted`)
}

func oldErrorUnreadHalfClosed(n *netns) {
	p := n.peer()
	c := withOldError(n, p)
	n.step("shutdown", func() { c.shutdown(unix.SHUT_WR) }, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	n.step("data", func() { p.send(flagPSH|flagACK, 'd', 'a', 't', 'a') }, c.in(tcp.FinWait2))
	c.unread()
	n.step("close", c.close, c.in(tcp.Close))
	c.wants(`
shutdown  ESTABLISHED>FIN_WAIT1  local_shutdown
data      FIN_WAIT1>FIN_WAIT2    fin_acked
close     FIN_WAIT2>CLOSE        aborted`)
}

func oldErrorNoTimeWait(n *netns) {
	p := n.peer()
	n.sysctl("ipv4/tcp_max_tw_buckets", "0")
	c := withOldError(n, p)
	n.step("close", c.close, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.Close))
	c.wants(`
close  ESTABLISHED>FIN_WAIT1  local_close
ack    FIN_WAIT1>FIN_WAIT2    fin_acked
ack    FIN_WAIT2>CLOSE        timewait_overflow`)
}

func sockDestroy(n *netns) {
	_, c, s := n.established(web)
	n.step("destroy", func() { n.destroy(c) }, s.in(tcp.Close), c.in(tcp.Close))
	c.failsWith(unix.ECONNABORTED)
	c.wants(`destroy  ESTABLISHED>CLOSE  killed        errno=ECONNABORTED`)
	s.wants(`destroy  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func halfOpenDestroyed(n *netns) {
	p := n.peer()
	s := halfOpen(n, n.listener(hostWeb), p)
	n.rest()
	n.step("destroy", func() { n.destroy(s) }, s.in(tcp.Close))
	s.wants(`destroy  SYN_RECV>CLOSE  killed`)
}

func listenerDestroyed(n *netns) {
	l := n.listener(web)
	n.rest()
	l.remote = netip.MustParseAddrPort("0.0.0.0:0")
	n.step("destroy", func() { n.destroy(l) })
	l.wants(`destroy  LISTEN>CLOSE  killed`)
}

func unaccepted(n *netns) {
	l := n.listener(web)
	c := n.client(l.local)
	s := n.queued(c, l.local)
	n.rest()
	n.step("close", l.close, c.in(tcp.Close))
	c.failsWith(unix.ECONNRESET)
	l.wants(`close  LISTEN>CLOSE       local_close`)
	c.wants(`close  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
	s.wants(`close  ESTABLISHED>CLOSE  listener_closed`)
}

// connectUnspec is what x/sys has no sockaddr for.
func connectUnspec(fd int) error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return errno
	}
	return nil
}

package probe_test

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Everything that TIME_WAIT can come to.
var timeWaitScenarios = []scenario{
	{name: "TIME_WAIT expires", slow: true, run: timeWaitExpires},
	{name: "TIME_WAIT reused by connect", run: reusedByConnect},
	{name: "TIME_WAIT reopened by SYN", run: reopenedBySyn},
	{name: "TIME_WAIT reset", run: timeWaitReset},
	{name: "TIME_WAIT destroyed", run: timeWaitDestroyed},
	{name: "TIME_WAIT of which there are too many", run: tooManyTimeWaits},
	{name: "orphaned FIN_WAIT2 of which there are too many", run: tooManyOrphans},
	{name: "TIME_WAIT bound to a device", run: func(n *netns) { timeWaitBound(n, web) }},
	{name: "TIME_WAIT bound to a device, IPv6", run: func(n *netns) { timeWaitBound(n, "[::1]:80") }},
	{name: "TIME_WAIT gone with its namespace", dies: true, run: goneWithNamespace},
}

func timeWaitExpires(n *netns) {
	_, c, s := n.established(web)
	both(n, c, s)
	n.watch("expiry", c, tcp.Close)
	c.wants(`expiry  TIME_WAIT>CLOSE  expired`)
}

// timeWaitBound: the device belongs to what tells two mini-sockets apart, and the FIN that moves
// one to TIME_WAIT names it by the device that it came in by.
func timeWaitBound(n *netns, addr string) {
	l := n.listener(addr)
	c := n.client(l.local)
	c.onDevice("lo")
	s := n.connect(l, c, l.local)
	both(n, c, s)
}

// There is one port only, so the second connection must take the first one's.
func reusedByConnect(n *netns) {
	n.sysctl("ipv4/ip_local_port_range", "40000 40000")
	n.sysctl("ipv4/tcp_tw_reuse", "1")
	l, old, s := n.established(web)
	both(n, old, s)
	time.Sleep(1100 * time.Millisecond) // the kernel asks for a second
	c := n.client(l.local)
	n.step("reuse", func() { check(c.connect(l.local), "connect") }, c.in(tcp.Established))
	again := n.served(c)
	again.accept(l)
	old.wants(`reuse  TIME_WAIT>CLOSE       reused_by_connect`)
	c.wants(`
reuse  CLOSE>SYN_SENT        connect
reuse  SYN_SENT>ESTABLISHED  handshake_done`)
	again.wants(`
reuse  LISTEN>SYN_RECV       syn_received
reuse  SYN_RECV>ESTABLISHED  handshake_done`)
}

// Here it is the server that waits, so the client's port is free for it.
func reopenedBySyn(n *netns) {
	l := n.listener(web)
	old := n.client(l.local)
	old.bind("127.0.0.1:4000")
	s := n.connect(l, old, l.local)
	n.step("close", s.close, old.in(tcp.CloseWait), s.in(tcp.FinWait2))
	n.step("answer", old.close, s.in(tcp.TimeWait), old.in(tcp.Close))
	n.rest()
	c := n.client(l.local)
	c.bind("127.0.0.1:4000")
	n.step("reopen", func() { check(c.connect(l.local), "connect") }, c.in(tcp.Established))
	again := n.served(c)
	again.accept(l)
	s.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close      by=close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received
reopen  TIME_WAIT>CLOSE         reopened_by_syn`)
	old.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
	c.wants(`
reopen  CLOSE>SYN_SENT          connect
reopen  SYN_SENT>ESTABLISHED    handshake_done`)
	again.wants(`
reopen  LISTEN>SYN_RECV         syn_received
reopen  SYN_RECV>ESTABLISHED    handshake_done`)
}

// inTimeWait is the client of a connection to a peer, closed by both.
func inTimeWait(n *netns, p *peer) *sock {
	c := orphan(n, p)
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.TimeWait))
	c.wants(`fin  FIN_WAIT2>TIME_WAIT  fin_received`)
	n.rest()
	return c
}

func timeWaitReset(n *netns) {
	p := n.peer()
	c := inTimeWait(n, p)
	n.step("reset", func() { p.send(flagRST) }, c.in(tcp.Close))
	c.wants(`reset  TIME_WAIT>CLOSE  rst_received`)
}

func timeWaitDestroyed(n *netns) {
	c := inTimeWait(n, n.peer())
	n.step("destroy", func() { n.destroy(c) }, c.in(tcp.Close))
	c.wants(`destroy  TIME_WAIT>CLOSE  killed`)
}

func tooManyTimeWaits(n *netns) {
	n.sysctl("ipv4/tcp_max_tw_buckets", "0")
	p := n.peer()
	c := answered(n, p)
	n.step("shutdown", func() { c.shutdown(unix.SHUT_WR) }, c.in(tcp.FinWait1))
	p.receive(flagFIN)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.FinWait2))
	n.rest()
	n.step("fin", func() { p.send(flagFIN | flagACK) }, c.in(tcp.Close))
	c.wants(`
shutdown  ESTABLISHED>FIN_WAIT1  local_shutdown
ack       FIN_WAIT1>FIN_WAIT2    fin_acked
fin       FIN_WAIT2>CLOSE        timewait_overflow`)
}

func tooManyOrphans(n *netns) {
	n.sysctl("ipv4/tcp_max_tw_buckets", "0")
	p := n.peer()
	c := closing(n, p)
	n.step("ack", func() { p.send(flagACK) }, c.in(tcp.Close))
	c.wants(`
ack  FIN_WAIT1>FIN_WAIT2  fin_acked
ack  FIN_WAIT2>CLOSE      timewait_overflow`)
}

func goneWithNamespace(n *netns) {
	l, c, s := n.established(web)
	both(n, c, s)
	n.step("end", l.close)
	l.wants(`end   LISTEN>CLOSE     local_close`)
	c.wants(`exit  TIME_WAIT>CLOSE  netns_exit`)
}

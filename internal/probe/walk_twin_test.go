package probe_test

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Twins are two connections whose addresses and ports are the same. Only a device tells one
// from the other: the one that it is bound to, or the scope of its addresses.
var twinScenarios = []scenario{
	{name: "link-local addresses on two links", dies: true, run: linkLocalTwins},
	{name: "link-local addresses that connect to themselves", dies: true, run: loopedTwins},
	{name: "one address in two VRFs", dies: true, run: vrfTwins},
}

const (
	twinClient = "[fe80::1]:4000"
	twinServer = "[fe80::2]:80"
)

func linkLocalTwins(n *netns) {
	l := n.listener("[::]:80")
	var twins []twin
	for i, name := range []string{"va", "vb"} {
		other := fmt.Sprint("veth", i)
		n.link("veth", name)
		n.linkLocal(name, "fe80::1")
		n.linkLocal(other, "fe80::2")
		twins = append(twins, n.twin(l, twinClient, twinServer, name, other))
	}
	n.closeTwins(twins, l)
}

// loopedTwins: what a host sends to itself comes in by lo, whatever its scope is.
func loopedTwins(n *netns) {
	l := n.listener("[::]:80")
	var twins []twin
	for i, name := range []string{"va", "vb"} {
		n.link("veth", name)
		n.linkUp(fmt.Sprint("veth", i)) // or there is no carrier
		n.linkLocal(name, "fe80::1")
		twins = append(twins, n.twin(l, twinClient, "[fe80::1]:80", name, name))
	}
	n.closeTwins(twins, l)
}

// vrfTwins: a VRF has addresses and a table of routes of its own.
func vrfTwins(n *netns) {
	var twins []twin
	var listeners []*sock
	for i, name := range []string{"red", "blue"} {
		n.vrf(name, uint32(100+i))
		l := n.socket("listener of "+name, tcp.Listener, hostAddr)
		l.onDevice(name)
		l.bind(hostWeb)
		n.step("listen-"+name, func() { check(unix.Listen(l.fd, 8), "listen") })
		l.wants("listen-" + name + "  CLOSE>LISTEN  listen")
		twins = append(twins, n.twin(l, "10.9.0.1:4000", hostWeb, name, name))
		listeners = append(listeners, l)
	}
	n.closeTwins(twins, listeners...)
}

// vrf makes one, whose address is hostAddr.
func (n *netns) vrf(name string, table uint32) {
	n.link("vrf", name, attr(unix.IFLA_VRF_TABLE, native32(table))...)
	n.linkUp(name)
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, unix.NLM_F_CREATE,
		ifAddr(uint32(must(ifIndex(name)))), attr(unix.IFA_LOCAL, hostAddr.AsSlice()))
}

// linkLocal gives a device an address at once: nobody is asked whether it is taken.
func (n *netns) linkLocal(device, addr string) {
	n.linkUp(device)
	header := append([]byte{unix.AF_INET6, 64, unix.IFA_F_NODAD, unix.RT_SCOPE_LINK}, native32(uint32(must(ifIndex(device))))...)
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, unix.NLM_F_CREATE,
		header, attr(unix.IFA_LOCAL, netip.MustParseAddr(addr).AsSlice()))
}

// twin is one of the connections; its name is that of the client's device.
type twin struct {
	name string
	c, s *sock
}

// twin connects, in a step of its own. The kernel's table does not tell twins apart; their
// descriptors do.
func (n *netns) twin(l *sock, from, to, clientDevice, serverDevice string) twin {
	t := twin{name: clientDevice, c: n.client(netip.MustParseAddrPort(to))}
	t.c.onDevice(clientDevice)
	t.c.bind(from)
	connect := "connect-" + t.name
	n.step(connect, func() {
		check(t.c.connect(t.c.remote), "connect")
		t.s = n.served(t.c)
		t.s.device = uint32(must(ifIndex(serverDevice)))
		t.s.accept(l)
	}, t.c.in(tcp.Established))
	t.c.wants(connect + `  CLOSE>SYN_SENT        connect
` + connect + `             SYN_SENT>ESTABLISHED  handshake_done`)
	t.s.wants(connect + `  LISTEN>SYN_RECV       syn_received
` + connect + `             SYN_RECV>ESTABLISHED  handshake_done`)
	return t
}

// closeTwins closes what is open of both before it goes on: there are two mini-sockets in
// FIN_WAIT2 at once, and then in TIME_WAIT.
func (n *netns) closeTwins(twins []twin, listeners ...*sock) {
	n.rest()
	n.step("close", func() {
		for _, l := range listeners {
			l.close()
			l.wants(`close  LISTEN>CLOSE  local_close`)
		}
	})
	for _, t := range twins {
		n.step("shutdown-"+t.name, func() { t.c.shutdown(unix.SHUT_WR) }, t.s.in(tcp.CloseWait), t.c.in(tcp.FinWait2))
		t.c.wants("shutdown-" + t.name + `  ESTABLISHED>FIN_WAIT1   local_shutdown
shutdown-` + t.name + `                     FIN_WAIT1>FIN_WAIT2     fin_acked`)
		t.s.wants("shutdown-" + t.name + `  ESTABLISHED>CLOSE_WAIT  fin_received`)
	}
	for _, t := range twins {
		t.c.close()
	}
	n.rest()
	for _, t := range twins {
		n.step("answer-"+t.name, func() {
			t.s.close()
			n.await(t.c, tcp.TimeWait, func(*tcp.Event) {})
			n.await(t.s, tcp.Close, func(*tcp.Event) {})
		})
		t.c.wants("answer-" + t.name + `  FIN_WAIT2>TIME_WAIT  fin_received`)
		t.s.wants("answer-" + t.name + `  CLOSE_WAIT>LAST_ACK  local_close  by=close
answer-` + t.name + `                     LAST_ACK>CLOSE       fin_acked`)
	}
	for _, t := range twins {
		if row := n.rowOf(t.c); row.New != tcp.TimeWait {
			fail("%s on %s is listed in %v, want TIME_WAIT", t.c.name, t.name, row.New)
		}
		t.c.wants(`exit  TIME_WAIT>CLOSE  netns_exit`)
	}
}

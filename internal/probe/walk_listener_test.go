package probe_test

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Which of several listeners a connection belongs to that nobody has accepted. With SYN
// cookies no request sock names it.
var listenerScenarios = []scenario{
	{name: "one port, two addresses", run: twoAddresses},
	{name: "one port, with and without a device", run: boundToDevice},
	{name: "one port, SO_REUSEPORT", run: reusePort},
	{name: "one port, two families", run: twoFamilies},
	{name: "the port is chosen by listen()", run: unboundListener},
	{name: "a second listen() failed", run: failedListen},
	{name: "the filter leaves out the listener's family", run: otherFamily},
	{name: "the filter is for the remote port", run: otherRemotePort},
}

// listens makes an agent listen, and returns its socket.
func (a *agent) listens(n *netns, options string, addr string) *sock {
	l := n.declare("listener", tcp.Listener, netip.AddrPort{}, netip.AddrPort{})
	step := "listen-" + a.name
	n.step(step, func() {
		fd, local, _ := strings.Cut(a.do("listen "+addr+" "+options), " ")
		l.local = netip.MustParseAddrPort(local)
		check(err2(fmt.Sscan(fd, &l.holderFD)), "read the number of the descriptor")
	})
	l.wants(step + `  CLOSE>LISTEN  listen  by=listen:` + a.name)
	return l
}

func err2(_ int, err error) error { return err }

// belongsTo connects to a listener and wants the child to have its owner from the beginning.
func (n *netns) belongsTo(owner string, to netip.AddrPort) *sock {
	return n.connectsTo(func() string { return owner }, n.client(to))
}

func (n *netns) connectsTo(owner func() string, c *sock) *sock {
	n.connections++
	step := fmt.Sprintf("connect-%d", n.connections)
	var s *sock
	n.step(step, func() {
		check(c.connect(c.remote), "connect")
		s = n.served(c)
		s.await(tcp.Established)
	}, c.in(tcp.Established))
	who := owner()
	n.step("close-"+step, c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	c.wants(step + `        CLOSE>SYN_SENT          connect
` + step + `        SYN_SENT>ESTABLISHED    handshake_done
close-` + step + `  ESTABLISHED>FIN_WAIT1   local_close
close-` + step + `  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(step + `        LISTEN>SYN_RECV         syn_received    by=inherited:` + who + `
` + step + `        SYN_RECV>ESTABLISHED    handshake_done
close-` + step + `  ESTABLISHED>CLOSE_WAIT  fin_received`)
	return s
}

func twoAddresses(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	alpha := n.agent("alpha").listens(n, "", "127.0.0.1:80")
	beta := n.agent("beta").listens(n, "", "127.0.0.2:80")
	n.belongsTo("alpha", alpha.local)
	n.belongsTo("beta", beta.local)
	n.belongsTo("alpha", alpha.local)
}

func boundToDevice(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	beta, alpha := n.agent("beta"), n.agent("alpha")
	waiting := n.waiting(
		queue{beta, beta.listens(n, "reuseport device=lo", "0.0.0.0:80")},
		queue{alpha, alpha.listens(n, "reuseport", "0.0.0.0:80")})
	for range 4 {
		n.connectsTo(waiting, n.client(netip.MustParseAddrPort(web)))
	}
}

// reusePort: the kernel chooses by a hash.
func reusePort(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	alpha, beta := n.agent("alpha"), n.agent("beta")
	waiting := n.waiting(queue{alpha, alpha.listens(n, "reuseport", web)}, queue{beta, beta.listens(n, "reuseport", web)})
	for range 8 {
		n.connectsTo(waiting, n.client(netip.MustParseAddrPort(web)))
	}
}

// queue is the accept queue of a listener.
type queue struct {
	agent    *agent
	listener *sock
}

// waiting returns a function that says whose queue has grown.
func (n *netns) waiting(queues ...queue) func() string {
	length := make([]string, len(queues))
	for i := range queues {
		length[i] = "0"
	}
	return func() (name string) {
		for i, q := range queues {
			if now := q.agent.do(fmt.Sprint("waiting ", q.listener.holderFD)); now != length[i] {
				name, length[i] = q.agent.name, now
			}
		}
		return name
	}
}

func twoFamilies(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	n.agent("four").listens(n, "", "0.0.0.0:80")
	n.agent("six").listens(n, "v6only", "[::]:80")
	n.belongsTo("six", netip.MustParseAddrPort("[::1]:80"))
	n.belongsTo("four", netip.MustParseAddrPort(web))
}

// unboundListener: there is no port yet at CLOSE>LISTEN (inet_csk_listen_start).
func unboundListener(n *netns) {
	n.sysctl("ipv4/tcp_syncookies", "2")
	l := n.agent("server").listens(n, "unbound", "127.0.0.1:0")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.local.Port())
	l.local = netip.MustParseAddrPort("0.0.0.0:0")
	n.belongsTo("server", to)
}

// failedListen: both have bound the port, and the second one goes to LISTEN and back before the
// kernel finds that it is taken.
func failedListen(n *netns) {
	if kernelBefore(5, 12) {
		panic(notHere("programs get no socket cookies (since 5.12), by which the test tells two sockets at one address apart"))
	}
	n.sysctl("ipv4/tcp_syncookies", "2")
	second := n.socket("second", tcp.Listener, netip.MustParseAddrPort(web).Addr())
	second.bind(web)
	l := n.agent("server").listens(n, "reuse", web)
	n.step("fail", func() {
		if err := unix.Listen(second.fd, 8); err != unix.EADDRINUSE {
			fail("listen on a port that another one listens on: got %w, want EADDRINUSE", err)
		}
	})
	second.learnCookie()
	second.wants(`
fail  CLOSE>LISTEN  listen
fail  LISTEN>CLOSE  *`)
	n.belongsTo("server", l.local)
}

// filtered begins a second trace, of which only the owners of connections are looked at.
func (n *netns) filtered(config probe.Config) *walk {
	config.NetNS, config.OwnerRefresh = n.inode, -1
	w, err := openWalk(config)
	check(err, "begin a second trace")
	n.undo = append(n.undo, func() {
		_, err := w.close()
		check(err, "end the second trace")
	})
	return w
}

// knows waits until the trace has told that s is established, and whose it is.
func (w *walk) knows(s *sock, name string) {
	eventually(patience, "the second trace reports "+s.name, func() bool {
		for _, e := range w.reported(s.n.inode) {
			if e.Local.Port() != s.local.Port() || e.Remote.Port() == 0 && s.remote.Port() != 0 {
				continue
			}
			if e.Role == tcp.Listener {
				fail("a listener outside the filter is shown: %s", describe(&e))
			}
			if e.New == tcp.Established && s.hasEnds(&e) {
				if (owner{e.PID, e.Comm}) != s.n.procs[name] || e.OwnerSource != tcp.FromInherited {
					fail("it says %s, want that it is inherited from %s", describe(&e), name)
				}
				return true
			}
		}
		return false
	})
}

func otherFamily(n *netns) {
	older := n.agent("older").listens(n, "", "[::]:80")
	w := n.filtered(probe.Config{Family: unix.AF_INET})
	newer := n.agent("newer").listens(n, "", "[::]:81")
	w.knows(n.belongsTo("older", netip.AddrPortFrom(loopback, older.local.Port())), "older")
	w.knows(n.belongsTo("newer", netip.AddrPortFrom(loopback, newer.local.Port())), "newer")
}

func otherRemotePort(n *netns) {
	older := n.agent("older").listens(n, "", web)
	w := n.filtered(probe.Config{RemotePorts: []uint16{4000}})
	newer := n.agent("newer").listens(n, "", "127.0.0.1:81")
	for name, l := range map[string]*sock{"older": older, "newer": newer} {
		c := n.client(l.local)
		c.bind("127.0.0.1:4000")
		w.knows(n.connectsTo(func() string { return name }, c), name)
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")

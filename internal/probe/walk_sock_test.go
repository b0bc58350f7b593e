package probe_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// sock is one socket of a scenario, and what the tracer shall say of it.
type sock struct {
	n             *netns
	name          string
	role          tcp.Role
	fd            int    // -1: not the test's, not accepted yet, or closed
	cookie        uint64 // 0: never asked for
	local, remote netip.AddrPort
	device        uint32 // that it is bound to, or of its scope; 0: not looked at
	mptcp         bool   // fd is the MPTCP socket; local and remote are its subflow's
	bound         bool   // the local port is known before connect()
	accepted      bool
	acceptedBy    string // the process that accepted, where another one listened
	holder        string // of netns.procs, where it is not the test
	holderFD      int    // the holder's descriptor

	want []row
	got  []tcp.Event
}

// declare adds a socket that the test does not hold.
func (n *netns) declare(name string, role tcp.Role, local, remote netip.AddrPort) *sock {
	s := &sock{n: n, name: name, role: role, fd: -1, local: local, remote: remote}
	n.socks = append(n.socks, s)
	return s
}

// socket makes one that never blocks.
func (n *netns) socket(name string, role tcp.Role, addr netip.Addr) *sock {
	s := n.declare(name, role, netip.AddrPort{}, netip.AddrPort{})
	s.mptcp = n.mptcp
	family, protocol := unix.AF_INET, unix.IPPROTO_TCP
	if addr.Is6() {
		family = unix.AF_INET6
	}
	if s.mptcp {
		protocol = unix.IPPROTO_MPTCP
	}
	s.own(must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)))
	return s
}

// own closes fd after the scenario, if the scenario did not.
func (s *sock) own(fd int) {
	s.fd = fd
	s.n.undo = append(s.n.undo, func() {
		if s.fd >= 0 {
			unix.Close(s.fd)
		}
	})
}

// listener listens at addr, in the step "listen".
func (n *netns) listener(addr string) *sock {
	at := netip.MustParseAddrPort(addr)
	l := n.socket("listener", tcp.Listener, at.Addr())
	l.local = at
	l.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if at.Addr().Is6() {
		l.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	check(unix.Bind(l.fd, sockaddr(at)), "bind to "+addr)
	n.step("listen", func() { check(unix.Listen(l.fd, 8), "listen") })
	l.wants(`listen  CLOSE>LISTEN  listen`)
	return l
}

// client is a socket that will connect to to.
func (n *netns) client(to netip.AddrPort) *sock {
	c := n.socket("client", tcp.Client, to.Addr())
	c.remote = unmap(to)
	return c
}

func (s *sock) bind(addr string) {
	s.local, s.bound = netip.MustParseAddrPort(addr), true
	s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	check(unix.Bind(s.fd, sockaddr(s.local)), "bind to "+addr)
}

// onDevice binds to a network device, which belongs to what tells it from other sockets.
func (s *sock) onDevice(name string) {
	check(unix.BindToDevice(s.fd, name), "bind to the device "+name)
	s.device = uint32(must(ifIndex(name)))
}

// connect starts to connect; the error is the one of the call itself.
func (s *sock) connect(to netip.AddrPort) error {
	err := unix.Connect(s.fd, sockaddr(to))
	if name, nameErr := unix.Getsockname(s.fd); nameErr == nil {
		s.local = unmap(addrPort(name))
	}
	if err == unix.EINPROGRESS {
		return nil
	}
	return err
}

// served declares the server's end of c, which nobody has accepted yet.
func (n *netns) served(c *sock) *sock {
	s := n.declare("server", tcp.Server, c.remote, c.local)
	s.mptcp = c.mptcp
	return s
}

// accept takes s, the first connection in l's queue.
func (s *sock) accept(l *sock) {
	eventually(patience, "nothing to accept", func() bool {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == nil {
			s.own(fd)
		} else if err != unix.EAGAIN && err != unix.EINTR {
			fail("accept: %w", err)
		}
		return err == nil
	})
	s.accepted = true
}

// established makes what most scenarios begin with, in the steps "listen" and
// "connect", with the lines that belong to them.
func (n *netns) established(addr string) (l, c, s *sock) {
	l = n.listener(addr)
	c = n.client(l.local)
	return l, c, n.connect(l, c, l.local)
}

// connect connects c to l in the step "connect" and accepts the server's end.
func (n *netns) connect(l, c *sock, to netip.AddrPort) (s *sock) {
	s = n.queued(c, to)
	s.accept(l)
	n.rest()
	return s
}

// queued is connect without accept.
func (n *netns) queued(c *sock, to netip.AddrPort) (s *sock) {
	n.step("connect", func() {
		check(c.connect(to), "connect")
		s = n.served(c)
		s.await(tcp.Established) // the last ACK may still be on its way
	}, c.in(tcp.Established))
	c.wants(`
connect  CLOSE>SYN_SENT        connect
connect  SYN_SENT>ESTABLISHED  handshake_done`)
	s.wants(`
connect  LISTEN>SYN_RECV       syn_received
connect  SYN_RECV>ESTABLISHED  handshake_done`)
	return s
}

func (s *sock) in(state tcp.State) reached { return reached{s, state} }

func (s *sock) close() {
	s.learnCookie()
	check(unix.Close(s.fd), "close")
	s.fd = -1
}

// abort closes with a RST in place of a FIN.
func (s *sock) abort() {
	check(unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "set SO_LINGER")
	s.close()
}

func (s *sock) shutdown(how int) { check(unix.Shutdown(s.fd, how), "shutdown") }

func (s *sock) write(text string) {
	_, err := unix.Write(s.fd, []byte(text))
	check(err, "write")
}

func (s *sock) read(text string) {
	buf := make([]byte, len(text))
	eventually(patience, "nothing to read", func() bool {
		_, err := unix.Read(s.fd, buf)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			fail("read: %w", err)
		}
		return err == nil
	})
	if string(buf) != text {
		fail("read %q, sent %q", buf, text)
	}
}

// unread waits until data waits to be read.
func (s *sock) unread() {
	eventually(patience, "no data came", func() bool {
		n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
		return err == nil && n > 0
	})
}

func (s *sock) set(level, option, value int) {
	check(unix.SetsockoptInt(s.fd, level, option, value), fmt.Sprintf("set socket option %d/%d", level, option))
}

// failsWith checks the error that ended the connection, as a process sees it.
func (s *sock) failsWith(want unix.Errno) {
	got := must(unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR))
	if unix.Errno(got) != want {
		fail("%s: SO_ERROR is %v, the scenario should make it %v", s.name, unix.Errno(got), want)
	}
}

// learnCookie asks only at the end: asking makes a cookie, and the tracer shall
// not need that.
func (s *sock) learnCookie() {
	if s.fd >= 0 && !s.mptcp && s.cookie == 0 {
		s.cookie = must(unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE))
	}
}

// state asks the kernel: the socket where the test holds it, and if that is
// closed the namespace's table, for the mini-socket that may be left of it.
func (s *sock) state() tcp.State {
	if s.fd >= 0 && !s.mptcp {
		info := must(unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO))
		if tcp.State(info.State) != tcp.Close {
			return tcp.State(info.State)
		}
	}
	if state, ok := kernelTable()[ends{s.local, s.remote}]; ok {
		return state
	}
	return tcp.Close
}

func (s *sock) await(state tcp.State) {
	eventually(patience, fmt.Sprintf("%s (%v) is not %v", s.name, s.local, state), func() bool { return s.state() == state })
}

type ends struct{ local, remote netip.AddrPort }

// kernelTable reads which sockets this thread's namespace has. Unlike netlink's
// sock_diag it needs no module, and it knows nothing of tracing.
func kernelTable() map[ends]tcp.State {
	table := map[ends]tcp.State{}
	for _, name := range []string{"tcp", "tcp6"} {
		text := must(os.ReadFile("/proc/thread-self/net/" + name))
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) > 3 && f[0] != "sl" {
				table[ends{hexAddr(f[1]), hexAddr(f[2])}] = tcp.State(must(strconv.ParseUint(f[3], 16, 8)))
			}
		}
	}
	return table
}

// hexAddr reads 0100007F:0050, words in the byte order of the (little) host.
func hexAddr(text string) netip.AddrPort {
	addr, port, _ := strings.Cut(text, ":")
	b := must(hex.DecodeString(addr))
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, _ := netip.AddrFromSlice(b)
	return unmap(netip.AddrPortFrom(a, uint16(must(strconv.ParseUint(port, 16, 16)))))
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

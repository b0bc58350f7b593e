package probe_test

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// useMPTCP: the sockets made from now on are MPTCP's.
func (n *netns) useMPTCP() {
	if _, err := os.Stat("/proc/sys/net/mptcp/enabled"); err != nil {
		panic(notHere("this kernel is built without MPTCP (CONFIG_MPTCP)"))
	}
	n.mptcp = true
}

// Shown are the subflows, the TCP connections that MPTCP is made of. Theirs is
// no FIN until both processes have closed; the kernel's worker sends it then.
func overMPTCP(n *netns) {
	n.useMPTCP()
	_, c, s := n.established(web)
	n.step("close", c.close)
	n.rest()
	n.step("answer", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
answer  ESTABLISHED>FIN_WAIT1   local_close
answer  FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
answer  ESTABLISHED>CLOSE_WAIT  fin_received
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
}

// The kernel's worker opens a second subflow, and the kernel accepts it: it is of who has the
// connection, behind the same descriptor.
func joinedMPTCP(n *netns) {
	n.useMPTCP()
	second := netip.MustParseAddr("127.0.0.21")
	n.mptcpEndpoint(second)
	_, c, s := n.established(web)
	joined := n.declare("client's second subflow", tcp.Client, netip.AddrPort{}, c.remote)
	joined.bound = true
	n.step("join", func() {
		c.write("request") // it is joined when both ends know that the other one speaks MPTCP
		s.read("request")
		s.write("answer")
		c.read("answer")
		eventually(patience, "there is no second subflow", func() bool {
			for at, state := range kernelTable() {
				if at.local.Addr() == second && state == tcp.Established {
					joined.local = at.local
				}
			}
			return joined.local.IsValid()
		})
	})
	served := n.served(joined)
	joined.mptcp, served.mptcp, served.accepted = true, true, true
	served.await(tcp.Established)
	joined.wants(`
join  CLOSE>SYN_SENT        connect
join  SYN_SENT>ESTABLISHED  handshake_done`)
	served.wants(`
join  LISTEN>SYN_RECV       syn_received
join  SYN_RECV>ESTABLISHED  handshake_done`)
	for subflow, fd := range map[*sock]int{c: c.fd, joined: c.fd, s: s.fd, served: s.fd} {
		row := n.rowOf(subflow)
		if row.FD != int32(fd) || row.Holder != tcp.Held || (owner{row.PID, row.Comm}) != n.procs[self] || !row.MPTCP {
			fail("%s is listed as %s, fd %d, holder %q; want fd %d, held by %+v", subflow.name, describe(&row), row.FD, row.Holder, fd, n.procs[self])
		}
	}
}

// mptcpEndpoint has the clients of this namespace open a subflow from one more address.
func (n *netns) mptcpEndpoint(addr netip.Addr) {
	const addAddress, setLimits = 1, 5                                   // MPTCP_PM_CMD_*
	const address, accepted, subflows = 1 | unix.NLA_F_NESTED, 2, 3      // MPTCP_PM_ATTR_*
	const family, addr4, flags, useForSubflows = 1, 3, 6, uint32(1 << 1) // MPTCP_PM_ADDR_*
	pm := genericFamily("mptcp_pm")
	n.netlink(unix.NETLINK_GENERIC, pm, 0, genericHeader(setLimits), attr(accepted, native32(2)), attr(subflows, native32(2)))
	endpoint := append(attr(family, binary.NativeEndian.AppendUint16(nil, unix.AF_INET)), attr(addr4, addr.AsSlice())...)
	endpoint = append(endpoint, attr(flags, native32(useForSubflows))...)
	n.netlink(unix.NETLINK_GENERIC, pm, 0, genericHeader(addAddress), attr(address, endpoint))
}

// genericHeader is a struct genlmsghdr.
func genericHeader(command byte) []byte { return []byte{command, 1, 0, 0} }

// genericFamily asks for the number that a family of generic netlink has got.
func genericFamily(name string) uint16 {
	reply := must(netlinkReply(unix.NETLINK_GENERIC, unix.GENL_ID_CTRL, 0,
		genericHeader(unix.CTRL_CMD_GETFAMILY), attr(unix.CTRL_ATTR_FAMILY_NAME, []byte(name+"\x00"))))
	for b := reply[min(len(reply), unix.NLMSG_HDRLEN+unix.GENL_HDRLEN):]; len(b) > 4; {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if kind == unix.CTRL_ATTR_FAMILY_ID {
			return binary.NativeEndian.Uint16(b[4:])
		}
		b = b[min(len(b), max(4, size+3)&^3):]
	}
	fail("generic netlink has no family %s", name)
	panic("not reached")
}

package probe_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Flags of a TCP segment.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

var (
	hostAddr = netip.MustParseAddr("10.9.0.1") // the kernel's end
	peerAddr = netip.MustParseAddr("10.9.9.9") // the peer's end
)

// peer is the other end of a connection, by hand: it sends what it is told to
// and answers nothing by itself. It sits on lo behind an address that is routed
// there but is not local, so the kernel drops what it sends there itself.
type peer struct {
	fd       int
	link     unix.SockaddrLinklayer
	addr, to netip.AddrPort // its own end, the kernel's end
	seq, ack uint32         // the next to send, the next to receive
}

func (n *netns) peer() *peer {
	lo := uint32(must(ifIndex("lo")))
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, unix.NLM_F_CREATE,
		ifAddr(lo), attr(unix.IFA_LOCAL, hostAddr.AsSlice()))
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, unix.NLM_F_CREATE,
		hostRoute(), attr(unix.RTA_DST, peerAddr.AsSlice()), attr(unix.RTA_OIF, native32(lo)))
	p := &peer{
		fd:   must(unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))),
		link: unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: int(lo), Halen: 6},
		addr: netip.AddrPortFrom(peerAddr, 80), to: netip.AddrPortFrom(hostAddr, 80),
		seq: 1000,
	}
	n.undo = append(n.undo, func() { unix.Close(p.fd) })
	check(unix.Bind(p.fd, &p.link), "bind a packet socket to lo")
	check(unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}), "set SO_RCVTIMEO")
	return p
}

// send sends one segment with the next sequence number.
func (p *peer) send(flags byte, data ...byte) {
	p.inject(unix.IPPROTO_TCP, p.segment(flags, data))
	p.seq += uint32(len(data))
	if flags&(flagSYN|flagFIN) != 0 {
		p.seq++
	}
}

func (p *peer) segment(flags byte, data []byte) []byte {
	s := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(s[0:], p.addr.Port())
	binary.BigEndian.PutUint16(s[2:], p.to.Port())
	binary.BigEndian.PutUint32(s[4:], p.seq)
	if flags&flagACK != 0 {
		binary.BigEndian.PutUint32(s[8:], p.ack)
	}
	s[12], s[13] = 5<<4, flags
	binary.BigEndian.PutUint16(s[14:], 65535) // window
	s = append(s, data...)
	pseudo := append(p.addr.Addr().AsSlice(), p.to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(s)))
	binary.BigEndian.PutUint16(s[16:], checksum(append(pseudo, s...)))
	return s
}

// unreachable answers the kernel's last segment with an ICMP error.
func (p *peer) unreachable(code byte) {
	quoted := ipv4(unix.IPPROTO_TCP, p.to.Addr(), p.addr.Addr(), make([]byte, 8))
	binary.BigEndian.PutUint16(quoted[20:], p.to.Port())
	binary.BigEndian.PutUint16(quoted[22:], p.addr.Port())
	binary.BigEndian.PutUint32(quoted[24:], p.ack-1)
	message := append([]byte{3, code, 0, 0, 0, 0, 0, 0}, quoted...)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	p.inject(unix.IPPROTO_ICMP, message)
}

func (p *peer) inject(protocol byte, payload []byte) {
	packet := ipv4(protocol, p.addr.Addr(), p.to.Addr(), payload)
	check(unix.Sendto(p.fd, packet, 0, &p.link), "send a packet")
}

func ipv4(protocol byte, from, to netip.Addr, payload []byte) []byte {
	h := make([]byte, 20, 20+len(payload))
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// drain throws away the segments that have come already.
func (p *peer) drain() {
	for err := error(nil); err == nil; {
		_, _, err = unix.Recvfrom(p.fd, make([]byte, 2048), 0)
	}
}

// receive waits for the kernel's next segment with these flags and
// acknowledges, in what is sent later, all that it holds.
func (p *peer) receive(flags byte) {
	buf := make([]byte, 2048)
	eventually(patience, fmt.Sprintf("no segment with flags %#x", flags), func() bool {
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		if err != nil || n < 40 || buf[9] != unix.IPPROTO_TCP {
			return false
		}
		s := buf[20:n]
		if string(buf[16:20]) != string(p.addr.Addr().AsSlice()) || s[13]&flags != flags {
			return false
		}
		p.to = netip.AddrPortFrom(p.to.Addr(), binary.BigEndian.Uint16(s))
		p.ack = binary.BigEndian.Uint32(s[4:]) + uint32(len(s)-int(s[12]>>4)*4)
		if s[13]&(flagSYN|flagFIN) != 0 {
			p.ack++
		}
		return true
	})
}

// netlink sends one request and fails the scenario unless it is acknowledged.
func (n *netns) netlink(protocol int, kind, flags uint16, parts ...[]byte) {
	check(netlinkRequest(protocol, kind, flags, parts...), fmt.Sprintf("netlink request %d/%d", protocol, kind))
}

func netlinkRequest(protocol int, kind, flags uint16, parts ...[]byte) error {
	reply, err := netlinkReply(protocol, kind, flags|unix.NLM_F_ACK, parts...)
	if err != nil {
		return err
	}
	if len(reply) < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink answer of %d bytes is not an acknowledgement", len(reply))
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.NLMSG_HDRLEN:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// netlinkReply sends one request and returns what comes first.
func netlinkReply(protocol int, kind, flags uint16, parts ...[]byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m := make([]byte, unix.NLMSG_HDRLEN)
	for _, p := range parts {
		m = append(m, p...)
	}
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], flags|unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	reply := make([]byte, 4096)
	size, _, err := unix.Recvfrom(fd, reply, 0)
	return reply[:max(size, 0)], err
}

// destroy is SOCK_DESTROY, what ss -K sends.
func (n *netns) destroy(s *sock) {
	id := make([]byte, 56) // struct inet_diag_req_v2
	id[0], id[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(id[4:], ^uint32(0))
	binary.BigEndian.PutUint16(id[8:], s.local.Port())
	binary.BigEndian.PutUint16(id[10:], s.remote.Port())
	copy(id[12:], s.local.Addr().AsSlice())
	copy(id[28:], s.remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(id[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	err := netlinkRequest(unix.NETLINK_SOCK_DIAG, unix.SOCK_DESTROY, 0, id)
	switch err {
	case unix.EOPNOTSUPP:
		panic(notHere("this kernel's SOCK_DESTROY does not take a socket of this state (TIME_WAIT: since 6.1), or is not built in (CONFIG_INET_DIAG_DESTROY)"))
	case unix.ENOENT, unix.EPROTONOSUPPORT:
		if s.state() != tcp.Close {
			panic(notHere("this kernel has no sock_diag for TCP (module tcp_diag), so no SOCK_DESTROY"))
		}
	}
	check(err, "SOCK_DESTROY")
}

func attr(kind uint16, value []byte) []byte {
	b := make([]byte, 4, 8+len(value))
	binary.NativeEndian.PutUint16(b[0:], uint16(4+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, value...)
	return b[:(len(b)+3)&^3]
}

// ifAddr is a struct ifaddrmsg: one IPv4 address that stands for itself only.
// (A wider prefix on lo makes all of it local.)
func ifAddr(index uint32) []byte {
	return append([]byte{unix.AF_INET, 32, 0, unix.RT_SCOPE_UNIVERSE}, native32(index)...)
}

// hostRoute is a struct rtmsg: a route to one IPv4 host on the link.
func hostRoute() []byte {
	return []byte{unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func ifIndex(name string) (int, error) {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	req := must(unix.NewIfreq(name))
	err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	return int(req.Uint32()), err
}

package probe_test

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Sockets whose data the kernel encrypts. What a process calls are the functions of TLS then
// (tls_sk_proto_close, tls_sw_recvmsg), and these call TCP's. Where the kernel has no AES-GCM
// at hand (modules gcm, ghash), TLS passes the data on as it is.
var tlsScenarios = []scenario{
	{name: "read and closed", run: tlsRead},
	{name: "closed with unread data", run: tlsUnread},
	{name: "linger 0", run: tlsAborted},
}

// tls is a connection from another process.
func tls(n *netns) (stranger *agent, c, s *sock) {
	l := n.listener(web)
	stranger = n.agent("stranger")
	c = stranger.client(n, l.local)
	s = n.served(c)
	s.accept(l)
	err := setTLS(s.fd, tlsReceive)
	if err == unix.ENOENT {
		panic(notHere("this kernel has no TLS (module tls)"))
	}
	check(err, "set up TLS")
	stranger.do(fmt.Sprint("tls ", c.holderFD))
	s.wants(`
connect  LISTEN>SYN_RECV       syn_received
connect  SYN_RECV>ESTABLISHED  handshake_done`)
	return stranger, c, s
}

// The directions of setTLS, see linux/tls.h.
const (
	tlsSend    = 1
	tlsReceive = 2
)

// setTLS: the key, all zeros, is that of every test.
func setTLS(fd, direction int) error {
	const version, aesGCM128 = 0x0303, 51
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != nil {
		return err
	}
	info := make([]byte, 40) // struct tls12_crypto_info_aes_gcm_128
	binary.NativeEndian.PutUint16(info, version)
	binary.NativeEndian.PutUint16(info[2:], aesGCM128)
	if err := unix.SetsockoptString(fd, unix.SOL_TLS, direction, string(info)); err != unix.ENOENT {
		return err
	}
	return nil
}

func tlsRead(n *netns) {
	stranger, c, s := tls(n)
	stranger.do(fmt.Sprint("write ", c.holderFD))
	s.read("data")
	n.rest()
	n.step("close", func() { stranger.do(fmt.Sprint("close ", c.holderFD)) }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received  by=use
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
}

func tlsUnread(n *netns) {
	stranger, c, s := tls(n)
	stranger.do(fmt.Sprint("write ", c.holderFD))
	s.unread()
	n.step("close", s.close, c.in(tcp.Close), s.in(tcp.Close))
	s.wants(`close  ESTABLISHED>CLOSE  aborted       by=close`)
	c.wants(`close  ESTABLISHED>CLOSE  rst_received  errno=ECONNRESET`)
}

func tlsAborted(n *netns) {
	_, c, s := tls(n)
	n.step("abort", s.abort, c.in(tcp.Close), s.in(tcp.Close))
	s.wants(`abort  ESTABLISHED>CLOSE  aborted_linger  by=close`)
	c.wants(`abort  ESTABLISHED>CLOSE  rst_received    errno=ECONNRESET`)
}

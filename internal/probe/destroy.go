package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// ErrGone says that a socket to be destroyed no longer exists, or that another one has
// its addresses now.
var ErrGone = errors.New("the socket is gone")

// From linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	diagRequestSize  = 56 // struct inet_diag_req_v2
)

// Target names one socket, whatever else gets its addresses.
type Target struct {
	NetNS         uint32
	Cookie        uint64
	Local, Remote netip.AddrPort
	Device        uint32 // that it is bound to, or its scope; 0: none
}

// TargetOf returns the socket of a row.
func TargetOf(row *tcp.Event) Target {
	return Target{row.NetNS, row.Cookie, row.Local, row.Remote, row.Device}
}

// Destroy has the kernel close sockets (SOCK_DESTROY): their owners get ECONNABORTED
// and their peers a reset. The kernel compares the cookie, so no other connection is
// hit. done is called for each target: nil, ErrGone, or why it failed, as where its
// namespace cannot be entered. Destroy fails as a whole where the kernel cannot do it. It
// needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
func (p *Probe) Destroy(targets []Target, done func(Target, error)) error {
	byNamespace := make(map[uint32][]Target)
	for _, t := range targets {
		byNamespace[t.NetNS] = append(byNamespace[t.NetNS], t)
	}
	for inode, targets := range byNamespace {
		ns, err := p.namespace(inode)
		if err == nil {
			err = inNamespace(uint64(inode), ns, func() error { return destroyAll(targets, done) })
		} else {
			err = &notEntered{err}
		}
		// Who hides a namespace keeps no sockets of others open.
		if why, ok := errors.AsType[*notEntered](err); ok {
			for _, t := range targets {
				done(t, why)
			}
		} else if err != nil {
			return fmt.Errorf("close sockets of network namespace %d: %w", inode, err)
		}
	}
	return nil
}

// destroyAll works in the namespace that the thread is in.
func destroyAll(targets []Target, done func(Target, error)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("open a socket of NETLINK_SOCK_DIAG: %w: the kernel must be built with CONFIG_INET_DIAG", err)
	}
	defer unix.Close(fd)
	if err := checkTCPDiag(fd); err != nil {
		return err
	}
	for i, t := range targets {
		err := ask(fd, diagRequest(sockDestroy, unix.NLM_F_ACK, uint32(i+1), t))
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
			err = ErrGone
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("this kernel cannot close sockets: it must be built with CONFIG_INET_DIAG_DESTROY=y: %w", err)
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("no permission to close sockets: CAP_NET_ADMIN is needed: %w", err)
		}
		done(t, err)
	}
	return nil
}

// checkTCPDiag asks for no socket at all. A kernel without tcp_diag says ENOENT, as
// it would for a socket that is gone.
func checkTCPDiag(fd int) error {
	err := ask(fd, diagRequest(sockDiagByFamily, unix.NLM_F_DUMP, 0, Target{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)}))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("this kernel cannot look up sockets: load the module tcp_diag (CONFIG_INET_TCP_DIAG): %w", err)
	}
	return err
}

// diagRequest is a struct nlmsghdr and a struct inet_diag_req_v2.
func diagRequest(kind, flags uint16, seq uint32, t Target) []byte {
	const size = unix.SizeofNlMsghdr + diagRequestSize
	b := make([]byte, 0, size)
	host := binary.NativeEndian
	b = host.AppendUint32(b, size)
	b = host.AppendUint16(b, kind)
	b = host.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = host.AppendUint32(b, seq)
	b = host.AppendUint32(b, 0) // the kernel fills in who we are
	family := byte(unix.AF_INET)
	if t.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	states := ^uint32(0)
	if flags&unix.NLM_F_DUMP != 0 {
		states = 0
	}
	b = host.AppendUint32(b, states)
	b = binary.BigEndian.AppendUint16(b, t.Local.Port())
	b = binary.BigEndian.AppendUint16(b, t.Remote.Port())
	b = appendAddr(b, t.Local.Addr())
	b = appendAddr(b, t.Remote.Addr())
	b = host.AppendUint32(b, t.Device) // 0 finds no socket that is bound to one
	b = host.AppendUint32(b, uint32(t.Cookie))
	return host.AppendUint32(b, uint32(t.Cookie>>32))
}

func appendAddr(b []byte, addr netip.Addr) []byte {
	var field [16]byte
	copy(field[:], addr.AsSlice())
	return append(b, field[:]...)
}

// ask sends a request and waits for its answer, which is an error or none.
func ask(fd int, request []byte) error {
	if err := unix.Send(fd, request, 0); err != nil {
		return fmt.Errorf("ask the kernel: %w", err)
	}
	answer := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(fd, answer, 0)
	}
	const head = unix.SizeofNlMsghdr
	if err == nil && n < head+int(unsafe.Sizeof(int32(0))) {
		err = fmt.Errorf("an answer of %d bytes is too short", n)
	}
	if err != nil {
		return fmt.Errorf("read the kernel's answer: %w", err)
	}
	// NLMSG_ERROR and NLMSG_DONE both begin with the error, negative.
	if code := int32(binary.NativeEndian.Uint32(answer[head:])); code < 0 {
		return unix.Errno(-code)
	}
	return nil
}

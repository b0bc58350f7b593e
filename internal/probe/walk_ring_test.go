package probe_test

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Requests of io_uring, see linux/io_uring.h.
const (
	ringAccept = 13
	ringClose  = 19
	ringRead   = 22

	ringAsync = 1 << 4 // IOSQE_ASYNC: a worker does it
)

// ringOwner: what a process does through io_uring is its own doing, in io_uring_enter() as well
// as in a worker. Here it accepts, may read, and closes.
func ringOwner(n *netns, flags int, reads bool) {
	needRing(flags)
	l := n.listener(web)
	server := n.agent("server", l)
	request := func(operation int, fd string) string {
		return server.do(fmt.Sprint("ring ", fd, " ", operation, " ", flags))
	}
	c := n.client(l.local)
	s := n.queued(c, l.local)
	s.accepted, s.acceptedBy = true, "server"
	fd := request(ringAccept, "4")
	before, after := "inherited", "close:server"
	if reads {
		before, after = "use:server", "use:server"
		c.write("request")
		request(ringRead, fd)
	}
	n.rest()
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", func() { request(ringClose, fd) }, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received  by=` + before + `
answer  CLOSE_WAIT>LAST_ACK     local_close   by=` + after + `
answer  LAST_ACK>CLOSE          fin_acked`)
}

func needRing(flags int) {
	r, err := newRing()
	switch err {
	case unix.ENOSYS:
		panic(notHere("this kernel is built without io_uring (CONFIG_IO_URING)"))
	case unix.EPERM:
		panic(notHere("this kernel refuses io_uring (sysctl kernel.io_uring_disabled)"))
	}
	check(err, "set up an io_uring")
	defer r.close()
	const nativeWorkers = 1 << 9 // IORING_FEAT_NATIVE_WORKERS
	if flags&ringAsync != 0 && r.Features&nativeWorkers == 0 {
		panic(notHere("the workers of io_uring are not the process's own (until 5.12)"))
	}
}

// ring is an io_uring that serves one request at a time.
type ring struct {
	ringParams
	fd       int
	sq, cq   []byte // the rings
	requests []byte // what sq points to: struct io_uring_sqe
	buf      [256]byte
}

// ringParams is struct io_uring_params.
type ringParams struct {
	SQEntries, CQEntries uint32
	_                    [3]uint32
	Features             uint32
	_                    [4]uint32
	SQ                   struct{ Head, Tail, Mask, _, _, _, Array, _, _, _ uint32 } // offsets
	CQ                   struct{ Head, Tail, Mask, _, _, Results, _, _, _, _ uint32 }
}

const requestSize, resultSize = 64, 16

func newRing() (r *ring, err error) {
	r = &ring{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&r.ringParams)), 0)
	if errno != 0 {
		return nil, errno
	}
	r.fd = int(fd)
	for _, m := range []struct {
		to     *[]byte
		offset int64 // IORING_OFF_*
		size   uint32
	}{
		{&r.sq, 0, r.SQ.Array + 4*r.SQEntries},
		{&r.cq, 0x8000000, r.CQ.Results + resultSize*r.CQEntries},
		{&r.requests, 0x10000000, requestSize * r.SQEntries},
	} {
		*m.to, err = unix.Mmap(r.fd, m.offset, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

func (r *ring) close() {
	for _, m := range [][]byte{r.sq, r.cq, r.requests} {
		if m != nil {
			unix.Munmap(m)
		}
	}
	unix.Close(r.fd)
}

// do has the kernel do one thing and returns what the system call would.
func (r *ring) do(operation, flags byte, fd int) (int, error) {
	request := r.requests[:requestSize] // the only one
	clear(request)
	request[0], request[1] = operation, flags
	binary.NativeEndian.PutUint32(request[4:], uint32(fd))
	if operation == ringRead {
		binary.NativeEndian.PutUint64(request[16:], uint64(uintptr(unsafe.Pointer(&r.buf))))
		binary.NativeEndian.PutUint32(request[24:], uint32(len(r.buf)))
	}
	atomic.AddUint32(word(r.sq, r.SQ.Tail), 1) // its place in the array is 0, as the array is
	const getEvents = 1                        // IORING_ENTER_GETEVENTS
	for submit := uintptr(1); ; submit = 0 {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, getEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return 0, errno
		}
		if atomic.LoadUint32(word(r.cq, r.CQ.Tail)) != atomic.LoadUint32(word(r.cq, r.CQ.Head)) {
			break
		}
	}
	at := atomic.AddUint32(word(r.cq, r.CQ.Head), 1) - 1
	result := r.cq[r.CQ.Results+resultSize*(at&*word(r.cq, r.CQ.Mask)):]
	code := int32(binary.NativeEndian.Uint32(result[8:]))
	if code < 0 {
		return 0, unix.Errno(-code)
	}
	return int(code), nil
}

func word(memory []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&memory[offset])) }

// agentRing answers with the descriptor that accept gives.
func agentRing(fd, operation, flags int) (string, error) {
	r, err := newRing()
	if err != nil {
		return "", err
	}
	defer r.close()
	result, err := r.do(byte(operation), byte(flags), fd)
	return fmt.Sprint(result), err
}

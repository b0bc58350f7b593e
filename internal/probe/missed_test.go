package probe_test

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// A change that the kernel kept from us is counted when the socket changes again, and
// no duration is made up of what was not seen.
func TestMissedTransition(t *testing.T) {
	need.Kernel(t)
	err := onOwnThread(func() {
		p := must(probe.Open(probe.Config{OwnerRefresh: -1}))
		defer p.Close()
		client, server := connectedPair()
		defer unix.Close(client)
		defer unix.Close(server)
		clientCookie, serverCookie := cookieOf(client), cookieOf(server)

		p.Detach()
		halfCloseAndWait(client)
		check(p.Reattach(), "attach again")
		check(unix.Shutdown(server, unix.SHUT_WR), "shut down the server")

		want := map[uint64]tcp.Event{ // the first that is seen of each, after ESTABLISHED
			serverCookie: {Old: tcp.CloseWait, New: tcp.LastAck, DurationKind: tcp.Unknown},
			clientCookie: {Old: tcp.FinWait2, New: tcp.TimeWait, DurationKind: tcp.Unknown},
		}
		unseen := uint64(0)
		readUntil(p, "both ends", func(e *tcp.Event) bool {
			if e.Kind == tcp.Lost && e.Where == tcp.WhereHook {
				unseen += e.Lost
			}
			w, ours := want[e.Cookie]
			if ours && e.New != tcp.Established && e.Old != tcp.Close {
				if e.Old != w.Old || e.New != w.New || e.DurationKind != w.DurationKind {
					t.Errorf("got %v>%v, duration %q, want %v>%v, duration %q", e.Old, e.New, e.DurationKind, w.Old, w.New, w.DurationKind)
				}
				delete(want, e.Cookie)
			}
			return len(want) == 0 && unseen >= 2
		})
		if unseen != 2 {
			t.Errorf("%d changes are said to be unseen, want 2", unseen)
		}
	})
	report(t, err)
}

// What is remembered of a socket whose end was not seen is not said of the next one at
// its address, and TrackedSockets does not show it.
func TestMissedEnd(t *testing.T) {
	need.Kernel(t)
	err := onOwnThread(func() {
		if kernelBefore(5, 12) {
			panic(notHere("programs get no socket cookies (since 5.12), by which a socket is told from the next one at its address"))
		}
		pin(0) // each CPU has a slab of its own to take sockets from
		p := must(probe.Open(probe.Config{OwnerRefresh: -1, KernelAddr: true, Tracked: true}))
		defer p.Close()
		client, server := connectedPair()
		ghost := cookieOf(server)
		var address uint64
		readUntil(p, "the server's end", func(e *tcp.Event) bool {
			if e.Cookie == ghost {
				address = e.SkAddr
			}
			return address != 0
		})
		p.Detach()
		check(unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "set SO_LINGER")
		check(unix.Close(client), "close the client")
		eventually(patience, "the RST comes", func() bool { return stateOf(server) == tcp.Close })
		check(unix.Close(server), "close the server")
		check(p.Reattach(), "attach again")
		if row := findRow(t, p, tcp.Established, ghost); row != nil {
			t.Errorf("a socket that is gone has a row: %+v", row)
		}
		// As a rule the allocator hands out first what was freed last; else the slab's turn comes.
		for range 2000 {
			fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
			defer unix.Close(fd)
			check(unix.Listen(fd, 1), "listen")
			cookie, at := cookieOf(fd), uint64(0)
			readUntil(p, "CLOSE > LISTEN", func(e *tcp.Event) bool {
				if e.New == tcp.Listen && e.SkAddr == address && e.Cookie != cookie {
					fail("the new socket %x at %#x is shown as %x, the old one was %x", cookie, address, e.Cookie, ghost)
				}
				if e.Cookie == cookie {
					at = e.SkAddr
					if e.DurationKind != "" || e.Role != tcp.Listener {
						t.Errorf("a new socket's CLOSE > LISTEN has duration kind %q and role %q", e.DurationKind, e.Role)
					}
				}
				return at != 0
			})
			if at == address {
				return
			}
		}
		fail("no socket got the address of the old one")
	})
	report(t, err)
}

// connectedPair connects two sockets over loopback.
func connectedPair() (client, server int) {
	l := listenOnLoopback()
	defer unix.Close(l)
	client = connectTo(l)
	server, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	check(err, "accept")
	return client, server
}

func listenOnLoopback() int {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	check(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), "bind")
	check(unix.Listen(fd, 4096), "listen")
	return fd
}

func connectTo(listener int) int {
	to := must(unix.Getsockname(listener))
	family := unix.AF_INET
	if addrPort(to).Addr().Is6() {
		family = unix.AF_INET6
	}
	fd := must(unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	check(unix.Connect(fd, to), "connect")
	return fd
}

// closeInOrder closes both ends, and the client's goes on in TIME_WAIT. The FIN may be on its way for
// a while (ksoftirqd), and another one would cross it.
func closeInOrder(client, server int) {
	check(unix.Close(client), "close the client")
	eventually(patience, "the client's FIN comes", func() bool { return stateOf(server) == tcp.CloseWait })
	check(unix.Close(server), "close the server")
}

func cookieOf(fd int) uint64 { return must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)) }

// readUntil gives events to done until it is.
func readUntil(p *probe.Probe, what string, done func(*tcp.Event) bool) {
	p.SetDeadline(time.Now().Add(patience))
	var e tcp.Event
	for more := true; more; more = !done(&e) {
		check(p.Read(&e), what)
	}
}

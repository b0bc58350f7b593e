package probe_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// TestDestroy closes a socket by its cookie, and not the one that has taken over its
// addresses meanwhile.
func TestDestroy(t *testing.T) {
	need.Kernel(t)
	runtime.LockOSThread() // the thread ends with the test, and its namespace too
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	loopbackUp(t)
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, device := range []string{"", "lo"} {
			t.Run(addr+"%"+device, func(t *testing.T) { testDestroy(t, inThisNamespace(t), netip.MustParseAddr(addr), device) })
		}
	}
}

// testDestroy runs on another thread than its parent: it enters the namespace.
func testDestroy(t *testing.T, namespace *os.File, addr netip.Addr, device string) {
	runtime.LockOSThread()
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(namespace.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	netns := uint32(st.Ino)
	hidden := hiddenNamespace(t)
	p, err := probe.Open(probe.Config{NetNS: netns, OwnerRefresh: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	nothing := func(*tcp.Event) error { return nil }
	if err := p.Seed(nothing); err != nil {
		t.Fatal(err)
	}
	destroy := func(target probe.Target) error {
		result := errors.New("not asked")
		if err := p.Destroy([]probe.Target{target}, func(_ probe.Target, err error) { result = err }); err != nil {
			t.Fatal(err)
		}
		return result
	}

	listener := bound(t, addr)
	if err := unix.Listen(listener, 8); err != nil {
		t.Fatal(err)
	}
	server := localEnd(t, listener)
	first := bound(t, addr)
	client := localEnd(t, first)
	connect := func(fd int) probe.Target {
		t.Helper()
		if err := unix.BindToDevice(fd, device); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, sockaddr(server)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := unix.Accept(listener); err != nil {
			t.Fatal(err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		target := probe.Target{NetNS: netns, Cookie: cookie, Local: client, Remote: server}
		if device != "" {
			target.Device = uint32(must(net.InterfaceByName(device)).Index)
		}
		return target
	}
	old := connect(first)

	// The same addresses, another connection.
	if err := unix.SetsockoptLinger(first, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		t.Fatal(err)
	}
	unix.Close(first)
	second := boundTo(t, client)
	now := connect(second)
	if old.Cookie == now.Cookie {
		t.Fatalf("the cookie %x came twice", now.Cookie)
	}
	if err := destroy(old); !errors.Is(err, probe.ErrGone) {
		t.Errorf("destroy the connection that is gone: got %v, want ErrGone", err)
	}
	if _, err := unix.Write(second, []byte("alive")); err != nil {
		t.Errorf("the connection that took its addresses: %v", err)
	}
	if err := destroy(now); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if _, err := unix.Read(second, make([]byte, 1)); err != unix.ECONNABORTED {
		t.Errorf("read from what was destroyed: %v, want ECONNABORTED", err)
	}
	if err := destroy(now); !errors.Is(err, probe.ErrGone) {
		t.Errorf("destroy twice: got %v, want ErrGone", err)
	}
	if first, last, err := p.PortRange(netns); err != nil || first == 0 || last < first {
		t.Errorf("port range %d to %d, %v", first, last, err)
	}

	// Who hides a namespace, or takes it away, keeps no other socket open.
	third := bound(t, addr)
	client = localEnd(t, third)
	results := map[uint32]error{}
	targets := []probe.Target{{NetNS: hidden, Cookie: 1}, {NetNS: 1, Cookie: 1}, connect(third)}
	if err := p.Destroy(targets, func(t probe.Target, err error) { results[t.NetNS] = err }); err != nil {
		t.Errorf("destroy in three namespaces: %v", err)
	}
	if results[hidden] == nil || results[1] == nil || results[netns] != nil {
		t.Errorf("destroy in three namespaces: got %v, want an error in %d and 1", results, hidden)
	}
	if _, err := unix.Read(third, make([]byte, 1)); err != unix.ECONNABORTED {
		t.Errorf("read from what was destroyed: %v, want ECONNABORTED", err)
	}
}

// hiddenNamespace makes a network namespace that nothing but a mount keeps, and mounts
// something over it.
func hiddenNamespace(t *testing.T) (inode uint32) {
	t.Helper()
	point := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inode = mountedOnly(t, point)
	mount(t, "/dev/null", point)
	return inode
}

func inThisNamespace(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifreq.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq); err != nil {
		t.Fatal(err)
	}
}

func bound(t *testing.T, addr netip.Addr) int {
	t.Helper()
	return boundTo(t, netip.AddrPortFrom(addr, 0))
}

func boundTo(t *testing.T, end netip.AddrPort) int {
	t.Helper()
	family := unix.AF_INET
	if end.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(end))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func localEnd(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return addrPort(sa)
}

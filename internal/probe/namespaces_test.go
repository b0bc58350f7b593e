package probe_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// inNewNamespace runs f on a thread that has its own network namespace, and returns the number
// of that. The thread stays there until the test ends.
func inNewNamespace(t *testing.T, f func()) (inode uint32) {
	t.Helper()
	stay := make(chan struct{})
	done := make(chan error)
	go func() {
		err := onOwnThread(func() {
			check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
			var st unix.Stat_t
			check(unix.Stat("/proc/thread-self/ns/net", &st), "stat the network namespace")
			inode = uint32(st.Ino)
			(&netns{}).linkUp("lo")
			f()
			done <- nil
			<-stay
		})
		done <- err
	}()
	if err := <-done; err != nil {
		report(t, err)
		t.FailNow()
	}
	t.Cleanup(func() {
		close(stay)
		<-done
	})
	return inode
}

// listedIn lists the listeners of a namespace.
func listedIn(t *testing.T, inode uint32) (rows []tcp.Event, err error) {
	t.Helper()
	err = probe.Sockets(probe.Config{}, func(e *tcp.Event) error {
		if e.NetNS == inode && e.New == tcp.Listen {
			rows = append(rows, *e)
		}
		return nil
	})
	return rows, err
}

// A namespace is found that only one thread of a process is in, not the main one.
func TestNamespaceOfThread(t *testing.T) {
	need.Kernel(t)
	var fd int
	inode := inNewNamespace(t, func() { fd = listenOnLoopback() })
	defer unix.Close(fd)
	rows, err := listedIn(t, inode)
	if err != nil || len(rows) != 1 || rows[0].FD != int32(fd) || rows[0].PID != uint32(os.Getpid()) {
		t.Errorf("got rows %+v, %v, want one, fd %d", rows, err, fd)
	}
}

// A namespace is found that nothing but a socket keeps alive.
func TestNamespaceOfSocket(t *testing.T) {
	need.Kernel(t)
	var fd int
	var inode uint32
	left := make(chan error)
	go func() {
		left <- onOwnThread(func() { // it ends, and leaves the namespace
			check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
			var st unix.Stat_t
			check(unix.Stat("/proc/thread-self/ns/net", &st), "stat the network namespace")
			inode = uint32(st.Ino)
			(&netns{}).linkUp("lo")
			fd = listenOnLoopback()
		})
	}()
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	threadsGone(t, inode)
	rows, err := listedIn(t, inode)
	if err != nil || len(rows) != 1 || rows[0].FD != int32(fd) {
		t.Errorf("got rows %+v, %v, want one, fd %d", rows, err, fd)
	}
}

// threadsGone waits until no thread of ours is in the namespace.
func threadsGone(t *testing.T, inode uint32) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		links, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		inside := 0
		for _, link := range links {
			if to, _ := os.Readlink(link); to == fmt.Sprintf("net:[%d]", inode) {
				inside++
			}
		}
		if inside == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are still in namespace %d", inside, inode)
		}
	}
}

// What is mounted over the mount point of a namespace neither holds up the list nor ends it:
// the namespace is skipped, and the error says so.
func TestHiddenNamespace(t *testing.T) {
	need.Kernel(t)
	for name, make := range map[string]func(string) error{
		"FIFO":    func(path string) error { return unix.Mkfifo(path, 0o600) },
		"regular": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"device":  func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := make(filepath.Join(dir, "hides")); err != nil {
				t.Fatal(err)
			}
			point := filepath.Join(dir, "ns")
			if err := os.WriteFile(point, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			inode := mountedOnly(t, point)
			if rows, err := listedIn(t, inode); err != nil || len(rows) != 0 {
				t.Fatalf("got rows %+v, %v, want none", rows, err)
			}
			mount(t, filepath.Join(dir, "hides"), point)
			var skipped *probe.SkippedError
			if _, err := listedIn(t, inode); !errors.As(err, &skipped) || skipped.Count != 1 {
				t.Errorf("got error %v, want that one namespace was skipped", err)
			}
		})
	}
}

// A directory that is mounted on itself hides what was mounted in it, as
// 'mount --bind /run/netns /run/netns' does.
func TestNamespaceBelowAnotherMount(t *testing.T) {
	need.Kernel(t)
	dir := t.TempDir()
	point := filepath.Join(dir, "ns")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inode := mountedOnly(t, point)
	mount(t, dir, dir)
	var skipped *probe.SkippedError
	if _, err := listedIn(t, inode); !errors.As(err, &skipped) || skipped.Count != 1 {
		t.Errorf("got error %v, want that one namespace was skipped", err)
	}
}

// Another user keeps a network namespace in a mount namespace of their own, and hides it.
func TestNamespaceHiddenByAnotherUser(t *testing.T) {
	need.Kernel(t)
	user := hostile.Shell(t, `
mount -t tmpfs none /mnt
cd /mnt
touch ns
mkfifo fifo
name=$(unshare -n sh -ec 'readlink /proc/self/ns/net; mount --bind /proc/self/ns/net ns')
mount --bind fifo ns
echo "$name"
read end`)
	var inode uint32
	if _, err := fmt.Sscanf(user.Line, "net:[%d]", &inode); err != nil {
		t.Fatalf("%q: %v", user.Line, err)
	}
	var skipped *probe.SkippedError
	if _, err := listedIn(t, inode); !errors.As(err, &skipped) || skipped.Count != 1 {
		t.Errorf("got error %v, want that one namespace was skipped", err)
	}
}

// A namespace that is mounted below a file system which does not answer is skipped at once.
func TestNamespaceBelowHungFileSystem(t *testing.T) {
	need.Kernel(t)
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	at := hostile.Dir(t)
	user := hostile.Contained.HungFS(t, at, shell, "-ec",
		`name=$(unshare -n sh -ec 'readlink /proc/self/ns/net; mount --bind /proc/self/ns/net '"$0"); echo "$name"; read end`, filepath.Join(at, "fs/app"))
	var inode uint32
	if _, err := fmt.Sscanf(user.Line, "net:[%d]", &inode); err != nil {
		t.Fatalf("%q: %v", user.Line, err)
	}
	var skipped *probe.SkippedError
	if _, err := listedIn(t, inode); !errors.As(err, &skipped) || skipped.Count != 1 {
		t.Errorf("got error %v, want that one namespace was skipped", err)
	}
}

func mount(t *testing.T, what, point string) {
	t.Helper()
	if err := unix.Mount(what, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
}

// mountedOnly makes a namespace that only a mount keeps.
func mountedOnly(t *testing.T, point string) (inode uint32) {
	t.Helper()
	done := make(chan error)
	go func() {
		done <- onOwnThread(func() {
			check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
			var st unix.Stat_t
			check(unix.Stat("/proc/thread-self/ns/net", &st), "stat the network namespace")
			inode = uint32(st.Ino)
			mount(t, fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), point)
		})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	threadsGone(t, inode)
	return inode
}

// Hundreds of namespaces at once are all listed.
func TestManyNamespaces(t *testing.T) {
	need.Kernel(t)
	const many = 400
	listeners := map[uint32]int{}
	err := onOwnThread(func() {
		for range many {
			check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
			var st unix.Stat_t
			check(unix.Stat("/proc/thread-self/ns/net", &st), "stat the network namespace")
			(&netns{}).linkUp("lo")
			listeners[uint32(st.Ino)] = listenOnLoopback()
		}
	})
	report(t, err)
	defer func() {
		for _, fd := range listeners {
			unix.Close(fd)
		}
	}()
	began := time.Now()
	err = probe.Sockets(probe.Config{}, func(e *tcp.Event) error {
		if fd, ours := listeners[e.NetNS]; ours && e.New == tcp.Listen && e.FD == int32(fd) {
			delete(listeners, e.NetNS)
			unix.Close(fd)
		}
		return nil
	})
	if err != nil || len(listeners) > 0 {
		t.Errorf("%d of %d namespaces are not listed: %v", len(listeners), many, err)
	}
	t.Logf("%d namespaces in %v", many, time.Since(began))
}

// What others make costs a start so much time and no more, and hides nothing of root's.
func TestNamespacesOfOthersHaveALimit(t *testing.T) {
	need.Kernel(t)
	const many = 5
	user := hostile.Shell(t, fmt.Sprintf(`
exec 3<&0
for i in $(seq %d); do unshare -n sh -c 'echo there; exec cat' <&3 & done
read end`, many))
	if _, err := io.ReadAtLeast(user.More, make([]byte, 100), len("there\n")*(many-1)); err != nil {
		t.Fatal(err)
	}
	var fd int
	inode := inNewNamespace(t, func() { fd = listenOnLoopback() })
	defer unix.Close(fd)
	for limit, want := range map[time.Duration]bool{time.Nanosecond: true, time.Hour: false} {
		ours := 0
		err := probe.Sockets(probe.Config{OthersTime: limit}, func(e *tcp.Event) error {
			if e.NetNS == inode && e.New == tcp.Listen {
				ours++
			}
			return nil
		})
		skipped, is := errors.AsType[*probe.SkippedError](err)
		if is != want || is && (skipped.Count < many || !strings.Contains(err.Error(), "takes too long")) || ours != 1 {
			t.Errorf("with %v: %d rows of root, error %v", limit, ours, err)
		}
	}
}

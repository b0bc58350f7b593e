package procfs

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// process makes a directory like /proc/PID, with a root to put files in.
func process(t *testing.T) (dir, root string) {
	t.Helper()
	dir = t.TempDir()
	root = filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, root
}

// opens counts how often files in a directory were opened since; to find one is not to
// open it.
func opens(t *testing.T, dir string) func() int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_OPEN)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() (n int) {
		buf := make([]byte, 1<<16)
		size, _ := unix.Read(fd, buf)
		for at := 0; at < size; n++ {
			at += unix.SizeofInotifyEvent + int((*unix.InotifyEvent)(unsafe.Pointer(&buf[at])).Len)
		}
		return n
	}
}

// What is not a regular file is not opened at all: to open a FIFO waits, to open a device
// acts.
func TestOtherFilesAreNotOpened(t *testing.T) {
	dir, root := process(t)
	listener, err := net.Listen("unix", filepath.Join(root, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, err := range []error{
		unix.Mkfifo(root+"/fifo", 0o666),
		os.Mkdir(root+"/directory", 0o755),
		os.Symlink("/loop", root+"/loop"),
		os.Symlink("/proc/self/exe", root+"/magic"),
		os.Symlink("../../../../../../../../etc/passwd", root+"/outside"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]error{
		"fifo": ErrAnotherFile, "directory": ErrAnotherFile, "socket": ErrAnotherFile,
		"loop": unix.ELOOP, "magic": unix.ENOENT, "outside": unix.ENOENT, "nothing": unix.ENOENT,
		"fifo/x": unix.ENOTDIR, strings.Repeat("x", 300): unix.ENAMETOOLONG, "": unix.ENOENT,
	}
	if os.Getuid() == 0 {
		if err := unix.Mknod(root+"/device", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		names["device"] = ErrAnotherFile
	}
	opened := opens(t, root)
	for name, want := range names {
		f, err := openFile(dir, name)
		if f != nil || !errors.Is(err, want) {
			t.Errorf("%s: got %v, %v, want %v", name, f, err, want)
		}
	}
	if n := opened(); n != 0 {
		t.Errorf("%d files were opened", n)
	}
	if err := os.WriteFile(root+"/fine\n", []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened() // by WriteFile
	f, err := openFile(dir, "/fine\n")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); string(text) != "text" || err != nil || opened() != 1 {
		t.Errorf("got %q, %v, want the file, opened once", text, err)
	}
}

func openFile(process, path string) (*os.File, error) {
	found, err := FindFile(process, path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	return found.OpenRegular()
}

// Files that the kernel makes up are not read for whoever may not read them: to read
// /proc/kmsg takes messages away.
func TestFilesOfTheKernelAreNotOpened(t *testing.T) {
	for _, link := range []string{"/proc/self/status", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/uevent_seqnum"} {
		found, err := FindLink(link)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		if f, err := found.OpenRegular(); !errors.Is(err, ErrAnotherFile) {
			t.Errorf("%s: got %v, %v, want ErrAnotherFile", link, f, err)
		}
	}
}

func TestOpenNamespace(t *testing.T) {
	for link, want := range map[string]error{
		"/proc/self/ns/net": nil, "/proc/self/ns/mnt": nil,
		"/proc/self/exe": ErrAnotherFile, "/dev/null": ErrAnotherFile, "/proc/self/status": ErrAnotherFile,
	} {
		found, err := FindLink(link)
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		f, err := found.OpenNamespace()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, %v, want %v", link, f, err, want)
		}
		if f != nil {
			f.Close()
		}
	}
}

// An unprivileged user mounts something over what root looks for.
func TestMountsOfAnotherUser(t *testing.T) {
	need.Kernel(t)
	dir := hostile.Shell(t, `
mount -t tmpfs none /mnt
cd /mnt
mkfifo fifo; mkdir directory; touch ns kmsg over
mount --bind /proc/kmsg kmsg
unshare -n mount --bind /proc/self/ns/net ns
unshare -n mount --bind /proc/self/ns/net over
mount --bind fifo over
echo ready
read end`).Dir()
	for name, want := range map[string]error{"fifo": ErrAnotherFile, "directory": ErrAnotherFile, "kmsg": ErrAnotherFile, "ns": ErrAnotherFile, "over": ErrAnotherFile} {
		if f, err := openFile(dir, "/mnt/"+name); f != nil || !errors.Is(err, want) {
			t.Errorf("as a file: %s: got %v, %v, want %v", name, f, err, want)
		}
	}
	for name, want := range map[string]error{"ns": nil, "over": ErrAnotherFile, "fifo": ErrAnotherFile, "kmsg": ErrAnotherFile} {
		found, err := FindMount(dir, "/mnt/"+name)
		if err != nil {
			t.Errorf("find %s: %v", name, err)
			continue
		}
		defer found.Close()
		f, err := found.OpenNamespace()
		if !errors.Is(err, want) {
			t.Errorf("as a namespace: %s: got %v, %v, want %v", name, f, err, want)
		}
		if f != nil {
			f.Close()
		}
	}
	if OfInitialUser(dir+"/ns/mnt") || !OfInitialUser("/proc/self/ns/mnt") {
		t.Error("the mount namespace is taken for one of the initial user namespace, or that for another one")
	}
}

// To find a mount point below a file system that does not answer takes no time: the kernel
// knows the name, or it is not asked.
func TestFindMountDoesNotWait(t *testing.T) {
	need.Kernel(t)
	if !cachedLookup(t) {
		t.Log("this kernel has no RESOLVE_CACHED: what other users have mounted is not looked up at all")
	}
	t.Run("nobody", func(t *testing.T) { findHungMount(t, hostile.Nobody) })
	// The file server is only asked for users whom its user namespace knows.
	t.Run("contained root", func(t *testing.T) { findHungMount(t, hostile.Contained) })
}

func findHungMount(t *testing.T, user hostile.User) {
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	at := hostile.Dir(t)
	app := filepath.Join(at, "fs/app")
	dir := user.HungFS(t, at, shell, "-ec", `mount --bind /proc/self/ns/net "$0"; echo ready; read end`, app).Dir()
	looked := make(chan error, 1)
	go func() { // on a thread that can be left behind
		found, err := FindMount(dir, app)
		if err == nil {
			found.Close()
		}
		looked <- err
	}()
	select {
	case err := <-looked:
		t.Logf("found: %v", err)
	case <-time.After(5 * time.Second):
		t.Errorf("it waits; it is left to the end of the file server")
	}
}

func cachedLookup(t *testing.T) bool {
	t.Helper()
	root, err := openRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	fd, err := lookUp(root, "/proc", 0x20)
	unix.Close(fd)
	return err == nil
}

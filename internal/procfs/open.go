package procfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Found is a file that was looked up in /proc and not opened (O_PATH). What lies behind a
// link of a process, or below its root, is for its user to choose: a FIFO that would hold
// us up, a device that acts when it is opened, a file of the kernel that would be read with
// our rights. So a file is found first, looked at, and only then opened. Close it.
type Found struct {
	fd   int
	name string
}

// ErrAnotherFile says that a path leads to a file of another kind than was asked for.
var ErrAnotherFile = errors.New("another file is there")

// FindLink follows a link of /proc/PID to what the kernel has there, such as ns/net, fd/3
// or map_files/*. It asks no file server but NFS and 9P, where only root can mount those.
func FindLink(link string) (*Found, error) {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	return found(fd, link, err)
}

// FindFile looks a path up as the process with that directory in /proc does: no symbolic
// link leads out of its root. It may wait for a file server, for ever.
func FindFile(process, path string) (*Found, error) {
	root, name := filepath.Join(process, "root"), process+": "+path
	dir, err := openRoot(root)
	if err != nil {
		return found(-1, name, err)
	}
	defer unix.Close(dir)
	fd, err := lookUp(dir, path, unix.RESOLVE_NO_MAGICLINKS)
	return found(fd, name, err)
}

// FindMount is FindFile for a mount point, and waits for nobody. Mount points and the
// directories above them stay in the kernel's cache of names, and so a look into that has
// to do (RESOLVE_CACHED, Linux 5.12). Where it does not, as where access control lists are
// not in memory, others are asked only in mount namespaces in which none but root mounts.
func FindMount(process, path string) (*Found, error) {
	const resolveCached = 0x20 // linux/openat2.h
	name := process + ": " + path
	dir, err := openRoot(filepath.Join(process, "root"))
	if err != nil {
		return found(-1, name, err)
	}
	defer unix.Close(dir)
	fd, err := lookUp(dir, path, resolveCached)
	for try := 0; err == unix.EAGAIN && try < 10; try++ { // a rename or a mount came in between
		fd, err = lookUp(dir, path, resolveCached)
	}
	if (err == unix.EINVAL || err == unix.EAGAIN) && OfInitialUser(filepath.Join(process, "ns/mnt")) {
		fd, err = lookUp(dir, path, 0)
	}
	return found(fd, name, err)
}

func found(fd int, name string, err error) (*Found, error) {
	if err != nil {
		return nil, &os.PathError{Op: "find", Path: name, Err: err}
	}
	return &Found{fd, name}, nil
}

func openRoot(root string) (int, error) {
	return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func lookUp(root int, path string, resolve uint64) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | resolve,
	})
}

// OfInitialUser reports whether a namespace belongs to the initial user namespace: then a
// user without privileges changes nothing in it.
func OfInitialUser(namespace string) bool {
	f, err := FindLink(namespace)
	if err != nil {
		return false
	}
	defer f.Close()
	ns, err := f.OpenNamespace()
	if err != nil {
		return false
	}
	defer ns.Close()
	return IsOfInitialUser(ns)
}

// IsOfInitialUser is OfInitialUser for one that is open. The number is PROC_USER_INIT_INO of
// include/linux/proc_ns.h.
func IsOfInitialUser(ns *os.File) bool {
	const initial = 0xEFFFFFFD
	user, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	defer unix.Close(user)
	var st unix.Stat_t
	return unix.Fstat(user, &st) == nil && st.Ino == initial
}

// Close lets the file go.
func (f *Found) Close() { unix.Close(f.fd) }

// Stat looks at the file, and may wait for its file server.
func (f *Found) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(f.fd, &st)
	return st, err
}

// OpenNamespace opens the file if it is a namespace, and waits for nobody. Otherwise the
// error is ErrAnotherFile.
func (f *Found) OpenNamespace() (*os.File, error) {
	var st unix.Statx_t
	var own unix.Stat_t
	// Not fstatfs(2): a file server would be asked. This is the device of nsfs.
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err == nil {
		err = unix.Stat("/proc/self/ns/net", &own)
	}
	if err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) != own.Dev {
		err = ErrAnotherFile
	}
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", f.name, err)
	}
	return f.open()
}

// OpenRegular opens the file if it is a regular one that somebody has stored. Otherwise the
// error is ErrAnotherFile. It may wait for a file server, but not for whoever holds a
// lease on the file.
func (f *Found) OpenRegular() (*os.File, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	err := unix.Fstat(f.fd, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		err = unix.Fstatfs(f.fd, &fs)
	}
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || madeUp[uint32(fs.Type)]) {
		err = ErrAnotherFile
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.name, err)
	}
	return f.open()
}

// madeUp are the file systems whose regular files are not stored: the kernel makes up what
// is read, and reading may have effects, as it has with /proc/kmsg and trace_pipe. Who may
// not read such a file can still mount it where we look for another one.
var madeUp = map[uint32]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.TRACEFS_MAGIC: true, unix.DEBUGFS_MAGIC: true,
	unix.SECURITYFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.BPF_FS_MAGIC: true, unix.BINFMTFS_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.PSTOREFS_MAGIC: true,
	unix.SELINUX_MAGIC: true, unix.SMACK_MAGIC: true, unix.AAFS_MAGIC: true, unix.NSFS_MAGIC: true,
	unix.RDTGROUP_SUPER_MAGIC: true, unix.XENFS_SUPER_MAGIC: true, unix.PID_FS_MAGIC: true,
	0x62656570: true, // configfs
	0x19800202: true, // POSIX message queues
	0x65735543: true, // fusectl
}

// open makes the descriptor readable: the very file that was looked at.
func (f *Found) open() (*os.File, error) {
	// Our own descriptor: this is the live /proc, whatever process f was found with.
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.name, Err: err}
	}
	return os.NewFile(uintptr(fd), f.name), nil
}

package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// SkippedError says that network namespaces could not be entered. What is in all others
// was read.
type SkippedError struct {
	Count int
	Why   error // of one of them
}

func (e *SkippedError) Error() string {
	if e.Count == 1 {
		return fmt.Sprintf("the sockets of a network namespace are not listed: %v", e.Why)
	}
	return fmt.Sprintf("the sockets of %d network namespaces are not listed; of one of them: %v", e.Count, e.Why)
}

func (e *SkippedError) Unwrap() error { return e.Why }

// skip counts one more; a nil e begins to.
func (e *SkippedError) skip(why error) *SkippedError {
	if e == nil {
		return &SkippedError{1, why}
	}
	e.Count++
	return e
}

// asError is nil where none was skipped: a nil *SkippedError in an error would not be.
func (e *SkippedError) asError() error {
	if e == nil {
		return nil
	}
	return e
}

// namespace is a way to a network namespace: a link in /proc, a mount point or a socket.
type namespace struct {
	process string // the directory in /proc of one that has path mounted; empty: path is in /proc
	path    string // of the file; empty: by the socket
	pid, fd int    // of the socket
}

// openFile is what the walk over open files reports: a network namespace, or a
// socket of one; or a process that holds a socket too. It is struct open_file in
// bpf/snapshot.h.
type openFile struct {
	Sk      uint64 // held by the process too; 0: it leads to a namespace
	NetNS   uint32 // of a socket; 0: the file is a namespace
	PID, FD uint32
	_       uint32
	Comm    [16]uint8
}

// netNamespaces finds the network namespaces of the host: those of processes and their
// threads, those kept by a bind mount (ip netns), those kept by an open file, and those
// that only open sockets keep; the caller knows these files. A namespace that only
// closed sockets keep alive, such as in TIME_WAIT, is not found.
func netNamespaces(proc string, files []openFile) (map[uint64]namespace, error) {
	found := make(map[uint64]namespace)
	add := func(inode uint64, at namespace) {
		if _, known := found[inode]; inode != 0 && !known {
			found[inode] = at
		}
	}
	addLink := func(path string) { add(linkedNamespace(path), namespace{path: path}) }
	pids, err := numbersIn(proc)
	if err != nil {
		return nil, fmt.Errorf("find network namespaces: %w", err)
	}
	for _, pid := range pids {
		addLink(filepath.Join(proc, pid, "ns/net"))
		tasks := filepath.Join(proc, pid, "task")
		tids, _ := numbersIn(tasks) // the process may have gone
		for _, tid := range tids {
			if tid != pid {
				addLink(filepath.Join(tasks, tid, "ns/net"))
			}
		}
	}
	for _, f := range files {
		if f.NetNS == 0 {
			addLink(fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD))
		}
	}
	hidden := findMounted(proc, pids, found)
	for _, f := range files {
		add(uint64(f.NetNS), namespace{pid: int(f.PID), fd: int(f.FD)})
	}
	for inode, ns := range hidden {
		add(inode, ns)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find network namespaces: none in %s", proc)
	}
	return found, nil
}

// numbersIn lists the entries of a directory that are numbers: processes or threads.
func numbersIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	numbers := names[:0]
	for _, name := range names {
		if name[0] >= '0' && name[0] <= '9' {
			numbers = append(numbers, name)
		}
	}
	return numbers, err
}

// linkedNamespace gives the inode of the network namespace that a link in /proc names; 0:
// it does not, or it is gone.
func linkedNamespace(path string) uint64 {
	var buf [64]byte
	n, err := unix.Readlink(path, buf[:])
	if err != nil {
		return 0
	}
	return namespaceInode(string(buf[:n]))
}

// namespaceInode reads "net:[4026531840]"; 0: it is something else.
func namespaceInode(name string) uint64 {
	number, isNet := strings.CutPrefix(name, "net:[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	if !isNet || err != nil {
		return 0
	}
	return inode
}

// findMounted adds what is mounted in any mount namespace and was not found otherwise. A mount
// point may be hidden by another mount; it returns those that cannot be opened.
func findMounted(proc string, pids []string, found map[uint64]namespace) (hidden map[uint64]namespace) {
	hidden = make(map[uint64]namespace)
	seen := make(map[string]bool) // mount namespaces
	for _, pid := range pids {
		mntns, err := os.Readlink(filepath.Join(proc, pid, "ns/mnt"))
		if err != nil || seen[mntns] {
			continue
		}
		seen[mntns] = true
		for inode, ns := range mountedNamespaces(filepath.Join(proc, pid)) {
			if _, known := found[inode]; known {
				continue
			}
			file, err := ns.open()
			if err != nil {
				hidden[inode] = ns
				continue
			}
			if isInode(file, inode) {
				found[inode] = ns
			}
			file.Close()
		}
	}
	return hidden
}

// mountedNamespaces lists the mounted network namespaces that a process sees; none if it has
// gone.
func mountedNamespaces(process string) map[uint64]namespace {
	mountinfo, err := os.ReadFile(filepath.Join(process, "mountinfo"))
	if err != nil {
		return nil
	}
	mounted := make(map[uint64]namespace)
	for inode, point := range parseNamespaceMounts(bytes.NewReader(mountinfo)) {
		mounted[inode] = namespace{process: process, path: point}
	}
	return mounted
}

// parseNamespaceMounts gives the mount points of bind-mounted network namespaces
// in proc(5)'s mountinfo, by inode: the root is "net:[inode]", the type nsfs.
func parseNamespaceMounts(mountinfo io.Reader) map[uint64]string {
	points := make(map[uint64]string)
	for line := range procfs.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if inode := namespaceInode(f[3]); inode != 0 {
			points[inode] = unescapeMount(f[4])
		}
	}
	return points
}

// unescapeMount undoes mangle() of fs/seq_file.c: space, tab, newline and backslash are
// written as \ and three octal digits.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// isThere reports whether what leads to the namespace still exists.
func (ns namespace) isThere(inode uint64) bool {
	if ns.process == "" {
		return true
	}
	_, mounted := mountedNamespaces(ns.process)[inode]
	return mounted
}

// open opens the namespace, and waits for nobody: another user may have mounted a FIFO or a
// dead file server over its path. The error is fs.ErrNotExist or ESRCH where that is gone.
func (ns namespace) open() (*os.File, error) {
	var file *procfs.Found
	var err error
	switch {
	case ns.path == "":
		return openOfSocket(ns.pid, ns.fd)
	case ns.process == "":
		file, err = procfs.FindLink(ns.path)
	default:
		file, err = procfs.FindMount(ns.process, ns.path)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return file.OpenNamespace()
}

// openOfSocket opens the namespace of another process's socket.
func openOfSocket(pid, fd int) (*os.File, error) {
	name := fmt.Sprintf("network namespace of descriptor %d of process %d", fd, pid)
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(socket)
	ns, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(ns), name), nil
}

// isInode reports whether file is the namespace with that number: what led there may lead
// to another one by now.
func isInode(file *os.File, inode uint64) bool {
	var st unix.Stat_t
	return unix.Fstat(int(file.Fd()), &st) == nil && st.Ino == inode
}

// inNamespace runs f in a network namespace. One that has gone meanwhile is not an error;
// f is not run.
func inNamespace(inode uint64, ns namespace, f func() error) error {
	if isOwn(inode) { // to enter it again would take CAP_SYS_ADMIN
		return f()
	}
	target, err := ns.open()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) {
		return nil
	}
	if err != nil {
		if !ns.isThere(inode) { // it went while we looked
			return nil
		}
		return &notEntered{err}
	}
	defer target.Close()
	if !isInode(target, inode) {
		return nil
	}
	done := make(chan error)
	go func() { done <- enterNamespace(target, f) }()
	return <-done
}

// isOwn reports whether that is the namespace that this process is in.
func isOwn(inode uint64) bool { return linkedNamespace("/proc/self/ns/net") == inode }

// notEntered is why f was not run.
type notEntered struct{ error }

func (e *notEntered) Unwrap() error { return e.error }

// enterNamespace needs a thread of its own while it runs. It brings the
// thread back: to let it end with its goroutine is not enough, as the main thread
// does not end, and would keep the namespace alive. A thread that cannot be
// brought back stays locked, and so is not used again.
func enterNamespace(target *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return &notEntered{fmt.Errorf("enter network namespace %s: %w", target.Name(), err)}
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

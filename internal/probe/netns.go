package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// SkippedError says that network namespaces could not be entered, or not all be looked for.
// What is in all others was read.
type SkippedError struct {
	Count  int
	Why    error // of one of them
	Unread int   // mount namespaces of other users in which not all were looked for
}

func (e *SkippedError) Error() string {
	switch {
	case e.Unread > 0 && e.Count > 0:
		return (&SkippedError{Count: e.Count, Why: e.Why}).Error() + "; " + unsearched(e.Unread)
	case e.Unread > 0:
		return unsearched(e.Unread)
	case e.Count == 1:
		return fmt.Sprintf("the sockets of a network namespace are not listed: %v", e.Why)
	}
	return fmt.Sprintf("the sockets of %d network namespaces are not listed; of one of them: %v", e.Count, e.Why)
}

func (e *SkippedError) Unwrap() error { return e.Why }

// skip counts one more; a nil e begins to.
func (e *SkippedError) skip(why error) *SkippedError {
	if e == nil {
		e = &SkippedError{}
	}
	if e.Count == 0 {
		e.Why = why
	}
	e.Count++
	return e
}

// miss says of how many mount namespaces not all mounts were looked at.
func (e *SkippedError) miss(unread int) *SkippedError {
	if e == nil {
		e = &SkippedError{}
	}
	e.Unread = unread
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
	process string       // the directory in /proc of one that has path mounted; empty: path is in /proc
	search  *mountSearch // that has found it there
	path    string       // of the file; empty: by the socket
	pid, fd int          // of the socket
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
// closed sockets keep alive, such as in TIME_WAIT, is not found. It also returns of how many
// mount namespaces it did not look at all mounts.
func netNamespaces(proc string, files []openFile) (found map[uint64]namespace, unread int, err error) {
	found = make(map[uint64]namespace)
	add := func(inode uint64, at namespace) {
		if _, known := found[inode]; inode != 0 && !known {
			found[inode] = at
		}
	}
	addLink := func(path string) { add(linkedNamespace(path), namespace{path: path}) }
	pids, err := numbersIn(proc)
	if err != nil {
		return nil, 0, fmt.Errorf("find network namespaces: %w", err)
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
	mounts := newMountSearch(proc)
	mounts.find(pids, found)
	for _, f := range files {
		add(uint64(f.NetNS), namespace{pid: int(f.PID), fd: int(f.FD)})
	}
	for inode, ns := range mounts.hidden {
		add(inode, ns)
	}
	if len(found) == 0 {
		return nil, 0, fmt.Errorf("find network namespaces: none in %s", proc)
	}
	return found, mounts.unread, nil
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

// isThere reports whether what leads to the namespace still exists.
func (ns namespace) isThere(inode uint64) bool {
	if ns.process == "" {
		return true
	}
	return ns.search.has(ns.process, inode)
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

// byOwner lists the namespaces of root, and those that other users have; of one alone unless only
// is 0.
func byOwner(namespaces map[uint64]namespace, only uint64) (root, others []uint64) {
	for inode, ns := range namespaces {
		switch {
		case only != 0 && only != inode:
		case ns.isOfRoot():
			root = append(root, inode)
		default:
			others = append(others, inode)
		}
	}
	return root, others
}

// isOfRoot reports whether the namespace belongs to the initial user namespace, as far as it can
// be opened.
func (ns namespace) isOfRoot() bool {
	file, err := ns.open()
	if err != nil {
		return false
	}
	defer file.Close()
	return procfs.IsOfInitialUser(file)
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

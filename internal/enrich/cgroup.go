package enrich

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// mount is the cgroup v2 tree as this process sees it.
type mount struct {
	at   string   // where it is mounted, "" where it is not
	root string   // the cgroup that is mounted there, "" for the root
	real bool     // a cgroup2 file system, not a copy: an id can be opened
	tree *os.File // the whole tree, mounted nowhere; nil unless mountAll made it
}

// parseMounts reads /proc/PID/mountinfo, see proc_pid_mountinfo(5). It returns
// the first cgroup v2 mount, which shows the root unless there is no such mount,
// and whether cgroup v1 is in use.
func parseMounts(r io.Reader) (cgroup2 mount, legacy bool) {
	for line := range procfs.Lines(r) {
		// 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
		front, back, _ := strings.Cut(line, " - ")
		fields := strings.Fields(front)
		kind, _, _ := strings.Cut(back, " ")
		if len(fields) < 5 {
			continue
		}
		m := mount{at: unescape(fields[4]), root: strings.TrimSuffix(unescape(fields[3]), "/")}
		switch {
		case kind == "cgroup":
			legacy = true
		case kind == "cgroup2" && (cgroup2.at == "" || m.root == "" && cgroup2.root != ""):
			cgroup2 = m
		}
	}
	return cgroup2, legacy
}

// unescape undoes the \040 by which the kernel writes a space in a path.
func unescape(s string) string {
	if u, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return u
	}
	return s
}

// initialCgroup is what the link ns/cgroup of a process in the initial cgroup
// namespace says: PROC_CGROUP_INIT_INO in include/linux/proc_ns.h, since 4.6.
const initialCgroup = "cgroup:[4026531835]"

// isPrivate reports whether this process is in a cgroup namespace of its own. What
// it mounts and what it reads in /proc/PID/cgroup begins at the root of that
// namespace: its own container is "/", and all others lie outside.
func isPrivate(procRoot string) bool {
	ns, err := os.Readlink(filepath.Join(procRoot, "self/ns/cgroup"))
	return err == nil && ns != initialCgroup
}

// mountAll mounts the cgroup v2 tree as the initial cgroup namespace sees it. The
// kernel's own threads are in that. The mount is not attached to a directory and
// goes when it is closed. It needs CAP_SYS_ADMIN. Where nobody has mounted cgroup v2
// yet, the first mount would change what /proc/PID/cgroup says, so there it fails.
func mountAll(proc procfs.Proc) (*os.File, error) {
	if !usesCgroup2(proc.Root()) {
		return nil, errors.New("cgroup v2 is not in use")
	}
	kthreadd, err := proc.Dir(procfs.Kthreadd)
	if err != nil {
		return nil, err
	}
	host, err := os.Open(filepath.Join(kthreadd, "ns/cgroup"))
	if err != nil {
		return nil, fmt.Errorf("open the initial cgroup namespace: %w", err)
	}
	defer host.Close()
	var tree *os.File
	done := make(chan error)
	go func() {
		done <- inCgroupNamespace(host, func() (err error) {
			tree, err = mountDetached()
			return err
		})
	}()
	return tree, <-done
}

// usesCgroup2 looks for the line of cgroup v2, see cgroups(7).
func usesCgroup2(procRoot string) bool {
	text, err := os.ReadFile(filepath.Join(procRoot, "self/cgroup"))
	return err == nil && (bytes.HasPrefix(text, []byte("0::")) || bytes.Contains(text, []byte("\n0::")))
}

// inCgroupNamespace runs f in another cgroup namespace. It needs a goroutine of its
// own, because a thread that cannot be brought back stays locked to it.
func inCgroupNamespace(target *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/cgroup")
	if err != nil {
		return fmt.Errorf("open own cgroup namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("enter the initial cgroup namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWCGROUP); back != nil {
		return errors.Join(err, fmt.Errorf("return to own cgroup namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

func mountDetached() (*os.File, error) {
	config, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a cgroup2 file system: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, fmt.Errorf("configure a cgroup2 file system: %w", err)
	}
	tree, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("mount a cgroup2 file system: %w", err)
	}
	// open_by_handle_at(2) does not take the O_PATH descriptor that this one is.
	defer unix.Close(tree)
	return os.Open("/proc/self/fd/" + strconv.Itoa(tree))
}

// anchor opens what open_by_handle_at(2) takes for the mount.
func (m mount) anchor() (file *os.File, done func(), err error) {
	if m.tree != nil {
		return m.tree, func() {}, nil
	}
	file, err = os.Open(m.at)
	return file, func() { file.Close() }, err
}

// open finds a cgroup by its id: kernfs takes the id as a file handle, and an
// open file tells its path. It needs CAP_DAC_READ_SEARCH; ESTALE says that the
// cgroup no longer exists, or lies outside the mount.
func (m mount) open(id uint64) (string, error) {
	const fileidKernfs = 0xfe // include/linux/exportfs.h

	if !m.real {
		return "", errors.ErrUnsupported
	}
	root, done, err := m.anchor()
	if err != nil {
		return "", err
	}
	defer done()
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open cgroup %d below %s: %w", id, m.at, err)
	}
	defer unix.Close(fd)
	// Our own descriptor: this is the live /proc, whatever procRoot is.
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	// Of a cgroup outside the mount, the kernel says "/" (prepend_path).
	path, below := strings.CutPrefix(strings.TrimSuffix(link, " (deleted)"), m.at)
	if !below {
		return "", fmt.Errorf("cgroup %d lies outside %s: %w", id, m.at, unix.ESTALE)
	}
	return m.path(strings.TrimSuffix(path, "/")), nil
}

// folder is where the tree can be opened; "" where there is none.
func (m mount) folder() string {
	if m.tree != nil {
		return fmt.Sprintf("/proc/self/fd/%d", m.tree.Fd())
	}
	return m.at
}

// walk calls found for each cgroup of the tree, at most limit times: the id of a
// cgroup is the inode number of its directory. What cannot be read is left out. It
// reports whether those were all.
func (m mount) walk(limit int, found func(id uint64, path string)) (all bool) {
	_ = fs.WalkDir(os.DirFS(m.folder()), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // removed meanwhile, or one of the files that each cgroup has
		}
		if limit--; limit < 0 {
			return fs.SkipAll
		}
		if info, err := entry.Info(); err == nil {
			found(info.Sys().(*syscall.Stat_t).Ino, m.path(strings.TrimSuffix("/"+name, "/.")))
		}
		return nil
	})
	return limit >= 0
}

func (m mount) path(below string) string {
	if p := m.root + below; p != "" {
		return p
	}
	return "/"
}

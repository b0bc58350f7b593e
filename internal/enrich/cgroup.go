package enrich

import (
	"bufio"
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

	"golang.org/x/sys/unix"
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
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
		front, back, _ := strings.Cut(lines.Text(), " - ")
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
// it mounts and reads in /proc/PID/cgroup begins at the root of that namespace:
// its own container is "/", all others are above it.
func isPrivate(procRoot string) bool {
	ns, err := os.Readlink(filepath.Join(procRoot, "self/ns/cgroup"))
	return err == nil && ns != initialCgroup
}

// mountAll mounts the tree as the initial cgroup namespace sees it, which is that
// of process 1 where procRoot is the host's. The mount is not attached to any
// directory and goes when it is closed. It needs CAP_SYS_ADMIN.
func mountAll(procRoot string) (*os.File, error) {
	target, err := os.Open(filepath.Join(procRoot, "1/ns/cgroup"))
	if err != nil {
		return nil, fmt.Errorf("open the cgroup namespace of the host: %w", err)
	}
	defer target.Close()
	type result struct {
		tree *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		// The thread ends with this goroutine, because it stays locked. So it need
		// not be brought back.
		runtime.LockOSThread()
		tree, err := mountFrom(target)
		done <- result{tree, err}
	}()
	r := <-done
	return r.tree, r.err
}

func mountFrom(namespace *os.File) (*os.File, error) {
	// A namespace is of the file system, and so shared, until it is unshared.
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("enter the cgroup namespace of the host: %w", err)
	}
	if ns, err := os.Readlink("/proc/thread-self/ns/cgroup"); err != nil || ns != initialCgroup {
		return nil, fmt.Errorf("process 1 is in the cgroup namespace %s, which is not the initial one", ns)
	}
	config, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a cgroup2 file system: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, fmt.Errorf("create a cgroup2 mount: %w", err)
	}
	tree, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	return os.NewFile(uintptr(tree), "cgroup2"), nil
}

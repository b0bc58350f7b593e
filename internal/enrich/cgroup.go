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
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is the cgroup v2 tree as this process sees it.
type mount struct {
	at   string // where it is mounted
	root string // the cgroup that is mounted there, "" for the root
	real bool   // a cgroup2 file system, not a copy: an id can be opened
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

// open finds a cgroup by its id: kernfs takes the id as a file handle, and an
// open file tells its path. It needs CAP_DAC_READ_SEARCH; ESTALE says that the
// cgroup no longer exists.
func (m mount) open(id uint64) (string, error) {
	const fileidKernfs = 0xfe // include/linux/exportfs.h

	if !m.real {
		return "", errors.ErrUnsupported
	}
	root, err := os.Open(m.at)
	if err != nil {
		return "", err
	}
	defer root.Close()
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
	path, below := strings.CutPrefix(strings.TrimSuffix(link, " (deleted)"), m.at)
	if !below {
		return "", fmt.Errorf("cgroup %d lies outside %s: %w", id, m.at, unix.ESTALE)
	}
	return m.path(path), nil
}

// walk calls found for each cgroup of the tree, at most limit times: the id of a
// cgroup is the inode number of its directory. What cannot be read is left out.
func (m mount) walk(limit int, found func(id uint64, path string)) {
	_ = filepath.WalkDir(m.at, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // removed meanwhile, or one of the files that each cgroup has
		}
		var st unix.Stat_t
		if unix.Lstat(name, &st) == nil {
			found(st.Ino, m.path(strings.TrimPrefix(name, m.at)))
		}
		if limit--; limit <= 0 {
			return fs.SkipAll
		}
		return nil
	})
}

func (m mount) path(below string) string {
	if p := m.root + below; p != "" {
		return p
	}
	return "/"
}

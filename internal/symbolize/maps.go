package symbolize

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxMapsBytes = 16 << 20 // of one maps file: four times what 65530 mappings usually take
	maxMappings  = 4096     // that hold code, of one process

	// recheck is how long a process is taken to be the one that had the pid.
	recheck = time.Second
)

// mapping is a range of a process's memory that holds code.
type mapping struct {
	start, end uint64
	offset     uint64 // of start in the file
	inode      uint64
	path       string  // as the process sees it; "[vdso]", or "" for anonymous memory
	file       fileKey // the zero key where the file could not be opened
}

// fileKey identifies the contents of a file: one that changed has another key.
type fileKey struct {
	dev, inode uint64
	mtime      unix.Timespec
}

// process is what is known of a process. It stays true when the process is gone.
type process struct {
	identity identity
	checked  time.Time // when identity was last compared
	read     time.Time // when maps was read
	maps     []mapping // by address
}

// find returns the mapping that holds an address, or nil.
func (p *process) find(addr uint64) *mapping {
	i, _ := slices.BinarySearchFunc(p.maps, addr, func(m mapping, addr uint64) int {
		if m.end <= addr {
			return -1
		}
		return 1
	})
	if i < len(p.maps) && p.maps[i].start <= addr {
		return &p.maps[i]
	}
	return nil
}

// parseMaps reads /proc/PID/maps, see proc_pid_maps(5), and returns what is
// executable, by address. Lines that make no sense are left out.
func parseMaps(r io.Reader) []mapping {
	var maps []mapping
	lines := bufio.NewScanner(io.LimitReader(r, maxMapsBytes))
	for lines.Scan() && len(maps) < maxMappings {
		// 7f1c2a028000-7f1c2a1bd000 r-xp 00028000 fe:00 1049345      /usr/lib/libc.so.6
		_, rest, _ := bytes.Cut(lines.Bytes(), []byte(" "))
		if len(rest) < 4 || rest[2] != 'x' {
			continue
		}
		if m, err := parseMapping(lines.Text()); err == nil {
			maps = append(maps, m)
		}
	}
	slices.SortFunc(maps, func(a, b mapping) int { return cmp.Compare(a.start, b.start) })
	return maps
}

func parseMapping(line string) (m mapping, err error) {
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 5 {
		return m, fmt.Errorf("parse mapping %.60q: too few fields", line)
	}
	start, end, _ := strings.Cut(fields[0], "-")
	for _, number := range []struct {
		to   *uint64
		text string
		base int
	}{{&m.start, start, 16}, {&m.end, end, 16}, {&m.offset, fields[2], 16}, {&m.inode, fields[4], 10}} {
		if *number.to, err = strconv.ParseUint(number.text, number.base, 64); err != nil {
			return m, fmt.Errorf("parse mapping %.60q: %w", line, err)
		}
	}
	if len(fields) == 6 {
		// The kernel escapes the newline and nothing else, and marks a file that
		// was removed.
		path := strings.TrimSuffix(strings.TrimLeft(fields[5], " "), " (deleted)")
		m.path = strings.ReplaceAll(path, `\012`, "\n")
	}
	return m, nil
}

// identity distinguishes this program in this process from any other, before it or
// after it.
type identity struct {
	start uint64    // when the process began
	exec  [2]uint64 // where execve() put its code and its stack
}

func (s *Symbolizer) identity(pid uint32) (identity, error) {
	stat, err := s.proc.Stat(pid)
	return identity{stat.Start, stat.Exec}, err
}

// readMaps returns the mappings of a process and opens the files that are new to
// us; nil if it is exiting or may not be read.
func (s *Symbolizer) readMaps(pid uint32) []mapping {
	dir, err := s.proc.Live(pid)
	if err != nil {
		return nil
	}
	f, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return nil
	}
	defer f.Close()
	maps := parseMaps(f)
	for i := range maps {
		maps[i].file = s.openMapped(dir, &maps[i])
	}
	return maps
}

// openMapped makes sure that the file behind a mapping is among those known. It
// asks map_files first: that is the file itself, also where it was removed,
// replaced, or lies in another mount namespace, but CAP_CHECKPOINT_RESTORE or
// CAP_SYS_ADMIN is needed. The path, taken from the root of the process, may
// show another file by now. Its inode number decides; the device does not, because
// btrfs and overlayfs show another one in maps than to stat(2).
func (s *Symbolizer) openMapped(dir string, m *mapping) fileKey {
	if m.inode == 0 || !strings.HasPrefix(m.path, "/") {
		return fileKey{}
	}
	root := filepath.Join(dir, "root")
	fd, err := unix.Open(fmt.Sprintf("%s/map_files/%x-%x", dir, m.start, m.end), unix.O_PATH|unix.O_CLOEXEC, 0)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	} else if fd, err = openIn(root, m.path); err == nil {
		if err = unix.Fstat(fd, &st); st.Ino != m.inode {
			err = unix.ESTALE
		}
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return fileKey{}
	}
	key := fileKey{st.Dev, st.Ino, st.Mtim}
	if s.files.get(key) != nil {
		return key
	}
	f, err := reopen(fd)
	if err != nil {
		return fileKey{}
	}
	o := newObject(f)
	o.findDebug(root, m.path)
	s.files.put(key, o)
	return key
}

// openIn finds a path below root as a process with that root does, so that no
// symbolic link leads out of it. The descriptor can be looked at, not read: to
// open a device or a pipe would have effects.
func openIn(root, path string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// reopen makes a descriptor of openIn readable if it is of a regular file. It does
// not wait for whoever holds a lease on the file (O_NONBLOCK, see fcntl(2)).
func reopen(fd int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	// Our own descriptor: this is the live /proc, whatever procRoot is.
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

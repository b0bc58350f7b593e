package symbolize

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
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

// fileKey identifies the contents of a file: one that changed has another key. Its owner
// can set mtime back, but not ctime.
type fileKey struct {
	dev, inode   uint64
	mtime, ctime unix.Timespec
}

// process is what is known of a process. It stays true when the process is gone.
type process struct {
	identity identity
	checked  time.Time // when identity was last compared
	read     time.Time // when maps was read
	maps     []mapping // by address
	partial  bool      // time or memory did not suffice for all of maps
	overruns int       // how often that was its own fault
	givenUp  bool      // it is not looked at again
}

// size is what it takes in memory, about.
func (p *process) size() int {
	size := 200
	for i := range p.maps {
		size += 120 + len(p.maps[i].path)
	}
	return size
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

// look reads the mappings of a process, and opens the files that are new to us. There are
// none if it is exiting or may not be read.
func (s *Symbolizer) look(pid uint32, p *process) {
	p.maps, p.partial = nil, false
	dir, err := s.proc.Live(pid)
	if err != nil {
		return
	}
	// Whoever holds the lock of its memory can keep it from us.
	p.maps, err = await(&s.budget, func() ([]mapping, error) {
		f, err := os.Open(filepath.Join(dir, "maps"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return parseMaps(f), nil
	}, func([]mapping) {})
	if err != nil {
		s.skip(dir+"/maps", err)
	}
	for i := range p.maps {
		if err = s.budget.spend(mappingWork); err != nil {
			break
		}
		if p.maps[i].file, err = s.openMapped(dir, &p.maps[i]); errors.Is(err, errStuck) {
			break
		}
	}
	p.partial, p.givenUp = s.budget.over, errors.Is(err, errStuck)
}

// charge gives a process up that has taken all that a call may spend too often.
func (s *Symbolizer) charge(pid uint32) {
	p := s.processes.get(pid)
	if p == nil || p.givenUp {
		return
	}
	if p.overruns++; p.overruns == maxOverruns {
		*p = process{identity: p.identity, checked: p.checked, givenUp: true}
		s.skip(fmt.Sprintf("process %d", pid), errBudget)
	}
}

// mappingWork is what a mapping costs that is not worth a look, in bytes that are read.
const mappingWork = 4096

// openMapped makes sure that the file behind a mapping is among those known. It
// asks map_files first: that is the file itself, also where it was removed,
// replaced, or lies in another mount namespace, but CAP_CHECKPOINT_RESTORE or
// CAP_SYS_ADMIN is needed. The path, taken from the root of the process, may
// show another file by now. Its inode number decides; the device does not, because
// btrfs and overlayfs show another one in maps than to stat(2).
func (s *Symbolizer) openMapped(dir string, m *mapping) (fileKey, error) {
	if m.inode == 0 || !strings.HasPrefix(m.path, "/") {
		return fileKey{}, nil
	}
	type seen struct {
		found *procfs.Found
		key   fileKey
	}
	link, path, inode := fmt.Sprintf("%s/map_files/%x-%x", dir, m.start, m.end), m.path, m.inode
	at, err := await(&s.budget, func() (seen, error) {
		found, err := procfs.FindLink(link)
		linked := err == nil
		if !linked {
			found, err = procfs.FindFile(dir, path)
		}
		if err != nil {
			return seen{}, err
		}
		st, err := found.Stat()
		if err == nil && !linked && st.Ino != inode {
			err = unix.ESTALE
		}
		if err != nil {
			found.Close()
		}
		return seen{found, fileKey{st.Dev, st.Ino, st.Mtim, st.Ctim}}, err
	}, func(late seen) { late.found.Close() })
	if err != nil {
		s.skip(dir+": "+path, err)
		return fileKey{}, err
	}
	if s.files.get(at.key) != nil {
		at.found.Close()
		return at.key, nil
	}
	f, err := await(&s.budget, func() (*os.File, error) {
		defer at.found.Close()
		return at.found.OpenRegular()
	}, func(f *os.File) { f.Close() })
	if err != nil {
		s.skip(dir+": "+path, err)
		return fileKey{}, err
	}
	o := newObject(s.file(dir+": "+path, f))
	s.findDebug(o, dir, m.path)
	if s.budget.over { // it may have been cut short
		o.close()
		return fileKey{}, errBudget
	}
	s.files.put(at.key, o)
	return at.key, o.file.err
}

package probe

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// othersTime is how long a search may look at the mounts of others. That is some 200,000 of
// them; one user without privileges can have a hundred million, of which lines of
// megabytes, and everybody's start would take minutes. A single one gets othersShare.
const (
	othersTime  = time.Second
	othersShare = othersTime / 5
)

// mountSearch looks for network namespaces in the mounts of processes. It reads all that root
// has mounted; of mount namespaces in which others mount, what it has time for.
type mountSearch struct {
	proc   string
	left   time.Duration // for mounts of others
	unread int           // their mount namespaces that were not read, or not to the end
	hidden map[uint64]namespace
}

func newMountSearch(proc string) *mountSearch {
	return &mountSearch{proc: proc, left: othersTime, hidden: make(map[uint64]namespace)}
}

// find adds what is mounted in any mount namespace and was not found otherwise. A mount
// point may be hidden by another mount; those that cannot be opened are in s.hidden.
func (s *mountSearch) find(pids []string, found map[uint64]namespace) {
	var others []string
	seen := make(map[string]bool) // mount namespaces
	for _, pid := range pids {
		process := filepath.Join(s.proc, pid)
		mntns, err := os.Readlink(filepath.Join(process, "ns/mnt"))
		if err != nil || seen[mntns] {
			continue
		}
		seen[mntns] = true
		if !procfs.OfInitialUser(filepath.Join(process, "ns/mnt")) {
			others = append(others, process)
			continue
		}
		mounted, _ := readMounted(process, time.Time{})
		s.add(process, mounted, time.Time{}, found)
	}
	for _, process := range others { // last, so that they hide nothing of root's
		s.others(func(until time.Time) {
			mounted, whole := readMounted(process, until)
			if !whole {
				s.unread++
			}
			s.add(process, mounted, until, found)
		})
	}
}

// others runs f, which may take until then, at the expense of the time that is left.
func (s *mountSearch) others(f func(until time.Time)) {
	began := time.Now()
	f(began.Add(min(s.left, othersShare)))
	s.left = max(0, s.left-time.Since(began))
}

// add takes over those of a process that are not found yet. After until it opens none.
func (s *mountSearch) add(process string, mounted map[uint64]string, until time.Time, found map[uint64]namespace) {
	for inode, point := range mounted {
		ns := namespace{process: process, path: point, search: s}
		if _, known := found[inode]; known {
			continue
		}
		if isPast(until) {
			s.hidden[inode] = ns
			continue
		}
		file, err := ns.open()
		if err != nil {
			s.hidden[inode] = ns
			continue
		}
		if isInode(file, inode) {
			found[inode] = ns
		}
		file.Close()
	}
}

// has reports whether the process still has that mounted, as far as there is time to see.
func (s *mountSearch) has(process string, inode uint64) (mounted bool) {
	s.others(func(until time.Time) {
		points, whole := readMounted(process, until)
		_, mounted = points[inode]
		mounted = mounted || !whole
	})
	return mounted
}

// readMounted lists the mount points of network namespaces that a process sees, by inode; none
// if it has gone. They are all unless there was no time to read the rest; zero: there is.
func readMounted(process string, until time.Time) (mounted map[uint64]string, whole bool) {
	if isPast(until) {
		return nil, false
	}
	file, err := os.Open(filepath.Join(process, "mountinfo"))
	if err != nil {
		return nil, true
	}
	defer file.Close()
	limited := &readerUntil{r: file, until: until}
	mounted = parseNamespaceMounts(limited)
	return mounted, !limited.cut
}

// readerUntil ends at a point in time.
type readerUntil struct {
	r     io.Reader
	until time.Time
	cut   bool // it has ended before the file
}

func (r *readerUntil) Read(p []byte) (int, error) {
	if isPast(r.until) {
		r.cut = true
		return 0, io.EOF
	}
	return r.r.Read(p)
}

// isPast reports whether that time has come; the zero time never comes.
func isPast(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// parseNamespaceMounts gives the mount points of bind-mounted network namespaces
// in proc(5)'s mountinfo, by inode: the root is "net:[inode]", the type nsfs.
func parseNamespaceMounts(mountinfo io.Reader) map[uint64]string {
	points := make(map[uint64]string)
	for line := range procfs.Lines(mountinfo) {
		if !strings.Contains(line, " net:[") { // most
			continue
		}
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

// unsearched is what a search says that had no time for all.
func unsearched(count int) string {
	if count == 1 {
		return "a mount namespace of another user has too many mounts to look at all: network namespaces that only it keeps are not listed"
	}
	return fmt.Sprintf("%d mount namespaces of other users have too many mounts to look at all: network namespaces that only they keep are not listed", count)
}

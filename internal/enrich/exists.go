package enrich

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// HasCgroup reports whether a cgroup exists whose path fits, be there sockets in it or
// not. Where not all cgroups can be seen from here it reports true: nothing can be
// excluded. It walks the tree.
func (e *Enricher) HasCgroup(fits func(path string) bool) bool {
	m, found := e.cgroup2, false
	all := m.real && !e.hidden && m.root == "" &&
		m.walk(maxCgroups, func(_ uint64, path string) { found = found || fits(path) })
	return found || !all
}

// HasContainer is HasCgroup for the cgroups of all hierarchies that a process is in: a
// container may be in one of v1 alone, and one without a process does not run. It reads a
// file of every process.
func (e *Enricher) HasContainer(fits func(path string) bool) bool {
	if !e.proc.HasEventPIDs() {
		return true // there may be processes that are not to be seen here
	}
	files, _ := filepath.Glob(filepath.Join(e.proc.Root(), "[0-9]*/cgroup")) // the pattern is well-formed
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil { // it has exited
			continue
		}
		found := false
		_ = procfs.EachCgroup(f, func(path string) bool { found = fits(path); return !found })
		f.Close()
		if found {
			return true
		}
	}
	return false
}

// ContainerWithID returns the id of a container with a process below procRoot that begins with
// prefix; empty: none is to be seen. It reads a file of every process.
func ContainerWithID(procRoot, prefix string) (id string) {
	e := Enricher{proc: procfs.Open(procRoot)}
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" || !e.proc.HasEventPIDs() {
		return ""
	}
	e.HasContainer(func(path string) bool {
		if found := tcp.ContainerID(path); strings.HasPrefix(found, prefix) {
			id = found
		}
		return id != ""
	})
	return id
}

// NamesOf reads what a cgroup is called.
func (e *Enricher) NamesOf(cgroup string) *tcp.Names {
	found := e.names.Find(cgroup, tcp.ContainerID(cgroup))
	return &found
}

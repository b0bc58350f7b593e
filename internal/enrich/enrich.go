// Package enrich says where a socket lives: the path of its cgroup, the container
// that the path names, and what its owner is called now. It asks the cgroup file
// system once per cgroup and /proc once per owner, never once per event. What a
// container is called it reads again now and then, see package names. It talks to no container
// runtime. A container id is a claim of the cgroup, see tcp.ContainerID.
package enrich

import (
	"errors"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/names"
	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds. A full cache is emptied: what is still in use comes back at the
// cost of one look-up each, and no entry needs an age.
const (
	maxCgroups = 16384
	maxOwners  = 16384

	// retryNS is how long, in event time, an answer is relied on that may
	// change: a cgroup that was not found, the name and the container of a
	// process.
	retryNS = 2e9

	// A container may be renamed, and its runtime writes its record before or after the first
	// connection. Names are read again so often, in event time.
	namesNS     = 10e9
	namesSoonNS = 1e9 // as long as there are none, for the first few times
	soonTries   = 10
)

// Enricher fills in Event.Cgroup, Event.ContainerID, and for a row the Comm that
// its owner has now. It belongs to one goroutine.
type Enricher struct {
	proc     procfs.Proc
	names    *names.Finder
	cgroup2  mount  // at "" and real false where there is none
	byOwner  bool   // containers may exist that only /proc/PID/cgroup names
	hidden   bool   // cgroups outside our own namespace are not seen
	details  bool   // see FillDetails
	stalled  bool   // see Stalled
	nextWalk uint64 // event time before which the tree is not walked again

	cgroups map[uint64]cgroup
	owners  map[ownerKey]owner
	lastID  uint64 // most events are of the cgroup that the one before was of
	last    cgroup
	lastKey ownerKey // ... and of the owner
	lastOne owner
}

type cgroup struct {
	path      string // "": not found
	container string
	names     *tcp.Names
	tries     int    // without names
	expires   uint64 // event time; an id is never given twice, so a path stays true: then names are read again
}

// New returns an Enricher that reads processes below procRoot ("/proc") and the
// cgroup v2 tree at cgroupRoot, or where procRoot/self/mountinfo says when
// cgroupRoot is "". What cannot be read is not an error: without a cgroup tree
// the events simply stay without a cgroup, and Findings says so.
//
// With CAP_DAC_READ_SEARCH a cgroup is found at once, else by walking the tree,
// at most once every two seconds. In a cgroup namespace of its own, or where the
// tree is not mounted or only a part of it is, it mounts the whole tree where only the
// Enricher sees it, which needs CAP_SYS_ADMIN now.
func New(procRoot, cgroupRoot string) *Enricher {
	proc := procfs.Open(procRoot)
	e := &Enricher{
		proc:    proc,
		names:   names.New(filepath.Dir(filepath.Clean(procRoot)), proc),
		cgroups: make(map[uint64]cgroup),
		owners:  make(map[ownerKey]owner),
	}
	if f, err := os.Open(filepath.Join(procRoot, "self/mountinfo")); err == nil {
		e.cgroup2, e.byOwner = parseMounts(f)
		f.Close()
	}
	if cgroupRoot != "" {
		e.cgroup2 = mount{at: filepath.Clean(cgroupRoot)}
	} else {
		e.seeAll()
	}
	var fs unix.Statfs_t
	if e.cgroup2.at != "" && unix.Statfs(e.cgroup2.at, &fs) == nil {
		e.cgroup2.real = fs.Type == unix.CGROUP2_SUPER_MAGIC
	}
	return e
}

// seeAll makes cgroups visible that lie outside our cgroup namespace, or outside the
// part of the tree that is mounted here, if any. Where that fails, /proc/PID/cgroup
// still names the container of an owner.
func (e *Enricher) seeAll() {
	private, mounted := isPrivate(e.proc.Root()), e.cgroup2.at != ""
	if !private && mounted && e.cgroup2.root == "" {
		return
	}
	tree, err := mountAll(e.proc)
	if err != nil {
		e.byOwner = e.byOwner || private || mounted
		e.hidden = private
		return
	}
	e.cgroup2 = mount{tree: tree, real: true}
}

// Reads returns the folders in which Fill opens files.
func (e *Enricher) Reads() []string {
	folders := []string{e.proc.Root()}
	if cgroups := e.cgroup2.folder(); cgroups != "" {
		folders = append(folders, cgroups)
	}
	return append(folders, e.names.Reads()...)
}

// Fill sets ev.Cgroup, ev.ContainerID and ev.Names as far as they can be found, and the Comm
// of a row whose owner holds the socket. It leaves an event alone that has a
// Cgroup or no CgroupID, so a recording keeps what it says. It may read files, but
// only for a cgroup or an owner that is new or was read two seconds ago.
func (e *Enricher) Fill(ev *tcp.Event) {
	if ev.CgroupID == 0 || ev.Cgroup != "" {
		return
	}
	if ev.CgroupID != e.lastID || ev.BootNS >= e.last.expires {
		e.lastID, e.last = ev.CgroupID, e.find(ev.CgroupID, ev.BootNS)
	}
	ev.Cgroup, ev.ContainerID, ev.Names = e.last.path, e.last.container, e.last.names
	e.fillOwner(ev)
}

// FillDetails makes Fill set the Cmdline of a row whose owner holds the socket as well: the first
// maxCmdline bytes of it.
func (e *Enricher) FillDetails() { e.details = true }

// find looks among what is remembered first.
func (e *Enricher) find(id, now uint64) cgroup {
	cg, ok := e.cgroups[id]
	if !ok || cg.path == "" && now >= cg.expires {
		cg = e.lookUp(id, now)
	}
	if cg.path != "" && now >= cg.expires {
		cg.name(e.names, now)
		e.store(id, cg)
	}
	return cg
}

// name reads the names of the cgroup. A container that has ended keeps those that it had.
func (cg *cgroup) name(finder *names.Finder, now uint64) {
	found := finder.Find(cg.path, cg.container)
	switch {
	case found == tcp.Names{} && cg.container == "": // it is in none
		cg.expires = math.MaxUint64
		return
	case cg.names == nil && found != tcp.Names{}, found.Container != "" && found != *cg.names:
		cg.names = &found
	}
	cg.expires = now + namesNS
	if cg.names == nil || cg.names.Container == "" {
		if cg.tries++; cg.tries < soonTries {
			cg.expires = now + namesSoonNS
		}
	}
}

// lookUp finds a cgroup and remembers the answer, also when there is none.
func (e *Enricher) lookUp(id, now uint64) cgroup {
	path, err := e.cgroup2.open(id)
	switch {
	case err == nil:
		e.remember(id, path)
	case errors.Is(err, unix.ESTALE):
		// The cgroup is gone. No walk would find it.
	case e.cgroup2.at != "" && now >= e.nextWalk:
		e.cgroup2.walk(maxCgroups, e.remember)
		e.nextWalk = now + retryNS
	}
	cg, ok := e.cgroups[id]
	if !ok || cg.path == "" {
		cg = cgroup{expires: now + retryNS}
		e.store(id, cg)
	}
	return cg
}

func (e *Enricher) remember(id uint64, path string) {
	if e.cgroups[id].path == "" {
		e.store(id, cgroup{path: path, container: tcp.ContainerID(path)}) // named when it is asked for
	}
}

func (e *Enricher) store(id uint64, cg cgroup) {
	if _, known := e.cgroups[id]; !known && len(e.cgroups) >= maxCgroups {
		clear(e.cgroups)
	}
	e.cgroups[id] = cg
}

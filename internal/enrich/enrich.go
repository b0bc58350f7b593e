// Package enrich says where a socket lives: the path of its cgroup, the container
// that the path names, and what its owner is called now. It asks the cgroup file
// system once per cgroup and /proc once per owner, never once per event. It talks
// to no container runtime and gives no names that the kernel does not hold. A container id
// is a claim of the cgroup, see tcp.ContainerID: nothing is derived from it.
package enrich

import (
	"errors"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

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
)

// Enricher fills in Event.Cgroup, Event.ContainerID, and for a row the Comm that
// its owner has now. It belongs to one goroutine.
type Enricher struct {
	proc     procfs.Proc
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
	expires   uint64 // event time; an id is never given twice, so a path stays true
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
	e := &Enricher{
		proc:    procfs.Open(procRoot),
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
	return folders
}

// Fill sets ev.Cgroup and ev.ContainerID as far as they can be found, and the Comm
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
	ev.Cgroup, ev.ContainerID = e.last.path, e.last.container
	e.fillOwner(ev)
	if e.details && ev.Kind == tcp.Socket {
		if unit := tcp.Unit(ev.Cgroup); unit != "" {
			details(ev).Unit = unit
		}
	}
}

// FillDetails makes Fill set the Unit of a row as well, and if the owner holds the socket the
// Cmdline: the first maxCmdline bytes of it.
func (e *Enricher) FillDetails() { e.details = true }

// find looks among what is remembered first.
func (e *Enricher) find(id, now uint64) cgroup {
	cg, ok := e.cgroups[id]
	if !ok || now >= cg.expires {
		cg = e.lookUp(id, now)
	}
	return cg
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
		e.store(id, cgroup{path, tcp.ContainerID(path), math.MaxUint64})
	}
}

func (e *Enricher) store(id uint64, cg cgroup) {
	if len(e.cgroups) >= maxCgroups {
		clear(e.cgroups)
	}
	e.cgroups[id] = cg
}

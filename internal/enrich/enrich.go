// Package enrich says where a socket lives: the path of its cgroup and the
// container that the path names. It asks the cgroup file system once per cgroup
// and /proc once per owner, never once per event. It talks to no container
// runtime and gives no names that the kernel does not hold.
package enrich

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds. A full cache is emptied: what is still in use comes back at the
// cost of one look-up each, and no entry needs an age.
const (
	maxCgroups = 16384
	maxOwners  = 16384

	// retryNS is how long, in event time, an answer is relied on that may
	// change: a cgroup that was not found, a process that still has its pid.
	retryNS = 2e9
)

// Enricher fills in Event.Cgroup and Event.ContainerID. It belongs to one
// goroutine.
type Enricher struct {
	procRoot string
	cgroup2  mount  // at "" where there is none
	legacy   bool   // cgroup v1 is mounted: containers may exist there only
	nextWalk uint64 // event time before which the tree is not walked again

	cgroups map[uint64]cgroup
	owners  map[ownerKey]owner
	lastID  uint64 // most events are of the cgroup that the one before was of
	last    cgroup
}

type cgroup struct {
	path      string // "": not found
	container string
	expires   uint64 // event time; an id is never given twice, so a path stays true
}

// New returns an Enricher that reads processes below procRoot ("/proc") and the
// cgroup v2 tree at cgroupRoot, or where procRoot/self/mountinfo says when
// cgroupRoot is "". What cannot be read is not an error: without a cgroup tree
// the events simply stay without a cgroup.
//
// With CAP_DAC_READ_SEARCH a cgroup is found at once, else by walking the tree,
// at most once every two seconds.
func New(procRoot, cgroupRoot string) *Enricher {
	e := &Enricher{
		procRoot: procRoot,
		cgroups:  make(map[uint64]cgroup),
		owners:   make(map[ownerKey]owner),
	}
	if f, err := os.Open(filepath.Join(procRoot, "self/mountinfo")); err == nil {
		e.cgroup2, e.legacy = parseMounts(f)
		f.Close()
	}
	if cgroupRoot != "" {
		e.cgroup2 = mount{at: filepath.Clean(cgroupRoot)}
	}
	var fs unix.Statfs_t
	if e.cgroup2.at != "" && unix.Statfs(e.cgroup2.at, &fs) == nil {
		e.cgroup2.real = fs.Type == unix.CGROUP2_SUPER_MAGIC
	}
	return e
}

// Fill sets ev.Cgroup and ev.ContainerID as far as they can be found. It leaves
// an event alone that has a Cgroup or no CgroupID, so a recording keeps what it
// says. It may read files, but only for a cgroup or an owner that is new.
func (e *Enricher) Fill(ev *tcp.Event) {
	if ev.CgroupID == 0 || ev.Cgroup != "" {
		return
	}
	if ev.CgroupID != e.lastID || ev.BootNS >= e.last.expires {
		e.lastID, e.last = ev.CgroupID, e.find(ev.CgroupID, ev.BootNS)
	}
	ev.Cgroup, ev.ContainerID = e.last.path, e.last.container
	if ev.ContainerID == "" && e.legacy && ev.OwnerSource != "" {
		ev.ContainerID = e.ownerContainer(ev)
	}
}

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
		e.store(id, cgroup{path, containerID(path), math.MaxUint64})
	}
}

func (e *Enricher) store(id uint64, cg cgroup) {
	if len(e.cgroups) >= maxCgroups {
		clear(e.cgroups)
	}
	e.cgroups[id] = cg
}

// containerID returns the id of the innermost container that a cgroup path
// names, "" for none. These are the forms that are understood:
//
//	/docker/ID                                         docker, cgroupfs driver
//	/system.slice/docker-ID.scope                      docker, systemd driver
//	/kubepods/burstable/podUID/ID                      kubelet, cgroupfs driver
//	/kubepods.slice/…-podUID.slice/cri-containerd-ID.scope   kubelet, systemd driver
//	/kubepods.slice/…-podUID.slice/crio-ID.scope/container   CRI-O
//	/system.slice/containerd.service/…podUID.slice:cri-containerd:ID
//	/machine.slice/libpod-ID.scope/container           podman
//	/ecs/TASK/TASK-NUMBER                              Fargate, 32 digits
//	/lxc.payload.NAME/…  /lxc/NAME/…                   LXC: its id is its name
//
// ID is 64 hexadecimal digits. A conmon scope holds the monitor of a container,
// which is not inside it.
func containerID(path string) string {
	for path != "" {
		dir, name := cutLast(path, '/')
		if id := componentID(name); id != "" {
			return id
		}
		if id, ok := strings.CutPrefix(name, "lxc.payload."); ok {
			return id
		}
		if dir == "/lxc" {
			return name
		}
		path = dir
	}
	return ""
}

func componentID(name string) string {
	name = strings.TrimSuffix(name, ".scope")
	if task, number := cutLast(name, '-'); len(task) == 32 && isHex(task) && isDecimal(number) {
		return name
	}
	at := len(name) - 64
	if at < 0 || !isHex(name[at:]) || strings.HasSuffix(name[:at], "conmon-") {
		return ""
	}
	if at > 0 && name[at-1] != '-' && name[at-1] != ':' {
		return ""
	}
	return name[at:]
}

// cutLast splits s at its last sep; without one, all is after it.
func cutLast(s string, sep byte) (before, after string) {
	i := strings.LastIndexByte(s, sep)
	return s[:max(i, 0)], s[i+1:]
}

func isHex(s string) bool     { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }
func isDecimal(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// Package names finds what people call the container and the pod that a cgroup belongs to, in
// the files that runtimes and the kubelet leave on the node. It asks no runtime and no API server.
//
// A cgroup path is a claim: whoever may make a cgroup can give it the name of another container.
// So a record gives its names only to the cgroup that it says it has, to the one that its process
// is in, or to one at a place where root alone makes cgroups.
package names

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds of what is read. What is larger has no names.
const (
	maxFile    = 4 << 20
	maxEntries = 20_000 // of a folder
	maxName    = 512    // bytes of one name
)

// Finder finds names. It remembers nothing.
type Finder struct {
	root string // "" on a host
	proc procfs.Proc
}

// New returns a Finder that reads below root, "/" on a host, and the processes of proc.
func New(root string, proc procfs.Proc) *Finder {
	return &Finder{strings.TrimSuffix(path.Clean(root), "/"), proc}
}

// The folders in which runtimes and the kubelet keep what they know.
const (
	docker      = "/var/lib/docker/containers"
	containerd  = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
	k3s         = "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io"
	storage     = "/var/lib/containers/storage" // of Podman and CRI-O
	storageRun  = "/run/containers/storage"
	runc        = "/run/runc"
	logsByID    = "/var/log/containers"
	logsByPod   = "/var/log/pods"
	cgroupMount = "/sys/fs/cgroup"
)

// inStorage are the folders of containers, by the driver of the storage.
var inStorage = []string{"/overlay-containers", "/vfs-containers", "/btrfs-containers", "/zfs-containers"}

// Reads returns the folders in which Find opens files.
func (f *Finder) Reads() (all []string) {
	for _, folder := range []string{docker, containerd, k3s, storage, storageRun, runc, logsByID, logsByPod} {
		all = append(all, f.root+folder)
	}
	return append(all, f.proc.Root())
}

// Find returns the names of a cgroup that is, by its path, in a container; container is empty where
// tcp.ContainerID finds none. A name that is not found, or that the cgroup cannot prove, is empty.
// Nothing that it opens can hold it up.
func (f *Finder) Find(cgroup, container string) tcp.Names {
	n := f.logged(cgroup, container)
	if container == "" {
		n.Container = f.runc(cgroup)
	} else if isFileName(container) {
		claim := upTo(cgroup, container)
		for _, find := range []func(string, string) (tcp.Names, error){f.containerd, f.crio, f.docker, f.podman} {
			if found, err := find(container, claim); err == nil {
				n = joined(found, n)
				break
			}
		}
	}
	for _, name := range []*string{&n.Container, &n.Image, &n.Pod, &n.PodUID, &n.Namespace} {
		if len(*name) > maxName {
			*name = ""
		}
	}
	return n
}

// joined takes from other what n does not know.
func joined(n, other tcp.Names) tcp.Names {
	return tcp.Names{
		Container: cmp.Or(n.Container, other.Container), Image: cmp.Or(n.Image, other.Image), Pod: cmp.Or(n.Pod, other.Pod),
		PodUID: cmp.Or(n.PodUID, other.PodUID), Namespace: cmp.Or(n.Namespace, other.Namespace),
	}
}

// upTo is the part of a path that ends with the component in which an id is: what the container
// has made below is its own business.
func upTo(cgroup, id string) string {
	at := strings.LastIndex(cgroup, id)
	if at < 0 {
		return ""
	}
	end := strings.IndexByte(cgroup[at:], '/')
	if end < 0 {
		return cgroup
	}
	return cgroup[:at+end]
}

// isFileName reports whether an id may be part of the path of a file.
func isFileName(id string) bool {
	return id != "" && id[0] != '.' && len(id) <= 255 && !strings.ContainsAny(id, "/\x00")
}

// errUnproven says that a record is of another cgroup than the one that claims its id.
var errUnproven = errors.New("the record is of another cgroup")

// prove returns an error unless a cgroup is that of a container: it is one of those that the
// record says, or the first process of the container is in it.
func (f *Finder) prove(claim string, pid uint32, recorded ...string) error {
	if claim == "" {
		return errUnproven
	}
	if slices.Contains(recorded, claim) {
		return nil
	}
	if pid == 0 || !f.proc.HasEventPIDs() {
		return errUnproven
	}
	in, err := procfs.Read(f.proc, pid, "cgroup", func(r io.Reader) (is bool, err error) {
		err = procfs.EachCgroup(r, func(path string) bool {
			is = path == claim || strings.HasPrefix(path, claim+"/")
			return !is
		})
		return is, err
	})
	if err != nil || !in {
		return errUnproven
	}
	return nil
}

// read reads a file of a runtime, see procfs.Found.
func (f *Finder) read(name string) ([]byte, error) {
	found, err := procfs.FindLink(f.root + name)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	file, err := found.OpenRegular()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = errors.New(name + " is too large")
	}
	return text, err
}

// entries calls found for each name in a folder until it returns true.
func (f *Finder) entries(folder string, found func(name string) bool) {
	at, err := os.OpenFile(f.root+folder, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer at.Close()
	for read := 0; read < maxEntries; {
		names, err := at.Readdirnames(512)
		for _, name := range names {
			if found(name) {
				return
			}
		}
		if read += len(names); err != nil {
			return
		}
	}
}

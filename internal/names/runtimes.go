package names

import (
	"cmp"
	"encoding/json"
	"errors"
	"path"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// docker knows containers of Docker by /var/lib/docker/containers/ID/config.v2.json. A namespace
// is that of a pod (cri-dockerd), or else the project of Docker Compose.
func (f *Finder) docker(id, claim string) (n tcp.Names, err error) {
	text, err := f.read(docker + "/" + id + "/config.v2.json")
	if err != nil {
		return n, err
	}
	n, pid, err := parseDocker(text)
	if err != nil {
		return n, err
	}
	return n, f.prove(claim, pid, "/docker/"+id, "/system.slice/docker-"+id+".scope")
}

func parseDocker(text []byte) (n tcp.Names, pid uint32, err error) {
	var c struct {
		Name   string
		Config struct {
			Image  string
			Labels map[string]string
		}
		State struct{ Pid uint32 }
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return n, 0, err
	}
	labels := c.Config.Labels
	n = tcp.Names{
		Container: cmp.Or(labels["io.kubernetes.container.name"], strings.TrimPrefix(c.Name, "/")), Image: c.Config.Image,
		Pod: labels["io.kubernetes.pod.name"], PodUID: labels["io.kubernetes.pod.uid"],
		Namespace: cmp.Or(labels["io.kubernetes.pod.namespace"], labels["com.docker.compose.project"]),
	}
	return n, c.State.Pid, nil
}

// podman knows containers of root's Podman by the list that its storage keeps.
func (f *Finder) podman(id, claim string) (n tcp.Names, err error) {
	for _, driver := range inStorage {
		if n, err = f.stored(driver, id, claim); err == nil {
			break
		}
	}
	return n, err
}

func (f *Finder) stored(driver, id, claim string) (n tcp.Names, err error) {
	text, err := f.read(storage + driver + "/containers.json")
	if err != nil {
		return n, err
	}
	if n, err = parsePodman(text, id); err != nil {
		return n, err
	}
	pid, _ := f.read(storageRun + driver + "/" + id + "/userdata/pidfile") // it has ended: not known
	return n, f.prove(claim, parsePID(pid), "/machine.slice/libpod-"+id+".scope", "/libpod_parent/libpod-"+id)
}

var errUnknown = errors.New("no record of this container")

func parsePodman(text []byte, id string) (n tcp.Names, err error) {
	var all []struct {
		ID       string
		Names    []string
		Metadata string
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return n, err
	}
	for _, c := range all {
		if c.ID != id {
			continue
		}
		var about struct {
			Name  string
			Image string `json:"image-name"`
		}
		if err := json.Unmarshal([]byte(c.Metadata), &about); err != nil && len(c.Names) == 0 {
			return n, err
		}
		n.Image, n.Container = about.Image, about.Name
		if len(c.Names) > 0 {
			n.Container = c.Names[0]
		}
		return n, nil
	}
	return n, errUnknown
}

func parsePID(text []byte) uint32 {
	pid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(pid)
}

// containerd knows the containers of pods by their OCI bundles.
func (f *Finder) containerd(id, claim string) (n tcp.Names, err error) {
	for _, folder := range []string{containerd, k3s} {
		if n, err = f.bundle(folder+"/"+id, "init.pid", claim, containerdNames); err == nil {
			break
		}
	}
	return n, err
}

// crio knows those of CRI-O likewise. Podman's are there as well, without annotations of a pod.
func (f *Finder) crio(id, claim string) (n tcp.Names, err error) {
	for _, folder := range []string{storageRun, storage} {
		for _, driver := range inStorage {
			if n, err = f.bundle(folder+driver+"/"+id+"/userdata", "pidfile", claim, crioNames); err == nil {
				return n, nil
			}
		}
	}
	return n, err
}

// bundle reads an OCI bundle: its configuration, and the file with the first process.
func (f *Finder) bundle(folder, pidFile, claim string, names func(map[string]string) tcp.Names) (n tcp.Names, err error) {
	text, err := f.read(folder + "/config.json")
	if err != nil {
		return n, err
	}
	n, cgroups, err := parseBundle(text, names)
	if err != nil {
		return n, err
	}
	pid, _ := f.read(folder + "/" + pidFile) // it has ended: not known
	return n, f.prove(claim, parsePID(pid), cgroups...)
}

func parseBundle(text []byte, names func(map[string]string) tcp.Names) (n tcp.Names, cgroups []string, err error) {
	var c struct {
		Annotations map[string]string
		Linux       struct{ CgroupsPath string }
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return n, nil, err
	}
	if n = names(c.Annotations); n == (tcp.Names{}) {
		return n, nil, errUnknown
	}
	return n, cgroupsOf(c.Linux.CgroupsPath), nil
}

// containerdNames: see pkg/cri/annotations of containerd. The pause container of a pod has no name.
func containerdNames(a map[string]string) tcp.Names {
	const cri = "io.kubernetes.cri."
	return tcp.Names{
		Container: a[cri+"container-name"], Image: a[cri+"image-name"], Pod: a[cri+"sandbox-name"],
		PodUID: a[cri+"sandbox-uid"], Namespace: a[cri+"sandbox-namespace"],
	}
}

// crioNames: see pkg/annotations of CRI-O and the labels of the kubelet, which it takes over.
func crioNames(a map[string]string) tcp.Names {
	const kubelet, crio = "io.kubernetes.", "io.kubernetes.cri-o."
	n := tcp.Names{
		Container: a[kubelet+"container.name"], Image: cmp.Or(a[crio+"UserRequestedImage"], a[crio+"ImageName"], a[crio+"Image"]),
		Pod: a[kubelet+"pod.name"], PodUID: a[kubelet+"pod.uid"], Namespace: a[kubelet+"pod.namespace"],
	}
	if n.Pod == "" {
		return tcp.Names{} // Podman's
	}
	return n
}

// cgroupsOf returns where a container is by its cgroupsPath, in which SLICE:PREFIX:NAME asks
// systemd for a scope (runc, docs/systemd.md). A containerd whose kubelet alone uses systemd takes
// that for the name of a cgroup below its own.
func cgroupsOf(spec string) []string {
	part := strings.Split(spec, ":")
	if len(part) != 3 {
		if !strings.HasPrefix(spec, "/") {
			return nil
		}
		return []string{path.Clean(spec)}
	}
	slice := cmp.Or(part[0], "system.slice")
	return []string{sliceOf(slice) + "/" + part[1] + "-" + part[2] + ".scope", "/system.slice/containerd.service/" + spec}
}

// sliceOf is the path of a slice: a-b.slice is in a.slice.
func sliceOf(slice string) string {
	name, parents := strings.TrimSuffix(slice, ".slice"), ""
	for at := range name {
		if name[at] == '-' {
			parents += "/" + name[:at] + ".slice"
		}
	}
	return parents + "/" + slice
}

// runc knows containers that it was asked for by hand, by their name. Their cgroup is
// /NAME, or runc-NAME.scope with systemd.
func (f *Finder) runc(cgroup string) string {
	name := strings.TrimPrefix(strings.TrimSuffix(path.Base(cgroup), ".scope"), "runc-")
	if !isFileName(name) || strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".slice") {
		return ""
	}
	text, err := f.read(runc + "/" + name + "/state.json")
	if err != nil || !parseRunc(text, name, cgroup) {
		return ""
	}
	return name
}

// parseRunc reports whether the state is of a container with this name and cgroup.
func parseRunc(text []byte, name, cgroup string) bool {
	var state struct {
		ID      string            `json:"id"`
		Cgroups map[string]string `json:"cgroup_paths"`
	}
	if json.Unmarshal(text, &state) != nil || state.ID != name {
		return false
	}
	for _, at := range state.Cgroups {
		mount, is := strings.CutSuffix(at, cgroup)
		if is && (mount == cgroupMount || path.Dir(mount) == cgroupMount) { // of cgroup v1, each controller has one
			return true
		}
	}
	return false
}

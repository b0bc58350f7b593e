package tcp

import "strings"

// ContainerID returns the id of the innermost container that a cgroup path names,
// "" for none. These are the forms that it knows:
//
//	/docker/ID                                         docker, cgroupfs driver
//	/system.slice/docker-ID.scope                      docker, systemd driver
//	/../docker/ID                                      seen from a cgroup namespace
//	/kubepods/burstable/podUID/ID                      kubelet, cgroupfs driver
//	/kubepods.slice/…-podUID.slice/cri-containerd-ID.scope   kubelet, systemd driver
//	/kubepods.slice/…-podUID.slice/crio-ID.scope/container   CRI-O
//	/system.slice/containerd.service/…podUID.slice:cri-containerd:ID
//	/machine.slice/libpod-ID.scope/container           podman
//	/docker/buildkit/BUILD  …/buildkit-BUILD.scope     buildkit, 25 letters and digits
//	/ecs/TASK/TASK-NUMBER                              Fargate, 32 digits
//	/nomad.slice/share.slice/UUID.TASK.scope           Nomad: allocation and task
//	/lxc.payload.NAME/…  /lxc/NAME/…                   LXC: its id is its name
//	/machine.slice/machine-NAME.scope/…                systemd-nspawn, likewise
//	/machine.slice/systemd-nspawn@NAME.service/payload
//
// It is what the cgroup calls itself, and so a claim: who may make a cgroup can give it the
// name of another container. It may be shown and filtered by. Whoever derives something
// else from it, such as a name or an image, has to check first that the container's own
// record has this very cgroup or process.
//
// ID is 64 hexadecimal digits. The monitor of a container (a conmon scope, the
// supervisor of nspawn) is not inside it.
func ContainerID(cgroup string) string {
	for cgroup != "" {
		var id string
		if cgroup, id = nextContainer(cgroup); id != "" {
			return id
		}
	}
	return ""
}

// inContainer reports whether a cgroup path lies in a container whose id begins
// with prefix, be it in another container in that one.
func inContainer(cgroup, prefix string) bool {
	for cgroup != "" {
		var id string
		if cgroup, id = nextContainer(cgroup); id != "" && strings.HasPrefix(id, prefix) {
			return true
		}
	}
	return false
}

// nextContainer takes the last name off a path and returns the container that it
// stands for, if any.
func nextContainer(cgroup string) (parent, id string) {
	dir, name := cutLast(cgroup, '/')
	for _, find := range []func(dir, name string) string{hexID, machine, build} {
		if id := find(dir, name); id != "" {
			return dir, id
		}
	}
	if id, ok := strings.CutPrefix(name, "lxc.payload."); ok {
		return dir, id
	}
	if dir == "/lxc" {
		return dir, name
	}
	if name == "supervisor" { // it holds what starts a container, so skip that
		if _, monitored := cutLast(dir, '/'); machine("", monitored) != "" {
			dir, _ = cutLast(dir, '/')
		}
	}
	return dir, ""
}

// hexID finds the ids that container runtimes draw at random.
func hexID(_, name string) string {
	name = strings.TrimSuffix(name, ".scope")
	if task, number := cutLast(name, '-'); len(task) == 32 && isHex(task) && isDecimal(number) {
		return name
	}
	if alloc, task, _ := strings.Cut(name, "."); task != "" && isUUID(alloc) {
		return name
	}
	return suffix(name, 64, isHex)
}

// build finds a container in which buildkit runs a step.
func build(dir, name string) string {
	name = strings.TrimSuffix(name, ".scope")
	if strings.HasSuffix(dir, "/buildkit") || strings.HasPrefix(name, "buildkit-") {
		return suffix(name, 25, isLetterOrDigit)
	}
	return ""
}

// suffix returns the last size characters of a name if they are an id. What comes
// before them says whose it is.
func suffix(name string, size int, isID func(string) bool) string {
	at := len(name) - size
	if at < 0 || !isID(name[at:]) || strings.HasSuffix(name[:at], "conmon-") {
		return ""
	}
	if at > 0 && name[at-1] != '-' && name[at-1] != ':' {
		return ""
	}
	return name[at:]
}

// machine finds a container of systemd-nspawn. Those of libvirt are virtual
// machines: what runs there runs in another kernel.
func machine(_, name string) string {
	if unit, ok := strings.CutPrefix(name, "systemd-nspawn@"); ok {
		name, _ := strings.CutSuffix(unit, ".service")
		return unescapeUnit(name)
	}
	unit, isScope := strings.CutSuffix(name, ".scope")
	unit, isMachine := strings.CutPrefix(unit, "machine-")
	if !isScope || !isMachine || strings.HasPrefix(unit, `qemu\x2d`) {
		return ""
	}
	return unescapeUnit(unit)
}

// unescapeUnit undoes the \x2d by which systemd writes a dash in the name of a
// unit, the only character of a machine's name that it has to escape.
func unescapeUnit(s string) string { return strings.ReplaceAll(s, `\x2d`, "-") }

// cutLast splits s at its last sep; without one, all is after it.
func cutLast(s string, sep byte) (before, after string) {
	i := strings.LastIndexByte(s, sep)
	return s[:max(i, 0)], s[i+1:]
}

const decimal, hex, letters = "0123456789", decimal + "abcdef", decimal + "abcdefghijklmnopqrstuvwxyz"

func isHex(s string) bool           { return s != "" && strings.Trim(s, hex) == "" }
func isDecimal(s string) bool       { return s != "" && strings.Trim(s, decimal) == "" }
func isLetterOrDigit(s string) bool { return s != "" && strings.Trim(s, letters) == "" }

func isUUID(s string) bool {
	return len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' &&
		isHex(s[:8]) && isHex(s[9:13]) && isHex(s[14:18]) && isHex(s[19:23]) && isHex(s[24:])
}

package names

import (
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// logged returns the pod of a cgroup by its path, and what the kubelet calls its folders of logs
// says of it: /var/log/pods/NAMESPACE_POD_UID and /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log.
// Nobody but root makes cgroups where the kubelet does.
func (f *Finder) logged(cgroup, container string) (n tcp.Names) {
	uid, pod := podOf(cgroup)
	if uid == "" {
		return n
	}
	n.PodUID = uid
	f.entries(logsByPod, func(name string) bool {
		rest, is := strings.CutSuffix(name, "_"+uid)
		if is {
			n.Namespace, n.Pod, is = strings.Cut(rest, "_")
		}
		return is
	})
	// The container is right below the pod: what is deeper is for the container to call as it likes.
	if container == "" || !isChild(pod, upTo(cgroup, container)) {
		return n
	}
	f.entries(logsByID, func(name string) bool {
		rest, is := strings.CutSuffix(name, "-"+container+".log")
		if !is {
			return false
		}
		part := strings.SplitN(rest, "_", 3) // none of them has an underscore
		if len(part) == 3 && (n.Pod == "" || n.Pod == part[0] && n.Namespace == part[1]) {
			n.Pod, n.Namespace, n.Container = part[0], part[1], part[2]
		}
		return true
	})
	return n
}

func isChild(parent, path string) bool {
	name, is := strings.CutPrefix(path, parent+"/")
	return is && name != "" && !strings.Contains(name, "/")
}

// podOf returns the UID of the pod that a cgroup is in, and the pod's own cgroup:
//
//	/kubepods/burstable/podUID                                the cgroupfs driver
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice   the systemd driver
//	/kubelet/kubepods/…  /kubelet.slice/kubelet-kubepods.slice/…   a node in a container (kind)
//	/system.slice/containerd.service/kubepods-podUID.slice:cri-containerd:ID
//
// The UID of a static pod is a hash of 32 digits. In a slice, where - has a meaning, it is written
// with _.
func podOf(cgroup string) (uid, pod string) {
	rest, is := strings.CutPrefix(cgroup, "/system.slice/containerd.service/")
	if is {
		slice, _, found := strings.Cut(rest, ":")
		if !found {
			return "", ""
		}
		return podUID(slice), strings.TrimSuffix(cgroup, "/"+rest)
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(cgroup, "/"), "/")
	switch first {
	case "kubepods", "kubepods.slice", "kubelet", "kubelet.slice":
	default:
		return "", ""
	}
	for at := 1; at < len(cgroup); {
		end := strings.IndexByte(cgroup[at:], '/')
		if end < 0 {
			end = len(cgroup) - at
		}
		if uid := podUID(cgroup[at : at+end]); uid != "" {
			return uid, cgroup[:at+end]
		}
		at += end + 1
	}
	return "", ""
}

// podUID returns the UID that the name of a pod's cgroup has.
func podUID(name string) string {
	name = strings.TrimSuffix(name, ".slice")
	at := strings.LastIndex(name, "pod")
	if at < 0 || at > 0 && name[at-1] != '-' {
		return ""
	}
	uid := strings.ReplaceAll(name[at+len("pod"):], "_", "-")
	digits := strings.ReplaceAll(uid, "-", "")
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" || len(uid) != 32 && len(uid) != 36 {
		return ""
	}
	return uid
}

package tcp

import "strings"

// Unit returns the systemd unit that a cgroup path belongs to, "" for none: the first
// component behind the slices, as systemd's own cg_path_get_unit has it. So what a user's
// systemd runs belongs to user@UID.service, and a container to its scope.
//
//	/system.slice/nginx.service                          nginx.service
//	/user.slice/user-1000.slice/session-2.scope          session-2.scope
//	/user.slice/user-1000.slice/user@1000.service/app.slice/x.service  user@1000.service
//	/kubepods.slice/kubepods-besteffort.slice/cri-containerd-ID.scope  cri-containerd-ID.scope
//
// The name is as in the path: systemctl escapes it in the same way.
func Unit(cgroup string) string {
	rest, rooted := strings.CutPrefix(cgroup, "/")
	for rooted && rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		// A name that the cgroup file system could take for one of its own files begins
		// with an underscore (cg_escape).
		name = strings.TrimPrefix(name, "_")
		switch _, kind := cutLast(name, '.'); kind {
		case "slice":
			continue
		case "service", "scope", "socket", "mount", "swap": // all that have processes
			if len(name) > len(kind)+1 {
				return name
			}
		}
		return ""
	}
	return ""
}

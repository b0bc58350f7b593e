package probe

import (
	"fmt"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that a trace begins with.
var needed = []cap.Value{cap.SYS_ADMIN, cap.SYS_PTRACE, cap.SYSLOG, cap.BPF, cap.PERFMON, cap.DAC_READ_SEARCH}

// MissingCapabilities says which capabilities this process lacks of those that a trace
// needs. Both lists are of names such as CAP_BPF.
type MissingCapabilities struct {
	Missing, Needed []string
}

func (e *MissingCapabilities) Error() string {
	return "tracing needs the capabilities " + strings.Join(e.Missing, ", ")
}

// checkPrivileges returns a *MissingCapabilities before the kernel says EPERM in ten places.
func checkPrivileges() error {
	have := cap.GetProc()
	var lack MissingCapabilities
	for _, c := range needed {
		name := strings.ToUpper(c.String())
		lack.Needed = append(lack.Needed, name)
		if _, ok := held(have, c); !ok {
			lack.Missing = append(lack.Missing, name)
		}
	}
	if lack.Missing == nil {
		return nil
	}
	return &lack
}

// A Task is something that a command still does when it drops privileges.
type Task int

// The tasks.
const (
	ReadTrace        Task = iota // Read, TrackedSockets and looking for owners; naming new cgroups (open_by_handle_at)
	EnterNamespaces              // PortRange and Destroy, in network namespaces of other users as well
	InspectProcesses             // limits, maps and descriptors of other users' processes
	CloseSockets                 // Destroy
)

// tasks says which capabilities each of them takes.
var tasks = [...][]cap.Value{
	ReadTrace:        {cap.BPF, cap.PERFMON, cap.DAC_READ_SEARCH},
	EnterNamespaces:  {cap.SYS_ADMIN, cap.SYS_PTRACE, cap.DAC_READ_SEARCH},
	InspectProcesses: {cap.SYS_PTRACE, cap.DAC_READ_SEARCH, cap.CHECKPOINT_RESTORE}, // the last for map_files
	CloseSockets:     {cap.NET_ADMIN},
}

// held returns the capability by which a process that has these may do what c is for: c
// itself, or CAP_SYS_ADMIN for those that were split off from it in Linux 5.8 and 5.9
// (bpf_capable, perfmon_capable, checkpoint_restore_ns_capable). Runtimes that do not know
// them, such as Docker 20.10 with --privileged, give CAP_SYS_ADMIN alone. It is false if
// there is none.
func held(have *cap.Set, c cap.Value) (cap.Value, bool) {
	if ok, err := have.GetFlag(cap.Effective, c); err == nil && ok {
		return c, true
	}
	if c != cap.BPF && c != cap.PERFMON && c != cap.CHECKPOINT_RESTORE {
		return c, false
	}
	return held(have, cap.SYS_ADMIN)
}

// DropPrivileges gives up, in every thread and for good, all capabilities but those of the
// tasks, and of these it keeps what the process has: CAP_SYS_ADMIN where that stands in
// for others. Without a task it gives up all.
func DropPrivileges(keep ...Task) error {
	have, kept := cap.GetProc(), cap.NewSet()
	for _, task := range keep {
		for _, c := range tasks[task] {
			c, ok := held(have, c)
			if !ok {
				continue
			}
			for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
				if err := kept.SetFlag(flag, true, c); err != nil {
					return fmt.Errorf("drop privileges: %w", err)
				}
			}
		}
	}
	if err := kept.SetProc(); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	return nil
}

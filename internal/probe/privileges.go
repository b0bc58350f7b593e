package probe

import (
	"slices"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/tcptrace/tcptrace/internal/confine"
)

// needed are the capabilities that a trace begins with: the programs take CAP_BPF and
// CAP_PERFMON, function addresses CAP_SYSLOG, finding the network namespaces CAP_SYS_PTRACE,
// tracefs and the names of cgroups CAP_DAC_READ_SEARCH. To list the sockets of other network
// namespaces than our own takes CAP_SYS_ADMIN too (netns_install): without it a trace works,
// and says so.
var needed = []cap.Value{cap.BPF, cap.PERFMON, cap.SYSLOG, cap.SYS_PTRACE, cap.DAC_READ_SEARCH}

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
		if _, ok := confine.Held(have, c); !ok {
			lack.Missing = append(lack.Missing, name)
		}
	}
	if lack.Missing == nil {
		return nil
	}
	return &lack
}

// HasPrivileges reports whether this process has the capabilities that Open needs.
func HasPrivileges() bool { return checkPrivileges() == nil }

// A Task is something that a command still does when it confines itself.
type Task int

// The tasks.
const (
	ReadTrace        Task = iota // Read, TrackedSockets and looking for owners; naming new cgroups (open_by_handle_at)
	EnterNamespaces              // PortRange and Destroy, in network namespaces of other users as well
	InspectProcesses             // the maps and the code of other users' processes
	CloseSockets                 // Destroy
)

// tasks says what each of them takes.
var tasks = [...]confine.Needs{
	ReadTrace:        {Capabilities: []cap.Value{cap.BPF, cap.PERFMON, cap.DAC_READ_SEARCH}, BPF: true, Handles: true},
	EnterNamespaces:  {Capabilities: []cap.Value{cap.SYS_ADMIN, cap.SYS_PTRACE, cap.DAC_READ_SEARCH}, Namespaces: true},
	InspectProcesses: {Capabilities: []cap.Value{cap.SYS_PTRACE, cap.DAC_READ_SEARCH, cap.CHECKPOINT_RESTORE}, Processes: true},
	CloseSockets:     {Capabilities: []cap.Value{cap.NET_ADMIN}, SockDiag: true},
}

// SetupNeeds is what Open, Sockets, Seed and Examine take, and all the tasks. CAP_SYS_RESOURCE
// lifts the limit on locked memory, before 5.11.
func SetupNeeds() confine.Needs {
	n := confine.Needs{Setup: true, Capabilities: append(slices.Clone(needed), cap.SYS_ADMIN, cap.SYS_RESOURCE)}
	for _, task := range tasks {
		n.Capabilities = append(n.Capabilities, task.Capabilities...)
	}
	return n
}

// Needs returns what the tasks take together.
func Needs(keep ...Task) (all confine.Needs) {
	for _, task := range keep {
		n := tasks[task]
		all.Capabilities = append(all.Capabilities, n.Capabilities...)
		all.BPF, all.Handles = all.BPF || n.BPF, all.Handles || n.Handles
		all.Processes, all.Namespaces = all.Processes || n.Processes, all.Namespaces || n.Namespaces
		all.SockDiag = all.SockDiag || n.SockDiag
	}
	return all
}

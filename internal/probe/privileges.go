package probe

import (
	"fmt"
	"os"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that a trace begins with, kept those that it goes on
// with: to look for owners, and to name new cgroups (open_by_handle_at).
var (
	kept   = []cap.Value{cap.BPF, cap.PERFMON, cap.DAC_READ_SEARCH}
	needed = append([]cap.Value{cap.SYS_ADMIN, cap.SYS_PTRACE, cap.SYSLOG}, kept...)
)

// checkPrivileges says in one sentence what is missing, before the kernel says
// EPERM in ten places.
func checkPrivileges() error {
	have := cap.GetProc()
	var missing, all []string
	for _, c := range needed {
		all = append(all, c.String())
		if ok, err := have.GetFlag(cap.Effective, c); err != nil || !ok {
			missing = append(missing, strings.ToUpper(c.String()))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	return fmt.Errorf("tracing needs the capabilities %s: run it with sudo, or give them to the file once with: sudo setcap %s=ep %s",
		strings.Join(missing, ", "), strings.Join(all, ","), exe)
}

// DropPrivileges gives up, in every thread and for good, the capabilities that a
// trace needs only until Seed has returned.
func DropPrivileges() error {
	set := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := set.SetFlag(flag, true, kept...); err != nil {
			return fmt.Errorf("drop privileges: %w", err)
		}
	}
	if err := set.SetProc(); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	return nil
}

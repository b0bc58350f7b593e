package probe

import (
	"fmt"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that a trace begins with, kept those that it goes on
// with: to look for owners, and to name new cgroups (open_by_handle_at).
var (
	kept   = []cap.Value{cap.BPF, cap.PERFMON, cap.DAC_READ_SEARCH}
	needed = append([]cap.Value{cap.SYS_ADMIN, cap.SYS_PTRACE, cap.SYSLOG}, kept...)
)

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
		if ok, err := have.GetFlag(cap.Effective, c); err != nil || !ok {
			lack.Missing = append(lack.Missing, name)
		}
	}
	if lack.Missing == nil {
		return nil
	}
	return &lack
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

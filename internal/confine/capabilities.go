package confine

import (
	"fmt"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Held returns the capability by which a process that has these may do what c is for: c
// itself, or CAP_SYS_ADMIN for those that were split off from it: CAP_BPF and CAP_PERFMON
// in Linux 5.8 (bpf_capable, perfmon_capable), CAP_CHECKPOINT_RESTORE in 5.9
// (checkpoint_restore_ns_capable). Runtimes that do not know them, such as Docker 20.10
// with --privileged, give CAP_SYS_ADMIN alone. It is false if there is none.
func Held(have *cap.Set, c cap.Value) (cap.Value, bool) {
	if ok, err := have.GetFlag(cap.Effective, c); err == nil && ok {
		return c, true
	}
	switch c {
	case cap.BPF, cap.PERFMON, cap.CHECKPOINT_RESTORE:
		return Held(have, cap.SYS_ADMIN)
	}
	return c, false
}

// keepCapabilities drops all others.
func keepCapabilities(keep []cap.Value) error {
	have, kept := cap.GetProc(), cap.NewSet()
	for _, c := range keep {
		c, ok := Held(have, c)
		if !ok {
			continue
		}
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			if err := kept.SetFlag(flag, true, c); err != nil {
				return fmt.Errorf("drop capabilities: %w", err)
			}
		}
	}
	if err := kept.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

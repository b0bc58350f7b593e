package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// An Obstacle is what keeps a trace from beginning in this place, on a kernel that would
// let it: what is mounted, a limit, or the rights that a container has.
type Obstacle struct {
	Name   string // in a word or two
	What   string // what is wrong
	Remedy string // what to do about it
	Err    error  // what failed for that reason; nil: nothing was tried
}

func (o *Obstacle) Error() string { return o.What + ": " + o.Remedy }
func (o *Obstacle) Unwrap() error { return o.Err }

// CheckPlace looks for what no trace can do without, before anything is tried: the errors
// that would follow speak of something else.
func CheckPlace() error {
	for _, check := range []func() *Obstacle{checkProc, checkSys, checkDescriptors} {
		if obstacle := check(); obstacle != nil {
			return obstacle
		}
	}
	return nil
}

func checkProc() *Obstacle {
	if _, err := os.Stat("/proc/self/mountinfo"); err == nil {
		return nil
	}
	if _, err := os.Lstat("/proc/self"); err == nil { // proc_self_get_link has no PID for us
		return &Obstacle{Name: "/proc", What: "/proc is that of a PID namespace which tcptrace is not in",
			Remedy: "mount ours over it: mount -t proc proc /proc; or enter that namespace too: nsenter --pid"}
	}
	return &Obstacle{Name: "/proc", What: "no proc file system is mounted at /proc",
		Remedy: "mount it, inside a chroot too: mount -t proc proc /proc"}
}

// checkSys asks for the file that tells how many CPUs a table per CPU is for.
func checkSys() *Obstacle {
	if _, err := os.Stat("/sys/devices/system/cpu/possible"); err == nil {
		return nil
	}
	return &Obstacle{Name: "/sys", What: "no sysfs is mounted at /sys",
		Remedy: "mount it, inside a chroot too: mount -t sysfs sysfs /sys"}
}

// descriptors is how many a trace takes to begin, at the most: each of 15 programs is
// loaded with copies of those of 11 maps, at once on as many CPUs. With fewer the library
// takes a failed test of a feature for a kernel that lacks it.
const descriptors = 320

func checkDescriptors() *Obstacle {
	var limit unix.Rlimit // the runtime has raised the soft limit to the hard one
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil // nothing is known to be wrong
	}
	if limit.Cur > descriptors { // else there is none to spare for a look
		open, err := os.ReadDir("/proc/self/fd")
		if err == nil && limit.Cur >= uint64(len(open)+descriptors) {
			return nil
		}
	}
	return &Obstacle{Name: "open files",
		What:   fmt.Sprintf("this process may have %d files open, and tracing takes up to %d more than it has now", limit.Cur, descriptors),
		Remedy: "raise the limit: ulimit -n 1024, LimitNOFILE= of a systemd unit, --ulimit nofile= of a container"}
}

// explain returns why a trace could not begin as far as this place is to blame, or err.
// Nothing of the trace is open any more.
func explain(err error) error {
	lack, isLack := errors.AsType[*MissingCapabilities](err)
	refused := isLack
	for _, refusal := range []error{errMemlock, unix.EPERM, unix.EACCES, unix.ENOSYS, ebpf.ErrNotSupported} {
		refused = refused || errors.Is(err, refusal)
	}
	switch {
	case refused && !inInitialUserNamespace():
		return &Obstacle{Name: "user namespace", Err: err,
			What:   "the rights that tcptrace has are those of a user namespace (a rootless container, unshare -r), and the kernel lets only root of the host trace",
			Remedy: "run it on the host with sudo, or in a container that root has started"}
	case isLack:
		return lack.explain()
	case errors.Is(err, unix.ENOMEM):
		return &Obstacle{Name: "memory", Err: err,
			What:   fmt.Sprintf("there is not enough memory for the tables of the trace (%v)", err),
			Remedy: "raise the memory limit of this cgroup or container, or take smaller tables: --max-sockets, --ring-size"}
	case refused:
		return explainRefusal(err)
	}
	return err
}

// inInitialUserNamespace: else the capabilities of this process are none to the kernel.
func inInitialUserNamespace() bool {
	const initialUserNamespace = 0xEFFFFFFD // PROC_USER_INIT_INO
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) != nil || st.Ino == initialUserNamespace
}

// explain returns more than e where sudo and setcap would not help.
func (e *MissingCapabilities) explain() error {
	var barred []string
	for _, name := range e.Missing {
		c, err := cap.FromName(strings.ToLower(name))
		if err != nil {
			continue
		}
		if may, err := cap.GetBound(c); err == nil && !may {
			barred = append(barred, strings.TrimPrefix(name, "CAP_"))
		}
	}
	obstacle := &Obstacle{Name: "capabilities", Err: e}
	switch noNewPrivileges, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); {
	case barred != nil:
		obstacle.What = fmt.Sprintf("%v, and no program that is started here can get them, as in a container", e)
		obstacle.Remedy = "start the container with --privileged, or with --cap-add=" + strings.Join(barred, " --cap-add=") +
			"; in a pod, set securityContext.privileged; in a systemd unit, CapabilityBoundingSet="
	case err == nil && noNewPrivileges == 1:
		obstacle.What = fmt.Sprintf("%v, and this process may not gain any (no_new_privs)", e)
		obstacle.Remedy = "start it from a shell that may use sudo, or as root; in a systemd unit, leave out NoNewPrivileges="
	default:
		return e
	}
	return obstacle
}

// errMemlock says that the limit on locked memory could not be lifted.
var errMemlock = errors.New("lift the limit on locked memory")

// explainRefusal asks the kernel for the least that bpf(2) can do. What is refused then is
// refused to every trace.
func explainRefusal(err error) error {
	least, refusal := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if errno, ok := errors.AsType[unix.Errno](refusal); ok { // the library adds a guess that is wrong here
		refusal = errno
	}
	switch {
	case refusal == nil && errors.Is(err, errMemlock):
		least.Close()
		return &Obstacle{Name: "locked memory", Err: err,
			What:   "this kernel counts the tables of a trace against the limit on locked memory, and only CAP_SYS_RESOURCE lifts it",
			Remedy: "add that capability, or raise the limit: ulimit -l unlimited, LimitMEMLOCK=infinity of a systemd unit, --ulimit memlock=-1 of a container"}
	case refusal == nil:
		least.Close()
		return err
	case hasSeccompFilter():
		return &Obstacle{Name: "seccomp", Err: err,
			What:   fmt.Sprintf("bpf() is refused to a process that has the capabilities for it (%v), and a seccomp filter is in force", refusal),
			Remedy: "allow bpf and perf_event_open in the seccomp profile, or start the container with --security-opt seccomp=unconfined"}
	case errors.Is(refusal, unix.ENOSYS):
		return &Obstacle{Name: "bpf()", Err: err, What: "this kernel has no system call bpf()",
			Remedy: "boot one that is built with CONFIG_BPF_SYSCALL=y"}
	}
	return &Obstacle{Name: "bpf()", Err: err,
		What:   fmt.Sprintf("bpf() is refused to a process that has the capabilities for it (%v)", refusal),
		Remedy: "a security module may forbid it: look for denials by SELinux or AppArmor in the kernel's log"}
}

// suspect adds to the refusal of a system call what may be behind it.
func suspect(call string, err error) error {
	if hasSeccompFilter() && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS)) {
		return fmt.Errorf("%w: a seccomp filter is in force, which may forbid %s()", err, call)
	}
	return err
}

// hasSeccompFilter reports whether one is in force in this process.
func hasSeccompFilter() bool {
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return err == nil && mode == unix.SECCOMP_MODE_FILTER
}

//go:build amd64 || arm64

package confine

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A list of what is allowed would be shorter, but the Go runtime decides which calls it
// makes, and each of its versions makes others. So this lists, whole families at a time,
// what reaches beyond a process that reads files and writes to descriptors which are open.
//
// What seccomp cannot see is what a pointer leads to: openat2(2) could open a file for
// writing. Landlock refuses that.
var refused = []uintptr{
	// Other programs, and other processes.
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
	unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_KCMP, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETATTR,
	unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETSCHEDULER,
	// Files: what changes one or its name without opening it.
	unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKDIRAT,
	unix.SYS_MKNODAT, unix.SYS_TRUNCATE, unix.SYS_FALLOCATE, unix.SYS_UTIMENSAT,
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FILE_SETATTR,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT,
	unix.SYS_FANOTIFY_INIT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK,
	// Mounts, namespaces and roots.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOUNT_SETATTR, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR,
	unix.SYS_FSPICK, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	// The machine.
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_REBOOT, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
	unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETTIMEOFDAY, unix.SYS_ADJTIMEX,
	// The network, also over a socket that was open before.
	unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT,
	// Other users and more privileges.
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_PERSONALITY,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	// Doors into the kernel that are attacked most often.
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_USERFAULTFD,
	unix.SYS_VMSPLICE, unix.SYS_SOCKETPAIR,
}

// newestCall is the last one that was considered for refused. What a kernel has beyond is
// refused as by a kernel that lacks it.
const newestCall = unix.SYS_RSEQ_SLICE_YIELD

// A call is one that is refused for some values of an argument, of which the lower 32 bits
// are looked at: none of these calls takes more into account.
type call struct {
	number uintptr
	arg    uint32
	when   condition
	values []uint32
}

type condition int

const (
	is       condition = iota // one of the values
	isNot                     // none of them
	hasBits                   // any bit of the one value
	lacksBit                  // of the one value, which is a bit
)

// someValues returns the calls that a process with these needs makes itself, but not so.
func someValues(n Needs, pid uint32) []call {
	const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	const typeInput, console = 0x5412, 0x541c // TIOCSTI, TIOCLINUX: what the shell behind us would read
	list := []call{
		{unix.SYS_OPENAT, 2, hasBits, []uint32{writing}},
		{unix.SYS_CLONE, 0, lacksBit, []uint32{unix.CLONE_THREAD}},
		{unix.SYS_KILL, 0, isNot, []uint32{pid}},
		{unix.SYS_TGKILL, 0, isNot, []uint32{pid}},
		{unix.SYS_PRLIMIT64, 0, isNot, []uint32{0, pid}},
		{unix.SYS_IOCTL, 1, is, []uint32{typeInput, console}},
		{unix.SYS_MMAP, 2, hasBits, []uint32{unix.PROT_EXEC}},
		{unix.SYS_MPROTECT, 2, hasBits, []uint32{unix.PROT_EXEC}},
		{unix.SYS_PKEY_MPROTECT, 2, hasBits, []uint32{unix.PROT_EXEC}},
	}
	if n.BPF && !n.Setup { // no new programs or maps, and none of others
		list = append(list, call{unix.SYS_BPF, 0, isNot, []uint32{
			unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY,
			unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH, unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_LINK_CREATE, unix.BPF_ITER_CREATE,
		}})
	}
	if families := n.sockets(); len(families) > 0 {
		list = append(list, call{unix.SYS_SOCKET, 0, isNot, families})
	}
	return list
}

// sockets are the families of which a process with these needs makes sockets.
func (n Needs) sockets() (families []uint32) {
	if n.SockDiag || n.Setup {
		families = append(families, unix.AF_NETLINK)
	}
	if len(n.Connect) > 0 {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	return families
}

// always returns the calls that are refused whatever their arguments.
func always(n Needs) []uintptr {
	// With cgo, Process makes its calls in other threads by libpsx, which finds these by tkill(2).
	setup := []uintptr{unix.SYS_PERF_EVENT_OPEN, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_CAPSET, unix.SYS_TKILL}
	list := slices.Concat(refused, refusedHere)
	if !n.Truncate { // not even a command that only begins needs it
		list = append(list, unix.SYS_FTRUNCATE)
	}
	if !n.Accept { // likewise
		list = append(list, unix.SYS_ACCEPT4)
	}
	if len(n.Connect) == 0 { // likewise
		list = append(list, unix.SYS_CONNECT)
	}
	for _, unless := range []struct {
		needed bool
		calls  []uintptr
	}{
		{n.BPF, []uintptr{unix.SYS_BPF}},
		{n.Handles, []uintptr{unix.SYS_OPEN_BY_HANDLE_AT}},
		{n.Namespaces, []uintptr{unix.SYS_SETNS, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD}},
		{len(n.sockets()) > 0, []uintptr{unix.SYS_SOCKET}},
		{n.Helper, []uintptr{unix.SYS_PIDFD_SEND_SIGNAL}}, // os.Process.Kill, which has the descriptor
		{n.Setup, setup},
	} {
		if !unless.needed && !n.Setup {
			list = append(list, unless.calls...)
		}
	}
	return list
}

// filterCalls has seccomp refuse these calls to every thread. They fail with EPERM.
func filterCalls(n Needs) error {
	filter := program(n, uint32(os.Getpid()))
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// The kernel need not protect us from the other threads by slowing all of them down
	// (SPEC_ALLOW): until 5.16 it would. TSYNC is for every thread.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	switch {
	case errno != 0:
		return fmt.Errorf("filter system calls: %w", errno)
	case thread != 0:
		return fmt.Errorf("filter system calls: thread %d has a filter of its own", thread)
	}
	return nil
}

const (
	allow  = unix.SECCOMP_RET_ALLOW
	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	lack   = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// The offsets in struct seccomp_data. Both architectures are little-endian.
const (
	atNumber = 0
	atArch   = 4
	atArgs   = 16
)

// program is the filter, in classic BPF. The kernel remembers which calls it allows without
// a look at their arguments (since 5.11), so that its length does not matter to most calls.
func program(n Needs, pid uint32) []unix.SockFilter {
	p := []unix.SockFilter{
		load(atArch),
		jump(unix.BPF_JEQ, nativeArch, 1, 0),
		done(refuse), // a call of 32-bit programs has other numbers
		load(atNumber),
		jump(unix.BPF_JGT, newestCall, 0, 1), // also the calls of x32
		done(lack),
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), // its flags are behind a pointer; C libraries then use clone
		done(lack),
	}
	for _, number := range always(n) {
		p = append(p, jump(unix.BPF_JEQ, uint32(number), 0, 1), done(refuse))
	}
	for _, c := range someValues(n, pid) {
		body := c.body()
		p = append(p, jump(unix.BPF_JEQ, uint32(c.number), 0, uint8(len(body))))
		p = append(p, body...)
	}
	return append(p, done(allow))
}

// body decides about a call by its argument.
func (c call) body() []unix.SockFilter {
	test, hit, miss := uint16(unix.BPF_JEQ), refuse, uint32(allow)
	if c.when == hasBits || c.when == lacksBit {
		test = unix.BPF_JSET
	}
	if c.when == isNot || c.when == lacksBit {
		hit, miss = miss, hit
	}
	body := []unix.SockFilter{load(atArgs + 8*c.arg)}
	for i, value := range c.values {
		body = append(body, jump(test, value, uint8(len(c.values)-i), 0))
	}
	return append(body, done(miss), done(hit))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(test uint16, value uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: yes, Jf: no, K: value}
}

func done(what uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what}
}

// Package confine keeps this process from doing what it is not meant to do, whatever it is
// fed. What the user named is opened with the rights of that user (AsUser), and what a
// command no longer needs is given up for good, in every thread (Process).
//
// It is the second line: that hostile files, names and programs are handled is the
// business of the packages that meet them.
package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Needs is what a command still does after Process, by what that takes of the kernel. The
// zero value is a command that only uses the files that are open already.
type Needs struct {
	Capabilities []cap.Value // kept if the process has them, or what stands in for them: see Held
	Read         []string    // files, and folders with all below, that are opened for reading; one that is missing does not matter

	BPF        bool // bpf(2), with the programs and maps that are there
	Handles    bool // open_by_handle_at(2)
	Processes  bool // /proc/PID as far as the kernel asks for ptrace(2) access: no Landlock, see restrictFiles
	Namespaces bool // setns(2), and namespaces from the sockets of other processes
	SockDiag   bool // sockets of netlink
	Helper     bool // to kill a child that was started before
	Truncate   bool // ftruncate(2) of files that are open for writing
	Accept     bool // accept4(2) on sockets that listen already

	// Connect are the TCP ports that may be connected to, and Resolve is whether names may be asked
	// for at port 53. Seccomp does not see a port: which ones they are is held by Landlock, TCP
	// from Linux 6.7 on, UDP where its ABI has reached 10.
	Connect []uint16
	Resolve bool

	// Setup is for a command that only begins: it loads and attaches programs, makes what it
	// keeps open, enters namespaces, and calls Process again. No Landlock.
	Setup bool
}

// InForce is what the kernel has taken away beside the capabilities.
type InForce struct {
	Landlock int   // version of its ABI; 0: not in force
	Seccomp  error // why its filter is not in force; nil: it is
}

// Process gives up, in every thread and for good, what n does not list. It can be called
// again, to give up more, after Setup alone. Capabilities and no_new_privs are certain:
// without them it returns an error. Landlock and seccomp are in force where the kernel has
// them.
func Process(n Needs) (InForce, error) {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return InForce{}, fmt.Errorf("set no_new_privs: %w", err)
	}
	var in InForce
	var err error
	if in.Landlock, err = restrictFiles(n); err != nil {
		return in, err
	}
	if err := keepCapabilities(n.Capabilities); err != nil {
		return in, err
	}
	in.Seccomp = filterCalls(n) // last: what comes before needs calls that it refuses
	return in, nil
}

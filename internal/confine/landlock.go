package confine

import (
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	"github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// signalsToThreads is the version, of Linux 6.15, from which on a thread may always signal
// another of its process (hook_task_kill). Version 6 counts each as a process of its own, and
// the Go runtime would wait for threads that it cannot signal.
const signalsToThreads = 7

// restrictFiles has Landlock (Linux 5.13) refuse what n does not list: to open a file for
// anything but reading, to make, move, remove or execute one, to open one outside of n.Read;
// from version 4 on TCP, from 6 on abstract sockets and from 7 on signals that lead out of
// this process, from 9 on sockets in the file system and from 10 on UDP. It returns the
// version.
//
// A process under Landlock may not look into one that is not, whatever its capabilities
// (hook_ptrace_access_check): /proc/PID/maps, root, map_files and ns say EACCES. A command
// that needs these has no Landlock.
func restrictFiles(n Needs) (version int, err error) {
	if n.Processes || n.Namespaces || n.Setup {
		return 0, nil
	}
	version, err = syscall.LandlockGetABIVersion()
	if err != nil || version < 1 { // the kernel lacks it, or was booted without it
		return 0, nil
	}
	const file, folder = syscall.AccessFSReadFile, syscall.AccessFSReadFile | syscall.AccessFSReadDir
	rules := connections(n)
	for _, path := range n.Read {
		access := landlock.AccessFSSet(file)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			access = folder
		}
		rules = append(rules, landlock.PathAccess(access, path).IgnoreIfMissing())
	}
	config := landlock.V11.BestEffort()
	if version < signalsToThreads || n.Helper { // seccomp lets no other process be signalled
		config.Scoped &^= syscall.ScopeSignal
	}
	if err := config.Restrict(rules...); err != nil {
		return 0, fmt.Errorf("restrict access to files with Landlock: %w", err)
	}
	return version, nil
}

// connections are the ends that may be connected to.
func connections(n Needs) (rules []landlock.Rule) {
	for _, port := range n.Connect {
		rules = append(rules, landlock.ConnectTCP(port))
	}
	if n.Resolve { // the kernel binds a UDP socket to a port of its choice
		const domain = 53
		rules = append(rules, landlock.ConnectTCP(domain), landlock.ConnectSendUDP(domain), landlock.BindUDP(0))
	}
	return rules
}

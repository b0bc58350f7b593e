package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// attachSyscall attaches a program to the tracepoint of a system call until the result
// is closed. link.Tracepoint looks for the tracepoint's number in a mounted tracefs, and
// many containers have none.
func attachSyscall(name string, prog *ebpf.Program) (io.Closer, error) {
	id, err := tracepointID("syscalls/" + name)
	if err != nil {
		return nil, err
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample: 1, Wakeup: 1}
	// The CPU does not matter: the program of a tracepoint runs on all of them.
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tracepoint %s: %w", name, suspect("perf_event_open", err))
	}
	event := os.NewFile(uintptr(fd), name)
	err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, prog.FD())
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)
	}
	if err != nil {
		event.Close()
		return nil, fmt.Errorf("attach to tracepoint %s: %w", name, err)
	}
	return event, nil
}

// tracepointID reads the number of a tracepoint from a tracefs of its own, which is not
// mounted anywhere and is gone when its descriptor is closed (fsmount, 5.2+).
func tracepointID(name string) (uint64, error) {
	root, err := openTracefs()
	switch {
	case errors.Is(err, unix.ENODEV):
		return 0, fmt.Errorf("this kernel has no tracefs: it is built without CONFIG_FTRACE_SYSCALLS")
	case err != nil:
		return 0, fmt.Errorf("open tracefs: %w", suspect("fsopen", err))
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, "events/"+name+"/id", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("this kernel has no tracepoint %s: it is built without CONFIG_FTRACE_SYSCALLS", name)
	} else if err != nil {
		return 0, fmt.Errorf("look up tracepoint %s in tracefs: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return 0, fmt.Errorf("look up tracepoint %s in tracefs: %w", name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

func openTracefs() (root int, err error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
}

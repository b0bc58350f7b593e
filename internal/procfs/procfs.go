// Package procfs is the only way to the directories of other processes,
// /proc/PID. An event names a process by the number that it has in the initial
// PID namespace. A /proc of another namespace has other processes under the same
// numbers, so nothing is read there.
package procfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// initialPID is what the link ns/pid of a process in the initial PID namespace
// says: PROC_PID_INIT_INO in include/linux/proc_ns.h, the same since Linux 3.8.
const initialPID = "pid:[4026531836]"

// Kthreadd is the parent of the kernel's threads. It is process 2 of the initial
// PID namespace (rest_init in init/main.c), and no other namespace has any.
const Kthreadd = 2

// ErrOtherNamespace says that the numbers of a /proc are not those of events.
var ErrOtherNamespace = errors.New("/proc belongs to another PID namespace than the process ids of events")

// Proc is a proc file system.
type Proc struct {
	root    string
	initial bool  // it shows the initial PID namespace
	shift   int64 // ns that our time namespace adds to the times in it
}

// Open looks at the proc file system at root ("/proc"). One that cannot be
// examined counts as one of another namespace.
func Open(root string) Proc {
	p := Proc{root: root, initial: true}
	stat, err := p.Stat(Kthreadd)
	p.initial = err == nil && stat.KernelThread || err != nil && isOurs(root)
	if began := int64(stat.Start * Tick); p.initial && max(began, -began) > longestBoot {
		p.shift = began
	}
	return p
}

// longestBoot is how long after the boot Kthreadd begins at the most, in ns. In a time
// namespace, /proc/PID/stat adds the offset of whoever reads it (do_task_stat in
// fs/proc/array.c); what is below zero then wraps around.
const longestBoot = 10e9

// Began is when a process began, in ns of CLOCK_BOOTTIME as BPF programs read it, to
// within a Tick.
func (p Proc) Began(s Stat) uint64 {
	return uint64(max(0, int64(s.Start*Tick)-p.shift))
}

// isOurs reports whether we are in the initial PID namespace and root shows it. It
// is for a /proc that hides the processes of others (hidepid). Our own namespace
// alone would not tell: nsenter -m leaves us there with the /proc of another one.
func isOurs(root string) bool {
	ns, err := os.Readlink(filepath.Join(root, "self/ns/pid"))
	if err != nil || ns != initialPID {
		return false
	}
	self, err := os.Readlink(filepath.Join(root, "self"))
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// Root returns where the file system is mounted.
func (p Proc) Root() string { return p.root }

// HasEventPIDs reports whether the process ids of events are those of p.
func (p Proc) HasEventPIDs() bool { return p.initial }

// Mounted reports whether there is a proc file system at all.
func (p Proc) Mounted() bool {
	_, err := os.Lstat(filepath.Join(p.root, "self"))
	return err == nil
}

// ShowsUs reports whether this process is in p. One that has entered another mount
// namespace alone is not (proc_self_get_link in fs/proc/self.c).
func (p Proc) ShowsUs() bool {
	_, err := os.Stat(filepath.Join(p.root, "self"))
	return err == nil
}

// Dir returns the directory of the process that an event names, or
// ErrOtherNamespace. The process may have exited, and another may have its pid.
func (p Proc) Dir(pid uint32) (string, error) {
	if !p.initial {
		return "", ErrOtherNamespace
	}
	return filepath.Join(p.root, strconv.FormatUint(uint64(pid), 10)), nil
}

// maxThreads is how many threads Live looks at. A thread that has ended goes at
// once, the main thread alone stays.
const maxThreads = 16

// Live returns a directory like Dir that shows the memory and the files of the
// process when its main thread has ended (pthread_exit in main): that of another
// thread. That one has no map_files.
func (p Proc) Live(pid uint32) (string, error) {
	dir, err := p.Dir(pid)
	if err != nil {
		return "", err
	}
	if stat, err := p.Stat(pid); err != nil || !stat.Ended {
		return dir, err
	}
	tasks, err := os.Open(filepath.Join(dir, "task"))
	if err != nil {
		return "", err
	}
	defer tasks.Close()
	tids, _ := tasks.Readdirnames(maxThreads)
	for _, tid := range tids {
		task := filepath.Join(dir, "task", tid)
		if stat, err := readFile(filepath.Join(task, "stat"), ParseStat); err == nil && !stat.Ended {
			return task, nil
		}
	}
	return "", fmt.Errorf("process %d has ended: %w", pid, os.ErrNotExist)
}

// Read opens a file of the process that an event names and has it parsed.
func Read[T any](p Proc, pid uint32, file string, parse func(io.Reader) (T, error)) (v T, err error) {
	dir, err := p.Dir(pid)
	if err != nil {
		return v, err
	}
	return readFile(filepath.Join(dir, file), parse)
}

func readFile[T any](name string, parse func(io.Reader) (T, error)) (v T, err error) {
	f, err := os.Open(name)
	if err != nil {
		return v, err
	}
	defer f.Close()
	return parse(f)
}

// Stat distinguishes a process, and a program in it, from others that have the same
// pid before it or after it.
type Stat struct {
	Start        uint64    // when the process began, in ticks since the boot; see Tick and Began
	Exec         [2]uint64 // where execve() put its code and its stack
	KernelThread bool
	Ended        bool   // the main thread has; others may run on
	Name         string // of the main thread, raw; execve() and prctl() change it
}

// Tick is the unit of Stat.Start in ns: USER_HZ is 100 on every architecture that
// we build for.
const Tick = 1e9 / 100

// Stat reads it from /proc/PID/stat. Exec is zero without the right to trace the
// process.
func (p Proc) Stat(pid uint32) (Stat, error) { return Read(p, pid, "stat", ParseStat) }

// ParseStat reads /proc/PID/stat, see proc_pid_stat(5): the
// fields are flags, starttime, startcode and startstack.
func ParseStat(r io.Reader) (s Stat, err error) {
	const isKernelThread = 0x00200000 // PF_KTHREAD in include/linux/sched.h
	var flags uint64
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return s, fmt.Errorf("read process status: %w", err)
	}
	// The name, field 2, may hold spaces and parentheses: count from its end.
	open, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text[end+1:]))
	if open < 0 || end < open || len(fields) < 26 {
		return s, fmt.Errorf("parse process status %.40q: too few fields", text)
	}
	s.Name, s.Ended = string(text[open+1:end]), fields[0] == "Z" || fields[0] == "X"
	for i, to := range map[int]*uint64{9: &flags, 22: &s.Start, 26: &s.Exec[0], 28: &s.Exec[1]} {
		if *to, err = strconv.ParseUint(fields[i-3], 10, 64); err != nil {
			return Stat{}, fmt.Errorf("parse process status %.40q: field %d: %w", text, i, err)
		}
	}
	s.KernelThread = flags&isKernelThread != 0
	return s, nil
}

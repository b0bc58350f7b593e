package confine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// childEnv tells a test that runs once more, in a process of its own, what to do there.
const childEnv = "TCPTRACE_TEST_CONFINED"

// again runs the test that calls it in another process, which prepare may change, and
// decodes what that wrote with answer.
func again(t *testing.T, what string, to any, prepare func(*exec.Cmd)) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, "-test.run=^"+strings.SplitN(t.Name(), "/", 2)[0]+"$")
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	prepare(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, text, _ := strings.Cut(string(out), "answer ")
	if err := json.NewDecoder(strings.NewReader(text)).Decode(to); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
}

func answer(v any) {
	text, _ := json.Marshal(v)
	os.Stdout.WriteString("answer " + string(text) + "\n")
}

var profiles = map[string]Needs{
	"control":    {}, // is not confined
	"nothing":    {},
	"reads":      {Read: []string{"/proc", "/not there"}},
	"reads one":  {Read: []string{"/proc/sys/kernel/ostype"}},
	"traces":     {Read: []string{"/proc"}, BPF: true, Handles: true, Capabilities: []cap.Value{cap.BPF, cap.DAC_READ_SEARCH}},
	"inspects":   {Processes: true, BPF: true, Handles: true, Capabilities: []cap.Value{cap.BPF, cap.SYS_PTRACE, cap.DAC_READ_SEARCH}},
	"begins":     {Setup: true, Capabilities: []cap.Value{cap.SYS_ADMIN, cap.DAC_READ_SEARCH}},
	"rotates":    {Truncate: true},
	"serves":     {Read: []string{"/proc"}, Accept: true},
	"pushes":     {Read: []string{"/proc"}, Accept: true, Connect: []uint16{1}},
	"resolves":   {Read: []string{"/proc"}, Connect: []uint16{1}, Resolve: true},
	"namespaces": {Namespaces: true, SockDiag: true, Capabilities: []cap.Value{cap.SYS_ADMIN, cap.NET_ADMIN}},
}

func underLandlock(n Needs) bool { return !n.Processes && !n.Namespaces && !n.Setup }

// attempt is something that a process may try. In control it does not fail for lack of
// permission, and it never does harm.
type attempt struct {
	name    string
	try     func(place) error
	allowed func(Needs) bool // nil: never
	only    bool             // Landlock alone refuses it
}

// place is made before the process is confined.
type place struct {
	folder string
	tcp    int // a socket that is neither bound nor connected
	open   *os.File
}

func (p place) in(name string) string { return filepath.Join(p.folder, name) }

// nobody is a process that does not exist.
const nobody = 1<<22 - 1

func raw(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func opened(f *os.File, err error) error {
	if err == nil {
		f.Close()
	}
	return err
}

func socket(domain, kind int) error {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// acceptNone fails with EINVAL if it may accept: the socket does not listen.
func acceptNone(fd int) error {
	_, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	return err
}

func not(is func(Needs) bool) func(Needs) bool { return func(n Needs) bool { return !is(n) } }

var (
	begins         = func(n Needs) bool { return n.Setup }
	readsProc      = func(n Needs) bool { return slices.Contains(n.Read, "/proc") || !underLandlock(n) }
	readsOne       = func(n Needs) bool { return slices.Contains(n.Read, "/proc/sys/kernel/ostype") || readsProc(n) }
	traces         = func(n Needs) bool { return n.BPF || n.Setup }
	byHandle       = func(n Needs) bool { return n.Handles || n.Setup }
	entersNetworks = func(n Needs) bool { return n.Namespaces || n.Setup }
	diagnoses      = func(n Needs) bool { return n.SockDiag || n.Setup }
	rotates        = func(n Needs) bool { return n.Truncate }
	serves         = func(n Needs) bool { return n.Accept }
	pushes         = func(n Needs) bool { return len(n.Connect) > 0 }
	resolves       = func(n Needs) bool { return n.Resolve }
	anybody        = func(Needs) bool { return true }
)

// landlockHasNo is for what those may do whom Landlock does not see, before a version.
func landlockHasNo(version int, who func(Needs) bool) func(Needs) bool {
	return func(n Needs) bool { return who(n) && kernelsLandlock() < version }
}

func either(a, b func(Needs) bool) func(Needs) bool {
	return func(n Needs) bool { return a(n) || b(n) }
}

// ask sends a datagram, as a resolver does.
func ask(address string) error {
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("?"))
	return err
}

var attempts = []attempt{
	{name: "read /proc", try: func(place) error { return opened(os.Open("/proc/self/status")) }, allowed: readsProc, only: true},
	{name: "list /proc", try: func(place) error { _, err := os.ReadDir("/proc"); return err }, allowed: readsProc, only: true},
	{name: "read a file", try: func(place) error { return opened(os.Open("/proc/sys/kernel/ostype")) }, allowed: readsOne, only: true},
	{name: "read elsewhere", try: func(p place) error { return opened(os.Open(p.in("file"))) }, allowed: not(underLandlock), only: true},
	{name: "list elsewhere", try: func(p place) error { _, err := os.ReadDir(p.folder); return err }, allowed: not(underLandlock), only: true},
	{name: "look at a name", try: func(p place) error { _, err := os.Stat(p.in("file")); return err }, allowed: anybody},
	{name: "begin threads", try: func(place) error { return threads() }, allowed: anybody},

	{name: "open for writing", try: func(p place) error { return opened(os.OpenFile(p.in("file"), os.O_WRONLY, 0)) }},
	{name: "open for reading and writing", try: func(p place) error { return opened(os.OpenFile(p.in("file"), os.O_RDWR, 0)) }},
	{name: "open and empty", try: func(p place) error { return opened(os.OpenFile(p.in("file"), os.O_TRUNC, 0)) }},
	{name: "openat2 for writing", try: func(p place) error {
		fd, err := unix.Openat2(unix.AT_FDCWD, p.in("file"), &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC})
		if err == nil {
			unix.Close(fd)
		}
		return err
	}, allowed: not(underLandlock), only: true},
	{name: "create", try: func(p place) error { return os.WriteFile(p.in("new"), nil, 0o600) }},
	{name: "make a folder", try: func(p place) error { return os.Mkdir(p.in("folder"), 0o700) }},
	{name: "make a FIFO", try: func(p place) error { return unix.Mkfifo(p.in("fifo"), 0o600) }},
	{name: "rename", try: func(p place) error { return os.Rename(p.in("moved"), p.in("away")) }},
	{name: "link", try: func(p place) error { return os.Link(p.in("file"), p.in("link")) }},
	{name: "link by name", try: func(p place) error { return os.Symlink("file", p.in("symlink")) }},
	{name: "remove", try: func(p place) error { return os.Remove(p.in("removed")) }},
	{name: "truncate", try: func(p place) error { return os.Truncate(p.in("file"), 0) }},
	{name: "empty an open file", try: func(p place) error { return p.open.Truncate(0) }, allowed: rotates},
	{name: "write to an open file", try: func(p place) error { _, err := p.open.WriteAt([]byte("x"), 0); return err }, allowed: anybody},
	{name: "change the mode", try: func(p place) error { return os.Chmod(p.in("file"), 0o644) }},
	{name: "change the owner", try: func(p place) error { return os.Chown(p.in("file"), os.Getuid(), -1) }},
	{name: "change the times", try: func(p place) error { return unix.Utimes(p.in("file"), make([]unix.Timeval, 2)) }},

	{name: "run a program", try: func(place) error { return exec.Command("/proc/self/exe", "-test.run=^$").Run() }},
	{name: "execve", try: func(p place) error { return unix.Exec(p.in("none"), []string{"none"}, nil) }},
	{name: "execveat", try: func(p place) error { return raw(unix.SYS_EXECVEAT, ^uintptr(0)) }},
	{name: "executable memory", try: func(place) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	}},
	{name: "ptrace", try: func(place) error { return unix.PtraceAttach(nobody) }},
	{name: "read the memory of a process", try: func(place) error { return raw(unix.SYS_PROCESS_VM_READV, nobody) }},
	{name: "signal a process", try: func(place) error { return unix.Kill(os.Getppid(), 0) }},
	{name: "signal a thread", try: func(place) error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) }},
	{name: "limit a process", try: func(place) error { return unix.Prlimit(os.Getppid(), unix.RLIMIT_CORE, nil, new(unix.Rlimit)) }},
	{name: "type into the terminal", try: func(place) error { return unix.IoctlSetPointerInt(0, unix.TIOCSTI, 'x') }},

	{name: "mount", try: func(p place) error { return unix.Mount("none", p.in("none"), "tmpfs", 0, "") }},
	{name: "chroot", try: func(p place) error { return unix.Chroot(p.in("none")) }},
	{name: "unshare", try: func(place) error { return unix.Unshare(0) }},
	{name: "setns", try: func(place) error { return unix.Setns(-1, 0) }, allowed: entersNetworks},
	{name: "take a descriptor of a process", try: func(place) error { _, err := unix.PidfdGetfd(-1, 0, 0); return err }, allowed: entersNetworks},
	{name: "open by handle", try: func(place) error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0)) }, allowed: byHandle},
	{name: "load a module", try: func(place) error { return raw(unix.SYS_INIT_MODULE) }},
	{name: "load a BPF program", try: func(place) error { return raw(unix.SYS_BPF, unix.BPF_PROG_LOAD) }, allowed: begins},
	{name: "make a BPF map", try: func(place) error { return raw(unix.SYS_BPF, unix.BPF_MAP_CREATE) }, allowed: begins},
	{name: "open a performance event", try: func(place) error { return raw(unix.SYS_PERF_EVENT_OPEN) }, allowed: begins},
	{name: "prepare a mount", try: func(place) error { return raw(unix.SYS_FSOPEN) }, allowed: begins},
	{name: "set capabilities", try: func(place) error { return raw(unix.SYS_CAPSET) }, allowed: begins},
	{name: "look into a BPF map", try: func(place) error { return raw(unix.SYS_BPF, unix.BPF_MAP_LOOKUP_ELEM) }, allowed: traces},
	{name: "set the clock", try: func(place) error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Nsec: -1}) }},
	{name: "name the host", try: func(place) error { return unix.Sethostname(make([]byte, 65)) }},
	{name: "become a user", try: func(place) error { return raw(unix.SYS_SETRESUID, ^uintptr(0), ^uintptr(0), ^uintptr(0)) }},

	{name: "TCP", try: func(place) error { return socket(unix.AF_INET, unix.SOCK_STREAM) }, allowed: pushes},
	{name: "UDP over IPv6", try: func(place) error { return socket(unix.AF_INET6, unix.SOCK_DGRAM) }, allowed: pushes},
	{name: "a local socket", try: func(place) error { return socket(unix.AF_UNIX, unix.SOCK_STREAM) }},
	{name: "netlink", try: func(place) error { return socket(unix.AF_NETLINK, unix.SOCK_DGRAM) }, allowed: diagnoses},
	{name: "connect", try: func(p place) error { return unix.Connect(p.tcp, loopback(1)) }, allowed: pushes},
	{name: "connect to another port", try: func(p place) error { return unix.Connect(p.tcp, loopback(2)) }, allowed: landlockHasNo(4, pushes)},
	{name: "accept4", try: func(p place) error { return acceptNone(p.tcp) }, allowed: serves},
	{name: "bind", try: func(p place) error { return unix.Bind(p.tcp, loopback(0)) }},
	{name: "resolve a name", try: func(place) error { return ask("127.0.0.1:53") }, allowed: either(resolves, landlockHasNo(10, pushes))},
	{name: "ask another port", try: func(place) error { return ask("127.0.0.1:54") }, allowed: landlockHasNo(10, pushes)},
}

func loopback(port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

// threads has the runtime begin some, and collect garbage, for which it signals them.
func threads() error {
	done := make(chan bool)
	for range 20 {
		go func() {
			runtime.LockOSThread()
			runtime.GC()
			done <- true
		}()
	}
	for range 20 {
		<-done
	}
	return nil
}

// broken is what a confined process reports.
type broken struct {
	InForce  InForce
	Problem  string            // why seccomp is not in force
	Statuses map[string]string // lines of /proc/self/task/*/status
	Tried    map[string]unix.Errno
}

// confineAndTry is what the other process does.
func confineAndTry(t *testing.T, profile string) (b broken) {
	b.Tried, b.Statuses = map[string]unix.Errno{}, map[string]string{}
	p := place{folder: t.TempDir()}
	for _, name := range []string{"file", "moved", "removed"} {
		if err := os.WriteFile(p.in(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if p.open, err = CreateNew(p.in("open")); err != nil {
		t.Fatal(err)
	}
	if p.tcp, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := threads(); err != nil {
		t.Fatal(err)
	}
	statuses, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File // open now: a profile may not open them
	for _, name := range statuses {
		if f, err := os.Open(name); err == nil {
			files = append(files, f)
		}
	}
	if profile != "control" {
		if _, err := Process(beginning(profiles[profile])); err != nil { // as every live command does
			t.Fatal(err)
		}
		if b.InForce, err = Process(profiles[profile]); err != nil {
			t.Fatal(err)
		}
		if b.InForce.Seccomp != nil {
			b.Problem, b.InForce.Seccomp = b.InForce.Seccomp.Error(), nil
		}
	}
	for _, a := range attempts {
		var errno unix.Errno
		if err := a.try(p); err != nil && !errors.As(err, &errno) {
			errno = unix.EINVAL // of a program that ran, and failed
		}
		b.Tried[a.name] = errno
	}
	for _, f := range files {
		text := make([]byte, 8<<10)
		if n, _ := f.ReadAt(text, 0); n > 0 {
			b.Statuses[f.Name()] = string(text[:n])
		}
	}
	return b
}

// beginning is what a live command with these needs keeps until it has begun.
func beginning(n Needs) Needs {
	begins := profiles["begins"]
	begins.Truncate, begins.Accept, begins.Connect = n.Truncate, n.Accept, n.Connect
	return begins
}

// TestBreakOut confines a process of its own for each profile, which then tries to break
// out. What it is refused it may do without: that is tried as well.
func TestBreakOut(t *testing.T) {
	if profile := os.Getenv(childEnv); profile != "" {
		answer(confineAndTry(t, profile))
		os.Exit(0) // the testing package could not remove the folder
	}
	for profile, needs := range profiles {
		t.Run(profile, func(t *testing.T) {
			var got broken
			tmp := t.TempDir() // which this process can remove
			again(t, profile, &got, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "TMPDIR="+tmp) })
			if got.Problem != "" {
				t.Fatalf("this kernel lets nobody filter system calls: %s", got.Problem)
			}
			if want := kernelsLandlock(); profile != "control" && underLandlock(needs) && got.InForce.Landlock != want {
				t.Errorf("Landlock: got version %d, the kernel has %d", got.InForce.Landlock, want)
			}
			for _, a := range attempts {
				errno := got.Tried[a.name]
				refused := errno == unix.EPERM || errno == unix.EACCES
				switch {
				case profile == "control":
					if refused && os.Getuid() == 0 {
						t.Errorf("%s: got %v without being confined: that proves nothing", a.name, errno)
					}
				case a.only && got.InForce.Landlock == 0 && underLandlock(needs):
					t.Logf("%s: not judged, as this kernel has no Landlock", a.name)
				case a.allowed != nil && a.allowed(needs):
					if refused && os.Getuid() == 0 {
						t.Errorf("%s: got %v, and it is needed", a.name, errno)
					}
				case !refused:
					t.Errorf("%s: got %v, want EPERM or EACCES", a.name, errno)
				}
			}
			if profile != "control" {
				checkStatuses(t, got.Statuses)
			}
		})
	}
}

// kernelsLandlock returns its version, 0 where the kernel lacks it or was booted without it.
func kernelsLandlock() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// checkStatuses wants every thread confined.
func checkStatuses(t *testing.T, statuses map[string]string) {
	t.Helper()
	if len(statuses) < 2 {
		t.Errorf("got the status of %d threads", len(statuses))
	}
	for name, status := range statuses {
		if !strings.Contains(status, "\nNoNewPrivs:\t1\n") || !strings.Contains(status, "\nSeccomp:\t2\n") {
			t.Errorf("%s is not confined: %s", name, status)
		}
	}
}

// What a newer kernel adds is refused until somebody has looked at it, and so are the calls
// of the other ways into the kernel. clone3 is refused in a way that C libraries understand.
func TestUnknownCalls(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		if _, err := Process(Needs{}); err != nil {
			t.Fatal(err)
		}
		got := map[string]unix.Errno{}
		for name, number := range map[string]uintptr{
			"newer": newestCall + 1, "x32": 1<<30 | unix.SYS_GETPID, "clone3": unix.SYS_CLONE3, "getpid": unix.SYS_GETPID,
		} {
			_, _, got[name] = unix.RawSyscall(number, 0, 0, 0)
		}
		answer(got)
		os.Exit(0)
	}
	var got map[string]unix.Errno
	again(t, "unknown", &got, func(*exec.Cmd) {})
	for name, want := range map[string]unix.Errno{"newer": unix.ENOSYS, "x32": unix.ENOSYS, "clone3": unix.ENOSYS, "getpid": 0} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
}

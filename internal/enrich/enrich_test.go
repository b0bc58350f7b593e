package enrich

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

const (
	id1 = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
	id2 = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"

	sec = 1e9
)

func TestParseMounts(t *testing.T) {
	tests := []struct {
		name, text string
		want       mount
		legacy     bool
	}{
		{"unified", `
22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
`, mount{at: "/sys/fs/cgroup"}, false},
		{"hybrid", `
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
`, mount{at: "/sys/fs/cgroup/unified"}, true},
		{"legacy", `
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
`, mount{}, true},
		{"a container that has the host's tree too", `
50 49 0:26 /docker/` + id1 + ` /sys/fs/cgroup ro - cgroup2 cgroup rw
51 49 0:26 / /host/cgroup\040v2 ro - cgroup2 cgroup rw
52 49 0:26 / /elsewhere ro - cgroup2 cgroup rw
`, mount{at: "/host/cgroup v2"}, false},
		{"a container that sees itself only", `
50 49 0:26 /docker/` + id1 + ` /sys/fs/cgroup ro - cgroup2 cgroup rw
`, mount{at: "/sys/fs/cgroup", root: "/docker/" + id1}, false},
		{"nothing", "", mount{}, false},
		{"nonsense", "\n - cgroup2\n1 2 3\n\x00 - - -\n", mount{}, false},
	}
	for _, test := range tests {
		got, legacy := parseMounts(strings.NewReader(test.text))
		if got != test.want || legacy != test.legacy {
			t.Errorf("%s: got %+v, %v, want %+v, %v", test.name, got, legacy, test.want, test.legacy)
		}
	}
}

func TestParseContainer(t *testing.T) {
	tests := map[string]string{
		"0::/../docker/" + id1 + "\n":                            id1, // from a cgroup namespace
		"0::/../../system.slice/docker-" + id1 + ".scope/init\n": id1,
		"12:pids:/docker/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n0::/system.slice/containerd.service\n": id1,
		"9:name=systemd:/\n4:memory:/kubepods/podx.slice:cri-containerd:" + id1 + "\n0::/\n":                     id1,
		"9:name=systemd:/user.slice\n0::/\n": "",
		"0::/":                               "",
		"":                                   "",
		"nonsense":                           "",
	}
	for text, want := range tests {
		if got, err := parseContainer(strings.NewReader(text)); got.container != want || err != nil {
			t.Errorf("parseContainer(%q) = %q, %v, want %q", text, got.container, err, want)
		}
	}
}

const (
	statOf = "%d (%s) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %d 4096 1 18446744073709551615 11 12 13\n"

	// What /proc/2/stat says in the initial PID namespace, and only there.
	kthreadd = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 1 1 1 1\n"
)

// host is a directory that looks like /proc and a cgroup tree.
type host struct {
	t            testing.TB
	proc, cgroup string
}

func newHost(t testing.TB, mountinfo string) host {
	h := host{t, t.TempDir(), t.TempDir()}
	h.write("2/stat", kthreadd)
	h.write("self/mountinfo", strings.ReplaceAll(mountinfo, "CGROUP", h.cgroup))
	return h
}

func (h host) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.proc, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h host) link(name, to string) {
	h.t.Helper()
	name = filepath.Join(h.proc, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Symlink(to, name); err != nil {
		h.t.Fatal(err)
	}
}

func (h host) process(pid int, startSec int, cgroup string) {
	h.program(pid, startSec, "a) b (c", cgroup)
}

func (h host) program(pid int, startSec int, comm, cgroup string) {
	h.write(fmt.Sprintf("%d/stat", pid), fmt.Sprintf(statOf, pid, comm, startSec*100))
	h.write(fmt.Sprintf("%d/cgroup", pid), cgroup)
}

// mkdir makes a cgroup and returns its id.
func (h host) mkdir(path string) uint64 {
	h.t.Helper()
	if err := os.MkdirAll(h.cgroup+path, 0o755); err != nil {
		h.t.Fatal(err)
	}
	return inode(h.t, h.cgroup+path)
}

func inode(t testing.TB, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

const (
	unified = "30 22 0:26 / CGROUP rw - cgroup2 cgroup2 rw\n"
	hybrid  = unified + "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)

func fill(e *Enricher, ev tcp.Event) string {
	e.Fill(&ev)
	return ev.Cgroup + " " + ev.ContainerID
}

func TestFillCgroup(t *testing.T) {
	h := newHost(t, unified)
	e := New(h.proc, "")
	root, nginx := h.mkdir("/"), h.mkdir("/system.slice/nginx.service")
	docker := h.mkdir("/system.slice/docker-" + id1 + ".scope")

	for id, want := range map[uint64]string{
		root:   "/ ",
		nginx:  "/system.slice/nginx.service ",
		docker: "/system.slice/docker-" + id1 + ".scope " + id1,
		1:      " ",
	} {
		if got := fill(e, tcp.Event{BootNS: sec, CgroupID: id}); got != want {
			t.Errorf("cgroup %d: got %q, want %q", id, got, want)
		}
	}
}

func TestFillKeepsARecording(t *testing.T) {
	h := newHost(t, hybrid)
	id := h.mkdir("/a")
	h.process(7, 1, "4:memory:/docker/"+id1)
	e := New(h.proc, "")
	for _, ev := range []tcp.Event{
		{PID: 7, OwnerSource: tcp.FromUse, BootNS: 9 * sec},
		{PID: 7, OwnerSource: tcp.FromUse, BootNS: 9 * sec, CgroupID: id, Cgroup: "/old"},
	} {
		want := ev
		if e.Fill(&ev); ev != want {
			t.Errorf("got %+v, want %+v", ev, want)
		}
	}
}

func TestFillRetriesAMiss(t *testing.T) {
	h := newHost(t, unified)
	e := New(h.proc, "")
	if got := fill(e, tcp.Event{BootNS: 10 * sec, CgroupID: 1}); got != " " { // walks
		t.Fatalf("got %q for a cgroup that does not exist", got)
	}
	id := h.mkdir("/new")
	steps := []struct {
		at   uint64
		want string
	}{
		{11 * sec, " "}, // the tree is not walked for each event
		{12 * sec, " "}, // nor is the miss of this one forgotten yet
		{13 * sec, "/new "},
	}
	for _, step := range steps {
		if got := fill(e, tcp.Event{BootNS: step.at, CgroupID: id}); got != step.want {
			t.Errorf("at %d s: got %q, want %q", step.at/sec, got, step.want)
		}
	}
	if err := os.Remove(h.cgroup + "/new"); err != nil {
		t.Fatal(err)
	}
	if got := fill(e, tcp.Event{BootNS: 99 * sec, CgroupID: id}); got != "/new " {
		t.Errorf("after its end: got %q", got)
	}
}

func TestFillWithoutCgroups(t *testing.T) {
	h := newHost(t, "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
	h.process(7, 1, "4:memory:/docker/"+id1)
	ev := tcp.Event{BootNS: 9 * sec, CgroupID: 1, PID: 7, OwnerSource: tcp.FromUse}
	for _, e := range []*Enricher{New(h.proc, ""), New(h.proc, "/nonexistent")} {
		if got, want := fill(e, ev), " "+id1; got != want {
			t.Errorf("cgroup v1 alone: got %q, want %q", got, want)
		}
	}
	if got := fill(New("/nonexistent", ""), ev); got != " " {
		t.Errorf("no /proc: got %q", got)
	}
}

func TestFillFromOwner(t *testing.T) {
	h := newHost(t, hybrid)
	root := h.mkdir("/")
	h.process(7, 5, "4:memory:/docker/"+id1)
	e := New(h.proc, "")
	at := func(second uint64, comm string) string {
		return fill(e, tcp.Event{BootNS: second * sec, CgroupID: root, PID: 7, Comm: comm, OwnerSource: tcp.FromUse})
	}
	check := func(what, got, want string) {
		t.Helper()
		if got != "/ "+want {
			t.Errorf("%s: got %q, want %q", what, got, "/ "+want)
		}
	}

	check("the process is younger than the event", at(4, "sh"), "")
	check("the process", at(10, "nginx"), id1)

	os.RemoveAll(h.proc + "/7")
	check("it has exited, its sockets are still closing", at(20, "nginx"), id1)

	h.process(7, 30, "4:memory:/docker/"+id2)
	check("its pid is given again, the event is older", at(29, "nginx"), id1)
	check("another process of the same pid and name", at(40, "nginx"), id2)
	check("the same by another name", at(40, "curl"), id2)

	h.process(7, 30, "4:memory:/docker/"+id1)
	check("it was moved, but just now", at(41, "nginx"), id2)
	check("it was moved", at(42, "nginx"), id1)

	ev := tcp.Event{BootNS: 50 * sec, CgroupID: root, PID: 7}
	check("no owner", fill(e, ev), "")
}

// TestFillFromAnotherPIDNamespace has a stranger under the pid of the owner.
func TestFillFromAnotherPIDNamespace(t *testing.T) {
	h := newHost(t, hybrid)
	root := h.mkdir("/")
	h.program(7, 5, "stranger", "4:memory:/docker/"+id1)
	if err := os.RemoveAll(h.proc + "/2"); err != nil {
		t.Fatal(err)
	}
	e := New(h.proc, "")
	ev := tcp.Event{Kind: tcp.Socket, BootNS: 10 * sec, CgroupID: root, PID: 7, Comm: "nginx", OwnerSource: tcp.FromUse, Holder: tcp.Held}
	e.Fill(&ev)
	if ev.ContainerID != "" || ev.Comm != "nginx" {
		t.Errorf("got container %q and name %q of another process", ev.ContainerID, ev.Comm)
	}
	if _, err := ReadFiles(h.proc, 7); !errors.Is(err, procfs.ErrOtherNamespace) {
		t.Errorf("its files: %v", err)
	}
	if got := e.Limitations(); !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "--pid=host") }) {
		t.Errorf("nothing is said: %q", got)
	}
}

// A /proc that is not there, or is not ours, does not make a PID namespace of our own.
func TestFindingsWithoutOurProc(t *testing.T) {
	empty, foreign := t.TempDir(), t.TempDir()
	if err := os.Symlink("77", filepath.Join(foreign, "self")); err != nil { // which leads nowhere
		t.Fatal(err)
	}
	for root, want := range map[string]string{empty: "no proc file system is mounted", foreign: "which tcptrace is not in"} {
		got := New(root, t.TempDir()).pidFinding()
		if !strings.Contains(got.Means, want) || strings.Contains(got.Means, "of its own") {
			t.Errorf("got %q, want %q", got.Means, want)
		}
	}
}

// TestFillFromCgroupNamespace is a pod that is privileged and has its own cgroup
// namespace, as on pure cgroup v2.
func TestFillFromCgroupNamespace(t *testing.T) {
	h := newHost(t, strings.Replace(unified, " / CGROUP", " /.. CGROUP", 1))
	h.link("self/ns/cgroup", "cgroup:[4026532500]")
	h.process(7, 5, "0::/../docker/"+id1+"\n")
	h.process(8, 5, "0::/\n")
	e := New(h.proc, "")
	for pid, want := range map[uint32]string{7: id1, 8: ""} {
		ev := tcp.Event{BootNS: 10 * sec, CgroupID: 1, PID: pid, OwnerSource: tcp.FromUse}
		if e.Fill(&ev); ev.ContainerID != want || ev.Cgroup != "" {
			t.Errorf("process %d: got cgroup %q and container %q, want none and %q", pid, ev.Cgroup, ev.ContainerID, want)
		}
	}
	if got := e.Limitations(); len(got) != 1 || !strings.Contains(got[0], "--cgroupns=host") {
		t.Errorf("got %q", got)
	}
}

// TestFillName reads the name of the owner again, for execve() may have changed it.
func TestFillName(t *testing.T) {
	h := newHost(t, unified)
	root := h.mkdir("/")
	e := New(h.proc, "")
	name := func(second uint64, ev tcp.Event) string {
		ev.BootNS, ev.CgroupID, ev.PID, ev.Comm, ev.OwnerSource = second*sec, root, 7, "python3", tcp.FromConnect
		e.Fill(&ev)
		return ev.Comm
	}
	held := tcp.Event{Kind: tcp.Socket, Holder: tcp.Held}
	h.program(7, 5, "sleep", "0::/\n")
	for what, test := range map[string]struct{ got, want string }{
		"what happened":              {name(10, tcp.Event{Holder: tcp.Held}), "python3"},
		"who holds it is not known":  {name(10, tcp.Event{Kind: tcp.Socket}), "python3"},
		"it is not held":             {name(10, tcp.Event{Kind: tcp.Socket, Holder: tcp.Gone}), "python3"},
		"a row":                      {name(10, held), "sleep"},
		"a row, older than its name": {name(4, held), "sleep"},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %q, want %q", what, test.got, test.want)
		}
	}
	h.program(7, 5, "cat", "0::/\n")
	if got := name(11, held); got != "sleep" {
		t.Errorf("at once: got %q", got)
	}
	if got := name(12, held); got != "cat" {
		t.Errorf("two seconds later: got %q", got)
	}
	os.RemoveAll(h.proc + "/7")
	if got := name(20, held); got != "cat" {
		t.Errorf("it has exited: got %q", got)
	}
}

func TestFindings(t *testing.T) {
	for _, test := range []struct {
		name, mountinfo string
		want            string // in the limitation, "" for none
	}{
		{"unified", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"legacy", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "cgroup v1"},
		{"nothing", "", "no cgroup v2 file system is mounted"},
		{"a part", "50 49 0:26 /docker/" + id1 + " /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "/docker/" + id1},
	} {
		h := newHost(t, test.mountinfo)
		e := New(h.proc, "")
		e.cgroup2.real = strings.Contains(test.mountinfo, "cgroup2")
		got := e.Limitations()
		if len(got) > 1 || (len(got) == 1) != (test.want != "") || test.want != "" && !strings.Contains(got[0], test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestCachesAreBounded(t *testing.T) {
	h := newHost(t, hybrid)
	e := New(h.proc, "")
	ev := tcp.Event{BootNS: sec, OwnerSource: tcp.FromUse}
	for i := range 2*maxCgroups + 5 {
		ev.CgroupID, ev.PID = uint64(i)+1<<62, uint32(i)+1<<30
		e.Fill(&ev)
	}
	if len(e.cgroups) > maxCgroups || len(e.owners) > maxOwners {
		t.Errorf("%d cgroups and %d owners are remembered", len(e.cgroups), len(e.owners))
	}
}

// TestLiveTree asks the running kernel, by handle and by walk.
func TestLiveTree(t *testing.T) {
	need.Kernel(t)
	byHandle := New("/proc", "")
	if byHandle.cgroup2.at == "" {
		t.Fatal("no cgroup v2 file system is mounted")
	}
	name := filepath.Join(byHandle.cgroup2.at, fmt.Sprintf("tcptrace-test-%d", os.Getpid()))
	if err := os.Mkdir(name, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(name) })
	id := inode(t, name)
	ev := tcp.Event{BootNS: sec, CgroupID: id}
	want := byHandle.cgroup2.root + "/" + filepath.Base(name) + " "

	if got := fill(byHandle, ev); got != want {
		t.Errorf("by handle: got %q, want %q", got, want)
	}
	byWalk := New("/proc", "")
	byWalk.cgroup2.real = false // as without the capability
	if got := fill(byWalk, ev); got != want {
		t.Errorf("by walk: got %q, want %q", got, want)
	}
	if byHandle.nextWalk != 0 || byWalk.nextWalk == 0 {
		t.Errorf("walks: %d with handles, %d without", byHandle.nextWalk, byWalk.nextWalk)
	}

	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	late := New("/proc", "")
	if got := fill(late, ev); got != " " || late.nextWalk != 0 {
		t.Errorf("a cgroup that is gone: got %q, next walk %d", got, late.nextWalk)
	}
}

// TestLiveCgroupNamespace has this test look for a cgroup from a cgroup namespace
// that does not contain it.
func TestLiveCgroupNamespace(t *testing.T) {
	need.Kernel(t)
	if id := os.Getenv("TCPTRACE_TEST_CGROUP"); id != "" {
		e := New("/proc", "")
		ev := tcp.Event{BootNS: sec}
		for _, text := range strings.Fields(id) {
			fmt.Sscan(text, &ev.CgroupID)
			ev.Cgroup = ""
			e.Fill(&ev)
			fmt.Printf("cgroup %s\n", ev.Cgroup)
		}
		fmt.Printf("limitations %q\n", e.Limitations())
		return
	}
	tree := New("/proc", "").cgroup2.at
	outside, inside := fmt.Sprintf("/tcptrace-out-%d", os.Getpid()), fmt.Sprintf("/tcptrace-in-%d", os.Getpid())
	ids := ""
	for _, name := range []string{outside, inside} {
		if err := os.Mkdir(tree+name, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(tree + name) })
		ids += fmt.Sprintf("%d ", inode(t, tree+name))
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, script string
		want         string
	}{
		{"all is mounted", `exec unshare -C "$@"`, "cgroup " + outside + "\ncgroup " + inside + "\nlimitations []\n"},
		{"nothing is mounted", `exec unshare -C -m sh -c 'umount -l "$0" && exec "$@"' "$TREE" "$@"`, "cgroup " + outside + "\ncgroup " + inside + "\n"},
		{"in a PID namespace too", `exec unshare -C -p -f --mount-proc "$@"`, "this is a cgroup namespace of its own"},
	} {
		cmd := exec.Command("sh", "-c", `echo $$ > "$TREE$INSIDE/cgroup.procs" && `+test.script, "sh", exe, "-test.run=^TestLiveCgroupNamespace$", "-test.v")
		cmd.Env = append(os.Environ(), "TCPTRACE_TEST_CGROUP="+ids, "TREE="+tree, "INSIDE="+inside)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %v: want %s: %s", test.name, err, test.want, out)
		}
	}
}

func cached(t testing.TB) (*Enricher, tcp.Event) {
	h := newHost(t, hybrid)
	h.process(7, 5, "4:memory:/docker/"+id1)
	e := New(h.proc, "")
	ev := tcp.Event{BootNS: 10 * sec, CgroupID: h.mkdir("/"), PID: 7, Comm: "nginx", OwnerSource: tcp.FromUse}
	if got, want := fill(e, ev), "/ "+id1; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	return e, ev
}

func TestFillDoesNotAllocate(t *testing.T) {
	e, ev := cached(t)
	n := testing.AllocsPerRun(1000, func() {
		ev.Cgroup = ""
		e.Fill(&ev)
	})
	if n != 0 {
		t.Errorf("%v allocations for an event of a known cgroup and owner", n)
	}
}

func BenchmarkFill(b *testing.B) {
	e, ev := cached(b)
	b.ReportAllocs()
	for b.Loop() {
		ev.Cgroup = ""
		e.Fill(&ev)
	}
}

// TestFillDetails reads the command line of the owner of a row, and waits for none.
func TestFillDetails(t *testing.T) {
	h := newHost(t, unified)
	unit := h.mkdir("/system.slice/web.service")
	e := New(h.proc, "")
	e.FillDetails()
	fill := func(pid uint32, ev tcp.Event) *tcp.Details {
		ev.BootNS, ev.CgroupID, ev.PID, ev.OwnerSource = 10*sec, unit, pid, tcp.FromSnapshot
		e.Fill(&ev)
		return ev.Details
	}
	held := tcp.Event{Kind: tcp.Socket, Holder: tcp.Held}
	for pid, test := range map[uint32]struct{ cmdline, want string }{
		7: {"nginx: master\x00-g\x00\x1b[2J\x00", "nginx: master -g \x1b[2J"},
		8: {strings.Repeat("x", maxCmdline) + "y", strings.Repeat("x", maxCmdline) + "..."},
		9: {"", ""},
	} {
		h.program(int(pid), 5, "nginx", "0::/\n")
		if err := os.WriteFile(fmt.Sprintf("%s/%d/cmdline", h.proc, pid), []byte(test.cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
		if d := fill(pid, held); d == nil || d.Cmdline != test.want {
			t.Errorf("process %d: got %+v, want %q", pid, d, test.want)
		}
	}
	if d := fill(7, tcp.Event{Kind: tcp.Socket, Holder: tcp.Gone}); d != nil {
		t.Errorf("it does not hold the socket: got %+v", d)
	}
	if d := fill(7, tcp.Event{Holder: tcp.Held}); d != nil {
		t.Errorf("what happened: got %+v", d)
	}
	h.program(10, 5, "villain", "0::/\n")
	if err := unix.Mkfifo(h.proc+"/10/cmdline", 0o644); err != nil {
		t.Fatal(err)
	}
	if d := fill(10, held); e.Stalled() != true || d.Cmdline != "" {
		t.Errorf("a process that keeps its command line back: got %+v", d)
	}
}

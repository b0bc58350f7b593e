package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/terminal"
	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// nobody is another user.
const nobody = 65534

// hostileText is what a terminal acts on: CSI, OSC, C1 as a byte and in UTF-8, a carriage
// return, backspace, DEL, the direction of writing, a line separator, no UTF-8; and a line
// that pretends to be ours. The last bracket keeps it from being taken for a pattern.
const hostileText = "\x1b[2J\x1b]0;t\a\x9b2J\u009b\r\b\x7f\u202e\u2028\xff\ntcptrace: forged["

// expectHarmless runs a command and returns what it printed on stdout and stderr, of which
// a terminal acts on nothing and no line is forged.
func expectHarmless(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	started := cmd.Start()
	if started != nil {
		t.Fatal(started)
	}
	stuck := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	_ = cmd.Wait() // most of them fail
	if !stuck.Stop() {
		t.Errorf("%q did not end", cmd.Args)
	}
	for name, text := range map[string]string{"stdout": stdout.String(), "stderr": stderr.String()} {
		for line := range strings.Lines(text) {
			line = strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "")
			if terminal.Visible(line) != line || strings.HasPrefix(line, "tcptrace: forged") {
				t.Errorf("%q prints on %s %q", cmd.Args, name, line)
			}
		}
	}
	return stdout.String() + stderr.String()
}

// Whatever a flag of whatever command is given, what is said of it is harmless.
func TestHostileFlags(t *testing.T) {
	parser, err := newParser(&env{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	folder, tried, echoed := t.TempDir(), map[string]bool{}, 0
	for _, command := range parser.Model.Leaves(false) {
		var args []string
		if !command.Hidden {
			args = []string{command.Name}
		}
		values := []string{hostileText, "--" + hostileText, "-" + hostileText}
		for _, flag := range command.Flags {
			if flag.Name == "read" { // what is well-formed nevertheless finds an empty recording
				args = append(args, "--read=/dev/null")
			}
			if kind := flag.Name + " " + flag.Target.Type().String(); !tried[kind] { // commands share most
				tried[kind] = true
				values = append(values, "--"+flag.Name+"="+hostileText)
			}
		}
		for _, value := range values {
			cmd := exec.Command("tcptrace", append(args, value)...)
			cmd.Dir = folder // one flag makes a file of that name
			if strings.Contains(expectHarmless(t, cmd), `\x1b`) {
				echoed++
			}
		}
	}
	if len(tried) < 40 || echoed < len(tried)/2 {
		t.Errorf("%d flags are tried, %d values are repeated in the message", len(tried), echoed)
	}
}

// So is what is said of the files that it names and of the program itself. The name of a
// file may be any bytes.
func TestHostileFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), hostileText)
	file := filepath.Join(dir, "file"+hostileText)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{\"v\":1,\"type\":\"\x1b\"}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-r", dir}, {"-r", file}, {"leaks", "-r", file}, {"-r", file + "x"},
		{"doctor", "--btf", file}, {"doctor", "-j", "--btf", file}, {"--btf", dir}, {"sockets", "--btf", file},
		{"stats", "-r", "testdata/trace.json", "--svg", dir}, {"stats", "-r", "testdata/trace.json", "--svg", file + "/x"},
	} {
		expectHarmless(t, exec.Command("tcptrace", args...))
	}
	if got := expectHarmless(t, exec.Command("tcptrace", "-r", file)); !strings.Contains(got, ":1: ") {
		t.Errorf("the recording is not read: %s", got)
	}
	for _, name := range []string{"NO_COLOR", "TERM", "TZ", "LANG", "TMPDIR"} {
		cmd := exec.Command("tcptrace", "-r", "testdata/trace.json", "-T")
		cmd.Env = append(os.Environ(), name+"="+hostileText)
		expectHarmless(t, cmd)
	}
	for _, args := range [][]string{nil, {"doctor"}, {"doctor", "-j"}} {
		expectHarmless(t, unprivileged(t, dir, args...))
	}
}

// unprivileged is the program, in a directory, as a user who can do nothing: the advice
// names the file.
func unprivileged(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tcptrace")
	if err := os.Link(self, path); err != nil && !os.IsExist(err) {
		program, err := os.ReadFile(self)
		if err == nil {
			err = os.WriteFile(path, program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, args...)
	if os.Geteuid() == 0 {
		for at := dir; at != "/" && at != os.TempDir(); at = filepath.Dir(at) { // that one has a mode of its own
			if err := os.Chmod(at, 0o755|os.ModeSticky); strings.Contains(at, t.Name()) && err != nil {
				t.Fatal(err)
			} else if !strings.Contains(at, t.Name()) {
				break
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// A recording is somebody else's: names in it are harmless in every format of every command.
func TestHostileRecording(t *testing.T) {
	text, err := json.Marshal(strings.ToValidUTF8(hostileText, "\u009b"))
	if err != nil {
		t.Fatal(err)
	}
	recording, err := os.ReadFile("testdata/trace.json")
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.NewReplacer(`"billing"`, string(text), `"nginx"`, string(text), `"curl"`, string(text), `"ring buffer"`, string(text),
		`"/system.slice/nginx.service"`, string(text), `"container_id":"4f`, `"container_id":"\u001b\n4f`).Replace(string(recording))
	dir := hostile.Dir(t)
	file := filepath.Join(dir, "trace.json")
	if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
		t.Fatal(err)
	}
	belongsToNobody(t, dir, file)
	for _, command := range [][]string{
		{"--existing", "-x"}, {"--existing", "-x", "-s"}, {"-j"}, {"-o", "trace"},
		{"leaks", "--once", "-d", "2s"}, {"leaks", "--once", "-d", "2s", "-s"}, {"leaks", "--once", "-d", "2s", "-j"},
		{"leaks", "-d", "2s", "--by", "comm"}, {"leaks", "--check", "-d", "2s"},
		{"leaks", "--once", "-d", "2s", "--state", "time-wait"}, {"leaks", "--once", "-d", "2s", "--state", "time-wait", "-j"}, {"leaks", "--once", "-d", "2s", "--state", "time-wait", "-s"},
	} {
		got := expectHarmless(t, exec.Command("tcptrace", append(command, "-r", file)...))
		if !strings.Contains(got, `\x1b`) && !strings.Contains(got, `\u001b`) {
			t.Errorf("%q shows no name: %s", command, got)
		}
		if piped := expectHarmless(t, fromNobody(t, file, append(command, "-r", "-"))); piped != strings.ReplaceAll(got, file, "standard input") {
			t.Errorf("%q of a pipe: %s, want %s", command, piped, got)
		}
	}
}

// belongsToNobody gives files to another user, where the tests are root.
func belongsToNobody(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if err := os.Chown(file, nobody, nobody); os.Geteuid() == 0 && err != nil {
			t.Fatal(err)
		}
	}
}

// fromNobody is the program, which reads what a process of another user writes.
func fromNobody(t *testing.T, file string, args []string) *exec.Cmd {
	t.Helper()
	writer := exec.Command("cat", file)
	if os.Geteuid() == 0 {
		writer.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := writer.StdoutPipe()
	if err == nil {
		err = writer.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = writer.Wait() })
	cmd := exec.Command("tcptrace", args...)
	cmd.Stdin = out.(*os.File)
	return cmd
}

// villain leaks a socket under a hostile name.
func villain() {
	tasks := must(os.ReadDir("/proc/self/task"))
	for _, task := range tasks {
		must(0, os.WriteFile("/proc/self/task/"+task.Name()+"/comm", []byte(hostileText), 0))
	}
	leakSome()
}

// TestHostileHost has a process of a hostile name in a cgroup of a hostile path, of root and
// of another user.
func TestHostileHost(t *testing.T) {
	t.Run("root", func(t *testing.T) {
		n, cgroup := newLeakNet(t), hostileCgroup(t)
		n.start("bash", "-c", `echo $$ >"$1"/cgroup.procs && exec villain < <(sleep 300)`, "_", cgroup)
		n.expectHarmless()
	})
	t.Run("nobody", func(t *testing.T) {
		n, cgroup := newLeakNet(t), hostileCgroup(t)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(hostile.Dir(t), "villain")
		n.output("cp", self, program)
		// The cgroup is theirs, as that of a session is; what is in it they make themselves.
		belongsToNobody(t, cgroup, filepath.Join(cgroup, "cgroup.procs"))
		inner := filepath.Join(cgroup, "docker-"+strings.Repeat("4f", 32)+".scope")
		t.Cleanup(func() { removeCgroup(inner) })
		n.start("bash", "-c", `echo $$ >"$1"/cgroup.procs && exec setpriv --reuid 65534 --regid 65534 --clear-groups bash -c '
			mkdir "$1" && echo $$ >"$1"/cgroup.procs && exec "$2" < <(sleep 300)' _ "$2" "$3"`, "_", cgroup, inner, program)
		n.expectHarmless()
		n.expectClaim(filepath.Base(cgroup)+"/"+filepath.Base(inner), strings.Repeat("4f", 32))
	})
}

// expectClaim has the container id shown that another user's cgroup claims, and beside it the
// whole path, which says whose it is.
func (n *leakNet) expectClaim(path, id string) {
	n.t.Helper()
	claims := 0
	for line := range strings.Lines(n.output("tcptrace", "sockets", "-j", "--uid", fmt.Sprint(nobody), "--netns", n.namespace())) {
		var s struct {
			Cgroup      string
			ContainerID string `json:"container_id"`
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			n.t.Fatal(err)
		}
		if s.Cgroup != "/"+strings.ToValidUTF8(path, "\ufffd") || s.ContainerID != id {
			n.t.Errorf("the cgroup is %q, the container %q, want %q and %q", s.Cgroup, s.ContainerID, path, id)
		}
		claims++
	}
	if claims == 0 {
		n.t.Error("the socket of the other user is not shown")
	}
}

// expectHarmless has every live command show the villain.
func (n *leakNet) expectHarmless() {
	t := n.t
	t.Helper()
	time.Sleep(200 * time.Millisecond) // older than 100 ms
	for _, args := range [][]string{
		{"sockets", "-x"}, {"sockets", "-x", "-s"}, {"sockets", "-j"},
		{"leaks", "--once", "--older-than", "100ms"}, {"leaks", "--once", "--older-than", "100ms", "-s"}, {"leaks", "--once", "--older-than", "100ms", "-j"},
		{"leaks", "--check", "--older-than", "50ms"}, {"leaks", "--kill", "--dry-run", "--older-than", "50ms"},
		{"--existing", "-x", "-d", "10ms"}, {"--existing", "-x", "-d", "10ms", "-s"}, {"-j", "-d", "10ms"},
	} {
		got := expectHarmless(t, exec.Command("tcptrace", append(args, "--netns", n.namespace())...))
		if !strings.Contains(got, `\x1b[2J`) && !strings.Contains(got, `\u001b[2J`) {
			t.Errorf("%q shows no name: %s", args, got)
		}
	}
	screen := newPTY(t, "tcptrace", "leaks", "--netns", n.namespace(), "--older-than", "100ms", "--interval", "200ms")
	screen.until(`\x1b[2J`)
	screen.master.WriteString("q")
	screen.until("\x1b[?1049l")
	// The screen moves the cursor and changes colours by CSI, and clears the terminal once. The name
	// would do that again, and has what the screen never writes: OSC, C1, \b, a change of direction.
	all := screen.shown.String()
	own := regexp.MustCompile(`\x1b\[[?<=>]?[0-9;]*\$?[A-Za-z]|[\r\n]`)
	if shown := own.ReplaceAllString(all, ""); terminal.Visible(shown) != shown {
		t.Errorf("beside its own sequences the screen shows %q", shown)
	}
	if n := strings.Count(all, "\x1b[2J"); n > 1 {
		t.Errorf("the terminal is cleared %d times: %q", n, all)
	}
}

// hostileCgroup makes a cgroup and returns its directory. The kernel takes everything but
// newlines and slashes.
func hostileCgroup(t *testing.T) string {
	t.Helper()
	need.Kernel(t)
	root := hostile.Dir(t)
	if err := syscall.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	dir := filepath.Join(root, strings.ReplaceAll(hostileText, "\n", "\v"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		removeCgroup(dir)
		if err := syscall.Unmount(root, 0); err != nil {
			t.Errorf("unmount %s: %v", root, err)
		}
	})
	return dir
}

// removeCgroup removes it when its processes have ended, which were killed.
func removeCgroup(dir string) {
	for range 100 {
		if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

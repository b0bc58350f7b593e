// Package hostile is for tests of what another user can do to a tracer: that user, without
// privileges, in a user and a mount namespace of their own, and a file system of theirs that
// does not answer.
package hostile

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of the hostile user.
type Process struct {
	PID  int
	Line string    // the first that it has written
	More io.Reader // what else it writes
}

// Dir is its directory in /proc.
func (p Process) Dir() string { return filepath.Join("/proc", strconv.Itoa(p.PID)) }

// A User is root in a user and a mount namespace.
type User []string

// Nobody is another user outside; Contained is root there too, without privileges, as the
// root of some containers is.
var (
	Nobody    = User{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urm", "--"}
	Contained = User{"unshare", "-Urm", "--"}
)

func (u User) command(args ...string) *exec.Cmd {
	args = slices.Concat(u, args)
	return exec.Command(args[0], args[1:]...)
}

// Shell runs a script as Nobody, until the test ends. The script is to write a line
// when it is ready, and then to read its input to the end.
func Shell(t testing.TB, script string) Process {
	t.Helper()
	return start(t, Nobody.command("sh", "-ec", script))
}

// HungFS runs a program from a file system of a hostile user, which does not answer any
// more when the program has written a line. dir is from Dir; the program is seen there as
// fs/app. It all ends with the test.
func (u User) HungFS(t testing.TB, dir, file string, args ...string) Process {
	t.Helper()
	program, device := filepath.Join(dir, "hungfs"), filepath.Join(dir, "fuse")
	build := exec.Command("go", "build", "-o", program, "github.com/tcptrace/tcptrace/internal/test/hostile/hungfs")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build hungfs: %v: %s", err, out)
	}
	// A node of our own: /dev/fuse may be for root alone here.
	for _, err := range []error{
		unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))), os.Chmod(device, 0o666),
		os.Mkdir(filepath.Join(dir, "fs"), 0o755), os.Mkdir(filepath.Join(dir, "empty"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return start(t, u.command(append([]string{program, "-overlay", device, dir, file}, args...)...))
}

// Dir makes a directory that everybody can enter.
func Dir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func start(t testing.TB, cmd *exec.Cmd) (p Process) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the file server first: whoever waits for it goes on then
		stdin.Close()
		_ = cmd.Process.Kill() // fails if it has ended
		_ = cmd.Wait()
	})
	p.PID = cmd.Process.Pid
	out := bufio.NewReader(stdout)
	p.More = out
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("%v did not begin: %v", cmd, err)
		}
		p.Line = strings.TrimSpace(line)
		pid, isPID := strings.CutPrefix(p.Line, "pid ")
		if !isPID {
			return p
		}
		if p.PID, err = strconv.Atoi(pid); err != nil {
			t.Fatal(err)
		}
	}
}

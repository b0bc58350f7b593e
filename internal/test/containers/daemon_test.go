package containers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// daemon is a runtime in a network and a mount namespace of its own, where /var/lib and /run
// are below dir. So it keeps everything at the usual places, and nothing of it on the host.
type daemon struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	socket string
	log    bytes.Buffer // to be read after the end
}

// startDaemon starts one that is to listen at a socket. Its arguments may name files of dir.
func startDaemon(t *testing.T, dir, socket string, command ...string) *daemon {
	t.Helper()
	for _, tool := range []string{command[0], "runc", "nsenter", "unshare", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: this test runs containers: install it with 'make deps'", err)
		}
	}
	const script = `mkdir "$1/lib" "$1/run" && mount --bind "$1/lib" /var/lib && mount --bind "$1/run" /run &&
		ip link set lo up && shift && exec "$@"`
	d := &daemon{t: t, dir: dir}
	d.cmd = exec.Command("unshare", append([]string{"-m", "-n", "sh", "-c", script, "sh", dir}, command...)...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	d.socket = filepath.Join(dir, "run", socket)
	d.waitForSocket()
	return d
}

func (d *daemon) waitForSocket() {
	d.t.Helper()
	for range 600 {
		if conn, err := net.Dial("unix", d.socket); err == nil {
			conn.Close()
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.t.Fatalf("%v does not listen at %s after a minute", d.cmd, d.socket)
}

func (d *daemon) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
}

func (d *daemon) stop() {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Error(err)
	}
	if err := d.cmd.Wait(); err != nil || d.t.Failed() {
		d.t.Logf("%v: %v: %s", d.cmd, err, d.log.Bytes())
	}
}

// enter is a command in the namespaces of the daemon.
func (d *daemon) enter(command ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(d.cmd.Process.Pid), "-m", "-n", "--"}, command...)...)
}

func (d *daemon) tracer(args ...string) *exec.Cmd {
	return d.enter(append([]string{tcptrace(d.t)}, args...)...)
}

// startIn starts /leaker beside the daemon, in a cgroup and no container.
func (d *daemon) startIn(cgroup string, leaker ...string) {
	d.t.Helper()
	folder, err := os.Open(cgroup)
	if err != nil {
		d.t.Fatal(err)
	}
	defer folder.Close()
	cmd := d.enter(append([]string{filepath.Join(d.dir, "leaker")}, leaker...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd())}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			d.t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
}

// cgroup makes one of version 2, of one name in another.
func cgroup(t *testing.T, names ...string) (path string) {
	t.Helper()
	path = "/sys/fs/cgroup/unified" // beside version 1
	if _, err := os.Stat(path); err != nil {
		path = "/sys/fs/cgroup"
	}
	for _, name := range names {
		made := filepath.Join(path, name)
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(made); err != nil {
				t.Error(err)
			}
		})
		path = made
	}
	return path
}

// folder is one with a short name: sockets lie in it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tcptrace-containers-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// imageArchive is an image as 'docker load' and 'ctr images import' read it.
func imageArchive(t *testing.T, dir, name string) []byte {
	t.Helper()
	layer := rootFS(t, dir)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/leaker"}, "Cmd": []string{"wait"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	return pack(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
}

package containers

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// podman runs containers in a network namespace, a store and a configuration of its
// own, so that it leaves nothing on the host and meets no other container there.
type podman struct {
	t     *testing.T
	dir   string
	netns string // path
	env   []string
	ids   []string // of the containers
}

// image holds /leaker and /tcptrace, and nothing else.
const image = "localhost/tcptrace-test"

func newPodman(t *testing.T) *podman {
	t.Helper()
	for _, tool := range []string{"podman", "runc", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: this test runs containers: install it with 'make deps'", err)
		}
	}
	dir, err := os.MkdirTemp("", "tcptrace-containers-") // short: a socket of conmon lies in it
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, dir: dir, netns: networkNamespace(t)}
	t.Cleanup(p.remove)
	p.configure()
	p.pack()
	return p
}

// networkNamespace makes one, and keeps it until the end of the test.
func networkNamespace(t *testing.T) string {
	t.Helper()
	holder := exec.Command("unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := holder.Wait(); err != nil {
			t.Errorf("the holder of the network namespace: %v", err)
		}
	})
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		t.Fatalf("make a network namespace (this test needs root): %v", err)
	}
	return fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
}

// fileLimit is how many files a process in a container may have open: a number that
// no other process has.
const fileLimit = 1013

// configure writes what podman needs on a host without systemd, without
// CAP_SYS_RESOURCE and with cgroup v1 beside v2, which crun refuses.
func (p *podman) configure() {
	p.t.Helper()
	const processes = 512
	p.write("containers.conf", fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%[1]d:%[1]d", "nproc=%[2]d:%[2]d"]
[network]
network_backend = "cni"
network_config_dir = "%[3]s/net"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "%[3]s/tmp"
`, fileLimit, processes, p.dir))
	p.write("storage.conf", fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = \"%s/root\"\nrunroot = \"%s/run\"\n", p.dir, p.dir))
	// No port mapping and no masquerading: that would need iptables.
	p.write("net/podman.conflist", fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "podman", "plugins": [{
	"type": "bridge", "bridge": "tcptrace0", "isGateway": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.77.0/24"}]], "dataDir": "%s/ipam"}}]}`, p.dir))
	p.env = append(os.Environ(), "CONTAINERS_CONF="+p.dir+"/containers.conf", "CONTAINERS_STORAGE_CONF="+p.dir+"/storage.conf")
}

func (p *podman) write(name, text string) {
	p.t.Helper()
	name = filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// pack makes the image.
func (p *podman) pack() {
	p.t.Helper()
	load := p.command("import", "-", image)
	load.Stdin = bytes.NewReader(rootFS(p.t, p.dir))
	if out, err := load.CombinedOutput(); err != nil {
		p.t.Fatalf("make the image: %v: %s", err, out)
	}
}

// rootFS builds /leaker in a folder, and returns the archive of all that is in the image.
func rootFS(t *testing.T, dir string) []byte {
	t.Helper()
	leaker := filepath.Join(dir, "leaker")
	build := exec.Command("go", "build", "-o", leaker, "./leaker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build leaker: %v: %s", err, out)
	}
	files := map[string][]byte{}
	for name, path := range map[string]string{"leaker": leaker, "tcptrace": tcptrace(t)} {
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	return pack(t, files)
}

// pack makes an archive.
func pack(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, file := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(file))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// tcptrace is the program that `make build` makes.
func tcptrace(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../../bin/tcptrace")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run 'make build' first", err)
	}
	return path
}

func (p *podman) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + p.netns, "--", "podman"}, args...)...)
	cmd.Env = p.env
	return cmd
}

func (p *podman) output(args ...string) string {
	p.t.Helper()
	cmd := p.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("podman %q: %v: %s", args, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// container is one that runs.
type container struct {
	id  string
	pid uint32 // of its first process, on the host
}

// start runs /leaker in a container.
func (p *podman) start(network string, leaker ...string) container {
	p.t.Helper()
	id := p.output(append([]string{"run", "--detach", "--network", network, image, "/leaker"}, leaker...)...)
	p.ids = append(p.ids, id)
	pid, err := strconv.ParseUint(p.output("inspect", "--format", "{{.State.Pid}}", id), 10, 32)
	if err != nil || pid == 0 {
		p.t.Fatalf("container %s does not run (%d, %v): %s", id, pid, err, p.output("logs", id))
	}
	return container{id, uint32(pid)}
}

// address is that of a container in the bridge network.
func (p *podman) address(c container) string {
	p.t.Helper()
	return p.output("inspect", "--format", "{{.NetworkSettings.Networks.podman.IPAddress}}", c.id)
}

// remove ends the containers and deletes all that podman wrote.
func (p *podman) remove() {
	for _, id := range slices.Backward(p.ids) { // a guest in the network of another first
		if out, err := p.command("rm", "--force", "--time", "0", id).CombinedOutput(); err != nil {
			p.t.Errorf("remove container %s: %v: %s", id, err, out)
		}
	}
	p.wait()
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Error(err)
	}
}

// wait waits until nobody works on the store any more: conmon runs one more podman when a container
// has ended, which nobody waits for.
func (p *podman) wait() {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if !p.atWork() {
			return
		}
	}
	p.t.Error("conmon or podman has not ended within a minute")
}

// atWork reports whether a process has the folder of the store in its command line.
func (p *podman) atWork() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	return slices.ContainsFunc(files, func(name string) bool {
		line, err := os.ReadFile(name)
		return err == nil && bytes.Contains(line, []byte(p.dir))
	})
}

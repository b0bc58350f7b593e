package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// pod is one of a containerd, made through the interface that the kubelet uses.
type pod struct {
	*daemon
	id     string
	config map[string]any
}

// What the kubelet would say of the pod. The UID is that of no other.
const (
	podName      = "cart-7d9f"
	podNamespace = "shop"
	podUID       = "7c1d3a52-90e4-4f0b-8a6e-2b5d1c9f7e30"
	podParent    = "/kubepods/besteffort"
)

func newPod(t *testing.T) *pod {
	t.Helper()
	dir := folder(t)
	configure(t, dir)
	build := exec.Command("go", "build", "-C", "../cri", "-o", filepath.Join(dir, "cri"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cri: %v: %s", err, out)
	}
	t.Cleanup(removeCgroups)
	p := &pod{daemon: startDaemon(t, dir, "containerd/containerd.sock", "containerd", "--config", dir+"/config.toml")}
	p.load()
	p.config = map[string]any{
		"metadata": map[string]any{"name": podName, "uid": podUID, "namespace": podNamespace},
		"hostname": podName,
		"linux":    map[string]any{"cgroup_parent": podParent + "/pod" + podUID},
	}
	p.id = p.call("RuntimeService", "RunPodSandbox", map[string]any{"config": p.config}).PodSandboxID
	t.Cleanup(func() {
		p.call("RuntimeService", "StopPodSandbox", map[string]any{"pod_sandbox_id": p.id})
		p.call("RuntimeService", "RemovePodSandbox", map[string]any{"pod_sandbox_id": p.id})
	})
	return p
}

// configure writes what containerd needs on a host without CAP_SYS_RESOURCE and iptables.
func configure(t *testing.T, dir string) {
	t.Helper()
	const cri = `plugins."io.containerd.grpc.v1.cri"`
	for name, text := range map[string]string{
		"config.toml": fmt.Sprintf("version = 2\n[%[1]s]\nsandbox_image = %[2]q\nrestrict_oom_score_adj = true\n"+
			"[%[1]s.cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = %[3]q\n"+
			"[%[1]s.containerd]\nsnapshotter = \"native\"\n", cri, image+":latest", dir),
		"pods.conflist": fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
			"type": "bridge", "bridge": "tcptrace0", "isGateway": true,
			"ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.79.0/24"}]], "dataDir": %q}}]}`, dir+"/ipam"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// load gives containerd the image, which is that of the pause container as well.
func (p *pod) load() {
	p.t.Helper()
	load := p.enter("ctr", "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", "-")
	load.Stdin = bytes.NewReader(imageArchive(p.t, p.dir, image+":latest"))
	if out, err := load.CombinedOutput(); err != nil {
		p.t.Fatalf("load the image: %v: %s", err, out)
	}
	// An event tells the interface of it.
	for range 100 {
		if p.call("ImageService", "ImageStatus", map[string]any{"image": map[string]any{"image": image + ":latest"}}).Image.ID != "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.t.Fatal("containerd does not show the image after 10 seconds")
}

// answer is what these tests read of the answers.
type answer struct {
	PodSandboxID string
	ContainerID  string
	Image        struct{ ID string }
}

func (p *pod) call(service, method string, request any) (a answer) {
	p.t.Helper()
	text, err := json.Marshal(request)
	if err != nil {
		p.t.Fatal(err)
	}
	call := exec.Command(filepath.Join(p.dir, "cri"), p.socket, service, method)
	call.Stdin = bytes.NewReader(text)
	out, err := call.Output()
	if err == nil {
		err = json.Unmarshal(out, &a)
	}
	if err != nil {
		p.t.Fatalf("%s %s: %v: %s", method, text, err, stderrOf(err))
	}
	return a
}

func stderrOf(err error) []byte {
	if exit, is := err.(*exec.ExitError); is {
		return exit.Stderr
	}
	return nil
}

// run starts /leaker in a container of the pod, for the time number after the first.
func (p *pod) run(name string, number int, leaker ...string) (id string) {
	p.t.Helper()
	id = p.call("RuntimeService", "CreateContainer", map[string]any{"pod_sandbox_id": p.id, "sandbox_config": p.config, "config": map[string]any{
		"metadata": map[string]any{"name": name, "attempt": number}, "image": map[string]any{"image": image + ":latest"}, "args": leaker,
	}}).ContainerID
	p.call("RuntimeService", "StartContainer", map[string]any{"container_id": id})
	return id
}

// removeCgroups removes those of the pod, as the kubelet does.
func removeCgroups() {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, folder := range []string{podParent + "/pod" + podUID, podParent, filepath.Dir(podParent)} {
			found, _ := filepath.Glob(mount + folder) // the pattern is right
			for _, f := range found {
				_ = os.Remove(f) // another pod is in there
			}
		}
	}
}

// TestNamesOfAPod has the containers of a pod shown and selected by their names and those of the
// pod: while they run, after a restart, and when they lived but for a moment. One name is hostile.
func TestNamesOfAPod(t *testing.T) {
	need.Kernel(t)
	p := newPod(t)
	const hostile = "red\x1b[31m\nmore"
	server := p.run("web", 0, "serve", fmt.Sprint(port))
	p.run(hostile, 0, "visit", fmt.Sprintf("127.0.0.1:%d", port))

	inPod := func(l line) bool {
		return l.Pod == podName && l.Namespace == podNamespace && l.PodUID == podUID && l.Image == image+":latest"
	}
	isServer := func(l line) bool {
		return l.isOfServer() && l.ContainerID == server && l.Container == "web" && inPod(l)
	}
	isVisitor := func(l line) bool { return l.isOfClient() && l.Container == hostile && inPod(l) }
	lines, stderr := trace(t, p.tracer("-j", "--pod", podNamespace+"/"+podName, "-d", "20s"), all(isServer, isVisitor))
	if !slices.ContainsFunc(lines, isServer) || !slices.ContainsFunc(lines, isVisitor) {
		t.Errorf("the pod is not among %d lines: %+v, %s", len(lines), lines[:min(3, len(lines))], stderr)
	}
	for by, want := range map[string]string{"container": "web", "pod": podName, "image": image, "namespace": podNamespace} {
		out, err := p.tracer("sockets", "--by", by).Output()
		if err != nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "\x1b[31m") {
			t.Errorf("sockets --by %s: %v: %q", by, err, out)
		}
	}

	p.call("RuntimeService", "StopContainer", map[string]any{"container_id": server})
	p.call("RuntimeService", "RemoveContainer", map[string]any{"container_id": server})
	server = p.run("web", 1, "serve", fmt.Sprint(port))
	listens := func(l line) bool { return l.State == "LISTEN" && isServer(l) }
	if lines, _ = trace(t, p.tracer("sockets", "-j", "--container", "web"), ignore); !slices.ContainsFunc(lines, listens) {
		t.Errorf("after a new start: %+v", lines)
	}
	p.traceBrief()
}

// traceBrief traces containers that are over at once.
func (p *pod) traceBrief() {
	p.t.Helper()
	brief := func(l line) bool {
		return l.isOfClient() && l.Container == "brief" && l.Pod == podName && l.Type == "transition"
	}
	lines := traceWhile(p.t, p.tracer("-j", "--container", "brief", "-d", "20s"), brief, func(number int) {
		p.run("brief", number, "once", fmt.Sprintf("127.0.0.1:%d", port))
	})
	if !slices.ContainsFunc(lines, brief) {
		p.t.Errorf("nothing of a container that ends at once: %+v", lines)
	}
}

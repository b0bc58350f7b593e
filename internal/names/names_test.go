package names

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

const (
	id1  = "1111111111111111111111111111111111111111111111111111111111111111"
	id2  = "2222222222222222222222222222222222222222222222222222222222222222"
	uid  = "0a1b2c3d-1111-2222-3333-444455556666"
	hash = "0123456789abcdef0123456789abcdef"
)

// host is a tree of files, as runtimes leave them.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T, files map[string]string) *Finder {
	h := host{t, t.TempDir()}
	h.write("/proc/2/stat", "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 1 1 1 1\n") // of the initial PID namespace
	for name, text := range files {
		h.write(name, text)
	}
	return New(h.root, procfs.Open(h.root+"/proc"))
}

func (h host) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// The records of each runtime, with what does not matter left out.
var (
	dockerRecord = func(pid int) string {
		return fmt.Sprintf(`{"ID":%q,"Name":"/web-1","State":{"Running":true,"Pid":%d},"Config":{"Image":"web:2","Labels":{"com.docker.compose.project":"shop"}}}`, id1, pid)
	}
	podmanRecord = `[{"id":"` + id2 + `","names":["other"],"metadata":"{}"},
		{"id":"` + id1 + `","names":["web-1"],"metadata":"{\"image-name\":\"localhost/web:2\",\"name\":\"web-1\"}"}]`
	containerdRecord = func(cgroup string) string {
		return `{"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.image-name":"reg/web:2","io.kubernetes.cri.sandbox-name":"cart-7d9f",
			"io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"` + uid + `"},"linux":{"cgroupsPath":"` + cgroup + `"}}`
	}
	crioRecord = func(cgroup string) string {
		return `{"annotations":{"io.kubernetes.container.name":"app","io.kubernetes.cri-o.ImageName":"reg/web:2","io.kubernetes.pod.name":"cart-7d9f",
			"io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"` + uid + `"},"linux":{"cgroupsPath":"` + cgroup + `"}}`
	}
)

var (
	slice     = "kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	slicePath = "/kubepods.slice/kubepods-burstable.slice/" + slice
	inPod     = tcp.Names{Container: "app", Image: "reg/web:2", Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}
	logged    = tcp.Names{Container: "app", Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}
	logs      = map[string]string{"/var/log/pods/shop_cart-7d9f_" + uid + "/app/0.log": "", "/var/log/containers/cart-7d9f_shop_app-" + id1 + ".log": ""}
	compose   = tcp.Names{Container: "web-1", Image: "web:2", Namespace: "shop"}
	podman1   = tcp.Names{Container: "web-1", Image: "localhost/web:2"}
)

func TestFind(t *testing.T) {
	for _, test := range []struct {
		name, cgroup string
		files        map[string]string
		want         tcp.Names
	}{
		{"no container", "/system.slice/nginx.service", nil, tcp.Names{}},
		{"docker, systemd driver, ended", "/system.slice/docker-" + id1 + ".scope", map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(0)}, compose},
		{"docker, cgroupfs driver, a cgroup of its own below", "/docker/" + id1 + "/init", map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(0)}, compose},
		{"docker elsewhere, by its process", "/machines/a/" + id1, map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(7), "/proc/7/cgroup": "0::/machines/a/" + id1 + "\n"}, compose},
		{"docker, borrowed", "/user.slice/" + id1, map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(7), "/proc/7/cgroup": "0::/docker/" + id1 + "\n"}, tcp.Names{}},
		{"docker, borrowed from one that has ended", "/user.slice/" + id1, map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(0)}, tcp.Names{}},
		{"docker, borrowed below", "/docker/" + id2 + "/docker/" + id1, map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(0)}, tcp.Names{}},
		{"docker of a pod", "/docker/" + id1, map[string]string{docker + "/" + id1 + "/config.v2.json": `{"Name":"/k8s_app_cart","Config":{"Image":"sha256:1","Labels":{
			"io.kubernetes.container.name":"app","io.kubernetes.pod.name":"cart-7d9f","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"` + uid + `"}}}`},
			tcp.Names{Container: "app", Image: "sha256:1", Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}},
		{"podman", "/machine.slice/libpod-" + id1 + ".scope/container", map[string]string{storage + "/overlay-containers/containers.json": podmanRecord}, podman1},
		{"podman, cgroupfs", "/libpod_parent/libpod-" + id1, map[string]string{storage + "/overlay-containers/containers.json": podmanRecord}, podman1},
		{"podman, by its process", "/x/libpod-" + id1, map[string]string{storage + "/overlay-containers/containers.json": podmanRecord,
			storageRun + "/overlay-containers/" + id1 + "/userdata/pidfile": "8\n", "/proc/8/cgroup": "3:cpu:/x/libpod-" + id1 + "\n0::/\n"}, podman1},
		{"podman, with the configuration that CRI-O has too", "/machine.slice/libpod-" + id1 + ".scope", map[string]string{storage + "/overlay-containers/containers.json": podmanRecord,
			storageRun + "/vfs-containers/" + id1 + "/userdata/config.json": `{"annotations":{"org.opencontainers.image.stopSignal":"15"}}`}, podman1},
		{"podman, borrowed", "/user.slice/libpod-" + id1 + ".scope", map[string]string{storage + "/overlay-containers/containers.json": podmanRecord}, tcp.Names{}},
		{"containerd, systemd", slicePath + "/cri-containerd-" + id1 + ".scope", map[string]string{containerd + "/" + id1 + "/config.json": containerdRecord(slice + ":cri-containerd:" + id1)}, inPod},
		{"containerd, cgroupfs", "/kubepods/burstable/pod" + uid + "/" + id1, map[string]string{containerd + "/" + id1 + "/config.json": containerdRecord("/kubepods/burstable/pod" + uid + "/" + id1)}, inPod},
		{"containerd whose kubelet alone uses systemd", "/system.slice/containerd.service/" + slice + ":cri-containerd:" + id1,
			map[string]string{containerd + "/" + id1 + "/config.json": containerdRecord(slice + ":cri-containerd:" + id1)}, inPod},
		{"k3s", slicePath + "/cri-containerd-" + id1 + ".scope", map[string]string{k3s + "/" + id1 + "/config.json": containerdRecord(slice + ":cri-containerd:" + id1)}, inPod},
		{"containerd, by its process", "/odd/" + id1, map[string]string{containerd + "/" + id1 + "/config.json": containerdRecord(""),
			containerd + "/" + id1 + "/init.pid": "9", "/proc/9/cgroup": "0::/odd/" + id1 + "/below\n"}, inPod},
		{"containerd, borrowed", "/user.slice/user-1000.slice/" + id1, map[string]string{containerd + "/" + id1 + "/config.json": containerdRecord(slice + ":cri-containerd:" + id1)}, tcp.Names{}},
		{"CRI-O", slicePath + "/crio-" + id1 + ".scope/container", map[string]string{storageRun + "/vfs-containers/" + id1 + "/userdata/config.json": crioRecord(slice + ":crio:" + id1)}, inPod},
		{"CRI-O, the other folder", slicePath + "/crio-" + id1 + ".scope", map[string]string{storage + "/overlay-containers/" + id1 + "/userdata/config.json": crioRecord(slice + ":crio:" + id1)}, inPod},
		{"logs alone", slicePath + "/cri-containerd-" + id1 + ".scope", logs, logged},
		{"logs alone, of a node in a container", "/kubelet.slice/kubelet-kubepods.slice/kubelet-" + slice + "/cri-containerd-" + id1 + ".scope", logs, logged},
		{"logs alone, best effort", "/kubepods/besteffort/pod" + uid + "/" + id1, logs, logged},
		{"logs alone, guaranteed", "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + id1 + ".scope", logs, logged},
		{"a static pod", "/kubepods/burstable/pod" + hash + "/" + id1, map[string]string{"/var/log/pods/kube-system_etcd-node_" + hash + "/etcd/0.log": ""},
			tcp.Names{Pod: "etcd-node", PodUID: hash, Namespace: "kube-system"}},
		{"a pod without logs", "/kubepods/pod" + uid + "/" + id1, nil, tcp.Names{PodUID: uid}},
		{"the cgroup of a pod itself", slicePath, logs, tcp.Names{Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}},
		{"a pod that a user plays", "/user.slice/user-1000.slice/kubepods/pod" + uid + "/" + id1, logs, tcp.Names{}},
		{"another container that a container plays", slicePath + "/cri-containerd-" + id2 + ".scope/" + id1, logs, tcp.Names{Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}},
		{"the logs of another pod", slicePath + "/cri-containerd-" + id1 + ".scope",
			map[string]string{"/var/log/pods/shop_cart-7d9f_" + uid + "/x": "", "/var/log/containers/evil_other_app-" + id1 + ".log": ""},
			tcp.Names{Pod: "cart-7d9f", PodUID: uid, Namespace: "shop"}},
		{"runc", "/user.slice/mine", map[string]string{runc + "/mine/state.json": `{"id":"mine","cgroup_paths":{"":"/sys/fs/cgroup/user.slice/mine"}}`}, tcp.Names{Container: "mine"}},
		{"runc, systemd", "/system.slice/runc-mine.scope", map[string]string{runc + "/mine/state.json": `{"id":"mine","cgroup_paths":{"":"/sys/fs/cgroup/system.slice/runc-mine.scope"}}`}, tcp.Names{Container: "mine"}},
		{"runc, cgroup v1", "/mine", map[string]string{runc + "/mine/state.json": `{"id":"mine","cgroup_paths":{"pids":"/sys/fs/cgroup/pids/mine"}}`}, tcp.Names{Container: "mine"}},
		{"runc, borrowed", "/user.slice/evil/mine", map[string]string{runc + "/mine/state.json": `{"id":"mine","cgroup_paths":{"":"/sys/fs/cgroup/mine"}}`}, tcp.Names{}},
		{"runc, the end of another path", "/mine", map[string]string{runc + "/mine/state.json": `{"id":"mine","cgroup_paths":{"":"/sys/fs/cgroup/pids/a/mine"}}`}, tcp.Names{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newHost(t, test.files)
			if got := f.Find(test.cgroup, tcp.ContainerID(test.cgroup)); got != test.want {
				t.Errorf("%s: got %+v, want %+v", test.cgroup, got, test.want)
			}
		})
	}
}

// A hostile record has no names, and holds nobody up.
func TestHostile(t *testing.T) {
	cgroup, config := "/docker/"+id1, docker+"/"+id1+"/config.v2.json"
	deep := strings.Repeat(`{"Config":`, 100_000)
	for name, text := range map[string]string{
		"empty": "", "nonsense": "\x00\xff", "another type": `{"Name":[1]}`, "deep": deep, "cut off": `{"Name":"/web`,
		"too large": `{"Name":"/web","x":"` + strings.Repeat("x", maxFile) + `"}`,
		"long name": `{"Name":"/` + strings.Repeat("x", maxName+1) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t, map[string]string{config: text})
			if got := f.Find(cgroup, id1); got != (tcp.Names{}) {
				t.Errorf("got %+v", got)
			}
		})
	}
	f := newHost(t, map[string]string{docker + "/" + id1 + "/other": ""})
	path := f.root + config
	for name, plant := range map[string]func() error{
		"FIFO":             func() error { return unix.Mkfifo(path, 0o644) },
		"folder":           func() error { return os.Mkdir(path, 0o755) },
		"link in a circle": func() error { return os.Symlink(path, path) },
		"device":           func() error { return os.Symlink("/dev/zero", path) },
		"kernel":           func() error { return os.Symlink("/proc/self/status", path) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := plant(); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(path)
			done := make(chan tcp.Names, 1)
			go func() { done <- f.Find(cgroup, id1) }()
			select {
			case got := <-done:
				if got != (tcp.Names{}) {
					t.Errorf("got %+v", got)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it is held up")
			}
		})
	}
	for _, id := range []string{"../" + id1, ".", "..", "a/b", "a\x00b", strings.Repeat("x", 300)} {
		if isFileName(id) {
			t.Errorf("%q may be part of a path", id)
		}
	}
}

// A container has other names after it was renamed, and a folder may hold very many.
func TestReadAgain(t *testing.T) {
	f := newHost(t, map[string]string{docker + "/" + id1 + "/config.v2.json": dockerRecord(0)})
	h := host{t, f.root}
	h.write(docker+"/"+id1+"/config.v2.json", strings.Replace(dockerRecord(0), "web-1", "shop-1", 1))
	if got := f.Find("/docker/"+id1, id1); got.Container != "shop-1" {
		t.Errorf("got %+v", got)
	}
	read := 0
	for i := range 600 {
		h.write(fmt.Sprintf("%s/p_n_c%d-x.log", logsByID, i), "")
	}
	f.entries(logsByID, func(string) bool { read++; return false })
	if read != 600 {
		t.Errorf("%d entries were read", read)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(dockerRecord(7)), id1)
	f.Add([]byte(podmanRecord), id1)
	f.Add([]byte(containerdRecord(slice+":cri-containerd:"+id1)), id1)
	f.Add([]byte(crioRecord("/kubepods/"+id1)), id1)
	f.Add([]byte(`{"id":"mine","cgroup_paths":{"":"/sys/fs/cgroup/mine"}}`), "mine")
	f.Fuzz(func(t *testing.T, text []byte, id string) {
		_, _, _ = parseDocker(text)
		_, _ = parsePodman(text, id)
		for _, names := range []func(map[string]string) tcp.Names{containerdNames, crioNames} {
			if n, _, err := parseBundle(text, names); err == nil && n == (tcp.Names{}) {
				t.Error("a bundle without names is none")
			}
		}
		if parseRunc(text, id, "/"+id) && !strings.Contains(string(text), "cgroup_paths") && !strings.Contains(strings.ToLower(string(text)), "cgroup") {
			t.Errorf("%q has no cgroup", text)
		}
		_ = parsePID(text)
	})
}

func FuzzPodOf(f *testing.F) {
	f.Add(slicePath + "/cri-containerd-" + id1 + ".scope")
	f.Add("/system.slice/containerd.service/" + slice + ":cri-containerd:" + id1)
	f.Add("/kubepods/burstable/pod" + hash)
	f.Fuzz(func(t *testing.T, cgroup string) {
		uid, pod := podOf(cgroup)
		if uid != "" && (len(uid) != 32 && len(uid) != 36 || !strings.HasPrefix(cgroup, pod)) {
			t.Errorf("%q: %q, %q", cgroup, uid, pod)
		}
	})
}

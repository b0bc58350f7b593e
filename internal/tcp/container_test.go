package tcp

import (
	"strings"
	"testing"
)

const (
	id1 = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
	id2 = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
)

func TestContainerID(t *testing.T) {
	pod := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2d3da189_6407_48e3_9ab6_78188d75e609.slice"
	tests := map[string]string{
		"/docker/" + id1:                         id1,
		"/" + id1:                                id1, // docker of Debian 8
		"/system.slice/docker-" + id1 + ".scope": id1,
		"/system.slice/docker-" + id1 + ".scope/init.scope":                        id1,
		"/user.slice/user-1000.slice/user@1000.service/docker.slice/docker-" + id1: id1,
		"/system.slice/nerdctl-" + id1 + ".scope":                                  id1,
		"/default/" + id1:                         id1, // nerdctl, cgroupfs driver
		pod + "/cri-containerd-" + id1 + ".scope": id1,
		pod + "/crio-" + id1 + ".scope/container": id1,
		pod + "/crio-conmon-" + id1 + ".scope":    "",
		pod + "/docker-" + id1 + ".scope":         id1,
		pod:                                       "",
		"/kubepods/burstable/pod2d3da189-6407-48e3-9ab6-78188d75e609/" + id1:              id1,
		"/kubepods/besteffort/pod2d3da189-6407-48e3-9ab6-78188d75e609/crio-" + id1:        id1,
		"/kubepods/besteffort/pod2d3da189-6407-48e3-9ab6-78188d75e609":                    "",
		"/system.slice/containerd.service/kubepods-pod87a1.slice:cri-containerd:" + id1:   id1,
		"/machine.slice/libpod-" + id1 + ".scope/container":                               id1,
		"/machine.slice/libpod-conmon-" + id1 + ".scope":                                  "",
		"/libpod_parent/libpod-" + id1 + "/supervisor":                                    id1,
		"/docker/" + id1 + "/kubelet.slice/kubelet-x.slice/cri-containerd-" + id2:         id2, // kind
		"/docker/" + id1 + "/docker/" + id2:                                               id2,
		"/ecs/2e79c6e9a0c74e1ab6f0d2e5b1f4c3d2/2e79c6e9a0c74e1ab6f0d2e5b1f4c3d2-12345678": "2e79c6e9a0c74e1ab6f0d2e5b1f4c3d2-12345678",
		"/ecs/55091c13-b8cf-4801-b527-f4601742204d/" + id1:                                id1,
		"/lxc.payload.web/system.slice/nginx.service":                                     "web",
		"/lxc.payload.web/system.slice/docker-" + id1 + ".scope":                          id1,
		"/lxc/web/system.slice":                                                           "web",
		"/lxc.monitor.web":                                                                "",
		"/machine.slice/systemd-nspawn@web.service/payload":                               "web",
		"/machine.slice/systemd-nspawn@web.service/supervisor":                            "",
		"/machine.slice/machine-web\\x2d1.scope/payload/system.slice/nginx.service":       "web-1",
		"/machine.slice/machine-web.scope/supervisor":                                     "",
		"/machine.slice/machine-web.scope":                                                "web",
		"/machine.slice/machine-web.scope/payload/docker/" + id1:                          id1,
		"/nomad.slice/share.slice/9a1f3c5e-7b2d-4c6a-8e0f-123456789abc.web.scope":         "9a1f3c5e-7b2d-4c6a-8e0f-123456789abc.web",
		"/nomad/9a1f3c5e-7b2d-4c6a-8e0f-123456789abc.web":                                 "9a1f3c5e-7b2d-4c6a-8e0f-123456789abc.web",
		"/nomad.slice/share.slice/9a1f3c5e-7b2d-4c6a-8e0f-123456789abc":                   "",
		"/nomad.slice/share.slice/docker-" + id1 + ".scope":                               id1,
		"/docker/buildkit/k1x9q2m4n5b6v7c8z0l3j4h5g":                                      "k1x9q2m4n5b6v7c8z0l3j4h5g",
		"/system.slice/buildkit-k1x9q2m4n5b6v7c8z0l3j4h5g.scope":                          "k1x9q2m4n5b6v7c8z0l3j4h5g",
		"/docker/" + id1 + "/docker/buildkit/k1x9q2m4n5b6v7c8z0l3j4h5g":                   "k1x9q2m4n5b6v7c8z0l3j4h5g",
		"/docker/k1x9q2m4n5b6v7c8z0l3j4h5g":                                               "",
		"/system.slice/buildkit.service":                                                  "",
		"/../docker/" + id1:                                                               id1,
		"/../../system.slice/docker-" + id1 + ".scope":                                    id1,
		"/..": "",
		"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope": "",
		"/system.slice/nginx.service":                    "",
		"/user.slice/user-1000.slice/session-3.scope":    "",
		"/x" + id1:                                 "", // 65 digits or no boundary: no id
		"/a/" + id1 + "0":                          "",
		"/a/" + strings.ToUpper(id1):               "",
		"/jobs/bb9e9b8067ecebe234c81c2fb98feebf":   "", // 32 digits alone are anything
		"/jobs/bb9e9b8067ecebe234c81c2fb98feebf-x": "",
		"/":   "",
		"":    "",
		"//-": "",
	}
	for path, want := range tests {
		if got := ContainerID(path); got != want {
			t.Errorf("ContainerID(%q) = %q, want %q", path, got, want)
		}
	}
}

// TestFilterByContainer selects what runs in a container of a container by either.
func TestFilterByContainer(t *testing.T) {
	node := "/docker/" + id1 + "/kubelet.slice/kubelet-x.slice/cri-containerd-" + id2 + ".scope"
	machine := "/machine.slice/machine-web.scope/payload/docker/" + id1
	for _, test := range []struct {
		want, cgroup, id string
		is               bool
	}{
		{id2, node, id2, true},
		{id1, node, id2, true},
		{id1[:12], node, id2, true},
		{"0" + id1[:11], node, id2, false},
		{"kubelet", node, id2, false},
		{"docker", node, id2, false},
		{"web", machine, id1, true},
		{id1[:4], machine, id1, true},
		{"we", "/machine.slice/machine-other.scope/payload/web", "other", false},
		{id1, "/", id1, true}, // cgroup v1: the path does not say it
		{id1, "/", "", false},
		{id1, "", "", false},
	} {
		f := Filter{Containers: []string{"none", test.want}}
		if got := f.Match(&Event{Cgroup: test.cgroup, ContainerID: test.id}); got != test.is {
			t.Errorf("--container %s: cgroup %s, container %s: got %v, want %v", test.want, test.cgroup, test.id, got, test.is)
		}
	}
}

func TestFilterByContainerDoesNotAllocate(t *testing.T) {
	f := Filter{Containers: []string{id1}}
	ev := Event{Cgroup: "/docker/" + id2 + "/kubelet.slice/x.slice", ContainerID: id2}
	if n := testing.AllocsPerRun(100, func() { f.Match(&ev) }); n != 0 {
		t.Errorf("%v allocations for an event of another container", n)
	}
}

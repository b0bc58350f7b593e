package tcp

import "testing"

func TestUnit(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/system.slice/nginx.service":                                         "nginx.service",
		"/system.slice/nginx.service/worker":                                  "nginx.service",
		"/system.slice/system-getty.slice/getty@tty1.service":                 "getty@tty1.service",
		"/system.slice/docker-0123.scope":                                     "docker-0123.scope",
		"/user.slice/user-1000.slice/session-2.scope":                         "session-2.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope": "user@1000.service",
		`/system.slice/dev-disk-by\x2duuid.swap`:                              `dev-disk-by\x2duuid.swap`,
		"/system.slice/_cpu.service":                                          "cpu.service",
		"/init.scope":                                                         "init.scope",
		"/kubepods.slice/kubepods-besteffort.slice/cri-containerd-1.scope":    "cri-containerd-1.scope",
		"/docker/0123":         "",
		"/system.slice":        "",
		"/system.slice/.scope": "",
		"/../nginx.service":    "",
		"nginx.service":        "",
		"/":                    "",
		"":                     "",
	} {
		if got := Unit(cgroup); got != want {
			t.Errorf("%s is of %q, want %q", cgroup, got, want)
		}
	}
}

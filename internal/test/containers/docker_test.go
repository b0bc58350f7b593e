package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// docker is a dockerd, asked by its API: the package of the daemon has no client any more.
type docker struct {
	*daemon
	http http.Client
}

func newDocker(t *testing.T) *docker {
	t.Helper()
	dir := folder(t)
	// No port mapping and no masquerading by iptables: not every kernel has that.
	d := &docker{daemon: startDaemon(t, dir, "docker.sock", "dockerd", "--storage-driver", "vfs", "--iptables=false", "--ip6tables=false",
		"--bip", "198.18.78.1/24", "--oom-score-adjust", "0", "--exec-opt", "native.cgroupdriver=cgroupfs")}
	transport := &http.Transport{DialContext: d.dial}
	d.http.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	d.post("/images/load", "application/x-tar", imageArchive(t, dir, image+":latest"))
	return d
}

func (d *docker) post(path, kind string, body []byte) []byte {
	d.t.Helper()
	return d.do(http.MethodPost, path, kind, body)
}

func (d *docker) do(method, path, kind string, body []byte) []byte {
	d.t.Helper()
	req, err := http.NewRequest(method, "http://docker"+path, bytes.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := d.http.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		d.t.Fatalf("dockerd: %s %s: %s, %v: %s", method, path, resp.Status, err, answer)
	}
	return answer
}

// run starts /leaker in a container with a name.
func (d *docker) run(name string, host, labels map[string]any, leaker ...string) (id string) {
	d.t.Helper()
	config, err := json.Marshal(map[string]any{"Image": image + ":latest", "Cmd": leaker, "Labels": labels, "HostConfig": host,
		"ExposedPorts": map[string]any{fmt.Sprintf("%d/tcp", port): struct{}{}}})
	if err != nil {
		d.t.Fatal(err)
	}
	var made struct{ ID string }
	if err := json.Unmarshal(d.post("/containers/create?name="+name, "application/json", config), &made); err != nil {
		d.t.Fatal(err)
	}
	d.post("/containers/"+made.ID+"/start", "", nil)
	if host["AutoRemove"] == nil {
		d.t.Cleanup(func() { d.do(http.MethodDelete, "/containers/"+made.ID+"?force=true", "", nil) })
	}
	return made.ID
}

func (d *docker) address(id string) string {
	d.t.Helper()
	var c struct{ NetworkSettings struct{ IPAddress string } }
	if err := json.Unmarshal(d.do(http.MethodGet, "/containers/"+id+"/json", "", nil), &c); err != nil || c.NetworkSettings.IPAddress == "" {
		d.t.Fatalf("the address of container %s: %+v, %v", id, c, err)
	}
	return fmt.Sprintf("%s:%d", c.NetworkSettings.IPAddress, port)
}

// TestNamesOfDocker has a container of Docker shown and selected by its name: while it runs, after
// a new name and a new start, and when it lived but for a moment. Its labels are hostile.
func TestNamesOfDocker(t *testing.T) {
	need.Kernel(t)
	d := newDocker(t)
	server := d.run("web-1", nil, map[string]any{"com.docker.compose.project": "shop\x1b[31m\nred"}, "serve", fmt.Sprint(port))
	d.run("visitor", nil, nil, "visit", d.address(server))

	named := func(name string) func(line) bool {
		return func(l line) bool {
			return l.isOfServer() && l.ContainerID == server && l.Container == name && l.Image == image+":latest" &&
				l.Namespace == "shop\x1b[31m\nred"
		}
	}
	lines, stderr := trace(t, d.tracer("-j", "--container", "web-1", "-d", "20s"), named("web-1"))
	if !slices.ContainsFunc(lines, named("web-1")) {
		t.Errorf("nothing of web-1 is among %d lines: %+v, %s", len(lines), lines[:min(3, len(lines))], stderr)
	}
	for _, by := range []string{"container", "image", "namespace"} {
		out, err := d.tracer("sockets", "--by", by).Output()
		want := map[string]string{"container": "web-1", "image": image, "namespace": "shop"}[by]
		if err != nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "\x1b[31m") {
			t.Errorf("sockets --by %s: %v: %q", by, err, out)
		}
	}

	d.post("/containers/"+server+"/rename?name=renamed", "", nil)
	d.post("/containers/"+server+"/restart?t=0", "", nil)
	lines, _ = trace(t, d.tracer("sockets", "-j", "--container", "renamed"), ignore)
	if !slices.ContainsFunc(lines, func(l line) bool { return l.State == "LISTEN" && named("renamed")(l) }) {
		t.Errorf("after a new name and a new start: %+v", lines)
	}

	brief := func(l line) bool {
		return l.isOfClient() && strings.HasPrefix(l.Container, "brief-") && l.Type == "transition"
	}
	lines = traceWhile(t, d.tracer("-j", "--container", "brief-*", "-d", "20s"), brief, func(number int) {
		d.run(fmt.Sprintf("brief-%d", number), map[string]any{"AutoRemove": true}, nil, "once", d.address(server))
	})
	if !slices.ContainsFunc(lines, brief) {
		t.Errorf("nothing of a container that ends at once: %+v", lines)
	}
}

// TestBorrowedID has a process in a cgroup that somebody called like the container of another:
// the id is shown, since the path has it, and no name.
func TestBorrowedID(t *testing.T) {
	need.Kernel(t)
	d := newDocker(t)
	server := d.run("web-1", nil, nil, "serve", fmt.Sprint(port))
	d.startIn(cgroup(t, "tcptrace-borrowed", server), "serve", fmt.Sprint(port+1))

	listens := func(at uint16) func(line) bool {
		return func(l line) bool { return l.State == "LISTEN" && l.LPort == at }
	}
	var lines []line
	for range 50 { // until both listen
		if lines, _ = trace(t, d.tracer("sockets", "-j"), ignore); slices.ContainsFunc(lines, listens(port)) && slices.ContainsFunc(lines, listens(port+1)) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	for at, name := range map[uint16]string{port: "web-1", port + 1: ""} {
		if !slices.ContainsFunc(lines, func(l line) bool { return listens(at)(l) && l.ContainerID == server && l.Container == name }) {
			t.Errorf("no listener at port %d of %s with the name %q: %+v", at, server, name, lines)
		}
	}
}

// TestPublishedPort holds what the manual says of docker-proxy against a real one.
func TestPublishedPort(t *testing.T) {
	need.Kernel(t)
	d := newDocker(t)
	const published = 17351
	d.run("web-1", map[string]any{"PortBindings": map[string]any{
		fmt.Sprintf("%d/tcp", port): []any{map[string]any{"HostIp": "127.0.0.1", "HostPort": fmt.Sprint(published)}},
	}}, nil, "serve", fmt.Sprint(port))
	d.startIn(cgroup(t, "tcptrace-visitor"), "visit", fmt.Sprintf("127.0.0.1:%d", published))

	isProxy := func(l line) bool { return l.Comm == "docker-proxy" && l.Container == "" && l.ContainerID == "" }
	conditions := map[string]func(line) bool{
		"a connection to the published port, of docker-proxy": func(l line) bool { return l.LPort == published && isProxy(l) },
		"a connection of docker-proxy to the container":       func(l line) bool { return l.isOfClient() && isProxy(l) },
		"a connection of the container":                       func(l line) bool { return l.isOfServer() && l.Container == "web-1" },
	}
	lines, _ := trace(t, d.tracer("-j", "-d", "20s"), all(slices.Collect(maps.Values(conditions))...))
	for what, holds := range conditions {
		if !slices.ContainsFunc(lines, holds) {
			t.Errorf("%s is not shown: %+v", what, lines[:min(len(lines), 5)])
		}
	}
}

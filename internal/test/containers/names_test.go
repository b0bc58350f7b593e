package containers

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// tracer is tcptrace where podman's store is at its usual place, in a mount namespace of its own.
func (p *podman) tracer(args ...string) *exec.Cmd {
	const script = `mkdir -p /var/lib/containers/storage /run/containers/storage &&
		mount --bind "$1/root" /var/lib/containers/storage && mount --bind "$1/run" /run/containers/storage && shift && exec "$@"`
	return exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "sh", p.dir, tcptrace(p.t)}, args...)...)
}

// TestNames has a container shown by the name that it has, and selected by it: while it runs, after
// it was renamed and restarted, and when it is over after a fraction of a second.
func TestNames(t *testing.T) {
	need.Kernel(t)
	p := newPodman(t)
	g := p.startGroup()
	p.output("rename", g.server.id, "shop-web-1")

	named := func(name string) func(line) bool {
		return func(l line) bool { return l.isOfServer() && l.Container == name && l.Image == image+":latest" }
	}
	lines, stderr := trace(t, p.tracer("-j", "--container", "shop-*", "-d", "20s"), named("shop-web-1"))
	if !slices.ContainsFunc(lines, named("shop-web-1")) {
		t.Errorf("nothing of shop-web-1 is among %d lines: %+v, %s", len(lines), lines[:min(3, len(lines))], stderr)
	}
	for _, l := range lines {
		if l.ContainerID != "" && l.ContainerID != g.server.id {
			t.Errorf("--container shop-* shows another container: %+v", l)
		}
	}
	out, err := p.tracer("sockets", "--by", "container").Output()
	if err != nil || !strings.Contains(string(out), "shop-web-1") {
		t.Errorf("sockets --by container: %v: %s", err, out)
	}
	p.output("rename", g.server.id, "renamed")
	p.output("restart", "--time", "0", g.server.id)
	lines, _ = trace(t, p.tracer("sockets", "-j", "--container", "renamed"), ignore)
	if !slices.ContainsFunc(lines, func(l line) bool { return l.State == "LISTEN" && named("renamed")(l) }) {
		t.Errorf("after a new name and a new start: %+v", lines)
	}
	check := p.tracer("leaks", "--check", "--once", "-d", "1s", "--container", "shop-web-1")
	if out, err := check.CombinedOutput(); check.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "nothing that exists matches --container") {
		t.Errorf("a name that nothing has any more: %v: %s", err, out)
	}
}

// TestNamesOfTheShortLived traces containers that are over at once.
func TestNamesOfTheShortLived(t *testing.T) {
	need.Kernel(t)
	p := newPodman(t)
	server := p.start("podman", "serve", "7351")
	brief := func(l line) bool { return l.isOfClient() && l.Container == "brief-2" && l.Type == "transition" }
	seen := traceWhile(t, p.tracer("-j", "--container", "brief-*", "-d", "20s"), brief, func(int) {
		p.output("run", "--rm", "--name", "brief-2", "--network", "podman", image, "/leaker", "once", p.address(server)+":7351")
	})
	if !slices.ContainsFunc(seen, brief) {
		t.Errorf("nothing of brief-2 was shown: %+v", seen)
	}
}

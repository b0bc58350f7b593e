// Package systemd holds the tests of the unit.
package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

const unit = "tcptrace.service"

// systemd-analyze has nothing to say about the unit, and its score is that of the README.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	// The program is found in a folder that systemd searches; here it is not installed.
	for shipped, here := range map[string]string{"ExecStart=tcptrace ": "ExecStart=/bin/true ", "Documentation=man:tcptrace(1)\n": ""} {
		if !bytes.Contains(text, []byte(shipped)) {
			t.Fatalf("the unit does not say %s", shipped)
		}
		text = bytes.Replace(text, []byte(shipped), []byte(here), 1)
	}
	copied := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(copied, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v %s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=35", copied).CombinedOutput()
	if err != nil {
		t.Fatalf("security: %v %s", err, out)
	}
	score := regexp.MustCompile(`Overall exposure level for tcptrace.service: ([0-9.]+)`).FindSubmatch(out)
	if score == nil {
		t.Fatalf("no score: %s", out)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "exposure level of " + string(score[1]); !strings.Contains(string(readme), want) {
		t.Errorf("the README does not say %q", want)
	}
}

// The capabilities of the unit are enough, for a user that has no other rights: the daemon looks
// at the sockets, and complains about nothing.
func TestCapabilitiesAreEnough(t *testing.T) {
	need.Kernel(t)
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^(CapabilityBoundingSet|AmbientCapabilities)=(.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(lines) != 2 || lines[0][2] != lines[1][2] {
		t.Fatalf("the two sets differ: %q", lines)
	}
	set := "-all"
	for name := range strings.FieldsSeq(lines[0][2]) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	dir, err := os.MkdirTemp("/tmp", "tcptrace-unit-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "tcptrace")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/tcptrace").CombinedOutput(); err != nil {
		t.Fatalf("build: %v %s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Another network namespace has to be seen as well: to enter it takes CAP_SYS_ADMIN.
	other := exec.Command("unshare", "-n", "sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	socket := listenNotify(t, filepath.Join(dir, "notify"))
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
		"--bounding-set="+set, "--inh-caps="+set, "--ambient-caps="+set, program, "serve", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	state := make([]byte, 100)
	_ = socket.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := socket.Read(state)
	_ = cmd.Process.Signal(os.Interrupt)
	ended := cmd.Wait()
	if err != nil || string(state[:n]) != "READY=1" || ended != nil {
		t.Errorf("%q %v, ended %v", state[:n], err, ended)
	}
	if !regexp.MustCompile(`^tcptrace: listening on \S+\ntcptrace: \d+ events, .*\n$`).Match(said.Bytes()) {
		t.Errorf("it said %s", said.Bytes())
	}
}

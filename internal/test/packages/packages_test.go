// Package packages holds tests of what packaging/nfpm/build makes. They are a module of their own, run
// by `make test-packages`: they take minutes, and install packages into roots that they make.
package packages

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var dist = flag.String("dist", "", "the `FOLDER` with the packages")

const repository = "../../.."

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// pkg is the one package that a pattern is for.
func pkg(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(*dist, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: found %q, %v; run this by 'make test-packages'", pattern, found, err)
	}
	return found[0]
}

// The same commit gives the same bytes, in another folder and at another time.
func TestReproducible(t *testing.T) {
	if dirty := run(t, repository, "git", "status", "--porcelain"); dirty != "" {
		t.Fatalf("commit first: the other build is of a clone, without\n%s", dirty)
	}
	clone, again := filepath.Join(t.TempDir(), "elsewhere"), t.TempDir()
	run(t, ".", "git", "clone", "-q", repository, clone)
	run(t, clone, "packaging/nfpm/build", again)
	files, err := os.ReadDir(*dist)
	if err != nil || len(files) < 12 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		one, err := os.ReadFile(filepath.Join(*dist, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(filepath.Join(again, file.Name()))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(one, other) {
			t.Errorf("%s differs", file.Name())
		}
	}
	run(t, *dist, "sha256sum", "--check", "--quiet", "SHA256SUMS")
}

func TestLint(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Log(run(t, ".", "lintian", "--fail-on", "error", "--allow-root", pkg(t, "*_"+arch+".deb")))
	}
	for _, arch := range []string{"x86_64", "aarch64"} {
		lint := exec.Command("rpmlint", "--config", mustAbs(t, repository+"/packaging/nfpm/rpmlint.toml"), pkg(t, "*."+arch+".rpm"))
		lint.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // it unpacks there, as root
		out, _ := lint.CombinedOutput()                        // what it says counts
		if text := string(out); !strings.Contains(text, " 0 errors") {
			t.Errorf("rpmlint: %s", text)
		}
	}
}

// mirror is where this machine gets Debian from.
func mirror(t *testing.T) string {
	t.Helper()
	sites := run(t, ".", "apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian", "Component: main")
	for site := range strings.Lines(sites) {
		if site = strings.TrimSpace(site); strings.HasSuffix(strings.TrimSuffix(site, "/"), "/debian") {
			return site
		}
	}
	t.Fatalf("apt names no mirror of Debian: %q", sites)
	return ""
}

// inRoot runs a script in a root that has /proc and /sys, in a mount namespace of its own.
func inRoot(t *testing.T, root, script string) string {
	t.Helper()
	return run(t, ".", "unshare", "-m", "sh", "-ec",
		`mount --rbind /proc "$1/proc"; mount --rbind /sys "$1/sys"; exec chroot "$1" /bin/sh -ec "$2"`, "sh", root, script)
}

// Installed beside Debian's tcptrace, used, and removed without a trace.
func TestDebian(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			run(t, ".", "mmdebstrap", "--quiet", "--variant=apt", "--skip=check/empty", suite, root, mirror(t))
			run(t, ".", "cp", pkg(t, "*_amd64.deb"), filepath.Join(root, "tcptrace-ebpf.deb"))
			run(t, ".", "cp", "/etc/resolv.conf", filepath.Join(root, "etc/resolv.conf"))
			before := files(t, root)
			out := inRoot(t, root, `
				export DEBIAN_FRONTEND=noninteractive
				apt-get update -qq
				apt-get install -qq --no-install-recommends /tcptrace-ebpf.deb tcptrace >/dev/null 2>&1
				command -v tcptrace
				tcptrace --version
				test -x /usr/bin/tcptrace
				tcptrace -j -d 1s >/dev/null
				tcptrace sockets -j | head -c 1 >/dev/null
				zcat /usr/share/man/man8/tcptrace.8.gz | grep -m1 '^.Dt TCPTRACE 8'
				grep ExecStart=/usr/sbin/tcptrace /usr/lib/systemd/system/tcptrace.service
				echo 'OPTIONS=--listen :1' >/etc/default/tcptrace
				apt-get remove -qq tcptrace-ebpf >/dev/null 2>&1
				test ! -e /usr/sbin/tcptrace
				test -x /usr/bin/tcptrace
				cat /etc/default/tcptrace
				apt-get purge -qq tcptrace-ebpf >/dev/null 2>&1
				test ! -e /etc/default/tcptrace
				apt-get purge -qq tcptrace >/dev/null 2>&1`)
			for _, want := range []string{"/usr/sbin/tcptrace\ntcptrace ", ".Dt TCPTRACE 8", "OPTIONS=--listen :1"} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in %s", want, out)
				}
			}
			for name := range files(t, root) {
				if !before[name] && strings.Contains(name, "tcptrace") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

// files lists what can have been installed.
func files(t *testing.T, root string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for _, folder := range []string{"etc", "usr", "lib"} {
		for name := range strings.Lines(run(t, root, "find", "-H", folder, "-not", "-type", "d")) {
			all[strings.TrimSpace(name)] = true
		}
	}
	return all
}

// An rpm database of its own, with a root that has nothing else: so there is no shell for scripts.
func TestRPM(t *testing.T) {
	root := t.TempDir()
	rpm := func(args ...string) string { return run(t, ".", "rpm", append([]string{"--root", root}, args...)...) }
	rpm("--initdb")
	rpm("--install", "--nodeps", "--noscripts", pkg(t, "*.x86_64.rpm"))
	rpm("--verify", "tcptrace-ebpf", "--nodeps")
	program := filepath.Join(root, "usr/sbin/tcptrace")
	if out := run(t, ".", program, "--version"); !strings.HasPrefix(out, "tcptrace ") {
		t.Errorf("got %q", out)
	}
	if out := rpm("--query", "--scripts", "tcptrace-ebpf"); !strings.Contains(out, "systemctl daemon-reload") {
		t.Errorf("scripts: %s", out)
	}
	rpm("--erase", "--nodeps", "--noscripts", "tcptrace-ebpf")
	if _, err := os.Stat(program); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// The other formats and the tarballs hold the program of their architecture.
func TestContents(t *testing.T) {
	for pattern, machine := range map[string]string{
		"*_x86_64.apk": "x86-64", "*_aarch64.apk": "aarch64", "*x86_64.pkg.tar.zst": "x86-64", "*aarch64.pkg.tar.zst": "aarch64",
		"*linux_amd64.tar.gz": "x86-64", "*linux_arm64.tar.gz": "aarch64",
	} {
		dir := t.TempDir()
		run(t, dir, "tar", "--warning=no-unknown-keyword", "-xf", mustAbs(t, pkg(t, pattern)))
		found := strings.Fields(run(t, dir, "find", ".", "-type", "f", "-name", "tcptrace", "-perm", "-111"))
		if len(found) != 1 {
			t.Errorf("%s: programs %q", pattern, found)
			continue
		}
		if kind := run(t, dir, "file", "--brief", found[0]); !strings.Contains(kind, machine) || !strings.Contains(kind, "statically linked") {
			t.Errorf("%s: %s", pattern, kind)
		}
	}
	for _, arch := range []string{"amd64", "arm64"} {
		bill, err := os.ReadFile(pkg(t, "*linux_"+arch+".cdx.json"))
		if err != nil || !bytes.Contains(bill, []byte(`"CycloneDX"`)) || !bytes.Contains(bill, []byte(`"github.com/cilium/ebpf"`)) {
			t.Errorf("the bill of %s: %v", arch, err)
		}
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

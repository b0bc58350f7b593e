package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// keyring holds the keys of Debian's archive, from the package
// debian-archive-keyring. The package client checks all that it fetches with them.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// kernel is a kernel, unpacked: folder holds the files of parts.
type kernel struct {
	folder string
	files  []file
}

// image is the kernel itself.
func (k *kernel) image() string { return filepath.Join(k.folder, "vmlinuz") }

// complete says whether all that a guest needs was fetched.
func (k *kernel) complete() bool {
	return !slices.ContainsFunc(k.files, func(f file) bool {
		_, err := os.Stat(f.from)
		return err != nil
	})
}

// parts are the files of the packages that a guest needs, and the names they get. The
// modules are those that the kernel itself would ask modprobe for: for sock_diag, for links
// of the kinds veth and vrf, and for TLS in the kernel.
var parts = []part{
	{path: regexp.MustCompile(`^\./(boot/vmlinuz-[^/]*|usr/lib/modules/[^/]*/vmlinuz)$`), name: "vmlinuz"},
	{path: regexp.MustCompile(`^\./(usr/)?bin/busybox$`), name: "busybox"},
	{path: regexp.MustCompile(`/kernel/net/ipv4/inet_diag\.ko(\.xz)?$`), name: "inet_diag.ko"},
	{path: regexp.MustCompile(`/kernel/net/ipv4/tcp_diag\.ko(\.xz)?$`), name: "tcp_diag.ko"},
	{path: regexp.MustCompile(`/kernel/drivers/net/veth\.ko(\.xz)?$`), name: "veth.ko"},
	{path: regexp.MustCompile(`/kernel/drivers/net/vrf\.ko(\.xz)?$`), name: "vrf.ko"},
	{path: regexp.MustCompile(`/kernel/net/tls/tls\.ko(\.xz)?$`), name: "tls.ko", lacking: "bullseye"},
}

type part struct {
	path    *regexp.Regexp
	name    string
	lacking string // the suite whose kernel is built without it
}

// fetch returns the newest kernel of a guest's series. What was fetched once is kept:
// remove the folder to have it fetched again.
func fetch(ctx context.Context, g guest, arch, folder string) (*kernel, error) {
	k := &kernel{folder: folder}
	for _, p := range parts {
		if p.lacking != g.suite {
			k.files = append(k.files, file{name: p.name, from: filepath.Join(folder, p.name)})
		}
	}
	if k.complete() {
		return k, nil
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return nil, err
	}
	// Renamed when complete, so that a run that was cut short leaves no half kernel.
	temp, err := os.MkdirTemp(filepath.Dir(folder), g.kernelName()+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	debs, err := download(ctx, g, arch, temp)
	if err != nil {
		return nil, err
	}
	unpacked := filepath.Join(temp, "unpacked")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return nil, err
	}
	for _, deb := range debs {
		if err := unpack(ctx, deb, unpacked); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	for _, f := range k.files {
		if _, err := os.Stat(filepath.Join(unpacked, f.name)); err != nil {
			return nil, fmt.Errorf("the packages hold no %s: see the table of parts", f.name)
		}
	}
	if err := os.RemoveAll(folder); err != nil { // of a version that needed less
		return nil, err
	}
	return k, os.Rename(unpacked, folder)
}

// download puts the packages of a guest into the folder. The package client gets them
// from where this machine gets its own.
func download(ctx context.Context, g guest, arch, folder string) (debs []string, err error) {
	sources, err := sources(ctx, g.suite, arch)
	if err != nil {
		return nil, err
	}
	apt, err := newPrivateApt(folder, arch, sources)
	if err != nil {
		return nil, err
	}
	if _, err := apt.run(ctx, "apt-get", "update", "-q"); err != nil {
		return nil, err
	}
	names, err := apt.kernelPackages(ctx, g, arch)
	if err != nil {
		return nil, err
	}
	names = append(names, "busybox-static")
	if _, err := apt.run(ctx, "apt-get", append([]string{"download", "-q"}, names...)...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(folder, "*.deb"))
}

// sources are the lines of a sources.list for a suite that need not be this machine's
// own, in the same archives.
func sources(ctx context.Context, suite, arch string) (string, error) {
	const format = "$(LABEL) $(REPO_URI)"
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", format, "Created-By: Packages", "Origin: Debian", "Component: main")
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	var list strings.Builder
	for _, line := range slices.Compact(lines) {
		suite := suite
		label, uri, _ := strings.Cut(line, " ")
		switch {
		case label == "Debian-Security" && suite != "sid": // it has no security archive
			suite += "-security"
		case label != "Debian":
			continue
		}
		fmt.Fprintf(&list, "deb [arch=%s signed-by=%s targets=Packages] %s %s main\n", arch, keyring, uri, suite)
	}
	if list.Len() == 0 {
		return "", errors.New("the package client knows no archive of Debian: run 'apt-get update' as root first (on Debian)")
	}
	return list.String(), nil
}

// privateApt is the package client with lists and caches of its own: it neither
// reads nor changes what is known of this machine's packages.
type privateApt struct {
	folder  string
	options []string
}

func newPrivateApt(folder, arch, sources string) (*privateApt, error) {
	list := filepath.Join(folder, "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return nil, err
	}
	a := &privateApt{folder: folder}
	for _, option := range []string{
		"APT::Architecture=" + arch,
		"Dir::Etc::SourceList=" + list,
		"Dir::Etc::SourceParts=/dev/null",
		"Dir::State=" + filepath.Join(folder, "state"),
		"Dir::State::Status=/dev/null",
		"Dir::Cache=" + filepath.Join(folder, "cache"),
		"Acquire::Languages=none",
		// A release that has come to its end says so by an expired date.
		"Acquire::Check-Valid-Until=false",
		// The user _apt may not enter the home of root. For others it means nothing.
		"APT::Sandbox::User=root",
	} {
		a.options = append(a.options, "-o", option)
	}
	return a, os.MkdirAll(filepath.Join(folder, "state", "lists", "partial"), 0o755)
}

func (a *privateApt) run(ctx context.Context, name string, args ...string) (string, error) {
	return command(ctx, a.folder, name, append(a.options[:len(a.options):len(a.options)], args...)...)
}

// kernelPackages names the packages that hold the guest's kernel: one, or since
// 7.0 one each for the image and the modules, and one that depends on both.
func (a *privateApt) kernelPackages(ctx context.Context, g guest, arch string) ([]string, error) {
	flavour := join(g.flavour, arch)
	meta, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", "linux-image-"+flavour)
	if err != nil {
		return nil, err
	}
	version := regexp.MustCompile(`\blinux-image-([0-9]\S*-` + flavour + `)`).FindStringSubmatch(meta)
	if version == nil || !strings.HasPrefix(version[1], g.series+".") {
		return nil, fmt.Errorf("%s has another kernel, not %s: change the table of guests: linux-image-%s is\n%s", g.suite, g.series, flavour, meta)
	}
	all, err := a.run(ctx, "apt-cache", "pkgnames", "linux-")
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.Lines(all) {
		switch name = strings.TrimSpace(name); name {
		case "linux-image-" + version[1], "linux-binary-" + version[1], "linux-modules-" + version[1]:
			names = append(names, name)
		}
	}
	return names, nil
}

// unpack puts those files of a package into the folder that are parts.
func unpack(ctx context.Context, deb, folder string) error {
	dpkg := exec.CommandContext(ctx, "dpkg", "--fsys-tarfile", deb)
	dpkg.Stderr = os.Stderr
	pipe, err := dpkg.StdoutPipe()
	if err != nil {
		return err
	}
	if err := dpkg.Start(); err != nil {
		return err
	}
	err = extract(tar.NewReader(pipe), folder)
	_, rest := io.Copy(io.Discard, pipe)
	return errors.Join(err, rest, dpkg.Wait())
}

func extract(files *tar.Reader, folder string) error {
	for {
		header, err := files.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range parts {
			if header.Typeflag != tar.TypeReg || !p.path.MatchString(header.Name) {
				continue
			}
			content, err := io.ReadAll(files)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(folder, p.name), content, 0o755); err != nil {
				return err
			}
		}
	}
}

// command runs a program in the folder and returns what it printed.
func command(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = folder, &out, &stderr
	cmd.WaitDelay = time.Second // its children may outlive it
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out.String(), nil
}

// build makes the static programs that run in the guests, from this module.
func build(ctx context.Context, arch, folder string) ([]file, error) {
	root, err := command(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return nil, err
	}
	root = strings.TrimSpace(root)
	env := append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	var files []file
	for _, b := range builds {
		if b.native && arch != runtime.GOARCH {
			continue
		}
		to := filepath.Join(folder, filepath.Base(b.name))
		cmd := exec.CommandContext(ctx, b.command[0], append(b.command[1:len(b.command):len(b.command)], "-o", to, b.source)...)
		cmd.Dir, cmd.Env = root, env
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", b.name, err, out)
		}
		files = append(files, file{name: b.name, from: to})
	}
	return files, nil
}

// builds are laid out in the guest as in the source tree, where the tests of rig look
// for them. A C program is built with the compiler of this machine alone.
var builds = []struct {
	name    string
	source  string
	native  bool
	command []string
}{
	{name: "internal/confine/confine.test", source: "./internal/confine", command: []string{"go", "test", "-c"}},
	{name: "internal/probe/probe.test", source: "./internal/probe", command: []string{"go", "test", "-c"}},
	{name: "internal/test/rig/rig.test", source: "./internal/test/rig", command: []string{"go", "test", "-c"}},
	{name: "bin/tcptrace", source: "./cmd/tcptrace", command: []string{"go", "build", "-trimpath"}},
	{name: "bin/churn", source: "internal/test/rig/churn/churn.c", native: true, command: []string{"gcc", "-static", "-O2", "-pthread"}},
}

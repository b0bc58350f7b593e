package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// packages holds, by the command of a peer, what Debian calls it.
var packages = map[string]string{
	"tcpstates-bpfcc": "bpfcc-tools",
	"tcpstates":       "libbpf-tools",
	"bpftrace":        "bpftrace",
}

// preparePeers installs the peers that are missing, and notes those that cannot be
// installed. It returns a folder that the caller removes, or "".
func preparePeers(ctx context.Context, all []*tracer) (headers string) {
	updated := false
	for _, t := range all {
		if !t.peer {
			continue
		}
		if _, err := exec.LookPath(t.argv[0]); err == nil {
			continue
		}
		if !updated {
			updated = true
			_ = aptGet(ctx, "update", "-qq") // if that fails, so will what follows
		}
		t.absent = aptInstall(ctx, packages[t.argv[0]])
	}
	bcc := all[slices.IndexFunc(all, func(t *tracer) bool { return t.argv[0] == "tcpstates-bpfcc" })]
	if bcc.absent != nil {
		return ""
	}
	headers, bcc.absent = findHeaders(ctx)
	if headers != "" {
		bcc.env = append(bcc.env, "BCC_KERNEL_SOURCE="+headers)
	}
	return headers
}

// mountTracefs mounts tracefs where nobody has, because peers look for tracepoints
// there, and returns what unmounts it.
func mountTracefs() (undo func(), err error) {
	const at = "/sys/kernel/tracing"
	if _, err := os.Stat(at + "/events"); err == nil {
		return func() {}, nil
	}
	if err := unix.Mount("tracefs", at, "tracefs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount tracefs on %s: %w", at, err)
	}
	return func() { _ = unix.Unmount(at, 0) }, nil
}

func aptInstall(ctx context.Context, name string) error {
	fmt.Fprintf(os.Stderr, "bench: installing %s\n", name)
	return aptGet(ctx, "install", "-y", "-qq", "--no-install-recommends", name)
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%v: %w: %s", cmd, err, lines[len(lines)-1])
	}
	return nil
}

// findHeaders returns a folder of kernel headers for bcc, which compiles as it starts,
// or "" where it finds those of the running kernel by itself. Where these cannot be
// installed, those of Debian's own kernel are good enough for tcpstates: it uses nothing
// that differs. Debian spreads them over two folders, and bcc takes one.
func findHeaders(ctx context.Context) (string, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat("/lib/modules/" + strings.TrimSpace(string(release)) + "/build"); err == nil {
		return "", nil
	}
	pattern := "/usr/src/linux-headers-*-" + runtime.GOARCH
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		if err := aptInstall(ctx, "linux-headers-"+runtime.GOARCH); err != nil {
			return "", err
		}
		found, _ = filepath.Glob(pattern)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("no kernel headers in %s", pattern)
	}
	own := found[len(found)-1]
	merged, err := os.MkdirTemp("", "bench-headers-")
	if err != nil {
		return "", err
	}
	for _, part := range []string{own, strings.TrimSuffix(own, runtime.GOARCH) + "common"} {
		cmd := exec.CommandContext(ctx, "cp", "-rs", part+"/include", part+"/arch", merged)
		if out, err := cmd.CombinedOutput(); err != nil {
			_ = os.RemoveAll(merged)
			return "", fmt.Errorf("merge the kernel headers: %w: %s", err, out)
		}
	}
	return merged, nil
}

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// member is a user that may run a copy of the program which has capabilities, as withAdvice
// says how to make one.
type member struct {
	t      *testing.T
	folder string // everybody may enter it
}

// stranger is a user and a group that own nothing.
const stranger = 65534

func newMember(t *testing.T) member {
	need.Kernel(t)
	folder, err := os.MkdirTemp("", "setcap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	given, err := cap.FromText("cap_bpf,cap_perfmon,cap_syslog,cap_sys_ptrace,cap_dac_read_search=ep")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(folder, "tcptrace")
	if err := errors.Join(
		os.Chmod(folder, 0o755),
		os.WriteFile(copied, program, 0o750), os.Chown(copied, 0, stranger), given.SetFile(copied),
	); err != nil {
		t.Fatal(err)
	}
	return member{t, folder}
}

// file makes one of root's.
func (m member) file(name, content string, mode os.FileMode) string {
	m.t.Helper()
	path := filepath.Join(m.folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// run runs the program as the user.
func (m member) run(args ...string) (status int, stdout, stderr string) {
	m.t.Helper()
	return m.runAs(stranger, nil, args...)
}

func (m member) runAs(uid uint32, env []string, args ...string) (status int, stdout, stderr string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(m.folder, "tcptrace"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &out, &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		m.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaints.String()
}

// TestSetcapReadsAsUser names files of root's to a program that may read them.
func TestSetcapReadsAsUser(t *testing.T) {
	m := newMember(t)
	recording, err := os.ReadFile("testdata/trace.json")
	if err != nil {
		t.Fatal(err)
	}
	public, secret := m.file("public.json", string(recording), 0o644), m.file("secret.json", string(recording), 0o600)
	hidden := m.file("closed/trace.json", string(recording), 0o644)
	fifo := filepath.Join(m.folder, "closed/fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := m.run("-r", public); status != 0 || !strings.Contains(stdout, "curl") {
		t.Errorf("a file that the user may read: status %d, %s", status, stderr)
	}
	for _, args := range [][]string{
		{"-r", secret}, {"-r", hidden}, {"-r", fifo}, {"leaks", "-r", secret}, {"--netns", hidden}, {"sockets", "--netns", hidden},
	} {
		status, stdout, stderr := m.run(args...)
		if status == 0 || stdout != "" || !strings.Contains(stderr, "permission denied") {
			t.Errorf("%v: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
	// A daemon reads its files again and again, with the rights of the program: it does not begin.
	for _, file := range []string{secret, public} {
		if status, _, stderr := m.run("serve", "--listen", "127.0.0.1:0", "--web-config", file); status != exitUsage || !strings.Contains(stderr, "not for a program with capabilities") {
			t.Errorf("serve --web-config %s: status %d, stderr %q", file, status, stderr)
		}
	}
	// The time zone is a file that the user names, too. To open this one would never end.
	if status, _, stderr := m.runAs(stranger, []string{"TZ=" + fifo}, "-r", public, "-T"); status != 0 {
		t.Errorf("a time zone that the user may not read: status %d, %s", status, stderr)
	}
}

// TestSetcapRecordsAsUser names files to write to: with the rights of the program one could be
// made or emptied anywhere.
func TestSetcapRecordsAsUser(t *testing.T) {
	m := newMember(t)
	secret, empty := m.file("secret.json", "kept", 0o644), m.file("empty.json", "", 0o600)
	theirs := filepath.Join(m.folder, "theirs")
	if err := errors.Join(os.Mkdir(theirs, 0o700), os.Chown(theirs, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(m.folder, "new.json"): "permission denied", empty: "permission denied",
		filepath.Join(m.folder, "closed/new.json"): "no such file", secret: "permission denied",
	} {
		status, stdout, stderr := m.run("-d", "1ms", "--record", path)
		if status != exitFailure || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d, stdout %q, stderr %q", path, status, stdout, stderr)
		}
	}
	path := filepath.Join(theirs, "rec.json")
	if status, _, stderr := m.run("stats", "-d", "100ms", "--record", path, "--rotate", "64K,2"); status != 0 {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	var st unix.Stat_t
	if err := unix.Stat(path+".1", &st); err != nil || st.Uid != stranger || st.Mode&0o777 != 0o600 {
		t.Errorf("the file is of user %d, with mode %o: %v", st.Uid, st.Mode, err)
	}
}

// TestSetcapTypes gives types in a file, which decide what the programs read.
func TestSetcapTypes(t *testing.T) {
	m := newMember(t)
	types, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	file := m.file("types", string(types), 0o644)
	for _, args := range [][]string{{}, {"sockets"}, {"leaks", "--once"}, {"doctor"}} {
		status, _, stderr := m.run(append(args, "--btf", file)...)
		if status != 1 || !strings.Contains(stderr, "from root alone") {
			t.Errorf("%v: status %d, stderr %q", args, status, stderr)
		}
		if status, _, stderr := m.runAs(0, nil, append(args, "--btf", file, "-d1ms")...); len(args) == 0 && status != 0 {
			t.Errorf("root, %v: status %d, stderr %q", args, status, stderr)
		}
	}
}

// TestSetcapTraces sees what the capabilities are for, and no address of the kernel: that
// the program may read them does not mean that its user may.
func TestSetcapTraces(t *testing.T) {
	m := newMember(t)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	for _, c := range []struct {
		uid      uint32
		restrict string
		shown    bool
	}{
		{stranger, "0", false}, {stranger, "1", false}, {0, "0", true}, {0, "1", true}, {0, "2", false},
	} {
		restrictAddresses(t, c.restrict)
		status, stdout, stderr := m.runAs(c.uid, nil, "sockets", "-x", "-j", "--lport", port)
		if status != 0 || !strings.Contains(stdout, `"state":"LISTEN"`) {
			t.Fatalf("user %d: status %d, stdout %q, stderr %q", c.uid, status, stdout, stderr)
		}
		if shown := strings.Contains(stdout, `"skaddr"`); shown != c.shown || strings.Contains(stderr, "kptr_restrict") == c.shown {
			t.Errorf("user %d, kptr_restrict %s: got %v, stderr %q", c.uid, c.restrict, shown, stderr)
		}
	}
}

// restrictAddresses sets kernel.kptr_restrict until the test ends.
func restrictAddresses(t *testing.T, value string) {
	t.Helper()
	const file = "/proc/sys/kernel/kptr_restrict"
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(file, was, 0) })
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// TestSetcapIsPartial wants that no all-clear is given where namespaces were not looked at.
func TestSetcapIsPartial(t *testing.T) {
	m := newMember(t)
	newLeakNet(t) // what it runs is in a namespace of its own, and may not enter that of the host
	if status, _, stderr := m.run("sockets"); status != 0 || !strings.Contains(stderr, "not listed") {
		t.Errorf("sockets: status %d, stderr %q", status, stderr)
	}
	if _, stdout, _ := m.run("doctor"); !strings.Contains(stdout, "partly   capabilities") {
		t.Errorf("doctor: %s", stdout)
	}
	status, _, stderr := m.run("leaks", "--check")
	if status != 1 || strings.Count(stderr, "not listed") != 1 {
		t.Errorf("leaks --check: status %d, stderr %q", status, stderr)
	}
}

// The advice that the error gives is what these tests did.
func TestAdvice(t *testing.T) {
	m := newMember(t)
	if err := unix.Removexattr(filepath.Join(m.folder, "tcptrace"), "security.capability"); err != nil {
		t.Fatal(err)
	}
	_, _, stderr := m.run()
	for _, want := range []string{
		"CAP_BPF", "sudo chgrp GROUP ", "sudo chmod 750 ", "sudo setcap cap_bpf,cap_perfmon,cap_syslog,cap_sys_ptrace,cap_dac_read_search=ep ",
		"every connection and process name",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is missing in %q", want, stderr)
		}
	}
}

package confine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// stranger is a user that owns nothing.
const stranger = 65534

// TestOpenAsUser has a program that has more rights than the user who runs it, of either
// kind, open files that this user names.
func TestOpenAsUser(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		folder := os.Getenv("FOLDER")
		answer(map[string]bool{
			"public":              opened(Open(filepath.Join(folder, "public"))) == nil,
			"secret":              !errors.Is(opened(Open(filepath.Join(folder, "secret"))), fs.ErrPermission),
			"below a secret":      !errors.Is(opened(Open(filepath.Join(folder, "closed/public"))), fs.ErrPermission),
			"name below a secret": !errors.Is(AsUser(func() error { return unix.Stat(filepath.Join(folder, "closed/public"), new(unix.Stat_t)) }), fs.ErrPermission),
			"device":              !errors.Is(opened(Open(filepath.Join(folder, "device"))), fs.ErrPermission),
			"overwrite secret":    !errors.Is(opened(Create(filepath.Join(folder, "secret"))), fs.ErrPermission),
			"create":              !errors.Is(opened(Create(filepath.Join(folder, "new"))), fs.ErrPermission),
			"record":              !errors.Is(opened(CreateNew(filepath.Join(folder, "recording"))), fs.ErrPermission),
			"record to secret":    !errors.Is(opened(CreateNew(filepath.Join(folder, "secret"))), fs.ErrPermission),
			"by itself":           opened(os.Open(filepath.Join(folder, "secret"))) == nil,
			"addresses":           SeesAddresses(),
		})
		return
	}
	need.Kernel(t)
	folder := filesOfRoot(t)
	for kind, prepare := range map[string]func(*exec.Cmd){
		"capabilities": func(cmd *exec.Cmd) {
			cmd.Path = copyOf(t, cmd.Path, filepath.Join(folder, "copy"), 0o755)
			cmd.SysProcAttr.AmbientCaps = []uintptr{uintptr(cap.DAC_READ_SEARCH), uintptr(cap.DAC_OVERRIDE), uintptr(cap.SYSLOG)}
		},
		"setuid": func(cmd *exec.Cmd) {
			cmd.Path = copyOf(t, cmd.Path, filepath.Join(folder, "setuid"), 0o755|os.ModeSetuid)
		},
	} {
		t.Run(kind, func(t *testing.T) {
			var got map[string]bool
			again(t, kind, &got, func(cmd *exec.Cmd) {
				cmd.Env = append(cmd.Env, "FOLDER="+folder)
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
				prepare(cmd)
			})
			for what, opens := range got {
				if want := what == "public" || what == "by itself"; opens != want {
					t.Errorf("%s: got %v, want %v", what, opens, want)
				}
			}
		})
	}
}

// What Create opens is a file, new or emptied, and never what a name only leads to; and it
// waits for nobody.
func TestCreate(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	for _, err := range []error{
		os.WriteFile(in("old"), []byte("much more than before"), 0o600),
		os.WriteFile(in("target"), []byte("kept"), 0o600),
		os.Symlink(in("target"), in("link")),
		os.Symlink(in("nowhere"), in("dangling")),
		unix.Mkfifo(in("fifo"), 0o600),
		unix.Mkfifo(in("read fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	reader, err := os.OpenFile(in("read fifo"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, name := range []string{"link", "dangling", "fifo", "read fifo", ".", "no/folder", "/dev/null"} {
		path := name
		if !filepath.IsAbs(name) {
			path = in(name)
		}
		if f, err := Create(path); err == nil {
			f.Close()
			t.Errorf("%s: it is written", name)
		}
	}
	if content, err := os.ReadFile(in("target")); string(content) != "kept" {
		t.Errorf("the target of a link has %q: %v", content, err)
	}
	if _, err := os.Lstat(in("nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target of a link was made: %v", err)
	}
	for _, name := range []string{"old", "new"} {
		f, err := Create(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(name); err != nil || f.Close() != nil {
			t.Fatal(err)
		}
		if content, err := os.ReadFile(in(name)); string(content) != name {
			t.Errorf("%s has %q: %v", name, content, err)
		}
	}
	if info, err := os.Stat(in("new")); err != nil || info.Mode()&^0o644 != 0 {
		t.Errorf("the mode is %v: %v", info.Mode(), err)
	}
}

// What CreateNew opens is a new file, or an empty one of the user's. It overwrites nothing, is
// led nowhere and waits for nobody.
func TestCreateNew(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	for _, err := range []error{
		os.WriteFile(in("full"), []byte("kept"), 0o600),
		os.WriteFile(in("target"), nil, 0o600),
		os.Symlink(in("target"), in("link")),
		os.Symlink(in("nowhere"), in("dangling")),
		os.WriteFile(in("twice"), nil, 0o600),
		os.Link(in("twice"), in("again")),
		unix.Mkfifo(in("fifo"), 0o600),
		unix.Mkfifo(in("read fifo"), 0o600),
		os.WriteFile(in("empty"), nil, 0o640),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	reader, err := os.OpenFile(in("read fifo"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for name, want := range map[string]string{
		"full": "it is not overwritten", "link": "not a regular file", "dangling": "not a regular file", "again": "not yours alone",
		"fifo": "not a regular file", "read fifo": "not a regular file", ".": "not a regular file",
		"no/folder": "no such file or directory",
	} {
		f, err := CreateNew(in(name))
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	if _, err := os.Lstat(in("nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target of a link was made: %v", err)
	}
	for name, mode := range map[string]os.FileMode{"new": 0o600, "empty": 0o640} {
		if err := opened(CreateNew(in(name))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Stat(in(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: the mode is %v, want %v: %v", name, info.Mode(), mode, err)
		}
	}
}

// A file of another user's is not written to, although root may: its user would read it.
func TestCreateNewOfOthers(t *testing.T) {
	need.Kernel(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "planted")
	for _, err := range []error{os.Chown(folder, stranger, stranger), os.WriteFile(path, nil, 0o666), os.Chown(path, stranger, stranger)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := opened(CreateNew(path)); err == nil || !strings.Contains(err.Error(), "not yours alone") {
		t.Errorf("got %v", err)
	}
	if err := opened(CreateNew(filepath.Join(folder, "new"))); err != nil {
		t.Errorf("a new file in a folder of another user: %v", err)
	}
}

// filesOfRoot makes a folder that everybody may enter, with files that only root may read.
func filesOfRoot(t *testing.T) string {
	folder, err := os.MkdirTemp("", "confine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	for _, err := range []error{
		os.Chmod(folder, 0o755),
		os.WriteFile(filepath.Join(folder, "public"), nil, 0o644),
		os.WriteFile(filepath.Join(folder, "secret"), nil, 0o600),
		os.Mkdir(filepath.Join(folder, "closed"), 0o700),
		os.WriteFile(filepath.Join(folder, "closed/public"), nil, 0o644),
		unix.Mknod(filepath.Join(folder, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), // null
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// copyOf copies a program to where every user can run it.
func copyOf(t *testing.T, program, path string, mode fs.FileMode) string {
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, content, 0o755), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestShowsAddresses(t *testing.T) {
	const hidden = "0000000000000000 A __per_cpu_start\n"
	for name, c := range map[string]struct {
		kallsyms string
		want     bool
	}{
		"hidden":                      {strings.Repeat(hidden, 500), false},
		"the first is 0 all the same": {hidden + "0000000000001000 A cpu_debug_store\n", true},
		"text at once":                {"ffffffff81000000 T _text\n", true},
		"nothing":                     {"", false},
	} {
		if got := showsAddresses(strings.NewReader(c.kallsyms)); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

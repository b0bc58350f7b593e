package enrich

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

func TestHasCgroup(t *testing.T) {
	tree := t.TempDir()
	if err := os.MkdirAll(filepath.Join(tree, "system.slice/empty.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	all := Enricher{cgroup2: mount{at: tree, real: true}}
	for path, want := range map[string]bool{
		"/": true, "/system.slice": true, "/system.slice/empty.service": true, "/empty.service": false,
	} {
		if got := all.HasCgroup(func(p string) bool { return p == path }); got != want {
			t.Errorf("HasCgroup of %s: %v, want %v", path, got, want)
		}
	}
	nothing := func(string) bool { return false }
	for name, some := range map[string]*Enricher{
		"not mounted":           {},
		"a part of the tree":    {cgroup2: mount{at: tree, root: "/docker", real: true}},
		"in a namespace":        {cgroup2: mount{at: tree, real: true}, hidden: true},
		"a copy of a directory": {cgroup2: mount{at: tree}},
	} {
		if !some.HasCgroup(nothing) {
			t.Errorf("%s: a cgroup that cannot be seen was said not to exist", name)
		}
	}
}

func TestHasContainer(t *testing.T) {
	proc := t.TempDir()
	kthreadd := filepath.Join(proc, "2")
	for dir, files := range map[string]map[string]string{
		kthreadd:                  {"stat": "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0 0 0 0 0 0 0"},
		filepath.Join(proc, "41"): {"cgroup": "4:memory:/docker/" + id1 + "\n0::/\n"},
		filepath.Join(proc, "42"): {"cgroup": "0::/docker/" + id2 + "\n"},
	} {
		for name, text := range files {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	e := Enricher{proc: procfs.Open(proc)}
	for id, want := range map[string]bool{id1: true, id2: true, strings.Repeat("0", 64): false} {
		if got := e.HasContainer(func(path string) bool { return path == "/docker/"+id }); got != want {
			t.Errorf("HasContainer of %.8s: %v, want %v", id, got, want)
		}
	}
	if err := os.RemoveAll(kthreadd); err != nil {
		t.Fatal(err)
	}
	e.proc = procfs.Open(proc) // of another PID namespace now
	if !e.HasContainer(func(string) bool { return false }) {
		t.Error("a container that cannot be seen was said not to exist")
	}
}

package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// Each program belongs to one hook, so that none is loaded twice or forgotten.
func TestHooksHaveEveryProgram(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	owner := map[string]string{}
	for _, h := range allHooks() {
		if (h.blind == "") != (h.name == hookState) {
			t.Errorf("hook %s: what is not seen without it: %q", h.name, h.blind)
		}
		for _, s := range h.programs(new(bpfPrograms)) {
			if other := owner[s.name]; other != "" {
				t.Errorf("program %s belongs to %s and to %s", s.name, other, h.name)
			}
			owner[s.name] = h.name
		}
	}
	if !preemptibleTracepoints() {
		owner[bpfProgStateChange3] = hookState
	}
	for name := range spec.Programs {
		if owner[name] == "" {
			t.Errorf("program %s belongs to no hook", name)
		}
	}
	if last := hooks[len(hooks)-1].name; last != hookState {
		t.Errorf("the last hook is %s, want %s", last, hookState)
	}
}

// The types of our own object have no hook at all: all are missed, each by name.
func TestMissingHooksAreFound(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hooks {
		if err := h.find(spec, spec.Types); err == nil || !strings.Contains(err.Error(), "this kernel has no") {
			t.Errorf("hook %s: got error %v, want that the kernel has none", h.name, err)
		}
	}
}

func TestWrongConfigIsRefused(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Hooks: "kprobes"}, `unknown way "kprobes"`},
		{Config{Without: []string{"kfree_skb", "nonsense"}}, `"nonsense": no such hook; there are`},
		{Config{Without: []string{hookState}}, "nothing else tells of state changes"},
	} {
		if _, err := Open(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%+v): got error %v, want one that says %s", c.cfg, err, c.want)
		}
	}
}

// The types of our own programs are well-formed, but not those of the kernel.
func TestTypesOfAnotherKernelAreRefused(t *testing.T) {
	need.Kernel(t)
	path := filepath.Join(t.TempDir(), "types")
	if err := os.WriteFile(path, _BpfBytes, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Open(Config{BTF: path})
	if err == nil {
		p.Close()
		t.Fatal("a trace with the types of something else is on")
	}
	// Before 5.11 there is nothing to compare with, and a tracepoint is missed first.
	for _, want := range []string{"is that of another kernel", "has no tracepoint"} {
		if strings.Contains(err.Error(), want) {
			return
		}
	}
	t.Errorf("got error %v, want one that says what is wrong with the file", err)
}

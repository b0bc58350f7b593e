package probe

import (
	"os"
	"path/filepath"
	"slices"
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
	for _, h := range tracePlan(Config{Stacks: true, Tracked: true}).all() {
		if (h.without == "") != (h.name == hookState) {
			t.Errorf("hook %s: what is not seen without it: %q", h.name, h.without)
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
	if got := tracePlan(Config{}).required.name; got != hookState {
		t.Errorf("a trace requires the hook %s, want %s", got, hookState)
	}
}

// The types of our own object show no hook: every one is found to be missing.
func TestMissingHooksAreFound(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hooks {
		if err := h.find(spec, spec.Types); err == nil || !strings.Contains(err.Error(), "this kernel has no") {
			t.Errorf("hook %s: got error %v, want one that says that the kernel lacks it", h.name, err)
		}
	}
}

func TestWrongConfigIsRefused(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Hooks: "kprobes"}, `unknown hooks "kprobes"`},
		{Config{Without: []string{"kfree_skb", "nonsense"}}, `cannot leave out the hook "nonsense": there are`},
		{Config{Without: []string{hookState}}, "no other one reports state changes"},
	} {
		if _, err := Open(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%+v): got error %v, want one that says %s", c.cfg, err, c.want)
		}
	}
}

// A plan loads only what is asked for, and is limited only by what it would load.
func TestPlans(t *testing.T) {
	for _, c := range []struct {
		plan     hookPlan
		required string
		limited  []string // without sys_exit_accept, iter/bpf_map_elem and iter/task_file
	}{
		{tracePlan(Config{}), hookState, []string{hookFiles}},
		{tracePlan(Config{Stacks: true}), hookState, []string{hookFiles, hookAcceptExit}},
		{tracePlan(Config{Tracked: true}), hookState, []string{hookFiles, hookTracked}},
		{listPlan(), hookTable, []string{hookFiles, hookTracked}},
	} {
		set, err := newHookSet(Config{Without: []string{hookAcceptExit, hookTracked, hookFiles}}, c.plan)
		if err != nil {
			t.Fatal(err)
		}
		var limited []string
		for _, l := range set.limitations() {
			limited = append(limited, l.Hook)
			if l.Err != ErrLeftOut || l.Effect == "" {
				t.Errorf("limitation %+v: want an effect, and that the hook was left out", l)
			}
		}
		if c.plan.required.name != c.required || !slices.Equal(limited, c.limited) {
			t.Errorf("got %s with limitations %v, want %s with %v", c.plan.required.name, limited, c.required, c.limited)
		}
	}
}

// What a plan requires is never merely a limitation.
func TestRequiredHookIsMissing(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, plan := range []hookPlan{tracePlan(Config{}), listPlan()} {
		set, err := newHookSet(Config{}, plan)
		if err != nil {
			t.Fatal(err)
		}
		// The types of our own object show no hook of the kernel.
		if err := set.findMissing(spec, spec.Types); err == nil || !strings.Contains(err.Error(), plan.required.name) {
			t.Errorf("without %s: got error %v, want one that names it", plan.required.name, err)
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
		t.Fatal("a trace began with the types of something else")
	}
	// Before 5.11 there is nothing to compare with: a tracepoint is missing first.
	for _, want := range []string{"belongs to another kernel", "has no tracepoint"} {
		if strings.Contains(err.Error(), want) {
			return
		}
	}
	t.Errorf("got error %v, want one that says what is wrong with the file", err)
}

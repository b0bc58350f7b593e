package probe

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Hooks says how the trace learns which process accepts a connection.
type Hooks string

const (
	HooksAuto        Hooks = "auto"        // trampolines where the kernel allows them; also ""
	HooksTracepoints Hooks = "tracepoints" // at the first use of the connection, or when it closes
	HooksTrampolines Hooks = "trampolines" // at accept(); ErrTrampolines where the kernel refuses them
)

// ErrTrampolines says that HooksTrampolines was asked for and the kernel refuses them.
var ErrTrampolines = errors.New("this kernel refuses trampolines")

// ErrLeftOut is why a hook of Config.Without is missing.
var ErrLeftOut = errors.New("left out on request")

// Limitation is something that a trace does not show, because a hook is missing.
type Limitation struct {
	Hook   string // as the kernel calls it
	Effect string // what is not shown, or not right: a sentence without a full stop
	Err    error  // why the hook is missing: ErrLeftOut, or what the kernel lacks or refuses
}

func (l Limitation) String() string { return fmt.Sprintf("%s: %s: %v", l.Effect, l.Hook, l.Err) }

// The names of hooks that code refers to.
const (
	hookState      = "inet_sock_set_state"
	hookDestroy    = "tcp_destroy_sock"
	hookTimer      = "timer"
	hookFreed      = "kfree_skb"
	hookSymbols    = "kallsyms"
	hookTable      = "iter/tcp"
	hookFiles      = "iter/task_file"
	hookTracked    = "iter/bpf_map_elem"
	hookAcceptExit = "sys_exit_accept"
	hookTrampoline = "inet_csk_accept"
	hookTypes      = "btf"
	hookReads      = "bpf_probe_read_kernel"
	hookCasts      = "bpf_rdonly_cast"
)

// hook is one way into the kernel.
type hook struct {
	name     string // as the kernel calls it, and in Config.Without
	shows    string // what it is for, in a word or two
	without  string // the Limitation.Effect if it is missing; empty: no trace without it
	programs func(*bpfPrograms) []slot
}

// slot is where a program of the BPF object goes once it is loaded.
type slot struct {
	name string
	at   **ebpf.Program
}

// hooks are in the order of attaching, from ends to beginnings: whatever begins
// meanwhile will be seen to end. A trace needs the last one.
var hooks = []hook{
	{
		name: hookTable, shows: "existing sockets",
		without: "sockets that exist already are not shown before their state changes",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgTable, &p.Table}}
		},
	}, {
		name: hookFiles, shows: "open files (owner, fd)",
		without: "file descriptors, and the owners of sockets that exist already, are not shown",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgFiles, &p.Files}}
		},
	}, {
		name: hookDestroy, shows: "end of sockets",
		without: "a socket that is used again after it was closed is taken for a new one",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgDestroySock, &p.DestroySock}}
		},
	}, {
		name: hookFreed, shows: "FIN_WAIT2 > TIME_WAIT",
		without: "FIN_WAIT2 > TIME_WAIT of closed sockets is shown late, its duration as a lower bound; who reset a half-open connection may not be shown",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgKfreeSkb, &p.KfreeSkb}}
		},
	}, {
		name: "tcp_rcv_space_adjust", shows: "first use",
		without: "who reads from an accepted connection is shown only once it closes, or is found among open files",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgRcvSpaceAdjust, &p.RcvSpaceAdjust}}
		},
	}, {
		name: hookTimer, shows: "TIME_WAIT and SYN_RECV",
		without: "TIME_WAIT and half-open connections are not shown; FIN_WAIT2 of a closed socket ends at once",
		programs: func(p *bpfPrograms) []slot {
			return []slot{
				{bpfProgTimerExpireExit, &p.TimerExpireExit},
				{bpfProgTimerCancel, &p.TimerCancel},
				{bpfProgTimerStart, &p.TimerStart},
			}
		},
	}, {
		name: hookState, shows: "state changes",
		programs: func(p *bpfPrograms) []slot {
			copies := []slot{{bpfProgStateChange1, &p.StateChange1}, {bpfProgStateChange2, &p.StateChange2}}
			if preemptibleTracepoints() {
				copies = append(copies, slot{bpfProgStateChange3, &p.StateChange3})
			}
			return copies
		},
	},
}

// stacksHook is loaded only for Config.Stacks, and attached by attachAccept.
var stacksHook = hook{
	name: hookAcceptExit, shows: "code that accepts",
	without: "the code that calls accept() is not shown",
	programs: func(p *bpfPrograms) []slot {
		return []slot{{bpfProgAcceptExit, &p.AcceptExit}, {bpfProgAccept4Exit, &p.Accept4Exit}}
	},
}

// trackedHook is loaded only for Config.Tracked, and attached by walkMap.
var trackedHook = hook{
	name: hookTracked, shows: "list of tracked sockets",
	without: "the sockets that the trace keeps track of cannot be listed",
	programs: func(p *bpfPrograms) []slot {
		return []slot{{bpfProgKnownSockets, &p.KnownSockets}, {bpfProgKnownRequests, &p.KnownRequests}}
	},
}

// hookPlan is which hooks to load.
type hookPlan struct {
	required hook   // loading fails without it
	optional []hook // each one that is missing is a Limitation
}

func (plan hookPlan) all() []hook { return append([]hook{plan.required}, plan.optional...) }

// traces reports whether the hooks follow sockets, and do not only list them.
func (plan hookPlan) traces() bool { return plan.required.name == hookState }

// tracePlan is for a trace with cfg.
func tracePlan(cfg Config) hookPlan {
	optional := slices.Clone(hooks)
	slices.Reverse(optional)
	plan := hookPlan{required: optional[0], optional: optional[1:]}
	if cfg.Stacks {
		plan.optional = append(plan.optional, stacksHook)
	}
	if cfg.Tracked {
		plan.optional = append(plan.optional, trackedHook)
	}
	return plan
}

// listPlan is for a list of the sockets that exist.
func listPlan() hookPlan {
	return hookPlan{required: hookNamed(hookTable), optional: []hook{hookNamed(hookFiles), trackedHook}}
}

// hookNamed is for the names of hooks.
func hookNamed(name string) hook {
	return hooks[slices.IndexFunc(hooks, func(h hook) bool { return h.name == name })]
}

// find looks for what the programs of h attach to.
func (h hook) find(spec *ebpf.CollectionSpec, kernel *btf.Spec) error {
	for _, s := range h.programs(new(bpfPrograms)) {
		prog := spec.Programs[s.name]
		switch prog.AttachType {
		case ebpf.AttachTraceRawTp:
			if !hasType(kernel, "btf_trace_"+prog.AttachTo) {
				return fmt.Errorf("this kernel has no tracepoint %s", prog.AttachTo)
			}
		case ebpf.AttachTraceIter:
			if !hasType(kernel, "bpf_iter_"+prog.AttachTo) {
				return fmt.Errorf("this kernel has no iterator %s", prog.AttachTo)
			}
		}
	}
	return nil
}

// hookSet is the hooks of one trace, and why some of them are missing.
type hookSet struct {
	hookPlan
	accept     Hooks
	missing    map[string]error // by name; also hookTrampoline, hookSymbols and hookTypes
	trampoline *ebpf.Program    // nil: not asked for, or missing
}

// newHookSet begins with what Config.Without leaves out.
func newHookSet(cfg Config, plan hookPlan) (*hookSet, error) {
	set := &hookSet{hookPlan: plan, accept: cfg.Hooks, missing: map[string]error{}}
	if !slices.Contains([]Hooks{"", HooksAuto, HooksTracepoints, HooksTrampolines}, cfg.Hooks) {
		return nil, fmt.Errorf("unknown hooks %q: they are auto, tracepoints or trampolines", cfg.Hooks)
	}
	known := []string{hookTrampoline, hookSymbols, hookTypes, hookReads, hookCasts, stacksHook.name, trackedHook.name}
	for _, h := range hooks {
		known = append(known, h.name)
	}
	for _, name := range cfg.Without {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("cannot leave out the hook %q: there are %s", name, strings.Join(known, ", "))
		}
		if name == hookState {
			return nil, fmt.Errorf("cannot leave out the hook %s: no other one reports state changes", name)
		}
		set.missing[name] = ErrLeftOut
	}
	return set, nil
}

func (set *hookSet) has(hook string) bool { return set.missing[hook] == nil }

// miss notes why h is missing, which is an error if h is required.
func (set *hookSet) miss(h hook, why error) error {
	set.missing[h.name] = why
	if h.name == set.required.name {
		return fmt.Errorf("cannot see %s without the hook %s: %w", h.shows, h.name, why)
	}
	return nil
}

// attach attaches the programs that are loaded, except those that a walk attaches.
func (set *hookSet) attach(p *bpfPrograms) (links []io.Closer, err error) {
	for _, h := range hooks {
		if h.name == hookTable || h.name == hookFiles {
			continue
		}
		for _, s := range h.programs(p) {
			if *s.at == nil || !set.has(h.name) {
				continue
			}
			l, err := link.AttachTracing(link.TracingOptions{Program: *s.at})
			if err == nil {
				links = append(links, l)
			} else if err = set.miss(h, err); err != nil {
				return links, err
			}
		}
	}
	if set.trampoline == nil {
		return links, nil
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: set.trampoline})
	if err != nil {
		return links, set.missTrampoline(err)
	}
	return append(links, l), nil
}

// missTrampoline notes why the trampoline is missing, which is an error only if the
// caller insists on it.
func (set *hookSet) missTrampoline(why error) error {
	if errors.Is(why, unix.EPERM) { // the library adds a guess that is wrong here
		why = unix.EPERM
	}
	set.missing[hookTrampoline] = why
	if set.accept != HooksTrampolines {
		return nil
	}
	return fmt.Errorf("%w (fexit/%s): %w", ErrTrampolines, hookTrampoline, why)
}

// limitations has one entry for each optional hook that is missing.
func (set *hookSet) limitations() (limits []Limitation) {
	for _, h := range set.optional {
		if why := set.missing[h.name]; why != nil {
			limits = append(limits, Limitation{h.name, h.without, why})
		}
	}
	return limits
}

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

// Hooks says how the process that accepts a connection is seen.
type Hooks string

const (
	HooksAuto        Hooks = "auto"        // trampolines where the kernel takes them; also ""
	HooksTracepoints Hooks = "tracepoints" // at the first use of the connection, or its close
	HooksTrampolines Hooks = "trampolines" // at once; an error where the kernel refuses
)

// The names of hooks that code refers to.
const (
	hookState      = "inet_sock_set_state"
	hookDestroy    = "tcp_destroy_sock"
	hookTimer      = "timer"
	hookSymbols    = "kallsyms"
	hookTable      = "iter/tcp"
	hookFiles      = "iter/task_file"
	hookTracked    = "iter/bpf_map_elem"
	hookAcceptExit = "sys_exit_accept"
	hookTrampoline = "inet_csk_accept"
	hookTypes      = "btf"
)

// hook is one way into the kernel.
type hook struct {
	name     string // as the kernel calls it, and Config.Without
	shows    string // what it is good for, in a word or two
	blind    string // what is not seen without it; empty: nothing is
	programs func(*bpfPrograms) []slot
}

// slot is where a program of an object goes once it is loaded.
type slot struct {
	name string
	at   **ebpf.Program
}

// hooks are in the order of attaching, from ends to beginnings: whatever begins
// meanwhile will be seen to end. The last one is indispensable.
var hooks = []hook{
	{
		name: hookTable, shows: "existing sockets",
		blind: "sockets that exist already are not shown before their state changes",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgTable, &p.Table}}
		},
	}, {
		name: hookFiles, shows: "open files (owner, fd)",
		blind: "file descriptors, and the owners of sockets that exist already, are not shown",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgFiles, &p.Files}}
		},
	}, {
		name: hookDestroy, shows: "end of sockets",
		blind: "a socket that is used again after it was closed is taken for a new one",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgDestroySock, &p.DestroySock}}
		},
	}, {
		name: "kfree_skb", shows: "FIN_WAIT2 > TIME_WAIT",
		blind: "FIN_WAIT2 > TIME_WAIT of closed sockets is shown late, its duration as a lower bound",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgKfreeSkb, &p.KfreeSkb}}
		},
	}, {
		name: "tcp_rcv_space_adjust", shows: "first use",
		blind: "who reads from an accepted connection is shown only once it closes, or is found among open files",
		programs: func(p *bpfPrograms) []slot {
			return []slot{{bpfProgRcvSpaceAdjust, &p.RcvSpaceAdjust}}
		},
	}, {
		name: hookTimer, shows: "TIME_WAIT and SYN_RECV",
		blind: "TIME_WAIT and half-open connections are not shown; FIN_WAIT2 of a closed socket ends at once",
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
	blind: "the code that calls accept() is not shown",
	programs: func(p *bpfPrograms) []slot {
		return []slot{{bpfProgAcceptExit, &p.AcceptExit}, {bpfProgAccept4Exit, &p.Accept4Exit}}
	},
}

// trackedHook is loaded only for Config.Tracked, and attached by walkMap.
var trackedHook = hook{
	name: hookTracked, shows: "known sockets, for leaks",
	blind: "tcptrace leaks cannot look at sockets",
	programs: func(p *bpfPrograms) []slot {
		return []slot{{bpfProgKnownSockets, &p.KnownSockets}, {bpfProgKnownRequests, &p.KnownRequests}}
	},
}

// allHooks are those of hooks, the indispensable one first, and those for some only.
func allHooks() []hook {
	all := slices.Clone(hooks)
	slices.Reverse(all)
	return append(all, stacksHook, trackedHook)
}

// hooksNamed are some of hooks, in that order.
func hooksNamed(names ...string) (named []hook) {
	for _, name := range names {
		named = append(named, hooks[slices.IndexFunc(hooks, func(h hook) bool { return h.name == name })])
	}
	return named
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

// errLeftOut is why a hook of Config.Without is missing.
var errLeftOut = errors.New("left out on request")

// hookSet says which hooks a trace has to do without, and why.
type hookSet struct {
	ways       Hooks
	asked      map[string]bool // of the hooks that are for some only
	missing    map[string]error
	trampoline *ebpf.Program // nil: not asked for, or missing
}

// newHookSet begins with what was left out on request.
func newHookSet(cfg Config) (*hookSet, error) {
	set := &hookSet{
		ways:    cfg.Hooks,
		asked:   map[string]bool{stacksHook.name: cfg.Stacks, trackedHook.name: cfg.Tracked},
		missing: map[string]error{},
	}
	if !slices.Contains([]Hooks{"", HooksAuto, HooksTracepoints, HooksTrampolines}, cfg.Hooks) {
		return nil, fmt.Errorf("unknown way %q to hook in: give auto, tracepoints or trampolines", cfg.Hooks)
	}
	known := []string{hookTrampoline, hookSymbols, hookTypes}
	for _, h := range allHooks() {
		known = append(known, h.name)
	}
	for _, name := range cfg.Without {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("cannot do without %q: no such hook; there are %s", name, strings.Join(known, ", "))
		}
		if name == hookState {
			return nil, fmt.Errorf("cannot do without %s: nothing else tells of state changes", name)
		}
		set.missing[name] = errLeftOut
	}
	return set, nil
}

func (set *hookSet) has(hook string) bool { return set.missing[hook] == nil }

// wants reports whether h is to be loaded.
func (set *hookSet) wants(h hook) bool {
	asked, forSome := set.asked[h.name]
	return asked || !forSome
}

// miss notes that h is missing. It returns an error if nothing goes without h.
func (set *hookSet) miss(h hook, why error) error {
	if h.blind == "" {
		return fmt.Errorf("hook into %s: %w", h.name, why)
	}
	set.missing[h.name] = why
	return nil
}

// attach attaches what was loaded and is not attached by its reader.
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
	if err == nil {
		links = append(links, l)
	}
	return links, set.trampolineRefused(err)
}

// trampolineRefused: that is an error only to whoever insists on trampolines.
func (set *hookSet) trampolineRefused(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) { // the library makes a guess about it that is wrong here
		err = unix.EPERM
	}
	set.missing[hookTrampoline] = err
	if set.ways != HooksTrampolines {
		return nil
	}
	return fmt.Errorf("this kernel refuses trampolines (fexit/%s): %w: without --hooks trampolines tracepoints do their work", hookTrampoline, err)
}

// blind gives one sentence for each hook that is missing.
func (set *hookSet) limitations() (sentences []string) {
	for _, h := range allHooks() {
		if why := set.missing[h.name]; why != nil {
			sentences = append(sentences, fmt.Sprintf("%s: %s: %v", h.blind, h.name, why))
		}
	}
	return sentences
}

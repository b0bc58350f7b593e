package probe

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// maxCallers is MAX_CALLERS in bpf/caller.h.
const maxCallers = 30

// MaxPorts is how many ports a filter in the kernel holds: MAX_PORTS in
// bpf/trace.h.
const MaxPorts = 8

const (
	// The functions whose addresses say what a timer is for.
	timewaitTimer = "tw_timer_handler"
	requestTimer  = "reqsk_timer_handler"
	neighborTimer = "neigh_timer_handler"
	// validateIncoming is on the stack when an RST has come in, not when we send one. Where
	// the compiler has put it into its callers these prove nothing.
	validateIncoming = "tcp_validate_incoming"
	processSegment   = "tcp_rcv_state_process"
)

// callers are the functions that bpf/caller.h looks for on the stack. Where a kernel
// lacks one, the reason that it proves is not shown.
var callers = map[string]bpfCaller{
	"mod_timer":                  bpfCallerCALLER_REARM,
	"mod_timer_pending":          bpfCallerCALLER_REARM,
	"__mod_timer":                bpfCallerCALLER_REARM,
	"tcp_timewait_state_process": bpfCallerCALLER_TIMEWAIT,
	"__inet_check_established":   bpfCallerCALLER_CONNECT,
	"__inet6_check_established":  bpfCallerCALLER_CONNECT,
	"__inet_hash_connect":        bpfCallerCALLER_CONNECT,
	"tcp_check_req":              bpfCallerCALLER_CHECK_REQ,
	"tcp_abort":                  bpfCallerCALLER_ABORT,
	"inet_twsk_purge":            bpfCallerCALLER_NETNS_EXIT,
	"tcp_twsk_purge":             bpfCallerCALLER_NETNS_EXIT, // 6.0+
	"__run_timers":               bpfCallerCALLER_EXPIRY,
	"tcp_v4_connect":             bpfCallerCALLER_CONNECT,
	"tcp_v6_connect":             bpfCallerCALLER_CONNECT,
	"tcp_v4_err":                 bpfCallerCALLER_ICMP,
	"tcp_v6_err":                 bpfCallerCALLER_ICMP,
	validateIncoming:             bpfCallerCALLER_VALIDATE,
	processSegment:               bpfCallerCALLER_SEGMENT,
	"tcp_rcv_established":        bpfCallerCALLER_SEGMENT,
	"tcp_write_timer_handler":    bpfCallerCALLER_TIMEOUT,
	"tcp_write_timer":            bpfCallerCALLER_TIMEOUT,
	"tcp_keepalive_timer":        bpfCallerCALLER_TIMEOUT,
	"inet_csk_listen_start":      bpfCallerCALLER_LISTEN,
	"inet_shutdown":              bpfCallerCALLER_SHUTDOWN,
	"__inet_stream_connect":      bpfCallerCALLER_DISCONNECT,
	"__tcp_close":                bpfCallerCALLER_CLOSE, // 5.11+
	"tcp_close":                  bpfCallerCALLER_CLOSE,
	"tcp_v4_rcv":                 bpfCallerCALLER_RECEIVE,
	"tcp_v6_rcv":                 bpfCallerCALLER_RECEIVE,
}

// loadHooks loads the maps and the programs of plan into objs. The set that it returns
// says which optional hooks are missing, and why; its errors say what a trace needs and
// this host lacks: *MissingCapabilities, *Obstacle, ErrNoTypes, ErrLockedDown,
// ErrTrampolines.
func loadHooks(cfg Config, plan hookPlan, objs *bpfObjects) (*hookSet, error) {
	set, err := newHookSet(cfg, plan)
	if err != nil {
		return nil, err
	}
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	if err := CheckPlace(); err != nil {
		return nil, err
	}
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("%w: %w", errMemlock, err)
	}
	if !set.has(hookTypes) {
		return nil, fmt.Errorf("%w: %w", ErrNoTypes, ErrLeftOut)
	}
	symbols := sync.OnceValues(kernelSymbols)
	if plan.traces() {
		go func() { _, _ = symbols() }() // takes 40 ms, so do it beside the rest
	}
	types, err := kernelTypes(cfg.BTF)
	if err != nil {
		return nil, err
	}
	if err := features.HaveMapType(ebpf.RingBuf); err != nil {
		return nil, fmt.Errorf("create a ring buffer: %w: Linux %s or later is needed", err, oldestKernel)
	}
	if err := set.loadObject(cfg, types, objs); err != nil {
		return nil, err
	}
	if plan.traces() {
		return set, set.setSymbols(objs, symbols)
	}
	return set, nil
}

// oldestKernel is the oldest that the tests run on.
const oldestKernel = "5.10"

// loadObject loads the parts of the BPF object that set asks for.
func (set *hookSet) loadObject(cfg Config, types *types, objs *bpfObjects) error {
	direct, err := set.readsDirectly(types.kernel)
	if err != nil {
		return err
	}
	load, loadTrampoline := loadBpf, loadTrampoline
	if direct {
		load, loadTrampoline = loadDirect, loadDirectTrampoline
	}
	spec, err := load()
	if err != nil {
		return err
	}
	if err := set.findMissing(spec, types.kernel); err != nil {
		return err
	}
	if err := errors.Join(adapt(spec, types.kernel, set), configure(spec, cfg)); err != nil {
		return err
	}
	options := ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: types.kernel},
		Cache:    types.cache,
	}
	if err := set.loadPrograms(spec, options, objs); err != nil {
		return types.explain(err)
	}
	if !set.traces() || set.accept == HooksTracepoints || !set.has(hookTrampoline) {
		return nil
	}
	trampoline, err := loadTrampoline()
	if err != nil {
		return err
	}
	if err := set.loadTrampoline(trampoline, spec.Maps[bpfMapSocks], objs.Socks, types.kernel, options); err != nil {
		return set.missTrampoline(err)
	}
	return nil
}

// readsDirectly chooses how the programs read the kernel's memory, see bpf/read.h: directly
// where the kernel has what it takes, as that costs less, else with bpf_probe_read_kernel.
func (set *hookSet) readsDirectly(kernel *btf.Spec) (bool, error) {
	if set.has(hookCasts) && canReadDirectly(kernel) {
		return true, nil
	}
	if !set.has(hookReads) || lockedDown() {
		return false, ErrLockedDown
	}
	return false, nil
}

// findMissing looks for hooks that this kernel lacks before anything is loaded: the
// programs are told which other hooks there are.
func (set *hookSet) findMissing(spec *ebpf.CollectionSpec, kernel *btf.Spec) error {
	for _, h := range set.all() {
		why := set.missing[h.name]
		if why == nil {
			why = h.find(spec, kernel)
		}
		if why == nil {
			continue
		}
		if err := set.miss(h, why); err != nil {
			return err
		}
	}
	return nil
}

// loadPrograms creates the maps, then loads each program separately: one that is refused
// costs only its hook, and the verifier works on as many CPUs as there are.
func (set *hookSet) loadPrograms(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions, objs *bpfObjects) error {
	shared, err := ebpf.NewCollectionWithOptions(onlyPrograms(spec), options)
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("create the BPF maps: %w: the kernel has no tables for so many sockets, give fewer with --max-sockets", err)
	} else if err != nil {
		return fmt.Errorf("create the BPF maps: %w", err)
	}
	defer shared.Close() // what objs does not take: the maps behind variables
	options.MapReplacements = maps.Clone(shared.Maps)
	if err := errors.Join(shared.Assign(&objs.bpfMaps), shared.Assign(&objs.bpfVariables)); err != nil {
		return err
	}
	refused := make(map[string]error) // by hook
	var loading sync.WaitGroup
	var mu sync.Mutex // for refused
	for _, h := range set.all() {
		if !set.has(h.name) {
			continue
		}
		for _, s := range h.programs(&objs.bpfPrograms) {
			loading.Go(func() {
				if err := s.loadProgram(spec, options); err != nil {
					mu.Lock()
					refused[h.name] = err
					mu.Unlock()
				}
			})
		}
	}
	loading.Wait()
	if err := refused[set.required.name]; err != nil {
		return fmt.Errorf("load the BPF programs: %w", err)
	}
	maps.Copy(set.missing, refused)
	return nil
}

func (s slot) loadProgram(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) error {
	loaded, err := ebpf.NewCollectionWithOptions(onlyPrograms(spec, s.name), options)
	if err != nil {
		return err
	}
	defer loaded.Close()
	*s.at = loaded.DetachProgram(s.name)
	return nil
}

// onlyPrograms is spec without its other programs.
func onlyPrograms(spec *ebpf.CollectionSpec, names ...string) *ebpf.CollectionSpec {
	part := *spec
	part.Programs = make(map[string]*ebpf.ProgramSpec)
	for _, name := range names {
		part.Programs[name] = spec.Programs[name]
	}
	return &part
}

// loadTrampoline loads the program that sees accept(). It shares the map of sockets.
func (set *hookSet) loadTrampoline(spec *ebpf.CollectionSpec, socks *ebpf.MapSpec, shared *ebpf.Map, kernel *btf.Spec, options ebpf.CollectionOptions) error {
	name := trampolineProgAcceptFlags
	if hasType(kernel, "proto_accept_arg") { // 6.10+
		name = trampolineProgAcceptArg
	}
	spec = onlyPrograms(spec, name)
	spec.Maps = map[string]*ebpf.MapSpec{trampolineMapSocks: socks}
	spec.Variables = nil
	options.MapReplacements = map[string]*ebpf.Map{trampolineMapSocks: shared}
	loaded, err := ebpf.NewCollectionWithOptions(spec, options)
	if err != nil {
		return err
	}
	defer loaded.Close()
	set.trampoline = loaded.DetachProgram(name)
	return nil
}

// kernelSymbols finds the functions whose addresses the programs need.
func kernelSymbols() (map[string]symbol, error) {
	wanted := map[string]bool{timewaitTimer: true, requestTimer: true, neighborTimer: true}
	for name := range callers {
		wanted[name] = true
	}
	f, err := os.Open("/proc/kallsyms")
	if errors.Is(err, os.ErrNotExist) {
		return nil, &symbolsError{"there is no /proc/kallsyms", "boot a kernel that is built with CONFIG_KALLSYMS=y"}
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := findSymbols(f, wanted)
	if err != nil {
		return found, err
	}
	if found[timewaitTimer].start == 0 || found[requestTimer].start == 0 {
		return found, fmt.Errorf("/proc/kallsyms has no %s or %s", timewaitTimer, requestTimer)
	}
	return found, nil
}

// setSymbols gives the programs the addresses of kernel functions. Without them the
// hooks that need them are missing.
func (set *hookSet) setSymbols(objs *bpfObjects, symbols func() (map[string]symbol, error)) error {
	found, err := map[string]symbol(nil), set.missing[hookSymbols]
	if err == nil {
		found, err = symbols()
	}
	if err != nil {
		set.missing[hookSymbols] = err
		if set.has(hookTimer) {
			set.missing[hookTimer] = err
		}
	}
	timewait, request := found[timewaitTimer].start, found[requestTimer].start
	if !set.has(hookTimer) {
		timewait, request = 0, 0
	}
	return errors.Join(
		objs.TwTimerHandler.Set(timewait),
		objs.ReqskTimerHandler.Set(request),
		objs.Callers.Set(callerRanges(found)),
		objs.NeighTimerHandler.Set(found[neighborTimer].start),
	)
}

func callerRanges(found map[string]symbol) (ranges [maxCallers]bpfTextRange) {
	n := 0
	_, canTell := found[validateIncoming]
	for name, caller := range callers {
		if s, ok := found[name]; ok && (canTell || name != processSegment) {
			ranges[n] = textRange(s, caller)
			n++
		}
	}
	return ranges
}

// textRange leaves out the top bit: is_in() in bpf/caller.h compares without it.
func textRange(s symbol, caller bpfCaller) bpfTextRange {
	const topBit = 1 << 63
	return bpfTextRange{Start: s.start &^ topBit, End: s.end &^ topBit, Caller: uint32(caller)}
}

// adapt fits the BPF object to the running kernel and to the hooks that it has.
func adapt(spec *ebpf.CollectionSpec, kernel *btf.Spec, set *hookSet) error {
	hz, err := ticksPerSecond()
	if err != nil {
		return err
	}
	// Before 6.1 (bpf_mem_alloc) an insertion may not allocate memory where our programs
	// run. A preallocated map takes all its memory at once, so it is smaller.
	if !hasType(kernel, "bpf_mem_alloc") {
		for _, m := range spec.Maps {
			if m.Flags&unix.BPF_F_NO_PREALLOC != 0 {
				m.Flags &^= unix.BPF_F_NO_PREALLOC
				m.MaxEntries /= 8
			}
		}
	}
	return errors.Join(
		spec.Variables[bpfVarHasSocketCookie].Set(hasCookieHelper(kernel)),
		spec.Variables[bpfVarCloseIsEnd].Set(!set.has(hookDestroy)),
		spec.Variables[bpfVarSeesFreed].Set(set.has(hookFreed)),
		spec.Variables[bpfVarThirdCopy].Set(preemptibleTracepoints()),
		spec.Variables[bpfVarHz].Set(hz),
	)
}

// hasCookieHelper reports whether tracing programs may ask for a cookie: 5.12+.
func hasCookieHelper(kernel *btf.Spec) bool {
	var helper *btf.Func
	return kernel.TypeByName("bpf_get_socket_ptr_cookie", &helper) == nil
}

// ticksPerSecond is the kernel's HZ: its coarse clocks advance by ticks.
func ticksPerSecond() (uint32, error) {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil || tick.Nano() <= 0 {
		return 0, fmt.Errorf("read the length of a tick (CLOCK_MONOTONIC_COARSE): got %d ns: %w", tick.Nano(), err)
	}
	return uint32((int64(time.Second) + tick.Nano()/2) / tick.Nano()), nil
}

// preemptibleTracepoints reports whether a process can be preempted in the middle of
// our programs: since 7.0 (__DECLARE_TRACE uses SRCU-fast), which the types do not show.
// If a vendor has backported or reverted that, an event may be missed or costs 20 ns more.
func preemptibleTracepoints() bool {
	version, err := features.LinuxVersionCode()
	return err != nil || version >= 7<<16
}

// configure sets filters and sizes.
func configure(spec *ebpf.CollectionSpec, cfg Config) error {
	if cfg.RingBytes != 0 {
		if cfg.RingBytes < os.Getpagesize() || cfg.RingBytes&(cfg.RingBytes-1) != 0 {
			return fmt.Errorf("ring buffer of %d bytes: must be a power of two and at least %d", cfg.RingBytes, os.Getpagesize())
		}
		spec.Maps[bpfMapEvents].MaxEntries = uint32(cfg.RingBytes)
	}
	if n := cfg.MaxSockets; n != 0 {
		for _, m := range []*ebpf.MapSpec{spec.Maps[bpfMapTimewaits], spec.Maps[bpfMapRequests]} {
			share := uint64(n) * uint64(m.MaxEntries) / uint64(spec.Maps[bpfMapSocks].MaxEntries)
			m.MaxEntries = max(min(n, m.MaxEntries), uint32(share))
		}
		spec.Maps[bpfMapSocks].MaxEntries = n
	}
	if !cfg.Stacks {
		spec.Maps[bpfMapStacks].MaxEntries = 1
		spec.Maps[bpfMapStackTops].MaxEntries = 1
	}
	errs := []error{
		spec.Variables[bpfVarTakeStacks].Set(cfg.Stacks),
		spec.Variables[bpfVarKeepTops].Set(cfg.Stacks && !lockedDown()),
		spec.Variables[bpfVarFilterFamily].Set(cfg.Family),
		spec.Variables[bpfVarFilterNetns].Set(cfg.NetNS),
	}
	if len(cfg.LocalPorts) <= MaxPorts {
		errs = append(errs, setPorts(spec.Variables[bpfVarFilterLports], cfg.LocalPorts))
	}
	if len(cfg.RemotePorts) <= MaxPorts {
		errs = append(errs, setPorts(spec.Variables[bpfVarFilterRports], cfg.RemotePorts))
	}
	return errors.Join(errs...)
}

// setPorts sets a filter to at most MaxPorts ports.
func setPorts(v *ebpf.VariableSpec, ports []uint16) error {
	var array [MaxPorts]uint16
	copy(array[:], ports)
	return v.Set(array)
}

package probe

import (
	"cmp"
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
const maxCallers = 16

// MaxPorts is how many ports a filter in the kernel holds: MAX_PORTS in
// bpf/trace.h.
const MaxPorts = 8

// The functions whose addresses say what a timer is for.
const (
	timewaitTimer = "tw_timer_handler"
	requestTimer  = "reqsk_timer_handler"
	// validateIncoming on the stack tells an RST that came from one that we send.
	validateIncoming = "tcp_validate_incoming"
)

// callers are the functions that bpf/caller.h looks for on the stack. One that a
// kernel lacks costs the reason that it proves.
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
	"tcp_v4_rcv":                 bpfCallerCALLER_RECEIVE,
	"tcp_v6_rcv":                 bpfCallerCALLER_RECEIVE,
}

// load puts the maps and the programs of hooks into the kernel, and says which hooks
// this kernel has not got. Without the first one it fails.
func load(cfg Config, wanted []hook, objs *bpfObjects) (*hookSet, error) {
	set, err := newHookSet(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	if !set.has(hookTypes) {
		return nil, errNoTypes
	}
	tracing := wanted[0].name == hookState
	symbols := sync.OnceValues(kernelSymbols)
	if tracing {
		go func() { _, _ = symbols() }() // it takes 40 ms, so beside what does not need them
	}
	types, err := kernelTypes(cfg.BTF)
	if err != nil {
		return nil, err
	}
	if err := features.HaveMapType(ebpf.RingBuf); err != nil {
		return nil, fmt.Errorf("create a ring buffer: %w: Linux 5.10 or later is needed", err)
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	if err := set.look(spec, types.kernel); err != nil {
		return nil, err
	}
	if err := errors.Join(adapt(spec, types.kernel, set), configure(spec, cfg)); err != nil {
		return nil, err
	}
	options := ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: types.kernel},
		Cache:    types.cache,
	}
	if err := set.load(wanted, spec, options, objs); err != nil {
		return nil, types.explain(err)
	}
	if !tracing {
		return set, nil
	}
	if set.ways != HooksTracepoints && set.has(hookTrampoline) {
		err := set.loadTrampoline(spec.Maps[bpfMapSocks], objs.Socks, types.kernel, options)
		if err := set.trampolineRefused(err); err != nil {
			return set, err
		}
	}
	return set, set.setSymbols(objs, symbols)
}

// look finds out what is missing before anything is loaded: programs leave out what
// others would tell them.
func (set *hookSet) look(spec *ebpf.CollectionSpec, kernel *btf.Spec) error {
	for _, h := range allHooks() {
		if err := h.find(spec, kernel); set.has(h.name) && err != nil {
			if err := set.miss(h, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// load loads the maps, then each program for itself: one that is refused costs only its
// hook, and the verifier works on as many CPUs as there are.
func (set *hookSet) load(wanted []hook, spec *ebpf.CollectionSpec, options ebpf.CollectionOptions, objs *bpfObjects) error {
	shared, err := ebpf.NewCollectionWithOptions(with(spec), options)
	if err != nil {
		return fmt.Errorf("create the BPF maps: %w", err)
	}
	defer shared.Close() // what objs does not take: the maps behind variables
	options.MapReplacements = maps.Clone(shared.Maps)
	if err := errors.Join(shared.Assign(&objs.bpfMaps), shared.Assign(&objs.bpfVariables)); err != nil {
		return err
	}
	refused := make([]error, len(wanted))
	var loading sync.WaitGroup
	var mu sync.Mutex // for refused
	for i, h := range wanted {
		if !set.has(h.name) && i > 0 || !set.wants(h) {
			continue
		}
		for _, s := range h.programs(&objs.bpfPrograms) {
			loading.Go(func() {
				err := s.load(spec, options)
				mu.Lock()
				refused[i] = cmp.Or(refused[i], err)
				mu.Unlock()
			})
		}
	}
	loading.Wait()
	for i, err := range refused {
		switch {
		case err != nil && i == 0:
			return fmt.Errorf("load the BPF programs: %w", err)
		case err != nil:
			set.missing[wanted[i].name] = err
		}
	}
	return nil
}

// load loads the program of s.
func (s slot) load(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) error {
	loaded, err := ebpf.NewCollectionWithOptions(with(spec, s.name), options)
	if err != nil {
		return err
	}
	defer loaded.Close()
	*s.at = loaded.DetachProgram(s.name)
	return nil
}

// with is spec with these programs alone.
func with(spec *ebpf.CollectionSpec, programs ...string) *ebpf.CollectionSpec {
	part := *spec
	part.Programs = make(map[string]*ebpf.ProgramSpec)
	for _, name := range programs {
		part.Programs[name] = spec.Programs[name]
	}
	return &part
}

func (set *hookSet) loadTrampoline(socks *ebpf.MapSpec, shared *ebpf.Map, kernel *btf.Spec, options ebpf.CollectionOptions) error {
	spec, err := loadTrampoline()
	if err != nil {
		return err
	}
	name := trampolineProgAcceptFlags
	if hasType(kernel, "proto_accept_arg") { // 6.10+
		name = trampolineProgAcceptArg
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}
	spec.Maps = map[string]*ebpf.MapSpec{trampolineMapSocks: socks}
	spec.Variables = nil
	options.MapReplacements = map[string]*ebpf.Map{trampolineMapSocks: shared}
	loaded, err := ebpf.NewCollectionWithOptions(spec, options)
	if err != nil {
		return err
	}
	set.trampoline = loaded.DetachProgram(name)
	loaded.Close()
	return nil
}

func kernelSymbols() (map[string]symbol, error) {
	wanted := map[string]bool{timewaitTimer: true, requestTimer: true, validateIncoming: true}
	for name := range callers {
		wanted[name] = true
	}
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
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

// setSymbols tells the programs where kernel functions lie. What it cannot find costs
// the hooks that need it.
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
		objs.ValidateIncoming.Set(textRange(found[validateIncoming], bpfCallerCALLER_UNKNOWN)),
	)
}

func callerRanges(found map[string]symbol) (ranges [maxCallers]bpfTextRange) {
	n := 0
	for name, caller := range callers {
		if s, ok := found[name]; ok {
			ranges[n] = textRange(s, caller)
			n++
		}
	}
	return ranges
}

// textRange is how is_in() in bpf/caller.h compares: without the top bit.
func textRange(s symbol, caller bpfCaller) bpfTextRange {
	const topBit = 1 << 63
	return bpfTextRange{Start: s.start &^ topBit, End: s.end &^ topBit, Caller: uint32(caller)}
}

// adapt fits the object to the running kernel.
func adapt(spec *ebpf.CollectionSpec, kernel *btf.Spec, set *hookSet) error {
	hz, err := ticksPerSecond()
	if err != nil {
		return err
	}
	// Before 6.1 (bpf_mem_alloc) an insertion may not allocate where our programs run.
	// A preallocated map costs all its memory at once, so it is smaller.
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
		spec.Variables[bpfVarThirdCopy].Set(preemptibleTracepoints()),
		spec.Variables[bpfVarHz].Set(hz),
	)
}

// hasCookieHelper: tracing programs may ask for a cookie, 5.12+.
func hasCookieHelper(kernel *btf.Spec) bool {
	var helper *btf.Func
	return kernel.TypeByName("bpf_get_socket_ptr_cookie", &helper) == nil
}

// ticksPerSecond is the kernel's HZ: its coarse clocks advance by ticks.
func ticksPerSecond() (uint32, error) {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil || tick.Nano() <= 0 {
		return 0, fmt.Errorf("find out how long a tick is: %d ns: %w", tick.Nano(), err)
	}
	return uint32((int64(time.Second) + tick.Nano()/2) / tick.Nano()), nil
}

// preemptibleTracepoints reports whether a process can be preempted in the middle of
// our programs: since 7.0 (__DECLARE_TRACE uses SRCU-fast), which no type shows. Where
// a vendor has taken that back or forward, an event costs 20 ns more or may be missed.
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
		spec.Maps[bpfMapSocks].MaxEntries = n
		spec.Maps[bpfMapTimewaits].MaxEntries = min(n, spec.Maps[bpfMapTimewaits].MaxEntries)
		spec.Maps[bpfMapRequests].MaxEntries = min(n, spec.Maps[bpfMapRequests].MaxEntries)
	}
	if !cfg.Stacks {
		spec.Maps[bpfMapStacks].MaxEntries = 1
		spec.Maps[bpfMapStackTops].MaxEntries = 1
	}
	errs := []error{
		spec.Variables[bpfVarTakeStacks].Set(cfg.Stacks),
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

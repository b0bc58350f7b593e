package probe

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// MaxPorts is how many ports a filter in the kernel holds: MAX_PORTS in
// bpf/trace.h.
const MaxPorts = 8

// The functions whose addresses say what a timer is for.
const (
	timewaitTimer = "tw_timer_handler"
	requestTimer  = "reqsk_timer_handler"
	// cookieHelper exists where tracing programs may ask for a cookie: 5.12+.
	cookieHelper = "bpf_get_socket_ptr_cookie"
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
	"tcp_validate_incoming":      bpfCallerCALLER_VALIDATE,
	"tcp_abort":                  bpfCallerCALLER_ABORT,
	"inet_twsk_purge":            bpfCallerCALLER_NETNS_EXIT,
	"tcp_twsk_purge":             bpfCallerCALLER_NETNS_EXIT, // 6.0+
	"tcp_v4_rcv":                 bpfCallerCALLER_RECEIVE,
	"tcp_v6_rcv":                 bpfCallerCALLER_RECEIVE,
}

// load puts the programs and maps into the kernel. What this kernel cannot show
// is returned as sentences.
func load(cfg Config, objs *bpfObjects) (blind []string, err error) {
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's type information: %w: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (it shows as /sys/kernel/btf/vmlinux)", err)
	}
	if err := features.HaveMapType(ebpf.RingBuf); err != nil {
		return nil, fmt.Errorf("create a ring buffer: %w: Linux 5.8 or later is needed", err)
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	symbols, err := kernelSymbols()
	if err != nil {
		blind = append(blind, fmt.Sprintf("TIME_WAIT and half-open connections are not shown: %v", err))
	}
	if err := adapt(spec, kernel, symbols); err != nil {
		return nil, err
	}
	if err := configure(spec, cfg); err != nil {
		return nil, err
	}
	err = spec.LoadAndAssign(objs, &ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: kernel},
	})
	if err != nil {
		return nil, fmt.Errorf("load the BPF programs: %w", err)
	}
	return blind, nil
}

func kernelSymbols() (map[string]symbol, error) {
	wanted := map[string]bool{timewaitTimer: true, requestTimer: true, cookieHelper: true}
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

// adapt fits the object to the running kernel.
func adapt(spec *ebpf.CollectionSpec, kernel *btf.Spec, symbols map[string]symbol) error {
	const topBit = 1 << 63
	var ranges []bpfTextRange
	for name, caller := range callers {
		if s, ok := symbols[name]; ok {
			ranges = append(ranges, bpfTextRange{Start: s.start &^ topBit, End: s.end &^ topBit, Caller: uint32(caller)})
		}
	}
	_, hasCookie := symbols[cookieHelper]
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
		spec.Variables[bpfVarHasSocketCookie].Set(hasCookie),
		spec.Variables[bpfVarTwTimerHandler].Set(symbols[timewaitTimer].start),
		spec.Variables[bpfVarReqskTimerHandler].Set(symbols[requestTimer].start),
		spec.Variables[bpfVarLoaderPid].Set(uint32(os.Getpid())),
		setArray(spec.Variables[bpfVarCallers], ranges),
	)
}

func hasType(kernel *btf.Spec, name string) bool {
	_, err := kernel.AnyTypesByName(name)
	return err == nil
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
	errs := []error{
		spec.Variables[bpfVarFilterFamily].Set(cfg.Family),
		spec.Variables[bpfVarFilterNetns].Set(cfg.NetNS),
	}
	if len(cfg.LocalPorts) <= MaxPorts {
		errs = append(errs, setArray(spec.Variables[bpfVarFilterLports], cfg.LocalPorts))
	}
	if len(cfg.RemotePorts) <= MaxPorts {
		errs = append(errs, setArray(spec.Variables[bpfVarFilterRports], cfg.RemotePorts))
	}
	return errors.Join(errs...)
}

// setArray sets the first elements of an array; the others stay 0.
func setArray[T uint16 | bpfTextRange](v *ebpf.VariableSpec, values []T) error {
	var element T
	size := int(uintptr(v.Size()) / unsafe.Sizeof(element))
	if len(values) > size {
		return fmt.Errorf("set %s: %d values for %d places", v, len(values), size)
	}
	array := make([]T, size)
	copy(array, values)
	return v.Set(array)
}

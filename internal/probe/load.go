package probe

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
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

// checkPrivileges says in one sentence what is missing, before the kernel says
// EPERM in ten places.
func checkPrivileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	for _, c := range []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYSLOG, unix.CAP_DAC_READ_SEARCH} {
		if !has(c) {
			exe, err := os.Executable()
			if err != nil {
				exe = os.Args[0]
			}
			return fmt.Errorf("tracing needs the capabilities %s: run it with sudo, or give them to the file once with: sudo setcap %s=ep %s",
				"CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYSLOG and CAP_DAC_READ_SEARCH",
				"cap_bpf,cap_perfmon,cap_sys_admin,cap_sys_ptrace,cap_syslog,cap_dac_read_search", exe)
		}
	}
	return nil
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
	// A preallocated map costs its memory at once, but before 6.1 (bpf_mem_alloc) an
	// insertion may not allocate where our programs run.
	if !hasType(kernel, "bpf_mem_alloc") {
		for _, m := range spec.Maps {
			m.Flags &^= unix.BPF_F_NO_PREALLOC
		}
	}
	return errors.Join(
		spec.Variables[bpfVarHasSocketCookie].Set(hasCookie),
		// Without it FIN_WAIT2 > TIME_WAIT of an orphan is told at its end, see timewait.h.
		spec.Variables[bpfVarKfreeSkbNamesReceiver].Set(hasReceiver(kernel)),
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

// hasReceiver reports whether the tracepoint kfree_skb names the socket that an
// skb was for: its fourth argument, 6.11+ (the first parameter is the context).
func hasReceiver(kernel *btf.Spec) bool {
	var event *btf.Typedef
	if kernel.TypeByName("btf_trace_kfree_skb", &event) != nil {
		return false
	}
	pointer, ok := event.Type.(*btf.Pointer)
	if !ok {
		return false
	}
	proto, ok := pointer.Target.(*btf.FuncProto)
	return ok && len(proto.Params) >= 5
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

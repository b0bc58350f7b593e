package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/tcptrace/tcptrace/internal/confine"
)

// Status is the short form of a Finding.
type Status string

const (
	OK      Status = "ok"
	Partly  Status = "partly"  // a trace works, but does not show everything
	Missing Status = "missing" // nothing can be traced
)

// Finding is one thing that a trace needs, and what this host offers of it.
type Finding struct {
	Name   string
	Status Status
	Found  string // what was found
	Means  string // of Partly: what is not shown; a sentence without a full stop
	Err    error  // of Missing: what Open returns
}

// Examine finds out what a trace with cfg could show on this host. To know that, it
// begins such a trace and ends it. The error says why nothing can be traced; then there
// are fewer findings.
func Examine(cfg Config) ([]Finding, error) {
	findings := []Finding{kernelFinding(), capabilityFinding()}
	if obstacle, ok := errors.AsType[*Obstacle](CheckPlace()); ok { // or each that follows would blame the kernel
		return append(findings, Finding{Name: obstacle.Name, Status: Missing, Found: obstacle.What, Err: obstacle}), obstacle
	}
	findings = append(findings, lockdownFinding(cfg), typesFinding(cfg))
	p, err := Open(cfg)
	if err != nil {
		return append(findings, programsFinding(err), namespaceFinding()), err
	}
	defer p.Close()
	findings = append(findings,
		Finding{Name: "ring buffer", Status: OK, Found: fmt.Sprintf("%d KiB", p.ring.BufferSize()>>10)},
		p.hooks.symbolFinding())
	hooked, err := p.hooks.hookFindings()
	if err != nil {
		return findings, err
	}
	findings = append(findings, hooked...)
	return append(findings, p.hooks.acceptFinding(), cookieFinding(cfg), mptcpFinding(), destroyFinding(), namespaceFinding()), nil
}

// programsFinding is that none were loaded. Where the error blames this place, what the
// kernel said is found.
func programsFinding(err error) Finding {
	f := Finding{Name: "programs", Status: Missing, Found: "not loaded", Err: err}
	if obstacle, ok := errors.AsType[*Obstacle](err); ok && obstacle.Err != nil {
		f.Found += ": " + obstacle.Err.Error()
	}
	return f
}

func kernelFinding() Finding {
	f := Finding{Name: "kernel", Status: OK}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		f.Found = err.Error()
	} else {
		f.Found = unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	}
	return f
}

func capabilityFinding() Finding {
	f := Finding{Name: "capabilities", Status: OK}
	have := cap.GetProc()
	var held []string
	for _, c := range append(slices.Clone(needed), cap.SYS_ADMIN) {
		if ok, err := have.GetFlag(cap.Effective, c); err == nil && ok {
			held = append(held, strings.ToUpper(c.String()))
		}
	}
	f.Found = strings.Join(held, " ")
	if held == nil {
		f.Found = "none of those needed"
	}
	if _, enters := confine.Held(have, cap.SYS_ADMIN); !enters {
		f.Status = Partly
		f.Means = "without CAP_SYS_ADMIN the sockets that exist at the start are listed for this network namespace alone"
	}
	if !inInitialUserNamespace() {
		f.Found += " (of a user namespace, not of the host)"
	}
	if err := checkPrivileges(); err != nil {
		f.Status, f.Err = Missing, explain(err)
	}
	return f
}

func lockdownFinding(cfg Config) Finding {
	f := Finding{Name: "lockdown", Status: OK, Found: lockdownMode()}
	if lockedDown() {
		f.Found = confidentiality
		types, err := kernelTypes(cfg.BTF)
		if err == nil && !canReadDirectly(types.kernel) {
			f.Status, f.Err = Missing, ErrLockedDown
		}
	}
	if f.Found == "" {
		f.Found = "not known (securityfs is not mounted)"
	}
	return f
}

// confidentiality is the mode of lockdown in which the kernel refuses bpf_probe_read_kernel.
const confidentiality = "confidentiality"

// ErrLockedDown says that the kernel lets no BPF program read its memory.
var ErrLockedDown = errors.New("this kernel is locked down (lockdown=confidentiality) and lets no BPF program read a socket: " +
	"boot it with lockdown=integrity or without lockdown, or boot Linux 6.2 or later")

// lockedDown reports whether the kernel refuses bpf_probe_read_kernel, as far as this
// process can find out.
func lockedDown() bool { return lockdownMode() == confidentiality || refusesReads() }

// refusesReads reports whether bpf_base_func_proto denies bpf_probe_read_kernel, as it does
// under LOCKDOWN_BPF_READ_KERNEL. It asks for bpf_probe_read, which is denied with it: for
// the other the library falls back to this one and misunderstands the refusal. Without the
// privilege to load programs the answer is false.
func refusesReads() bool {
	return errors.Is(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnProbeRead), ebpf.ErrNotSupported)
}

// canReadDirectly reports whether BPF programs can read any address by its type: 6.2+.
func canReadDirectly(kernel *btf.Spec) bool {
	var cast *btf.Func
	return kernel.TypeByName("bpf_rdonly_cast", &cast) == nil
}

// lockdownMode is the word in brackets of "[none] integrity confidentiality", or empty where
// securityfs is not mounted.
func lockdownMode() string {
	modes, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(modes), "[")
	mode, _, _ := strings.Cut(rest, "]")
	return mode
}

func typesFinding(cfg Config) Finding {
	f := Finding{Name: "type information", Status: OK}
	types, err := kernelTypes(cfg.BTF)
	if slices.Contains(cfg.Without, hookTypes) {
		err = fmt.Errorf("%w: %w", ErrNoTypes, ErrLeftOut)
	}
	if err != nil {
		f.Status, f.Found, f.Err = Missing, "none", err
	} else {
		f.Found = types.from
	}
	return f
}

func (set *hookSet) symbolFinding() Finding {
	f := Finding{Name: "function addresses", Status: OK, Found: "/proc/kallsyms"}
	if why := set.missing[hookSymbols]; why != nil {
		f.Status, f.Found, f.Means = Partly, why.Error(), "some reasons are not shown"
		if known, ok := errors.AsType[*symbolsError](why); ok {
			f.Found, f.Means = known.what, f.Means+"; "+known.remedy
		}
	}
	return f
}

// hookFindings has one for each hook that the trace would use.
func (set *hookSet) hookFindings() (findings []Finding, err error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	for _, h := range set.all() {
		f := Finding{Name: h.shows, Status: OK, Found: h.way(spec)}
		if why := set.missing[h.name]; why != nil {
			f.Status, f.Found, f.Means = Partly, why.Error(), h.without
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// way names what the programs of h attach to.
func (h hook) way(spec *ebpf.CollectionSpec) string {
	var ways []string
	for _, s := range h.programs(new(bpfPrograms)) {
		way := "tracepoint " + spec.Programs[s.name].AttachTo
		if spec.Programs[s.name].AttachType == ebpf.AttachTraceIter {
			way = "iterator " + spec.Programs[s.name].AttachTo
		}
		if !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	return strings.ReplaceAll(strings.Join(ways, ", "), ", tracepoint ", ", ")
}

func (set *hookSet) acceptFinding() Finding {
	f := Finding{Name: "accept", Status: Partly,
		Means: "an accepted connection shows the owner of its listener until it is read from, or closed, or found among open files"}
	switch why := set.missing[hookTrampoline]; {
	case why != nil:
		f.Found = "no trampoline: " + why.Error()
	case set.trampoline == nil:
		f.Found = "no trampoline: not asked for"
	default:
		f.Status, f.Found, f.Means = OK, "trampoline "+hookTrampoline, ""
	}
	return f
}

func cookieFinding(cfg Config) Finding {
	f := Finding{Name: "socket cookies", Status: OK, Found: "bpf_get_socket_cookie"}
	if types, err := kernelTypes(cfg.BTF); err != nil || !hasCookieHelper(types.kernel) {
		f.Status, f.Found = Partly, "only those that somebody asked for"
		f.Means = "most sockets have no cookie: Linux 5.12 or later gives every socket one"
	}
	return f
}

func mptcpFinding() Finding {
	f := Finding{Name: "MPTCP", Status: OK, Found: "not in this kernel"}
	if enabled, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); err == nil {
		f.Found = "on"
		if strings.TrimSpace(string(enabled)) == "0" {
			f.Found = "off"
		}
	}
	return f
}

// destroyFinding asks the kernel to close a socket that does not exist.
func destroyFinding() Finding {
	f := Finding{Name: "SOCK_DESTROY", Status: OK, Found: "available"}
	nowhere := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if err := destroyAll([]Target{{Cookie: 1 << 63, Local: nowhere, Remote: nowhere}}, func(Target, error) {}); err != nil {
		f.Status, f.Found, f.Means = Partly, err.Error(), "sockets cannot be closed on behalf of their processes"
	}
	return f
}

func namespaceFinding() Finding {
	f := Finding{Name: "network namespaces", Status: OK}
	namespaces, unread, err := netNamespaces("/proc", nil)
	switch {
	case err != nil:
		f.Status, f.Found, f.Means = Partly, err.Error(), "sockets of other network namespaces that exist already are not shown"
	case unread > 0:
		f.Status, f.Found, f.Means = Partly, fmt.Sprintf("%d or more", len(namespaces)), unsearched(unread)
	default:
		f.Found = fmt.Sprint(len(namespaces))
	}
	return f
}

package probe

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Status is the short form of a Finding.
type Status string

const (
	OK      Status = "ok"
	Partly  Status = "partly"  // works, and something is not visible
	Missing Status = "missing" // without it nothing is
)

// Finding is one thing that this host offers to a trace, or does not.
type Finding struct {
	Name   string
	Status Status
	Found  string // what there is
	Means  string // what is not visible therefore, and what to do; empty where there is nothing to say
}

// Examine finds out what a trace with cfg could show on this host. It loads and
// attaches the programs to know, and detaches them again. The error says why
// nothing can be traced; the findings are as complete as they can be then.
func Examine(cfg Config) ([]Finding, error) {
	findings := []Finding{kernelFinding(), capabilityFinding(), lockdownFinding()}
	p, err := Open(cfg)
	if err != nil {
		return append(findings, typesFinding(cfg), Finding{"programs", Missing, "not loaded", err.Error()}, namespaceFinding()), err
	}
	defer p.Close()
	findings = append(findings, typesFinding(cfg),
		Finding{"ring buffer", OK, fmt.Sprintf("%d KiB", p.ring.BufferSize()>>10), ""}, p.hooks.symbolFinding())
	hooked, err := p.hooks.hookFindings()
	if err != nil {
		return findings, err
	}
	findings = append(findings, hooked...)
	return append(findings, p.hooks.acceptFinding(), cookieFinding(cfg), mptcpFinding(), destroyFinding(), namespaceFinding()), nil
}

func kernelFinding() Finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Finding{"kernel", Partly, err.Error(), ""}
	}
	return Finding{"kernel", OK, unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:]), ""}
}

func capabilityFinding() Finding {
	f := Finding{Name: "capabilities", Status: OK}
	have := cap.GetProc()
	var held []string
	for _, c := range needed {
		if ok, err := have.GetFlag(cap.Effective, c); err == nil && ok {
			held = append(held, strings.ToUpper(c.String()))
		}
	}
	f.Found = strings.Join(held, " ")
	if held == nil {
		f.Found = "none of those needed"
	}
	if err := checkPrivileges(); err != nil {
		f.Status, f.Means = Missing, err.Error()
	}
	return f
}

func lockdownFinding() Finding {
	f := Finding{Name: "lockdown", Status: OK}
	switch mode := lockdown(); mode {
	case "":
		f.Found = "none, or not shown (securityfs)"
	case confidentiality:
		f.Status, f.Found, f.Means = Missing, mode, lockedDown
	default:
		f.Found = mode
	}
	return f
}

// confidentiality is the lockdown in which nothing can be traced.
const (
	confidentiality = "confidentiality"
	lockedDown      = "this kernel is locked down (confidentiality) and lets no BPF program read its memory: boot it with lockdown=integrity, or without"
)

// lockdown reads which of "[none] integrity confidentiality" is in force; empty where
// that is not shown.
func lockdown() string {
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
	if slices.Contains(cfg.Without, hookTypes) {
		f.Status, f.Found, f.Means = Missing, "none", errNoTypes.Error()
	} else if types, err := kernelTypes(cfg.BTF); err != nil {
		f.Status, f.Found, f.Means = Missing, "none", err.Error()
	} else {
		f.Found = types.from
	}
	return f
}

func (set *hookSet) symbolFinding() Finding {
	f := Finding{Name: "function addresses", Status: OK, Found: "/proc/kallsyms"}
	if why := set.missing[hookSymbols]; why != nil {
		f.Status, f.Found = Partly, why.Error()
		f.Means = "set kernel.kptr_restrict to 1 or 0, see TIME_WAIT below"
	}
	return f
}

func (set *hookSet) hookFindings() (findings []Finding, err error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	for _, h := range allHooks() {
		if !set.wants(h) {
			continue
		}
		f := Finding{Name: h.shows, Status: OK, Found: h.way(spec)}
		if why := set.missing[h.name]; why != nil {
			f.Status, f.Found, f.Means = Partly, why.Error(), h.blind
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// way names what the programs of h hang on.
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
	const later = "an accepted connection shows the owner of its listener until it is read from, or closed, or found among open files"
	switch why := set.missing[hookTrampoline]; {
	case why != nil:
		return Finding{"accept", Partly, "no trampoline: " + why.Error(), later}
	case set.trampoline == nil:
		return Finding{"accept", Partly, "no trampoline: not asked for", later}
	}
	return Finding{"accept", OK, "trampoline " + hookTrampoline, ""}
}

func cookieFinding(cfg Config) Finding {
	if types, err := kernelTypes(cfg.BTF); err == nil && hasCookieHelper(types.kernel) {
		return Finding{"socket cookies", OK, "bpf_get_socket_cookie", ""}
	}
	return Finding{"socket cookies", Partly, "only those that somebody asked for", "the cookie of most sockets: Linux 5.12 or later gives every socket one"}
}

func mptcpFinding() Finding {
	f := Finding{Name: "MPTCP", Status: OK, Found: "not in this kernel"}
	if enabled, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); err == nil {
		f.Found = map[string]string{"0": "off"}[strings.TrimSpace(string(enabled))]
		if f.Found == "" {
			f.Found = "on"
		}
	}
	return f
}

// destroyFinding asks the kernel to close a socket that cannot be.
func destroyFinding() Finding {
	nowhere := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	err := destroyAll([]Target{{Cookie: 1 << 63, Local: nowhere, Remote: nowhere}}, func(Target, error) {})
	if err != nil {
		return Finding{"SOCK_DESTROY", Partly, err.Error(), "leaks --kill cannot close sockets"}
	}
	return Finding{"SOCK_DESTROY", OK, "for leaks --kill", ""}
}

func namespaceFinding() Finding {
	namespaces, err := netNamespaces("/proc", nil)
	if err != nil {
		return Finding{"network namespaces", Partly, err.Error(), "sockets of other namespaces that exist already"}
	}
	return Finding{"network namespaces", OK, fmt.Sprint(len(namespaces)), ""}
}

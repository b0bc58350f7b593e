package probe

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf/features"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// A finding that is not OK says what follows from it, so that a reader of the findings
// never takes a limited trace for a whole one.
func TestFindingsSayWhatTheyMean(t *testing.T) {
	need.Kernel(t)
	all := Config{RingBytes: 1 << 20, OwnerRefresh: -1, Stacks: true, Tracked: true}
	for _, left := range [][]string{nil, {hookTypes}, {hookTimer}, {hookSymbols}, {hookAcceptExit, hookTracked, hookFiles}} {
		cfg := all
		cfg.Without = left
		findings, broken := Examine(cfg)
		missing := 0
		for _, f := range findings {
			if f.Name == "" || f.Found == "" {
				t.Errorf("without %v: %+v lacks its name, or what was found", left, f)
			}
			if (f.Status == Partly) != (f.Means != "") || (f.Status == Missing) != (f.Err != nil) {
				t.Errorf("without %v: %+v: want Means if partly, Err if missing", left, f)
			}
			if f.Err != nil {
				missing++
			}
		}
		if (missing == 0) != (broken == nil) {
			t.Errorf("without %v: %d findings say that nothing can be traced; the error is %v", left, missing, broken)
		}
	}
}

// TCPTRACE_TEST_LOCKDOWN is what the kernel must be locked down to; the guests of
// internal/test/kernels set it. Only confidentiality before 6.2 keeps us from tracing, and
// the error says so.
func TestLockdown(t *testing.T) {
	need.Kernel(t)
	mode := lockdownMode()
	if want := os.Getenv("TCPTRACE_TEST_LOCKDOWN"); want != "" && mode != want {
		t.Fatalf("this kernel is locked down to %q, want %q", mode, want)
	}
	if mode != "" && refusesReads() != (mode == confidentiality) {
		t.Errorf("locked down to %q, but bpf_probe_read_kernel is refused: %v", mode, refusesReads())
	}
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	hopeless := mode == confidentiality && version < 6<<16|2<<8
	p, opened := Open(Config{OwnerRefresh: -1})
	if opened == nil {
		p.Close()
	}
	findings, examined := Examine(Config{OwnerRefresh: -1})
	listed := Sockets(Config{}, func(*tcp.Event) error { return nil })
	for _, err := range []error{opened, examined, listed} {
		if hopeless && !errors.Is(err, ErrLockedDown) || !hopeless && err != nil {
			t.Errorf("locked down to %q: got error %v", mode, err)
		}
	}
	for _, f := range findings {
		if f.Name == "lockdown" && (f.Status == Missing) != hopeless {
			t.Errorf("lockdown is found to be %+v", f)
		}
		t.Logf("%s: %s: %s %s", f.Status, f.Name, f.Found, f.Means)
	}
}

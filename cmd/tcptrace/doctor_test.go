package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
)

// "Everything is shown" is said only where every finding is ok.
func TestDoctorClaimsNoMoreThanItFound(t *testing.T) {
	fine := probe.Finding{Name: "kernel", Status: probe.OK, Found: "6.12"}
	for _, c := range []struct {
		finding probe.Finding
		want    string
	}{
		{fine, "\nEverything is shown.\n"},
		{probe.Finding{Name: "accept", Status: probe.Partly, Found: "no trampoline", Means: "late owners"}, "\nA trace works here, but:\n  late owners\n"},
		{probe.Finding{Name: "pid namespace", Status: probe.Partly, Found: "not the host's"}, "\nA trace works here, but:\n  pid namespace: not the host's\n"},
	} {
		var b strings.Builder
		if err := diagnose([]probe.Finding{fine, c.finding}, nil).columns(&b); err != nil {
			t.Fatal(err)
		}
		if _, summary, _ := strings.Cut(b.String(), c.finding.Found+"\n"); !strings.HasSuffix(summary, c.want) {
			t.Errorf("with %+v: got\n%swant an end of %q", c.finding, b.String(), c.want)
		}
	}
}

// Where nothing can be traced, doctor shows no summary, and each error comes with what
// the user can do.
func TestErrorsComeWithAdvice(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&probe.MissingCapabilities{Missing: []string{"CAP_BPF"}, Needed: []string{"CAP_BPF", "CAP_SYSLOG"}}, "setcap cap_bpf,cap_syslog=ep "},
		{probe.ErrNoTypes, "--btf FILE"},
		{probe.ErrTrampolines, "--hooks trampolines"},
		{errors.New("plain"), "plain"},
	} {
		err := fmt.Errorf("begin: %w", c.err)
		d := diagnose([]probe.Finding{{Name: "programs", Status: probe.Missing, Found: "not loaded", Err: err}}, err)
		var b strings.Builder
		if err := d.columns(&b); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(b.String(), "shown") || strings.Contains(b.String(), "works") {
			t.Errorf("%v: doctor says\n%s", err, b.String())
		}
		for _, text := range []output.Text{d.Remedy, d.Findings[0].Means} {
			if !strings.HasPrefix(string(text), err.Error()) || !strings.Contains(string(text), c.want) {
				t.Errorf("%v: got %q, want %q in it", err, text, c.want)
			}
		}
	}
}

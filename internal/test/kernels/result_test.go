package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const said = `
{"Action":"output","Output":"@kernel 6.1.0-56-amd64\r\n"}
{"Action":"output","Output":"@way tracepoints\n"}
{"Action":"run","Test":"TestWalk"}
{"Action":"run","Test":"TestWalk/close"}
{"Action":"run","Test":"TestWalk/close/linger_0"}
{"Action":"pass","Test":"TestWalk/close/linger_0"}
{"Action":"run","Test":"TestWalk/close/MPTCP"}
{"Action":"output","Test":"TestWalk/close/MPTCP","Output":"    walk_run_test.go:61: no MPTCP: CONFIG_MPTCP\n"}
{"Action":"skip","Test":"TestWalk/close/MPTCP"}
{"Action":"pass","Test":"TestWalk/close"}
{"Action":"pass","Test":"TestWalk"}
{"Action":"output","Output":"@exit 0\n"}
`

const ended = `{"Action":"output","Output":"@end\n"}`

func resultOf(t *testing.T, series, lines string) *result {
	t.Helper()
	r := newResult(guest{series: series, suite: "suite"})
	if err := decode(strings.NewReader(lines), r.take); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTable(t *testing.T) {
	failing := strings.NewReplacer("6.1.0-56-amd64", "7.2.13+deb14-amd64", `"pass","Test":"TestWalk/close/linger_0"`, `"fail","Test":"TestWalk/close/linger_0"`)
	confined := resultOf(t, "6.12", `
{"Action":"output","Output":"@kernel 6.12.57+deb13-amd64\r\n"}
{"Action":"output","Output":"@way auto\n"}
{"Action":"run","Test":"TestLockdown"}
{"Action":"pass","Test":"TestLockdown"}
`+ended)
	confined.guest.variant = "confidentiality"
	got := table([]*result{
		resultOf(t, "5.10", ""),
		resultOf(t, "6.1", said+ended),
		resultOf(t, "7", failing.Replace(said)+ended),
		confined,
	})
	want := `TRACEPOINTS              close
5.10                     FAIL not run
6.1.0-56                 pass 1 [1]
7.2.13                   FAIL 1 of 1
6.12.57-confidentiality  -

AUTO                     lockdown
5.10                     FAIL not run
6.1.0-56                 -
7.2.13                   FAIL not run
6.12.57-confidentiality  pass 1

[1] MPTCP: no MPTCP: CONFIG_MPTCP
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A guest passes only when it says so: whatever ends it early is a failure.
func TestProblem(t *testing.T) {
	for _, test := range []struct{ name, lines, want string }{
		{"passed", said + ended, ""},
		{"nothing", "", "kernel 6.1: the guest ended in the middle of its tests"},
		{"no end", said, "kernel 6.1: the guest ended in the middle of its tests"},
		{"no test", `{"Action":"output","Output":"@exit 0\n"}` + ended, "kernel 6.1: the guest ended in the middle of its tests"},
		{"test that does not exist", said + `{"Action":"output","Output":"testing: warning: no tests to run\n"}` + ended, "kernel 6.1: a test that init.sh names does not exist"},
		{"exit status", strings.Replace(said, "@exit 0", "@exit 2", 1) + ended, "kernel 6.1: the guest ended in the middle of its tests"},
		{"test without end", `{"Action":"run","Test":"TestWalk"}` + said + `{"Action":"run","Test":"TestHangs"}` + ended, "kernel 6.1: 1 of 3 tests failed: TestHangs (tracepoints)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := resultOf(t, "6.1", test.lines).problem(); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestWriteInitramfs(t *testing.T) {
	from := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(from, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeInitramfs(&b, []file{{name: "a/b/f", from: from}}); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(b.String(), string(initScript))
	var names []string
	for _, entry := range strings.Split(rest, "070701")[1:] {
		name, content, _ := strings.Cut(entry[104:], "\x00")
		names = append(names, name+"="+strings.Trim(content, "\x00"))
	}
	if diff := cmp.Diff([]string{"a=", "a/b=", "a/b/f=hello", "TRAILER!!!="}, names); diff != "" {
		t.Error(diff)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes: not a multiple of four", b.Len())
	}
}

func TestChoose(t *testing.T) {
	for kernel, want := range map[string]string{
		"5.10": "5.10", "6.1": "6.1", "6.12": "6.12", "6.12.57": "6.12", "7": "7", "7.2": "7", "6": "", "5": "",
		"6.12-rt": "6.12-rt", "6.12-integrity": "6.12-integrity", "6.12-confidentiality": "6.12-confidentiality",
		"6.12-": "", "6.1-rt": "",
	} {
		got := ""
		if chosen, err := choose(kernel); err == nil {
			got = chosen[0].name()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", kernel, got, want)
		}
	}
}

// Guests with the same kernel share its folder, others do not.
func TestKernelNames(t *testing.T) {
	names := map[string]string{}
	for _, g := range guests {
		names[g.name()] = g.kernelName()
	}
	want := map[string]string{
		"5.10": "bullseye", "6.1": "bookworm", "6.1-confidentiality": "bookworm", "7": "sid",
		"6.12": "trixie", "6.12-integrity": "trixie", "6.12-confidentiality": "trixie", "6.12-rt": "trixie-rt",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

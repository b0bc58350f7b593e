package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// TestTraceWithSysAdmin traces with CAP_SYS_ADMIN in place of CAP_BPF and CAP_PERFMON,
// and looks for owners after the privileges are dropped.
func TestTraceWithSysAdmin(t *testing.T) {
	need.Kernel(t)
	if os.Getenv(rerunEnv) != "" {
		p, err := Open(Config{RingBytes: 1 << 20, Tracked: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		rows := 0
		count := func(*tcp.Event) error { rows++; return nil }
		if err := p.Seed(count); err != nil {
			t.Fatal(err)
		}
		if _, err := confine.Process(Needs(ReadTrace)); err != nil {
			t.Fatal(err)
		}
		if err := p.TrackedSockets([]tcp.State{tcp.Listen, tcp.Established}, count); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond) // owners are looked up meanwhile
		fmt.Println("answer", cap.GetProc())
		return
	}
	for _, test := range []struct {
		without []cap.Value
		want    string
	}{
		{[]cap.Value{cap.BPF, cap.PERFMON}, "cap_dac_read_search,cap_sys_admin=ep"},
		{[]cap.Value{cap.PERFMON}, "cap_dac_read_search,cap_sys_admin,cap_bpf=ep"},
		{[]cap.Value{cap.CHOWN}, "cap_dac_read_search,cap_perfmon,cap_bpf=ep"},
	} {
		got := rerun(t, without(t, test.without...))
		if !slices.Equal(got, []string{test.want}) {
			t.Errorf("without %v: got %q, want %q", test.without, got, test.want)
		}
	}
}

// without starts a program without some capabilities.
func without(t *testing.T, drop ...cap.Value) starter {
	t.Helper()
	iab := cap.IABGetProc()
	if err := errors.Join(iab.SetVector(cap.Bound, true, drop...), iab.SetVector(cap.Inh, false, drop...)); err != nil {
		t.Fatal(err)
	}
	return func(argv, env []string, output *os.File) (pid int, err error) {
		launcher := cap.NewLauncher(argv[0], argv, env)
		launcher.SetIAB(iab)
		launcher.Callback(func(attr *syscall.ProcAttr, _ any) error {
			attr.Files = []uintptr{0, output.Fd(), output.Fd()}
			return nil
		})
		return launcher.Launch(nil)
	}
}

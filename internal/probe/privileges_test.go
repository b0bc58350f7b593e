package probe

import (
	"fmt"
	"os"
	"slices"
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
	for _, test := range []struct{ drop, want string }{
		{"-bpf,-perfmon", "cap_dac_read_search,cap_sys_admin=ep"},
		{"-perfmon", "cap_dac_read_search,cap_sys_admin,cap_bpf=ep"},
		{"-chown", "cap_dac_read_search,cap_perfmon,cap_bpf=ep"},
	} {
		got := rerun(t, "setpriv", "--bounding-set", test.drop, "--inh-caps", test.drop)
		if !slices.Equal(got, []string{test.want}) {
			t.Errorf("%s: got %q, want %q", test.drop, got, test.want)
		}
	}
}

package probe

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFindSymbols(t *testing.T) {
	const kallsyms = `ffffffff81000000 T startup_64
ffffffff82006870 t tw_timer_handler
ffffffff820068a0 T inet_twsk_deschedule_put
ffffffff82008db0 t reqsk_timer_handler.llvm.123456
ffffffff82008db0 t an_alias
ffffffff8200a3f0 T inet_csk_reqsk_queue_drop
ffffffffc0000000 t tcp_abort	[some_module]
ffffffff8200a3f0 D tcp_check_req
`
	wanted := map[string]bool{
		"tw_timer_handler": true, "reqsk_timer_handler": true, "an_alias": true,
		"tcp_abort": true, "tcp_check_req": true,
	}
	got, err := findSymbols(strings.NewReader(kallsyms), wanted)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]symbol{
		"tw_timer_handler":    {0xffffffff82006870, 0xffffffff820068a0},
		"reqsk_timer_handler": {0xffffffff82008db0, 0xffffffff8200a3f0},
		"an_alias":            {0xffffffff82008db0, 0xffffffff8200a3f0},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(symbol{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFindSymbolsHidden(t *testing.T) {
	_, err := findSymbols(strings.NewReader("0000000000000000 t tw_timer_handler\n"), map[string]bool{"tw_timer_handler": true})
	if err == nil || !strings.Contains(err.Error(), "kptr_restrict") {
		t.Errorf("got error %v, want one that names kptr_restrict", err)
	}
}

func TestParseNamespaceMounts(t *testing.T) {
	const mountinfo = `22 29 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
613 29 0:4 net:[4026532210] /run/netns/blue rw shared:333 - nsfs nsfs rw
614 29 0:4 net:[4026532300] /run/netns/my\040ns rw shared:334 - nsfs nsfs rw
615 29 0:4 mnt:[4026532301] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
`
	got := parseNamespaceMounts(strings.NewReader(mountinfo))
	want := map[uint64]string{4026532210: "/run/netns/blue", 4026532300: "/run/netns/my ns"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A file of which the kernel is tired is read again.
func TestIteration(t *testing.T) {
	tired := &tiredReader{left: 3}
	got, err := io.ReadAll(iteration{tired})
	if err != nil || string(got) != "rows" {
		t.Errorf("got %q, %v, want %q", got, err, "rows")
	}
}

type tiredReader struct{ left int }

func (r *tiredReader) Read(p []byte) (int, error) {
	if r.left--; r.left > 0 {
		return 0, &os.PathError{Op: "read", Path: "bpf_iter", Err: unix.EAGAIN}
	}
	if r.left == 0 {
		return copy(p, "rows"), nil
	}
	return 0, io.EOF
}

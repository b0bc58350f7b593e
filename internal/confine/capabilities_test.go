package confine

import (
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

func TestHeld(t *testing.T) {
	for _, test := range []struct {
		have    []cap.Value
		c, want cap.Value
		ok      bool
	}{
		{[]cap.Value{cap.BPF}, cap.BPF, cap.BPF, true},
		{[]cap.Value{cap.BPF, cap.SYS_ADMIN}, cap.BPF, cap.BPF, true},
		{[]cap.Value{cap.SYS_ADMIN}, cap.BPF, cap.SYS_ADMIN, true},
		{[]cap.Value{cap.SYS_ADMIN}, cap.PERFMON, cap.SYS_ADMIN, true},
		{[]cap.Value{cap.SYS_ADMIN}, cap.CHECKPOINT_RESTORE, cap.SYS_ADMIN, true},
		{[]cap.Value{cap.SYS_ADMIN, cap.CHECKPOINT_RESTORE}, cap.CHECKPOINT_RESTORE, cap.CHECKPOINT_RESTORE, true},
		{[]cap.Value{cap.SYS_ADMIN}, cap.SYSLOG, 0, false},
		{[]cap.Value{cap.SYS_ADMIN}, cap.DAC_READ_SEARCH, 0, false},
		{[]cap.Value{cap.PERFMON}, cap.BPF, 0, false},
		{nil, cap.BPF, 0, false},
	} {
		have := cap.NewSet()
		if err := have.SetFlag(cap.Effective, true, test.have...); err != nil {
			t.Fatal(err)
		}
		if got, ok := Held(have, test.c); ok != test.ok || ok && got != test.want {
			t.Errorf("with %v, %v: got %v, %v, want %v, %v", test.have, test.c, got, ok, test.want, test.ok)
		}
	}
}

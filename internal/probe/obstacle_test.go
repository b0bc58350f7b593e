package probe

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/need"
)

// What is known to be the fault of the place is explained, and the cause stays in the error.
func TestExplain(t *testing.T) {
	plain := errors.New("plain")
	if err := explain(plain); err != plain {
		t.Errorf("got %v", err)
	}
	if err := explain(nil); err != nil {
		t.Errorf("no error becomes %v", err)
	}
	full := fmt.Errorf("create the BPF maps: %w", unix.ENOMEM)
	err := explain(full)
	if obstacle, ok := errors.AsType[*Obstacle](err); !ok || obstacle.Err != full || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("got %#v", err)
	}
	for _, part := range []string{full.Error(), "memory limit", "--max-sockets"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
}

// Where bpf() works it is not blamed, whatever the kernel has refused.
func TestExplainRefusal(t *testing.T) {
	need.Kernel(t)
	if err := CheckPlace(); err != nil {
		t.Error(err)
	}
	refused := fmt.Errorf("attach: %w", unix.EPERM)
	if err := explain(refused); err != refused {
		t.Errorf("got %v", err)
	}
	err := explain(fmt.Errorf("%w: %w", errMemlock, unix.EPERM))
	if err == nil || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		t.Errorf("got %v", err)
	}
}

func TestCheckDescriptors(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
	for limit, enough := range map[uint64]bool{16: false, descriptors: false, descriptors + 64: true} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		if obstacle := checkDescriptors(); (obstacle == nil) != enough {
			t.Errorf("with a limit of %d: %v", limit, obstacle)
		}
	}
}

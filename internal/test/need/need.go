// Package need says what a test requires. A run that lacks it fails, so that it does not
// look like one that passed.
package need

import (
	"os"
	"testing"
)

// Kernel is for tests that trace this kernel or look into other processes: they need
// root. TCPTRACE_TEST_KERNEL=0 leaves all of them out; nothing else does.
func Kernel(t testing.TB) {
	t.Helper()
	if os.Getenv("TCPTRACE_TEST_KERNEL") == "0" {
		t.Skip("TCPTRACE_TEST_KERNEL=0: this test needs the kernel")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run 'make test', or set TCPTRACE_TEST_KERNEL=0 to leave out what needs the kernel")
	}
}

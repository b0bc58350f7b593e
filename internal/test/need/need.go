// Package need says what a test requires. A run that lacks it fails, so that it does not
// look like one that passed.
package need

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// Hangup is for tests that end a program, or themselves, by SIGHUP. nohup(1) has it ignored,
// which programs inherit, and the test would wait for ever: from here to the end of the test
// it is not. Go gives a program that it starts the default for what it handles itself.
func Hangup(t testing.TB) {
	t.Helper()
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(handled) })
}

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

package symbolize

import "strings"

// IsPlumbing reports whether the frame lies between a program and the kernel and says
// nothing of the program: the C library, and Go's standard library on the way to connect
// and accept.
func (f Frame) IsPlumbing() bool {
	if f.Function == "" {
		return strings.HasPrefix(f.Module, "libc.") || strings.HasPrefix(f.Module, "libc-") ||
			strings.HasPrefix(f.Module, "ld-") || strings.HasPrefix(f.Module, "libpthread")
	}
	if strings.HasPrefix(f.Module, "libc.so") || strings.HasPrefix(f.Module, "libpthread") {
		return true
	}
	switch f.Function {
	case "_start", "__libc_start_main", "__libc_start_call_main", "start_thread", "clone", "clone3":
		return true
	}
	for _, library := range []string{"syscall.", "internal/", "runtime.", "runtime/", "net.", "net/", "context.", "crypto/", "sync."} {
		if strings.HasPrefix(f.Function, library) {
			return true
		}
	}
	return false
}

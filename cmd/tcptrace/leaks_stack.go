package main

import (
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/symbolize"
)

// maxStacks bounds the stacks whose names are kept: 4 KiB each at the most.
const maxStacks = 4096

// stackReader names the code that opened sockets.
type stackReader struct {
	probe   *probe.Probe
	symbols *symbolize.Symbolizer
	last    uint32 // the process that was remembered last
	known   map[stackKey][]symbolize.Frame
}

// stackKey is a stack of a process: the same addresses mean something else in another.
type stackKey struct{ id, pid uint32 }

func newStackReader(p *probe.Probe) *stackReader {
	return &stackReader{probe: p, symbols: symbolize.NewSymbolizer("/proc"), known: make(map[stackKey][]symbolize.Frame)}
}

// remember reads the maps of a process while it lives.
func (r *stackReader) remember(pid uint32) {
	if pid != 0 && pid != r.last { // rows of one process come one after the other
		r.last = pid
		r.symbols.Remember(pid)
	}
}

// frames are those of a stack, innermost first.
func (r *stackReader) frames(s leak.LeakStack) []symbolize.Frame {
	key := stackKey{s.ID, s.PID}
	if frames, known := r.known[key]; known {
		return frames
	}
	addrs, err := r.probe.Stack(s.ID)
	if err != nil {
		return nil
	}
	if len(r.known) == maxStacks {
		clear(r.known)
	}
	addrs = r.symbols.Complete(s.PID, addrs, r.probe.StackTop(s.ID))
	r.known[key] = r.symbols.Symbolize(s.PID, addrs)
	return r.known[key]
}

// shownFrames is how many frames of a stack are printed; JSON has all.
const shownFrames = 5

// stackText is a stack on one line, innermost first: the program's own code, or where
// there is none, as on a goroutine of a library, the outermost.
func stackText(frames []symbolize.Frame) string {
	if len(frames) == 0 {
		return "unknown code"
	}
	own := slices.DeleteFunc(slices.Clone(frames), isPlumbing)
	if len(own) == 0 {
		own = frames[max(0, len(frames)-shownFrames):]
	}
	var calls []string
	for _, frame := range own[:min(len(own), shownFrames)] {
		calls = append(calls, output.Visible(frame.String()))
	}
	return strings.Join(calls, " < ")
}

// isPlumbing tells of what lies between a program and the kernel and says nothing
// of the program: the C library, and Go's standard library on the way to connect
// and accept.
func isPlumbing(f symbolize.Frame) bool {
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

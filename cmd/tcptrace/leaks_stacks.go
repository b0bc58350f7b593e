package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/symbolize"
)

// stackHelper is how this program calls itself to name stacks: its name, not its path or a
// flag, so that nobody starts it by accident.
const stackHelper = "tcptrace-stacks"

// serveStacks is that program. It looks into processes, and can do nothing else.
func serveStacks(in, out *os.File) int {
	_, err := confine.Process(probe.Needs(probe.InspectProcesses))
	if err == nil {
		err = symbolize.Serve(in, out, "/proc")
	}
	if err != nil {
		return exitFailure // the other side sees that the pipe has ended
	}
	return 0
}

// The bounds of what a stackReader remembers. What is still in use comes back at the cost
// of a question.
const (
	maxStackBytes = 16 << 20 // of named stacks
	maxAsked      = 4096     // processes
	askAgain      = time.Second
)

// stackReader names the code that opened sockets.
type stackReader struct {
	probe *probe.Probe
	*symbolize.Helper
	interrupt func()               // ends a look into a process
	asked     map[uint32]time.Time // when a process was remembered last
	known     map[stackKey][]symbolize.Frame
	size      int // bytes in known
}

// stackKey is a stack of a process: the same addresses mean something else in another.
type stackKey struct{ id, pid uint32 }

// newStackReader returns nil where no helper can be started, and says why. It is to be
// called while programs may be started, and given to kernel.nameCode before it is used.
func (e *env) newStackReader() *stackReader {
	ctx, interrupt := context.WithCancel(e.ctx)
	helper, err := symbolize.StartHelper(ctx, "/proc/self/exe", stackHelper)
	if err != nil {
		interrupt()
		e.say(fmt.Sprintf("the code that opened sockets is not named: %v", err))
		return nil
	}
	return &stackReader{nil, helper, interrupt, make(map[uint32]time.Time), make(map[stackKey][]symbolize.Frame), 0}
}

// Close ends the helper.
func (r *stackReader) Close() {
	r.Helper.Close()
	r.interrupt()
}

// remember has the maps of a process read while it lives.
func (r *stackReader) remember(pid uint32) {
	now := time.Now()
	if now.Sub(r.asked[pid]) < askAgain { // rows of one process come one after the other
		return
	}
	if len(r.asked) >= maxAsked {
		clear(r.asked)
	}
	r.asked[pid] = now
	r.Remember(pid)
}

// frames are those of a stack, innermost first; nil if the kernel has dropped it.
func (r *stackReader) frames(id, pid uint32) []symbolize.Frame {
	key := stackKey{id, pid}
	if frames, known := r.known[key]; known {
		return frames
	}
	addrs, err := r.probe.Stack(id)
	if err != nil {
		return nil
	}
	frames, final := r.Name(pid, addrs, r.probe.StackTop(id))
	if !final {
		return frames
	}
	if r.size += symbolize.SizeOf(frames); r.size > maxStackBytes {
		clear(r.known)
		r.size = symbolize.SizeOf(frames)
	}
	r.known[key] = frames
	return frames
}

// explain says which code could not be named.
func (r *stackReader) explain(e *env) {
	if err := r.Err(); err != nil {
		e.say(fmt.Sprintf("not all code that opened sockets is named: %v", err))
	}
	switch s := r.Skipped(); {
	case s.Count == 1:
		e.say(fmt.Sprintf("the code in a file is not named: %s: %s", s.File, s.Why))
	case s.Count > 1:
		e.say(fmt.Sprintf("the code in %d files is not named; of one of them: %s: %s", s.Count, s.File, s.Why))
	}
}

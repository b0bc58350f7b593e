package symbolize

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// request is what the Helper asks, answer what Serve says.
type (
	request struct {
		PID        uint32
		Addrs, Top []uint64 // of a stack to name; no Addrs: only look at the process
	}
	answer struct {
		Frames  []Frame
		Final   bool // another try would not find more
		Skipped Skipped
	}
)

// memoryGoal is what the collector of a helper keeps its memory near to. What the bounds of
// a Symbolizer add up to is less.
const memoryGoal = 128 << 20

// Serve answers a Helper with a Symbolizer, until in ends.
func Serve(in io.Reader, out io.Writer, procRoot string) error {
	debug.SetMemoryLimit(memoryGoal)
	s := NewSymbolizer(procRoot)
	from, to := gob.NewDecoder(in), gob.NewEncoder(out)
	for {
		var r request
		if err := from.Decode(&r); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if err := to.Encode(s.answer(&r)); err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
	}
}

// answer survives a panic: the files are anybody's, and one of them is not to take the
// others along.
func (s *Symbolizer) answer(r *request) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			s.skip(fmt.Sprintf("process %d", r.PID), fmt.Errorf("%w: %v", errMalformed, p))
			a = answer{Final: true}
		}
		a.Skipped = s.skipped
	}()
	ctx := context.Background() // a Helper that is interrupted ends us
	if len(r.Addrs) == 0 {
		s.Remember(ctx, r.PID)
		return answer{Final: true}
	}
	a.Frames, a.Final = s.Name(ctx, r.PID, r.Addrs, r.Top)
	return a
}

// Helper is a Symbolizer in a process of its own. A file that another user has mapped can
// keep a thread in the kernel for ever, whatever signal comes, and with it its process: so
// that is one which can be left behind. It belongs to one goroutine, but for Close.
type Helper struct {
	ctx     context.Context
	cmd     *exec.Cmd
	in, out *os.File
	to      *gob.Encoder
	from    *gob.Decoder
	skipped Skipped
	err     error // why it is not asked any more
	once    sync.Once
}

// helperPatience is how long an answer may take. A Symbolizer takes a second, and a moment
// more for a call that does not return.
const helperPatience = 5 * time.Second

// StartHelper runs a program that calls Serve with its standard input and output. The end
// of ctx interrupts whatever it does.
func StartHelper(ctx context.Context, program string, args ...string) (*Helper, error) {
	inRead, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the helper that names stacks: %w", err)
	}
	defer inRead.Close()
	out, outWrite, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("start the helper that names stacks: %w", err)
	}
	defer outWrite.Close()
	cmd := &exec.Cmd{Path: program, Args: args, Env: []string{}, Dir: "/", Stdin: inRead, Stdout: outWrite}
	// Ctrl-C is for us: the helper ends with its input.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("start the helper that names stacks: %w", err)
	}
	h := &Helper{ctx: ctx, cmd: cmd, in: in, out: out, to: gob.NewEncoder(in), from: gob.NewDecoder(out)}
	context.AfterFunc(ctx, func() {
		_ = errors.Join(in.SetDeadline(time.Now()), out.SetDeadline(time.Now())) // closed already
	})
	return h, nil
}

// Remember is Symbolizer.Remember.
func (h *Helper) Remember(pid uint32) { h.ask(request{PID: pid}) }

// Name is Symbolizer.Name. Without a helper there are no frames, and nothing is final.
func (h *Helper) Name(pid uint32, addrs, top []uint64) (frames []Frame, final bool) {
	if len(addrs) == 0 {
		return nil, true
	}
	a := h.ask(request{pid, addrs, top})
	return a.Frames, a.Final
}

// Skipped says which files were given up so far.
func (h *Helper) Skipped() Skipped { return h.skipped }

// Err says why stacks are no longer named; nil: they are, or we were interrupted.
func (h *Helper) Err() error {
	if h.ctx.Err() != nil {
		return nil
	}
	return h.err
}

func (h *Helper) ask(r request) (a answer) {
	if h.err != nil {
		return answer{}
	}
	late := time.Now().Add(helperPatience)
	h.err = errors.Join(h.in.SetDeadline(late), h.out.SetDeadline(late), h.ctx.Err())
	if h.err == nil {
		h.err = h.to.Encode(r)
	}
	if h.err == nil {
		h.err = h.from.Decode(&a)
	}
	if h.err != nil {
		h.err = fmt.Errorf("ask the helper that names stacks: %w", h.err)
		h.Close()
		return answer{}
	}
	h.skipped = a.Skipped
	return a
}

// Close ends the helper, from any goroutine, and does not wait for one that a file system
// keeps.
func (h *Helper) Close() { h.once.Do(h.end) }

func (h *Helper) end() {
	h.in.Close()
	h.out.Close()
	_ = h.cmd.Process.Kill() // fails if it has ended
	ended := make(chan struct{})
	go func() {
		_ = h.cmd.Wait() // that it was killed is known
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
	}
}

package symbolize

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// What the files of processes may cost. They are anybody's, and the smallest can ask for
// the most: 150 KB of compressed line tables inflate to 150 MB, one sequence of lines can
// take as long as all of them, and a file server may not answer at all.
const (
	maxFileWork   = 160 << 20 // bytes of one file that are read, inflated or run through, in a period
	maxCallWork   = 192 << 20 // of all files that one look at one process takes
	maxPeriodWork = 256 << 20 // of all processes together, in a period
	maxCallTime   = time.Second
	maxPeriodTime = time.Second
	period        = 2 * time.Second

	// maxOverruns is how often a process may take all that a call may spend.
	maxOverruns = 3

	// patience is how long one call into the kernel may take. One that takes longer
	// keeps a thread until it comes back; of these there are maxStuck at most.
	patience = 250 * time.Millisecond
	maxStuck = 32
)

var (
	errBudget    = errors.New("it takes more time or memory than may be spent on it")
	errMalformed = errors.New("it is malformed")
	errStuck     = errors.New("its file system does not answer")
	errClosed    = errors.New("too many file systems do not answer")
)

// budget is what a Symbolizer may still spend. It belongs to the Symbolizer's goroutine,
// and its files have it in common.
type budget struct {
	ctx      context.Context // of the present call
	until    time.Time       // when that has to be done
	call     int             // bytes left for it
	periods  int             // how many have begun
	began    time.Time       // the present one
	left     int             // bytes left in it
	time     time.Duration   // time left in it
	unlooked int             // bytes since the clock was looked at
	over     bool            // the present call could not do all that it wanted
	stuck    atomic.Int32    // calls into the kernel that did not come back yet
}

// begin starts a call, and returns what ends it and tells whether it has taken all that it
// may.
func (b *budget) begin(ctx context.Context) (end func() (overrun bool)) {
	now := time.Now()
	if now.Sub(b.began) >= period {
		b.began, b.left, b.time = now, maxPeriodWork, maxPeriodTime
		b.periods++
	}
	b.ctx, b.until, b.over = ctx, now.Add(min(maxCallTime, b.time)), false
	b.call, b.unlooked = maxCallWork, 0
	return func() bool {
		took := time.Since(now)
		b.time -= took
		return b.over && (b.call < 0 || took >= maxCallTime)
	}
}

// spend accounts for n bytes that are about to be read, inflated or run through.
func (b *budget) spend(n int) error {
	const look = 64 << 10
	b.call -= n
	b.left -= n
	if b.unlooked += n; b.unlooked >= look {
		b.unlooked = 0
		b.over = b.over || b.ctx.Err() != nil || time.Now().After(b.until)
	}
	if b.over = b.over || b.call < 0 || b.left < 0; b.over {
		return errBudget
	}
	return nil
}

// await runs f, which calls into the kernel and may not come back: f is to touch nothing
// that others use. drop gets what comes too late.
func await[T any](b *budget, f func() (T, error), drop func(T)) (v T, err error) {
	type result struct {
		v   T
		err error
	}
	switch {
	case b.stuck.Load() >= maxStuck:
		err = errClosed
	case b.ctx.Err() != nil:
		err = b.ctx.Err()
	case time.Now().After(b.until):
		err = errBudget
	}
	if err != nil {
		b.over = true
		return v, err
	}
	done := make(chan result, 1)
	b.stuck.Add(1)
	go func() {
		v, err := f()
		b.stuck.Add(-1)
		done <- result{v, err}
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-b.ctx.Done():
		b.over, err = true, b.ctx.Err()
	case <-late.C:
		err = errStuck
	}
	go func() {
		if r := <-done; r.err == nil {
			drop(r.v)
		}
	}()
	return v, err
}

// file is a file of a process, whoever that belongs to.
type file struct {
	s      *Symbolizer
	name   string
	r      io.ReaderAt
	period int   // of the budget, in which
	left   int   // bytes may be spent on this file
	err    error // why it is given up, if it is
}

func (s *Symbolizer) file(name string, r io.ReaderAt) *file { return &file{s: s, name: name, r: r} }

// spend is budget.spend, for this file. One that takes more than it may is given up.
func (f *file) spend(n int) error {
	if f.period != f.s.budget.periods {
		f.period, f.left = f.s.budget.periods, maxFileWork
	}
	if f.left -= n; f.left < 0 {
		f.giveUp(errBudget)
	}
	if f.err != nil {
		return f.err
	}
	return f.s.budget.spend(n)
}

// giveUp has the file never be read again.
func (f *file) giveUp(why error) {
	if f.err == nil {
		f.err = why
		f.s.skip(f.name, why)
	}
}

// ReadAt spends what it reads.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.spend(len(p)); err != nil {
		return 0, err
	}
	if _, real := f.r.(*os.File); !real {
		return f.r.ReadAt(p, off)
	}
	type part struct {
		data []byte
		err  error // behind the data, such as io.EOF
	}
	size := len(p)
	got, err := await(&f.s.budget, func() (part, error) {
		buf := make([]byte, size) // p is the caller's, who may not wait for us
		n, err := f.r.ReadAt(buf, off)
		return part{buf[:n], err}, nil
	}, func(part) {})
	if errors.Is(err, errStuck) {
		f.giveUp(err)
	}
	if err != nil {
		return 0, err
	}
	return copy(p, got.data), got.err
}

// close may send the server of the file a message and wait for the answer. What was open
// was only read.
func (f *file) close() {
	if c, ok := f.r.(io.Closer); ok {
		_, _ = await(&f.s.budget, func() (any, error) { return nil, c.Close() }, func(any) {})
	}
}

// Skipped says how many files were given up, and why one of them was.
type Skipped struct {
	Count int
	File  string // raw
	Why   string
}

// skip counts a file that is not read because it misbehaves.
func (s *Symbolizer) skip(name string, why error) {
	misbehaves := func(kind error) bool { return errors.Is(why, kind) }
	if !slices.ContainsFunc([]error{errStuck, errBudget, errMalformed, procfs.ErrAnotherFile}, misbehaves) {
		return // as most debug files, it does not exist
	}
	if s.skipped.Count++; s.skipped.Count == 1 {
		s.skipped.File, s.skipped.Why = name, why.Error()
	}
}

package recording

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// part is a file of a set.
type part struct {
	file *os.File
	boot uint64 // CLOCK_BOOTTIME of the first event; never: it has no whole one
	base int64  // the wall clock at a CLOCK_BOOTTIME of 0, in ns
}

const never = math.MaxUint64

// maxStep is by how much the wall clock of a host may be set while it is recorded. Two hosts,
// or one that was booted again, have booted further apart.
const maxStep = time.Second

// OpenSet returns a Source of a recording in several files, as a Writer makes them, in the
// order of their first events. It looks at these first, so that each has to be a regular file;
// and they have to be of one run of one host.
func OpenSet(files []*os.File) (*Source, error) {
	var set []part
	for _, f := range files {
		p, err := newPart(f)
		if err != nil {
			return nil, err
		}
		set = append(set, p)
	}
	slices.SortStableFunc(set, func(a, b part) int { return cmp.Compare(a.boot, b.boot) })
	for _, p := range set {
		if apart := time.Duration(p.base - set[0].base).Abs(); p.boot != never && apart > maxStep {
			return nil, fmt.Errorf("%s and %s are not of one run of one host: it booted at times that are %v apart. "+
				"If its clock was set meanwhile, join the files yourself: cat FILE... | tcptrace -r -", set[0].file.Name(), p.file.Name(), apart)
		}
	}
	name := fmt.Sprintf("%s and %d more", set[0].file.Name(), len(set)-1)
	return open(name, func(w io.Writer) error { return copySet(w, set) }), nil
}

// newPart looks for the first event of a file. One that is empty, or that was cut off before
// the first one was whole, is the last: that it is cut off is said when it is read.
func newPart(f *os.File) (part, error) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return part{}, fmt.Errorf("%s is not a regular file: the order of several recordings is found by their first events", f.Name())
	}
	event, err := firstEvent(io.NewSectionReader(f, 0, math.MaxInt64), f.Name())
	switch {
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return part{file: f, boot: never}, nil
	case err != nil:
		return part{}, err
	}
	return part{file: f, boot: event.BootNS, base: event.Time - int64(event.BootNS)}, nil
}

func firstEvent(r io.Reader, name string) (e tcp.Event, err error) {
	p, err := newPlain(r)
	if err != nil {
		return e, fmt.Errorf("%s: %w", name, err)
	}
	defer p.close()
	err = NewReader(p, name).Read(&e)
	return e, err
}

// copySet copies one file after the other.
func copySet(w io.Writer, set []part) error {
	for _, p := range set {
		if err := copyPlain(w, p.file); err != nil {
			return fmt.Errorf("%s: %w", p.file.Name(), err)
		}
	}
	return nil
}

package recording

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// A Source is a recording as a source of events, see pipeline.Source. All methods but Stop
// belong to one goroutine.
type Source struct {
	reader   *Reader
	input    *io.PipeWriter // to the reader; closed: the input ends here
	stopped  atomic.Bool
	next     tcp.Event // has been read, but lies behind the deadline, if waits
	waits    bool
	deadline uint64 // 0: none
	now      uint64
	boot     uint64 // BootNS of the latest event
	wall     int64  // and its Time
	states   []tcp.State
	sockets  *sockets // nil: nobody will ask what exists
}

// Open returns a Source of the recording in r, which errors call name. What is compressed
// with gzip or zstd is decompressed, which takes up to 16 MB of memory. Open takes a
// goroutine, which lasts until r has ended, or until the first read of r that returns
// after Stop: so a Source whose input blocks can be stopped.
func Open(r io.Reader, name string) *Source {
	return open(name, func(w io.Writer) error { return copyPlain(w, r) })
}

// open returns a Source of what read copies to its argument.
func open(name string, read func(io.Writer) error) *Source {
	out, in := io.Pipe()
	go func() {
		in.CloseWithError(read(in)) // nil is io.EOF
	}()
	return &Source{reader: NewReader(out, name), input: in}
}

// Track prepares for Existing: the sockets in these states are kept as they are read. It
// must be called before the first Read. Their number is bounded, at 262144, and so is what
// they take: 80 MB; see Forgotten.
func (s *Source) Track(states ...tcp.State) {
	s.states, s.sockets = states, newSockets()
}

// Read fills in the next event. It blocks until the input has a whole line. It returns
// io.EOF at the end, and os.ErrDeadlineExceeded if the next event is later than the
// deadline. Any other error names the line and is final. *e is not changed then.
func (s *Source) Read(e *tcp.Event) error {
	if !s.waits {
		err := s.reader.Read(&s.next)
		if errors.Is(err, errCutOff) && s.stopped.Load() {
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
	if s.waits = s.deadline != 0 && s.next.BootNS > s.deadline; s.waits {
		s.now = max(s.now, s.deadline)
		return os.ErrDeadlineExceeded
	}
	*e = s.next
	if e.BootNS >= s.boot { // events of different processors may be slightly out of order
		s.boot, s.wall = e.BootNS, e.Time
	}
	s.now = max(s.now, e.BootNS)
	if s.sockets != nil && e.Kind.OfSocket() {
		s.sockets.observe(e, slices.Contains(s.states, e.New))
	}
	return nil
}

// More reports whether Read would not block.
func (s *Source) More() bool { return s.waits || s.reader.More() }

// SetDeadline makes Read give up instead of going past a time, of CLOCK_BOOTTIME in ns; 0
// means never. Then Now and Existing speak of that time.
func (s *Source) SetDeadline(boot uint64) { s.deadline = boot }

// Now is the time of CLOCK_BOOTTIME in ns up to which the recording has been read: that
// of the latest event, or a deadline that was reached. It is 0 before the first event.
func (s *Source) Now() uint64 { return s.now }

// Existing hands a row for each socket that is in one of the states, as of Now, to emit:
// those that the events read so far leave in it, in the order in which they first came into
// a state of Track. A row has what is known of the socket but its counters and queues, and
// is valid until emit returns. States that Track did not name are an error.
func (s *Source) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	for _, state := range states {
		if !slices.Contains(s.states, state) {
			return fmt.Errorf("cannot list sockets in %v: the recording was read without keeping them", state)
		}
	}
	if s.sockets == nil {
		return nil
	}
	var e tcp.Event
	wall := s.wall + int64(s.now-s.boot)
	for life := range s.sockets.lives.All() {
		if !slices.Contains(states, life.State) {
			continue
		}
		e = tcp.Event{Kind: tcp.Socket, Time: wall, BootNS: s.now, New: life.State}
		life.Identify(&e)
		life.Value.fill(&e)
		if err := emit(&e); err != nil {
			return err
		}
	}
	return nil
}

// Forgotten returns how many sockets found no place in memory, so that Existing cannot
// list them: the oldest ones.
func (s *Source) Forgotten() uint64 {
	if s.sockets == nil {
		return 0
	}
	return s.sockets.forgotten
}

// Stop makes Read return the whole lines that it has got already, then io.EOF. Any
// goroutine may call it, and any number of times.
func (s *Source) Stop() {
	s.stopped.Store(true)
	s.input.Close() // never fails
}

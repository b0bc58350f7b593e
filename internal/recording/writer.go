package recording

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// flushInterval is how old what was written may be before a reader of the file gets it: a
// process that is killed loses no more.
const flushInterval = time.Second

// maxPending bounds what waits for a slow disk. When it is full Write waits, and the kernel
// counts what its ring has no room for.
const maxPending = 4 << 20

// maxPiece is what is written at once: so much larger than WriterConfig.Size can a file get.
const maxPiece = 64 << 10

// WriterConfig says where a Writer writes.
type WriterConfig struct {
	// Files are open for writing, and empty. They are written one after the other, then again
	// from the first on, each emptied before. The name of the first says how all are
	// compressed: it ends in .gz, in .zst, or otherwise.
	Files  []*os.File
	Size   int64  // a file that has so many bytes is full; 0: none ever is
	Failed func() // called once, from another goroutine, when no more can be written
}

// A Writer writes a recording, of which it is given whole lines. A goroutine of its own
// compresses and writes, so that a disk that is slow for a moment holds nobody up. Write and
// Close belong to one goroutine; CloseWithin may be called from another.
type Writer struct {
	WriterConfig
	out     compressor
	at      int   // index of the file
	written int64 // bytes of it

	mu      sync.Mutex
	pending []byte     // lines that Write has got
	room    *sync.Cond // pending was taken
	closed  error      // what Write says when nothing more can be written
	wake    chan struct{}
	quit    chan struct{}
	once    sync.Once
	done    chan struct{} // the goroutine has ended
	err     error         // what Close says then
}

// NewWriter returns a Writer. Close it, which closes the files as well.
func NewWriter(c WriterConfig) (*Writer, error) {
	w := &Writer{WriterConfig: c, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	w.room = sync.NewCond(&w.mu)
	var err error
	if w.out, err = newCompressor(c.Files[0].Name(), (*currentFile)(w)); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	go w.run()
	return w, nil
}

// currentFile counts what is written to the file.
type currentFile Writer

func (f *currentFile) Write(p []byte) (int, error) {
	n, err := f.Files[f.at].Write(p)
	f.written += int64(n)
	return n, err
}

// Write takes whole lines, and waits if too many wait already. An error says that lines from
// before could not be written.
func (w *Writer) Write(lines []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pending) > 0 && len(w.pending)+len(lines) > maxPending && w.closed == nil {
		w.room.Wait()
	}
	if w.closed != nil {
		return 0, w.closed
	}
	w.pending = append(w.pending, lines...)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(lines), nil
}

// Close writes what is left and ends the recording.
func (w *Writer) Close() error {
	w.once.Do(func() { close(w.quit) })
	<-w.done
	return w.err
}

// errSlow says that Close would hang.
var errSlow = errors.New("the disk does not answer: the recording was not finished")

// CloseWithin is Close that waits no longer than that.
func (w *Writer) CloseWithin(limit time.Duration) error {
	w.once.Do(func() { close(w.quit) })
	select {
	case <-w.done:
		return w.err
	case <-time.After(limit):
		return errSlow
	}
}

// run writes until there is an error or no more to write.
func (w *Writer) run() {
	err := w.all()
	for _, f := range w.Files {
		err = errors.Join(err, f.Close())
	}
	w.mu.Lock()
	w.err, w.closed = err, cmp.Or(err, os.ErrClosed)
	w.room.Broadcast()
	w.mu.Unlock()
	close(w.done)
	if err != nil {
		w.Failed()
	}
}

func (w *Writer) all() error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var lines []byte
	fresh := false // something was written since the last tick
	for {
		var err error
		select {
		case <-w.wake:
			lines, fresh = w.take(lines), true
			err = w.put(lines)
		case <-tick.C:
			if fresh {
				fresh, err = false, w.out.Flush()
			}
		case <-w.quit:
			if err = w.put(w.take(lines)); err == nil {
				return w.out.Close()
			}
		}
		if err != nil {
			return err
		}
	}
}

// take returns what waits. In its place comes spare, which is used again.
func (w *Writer) take(spare []byte) (lines []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines, w.pending = w.pending, spare[:0]
	w.room.Broadcast()
	return lines
}

// put writes lines, into the next file where one is full.
func (w *Writer) put(lines []byte) error {
	for len(lines) > 0 {
		piece := lines
		if end := bytes.LastIndexByte(lines[:min(len(lines), maxPiece)], '\n'); end >= 0 {
			piece = lines[:end+1]
		}
		lines = lines[len(piece):]
		if w.Size != 0 && w.written >= w.Size {
			if err := w.rotate(); err != nil {
				return err
			}
		}
		if _, err := w.out.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// rotate ends a file, and begins the one that has waited longest.
func (w *Writer) rotate() error {
	if err := w.out.Close(); err != nil {
		return err
	}
	w.at, w.written = (w.at+1)%len(w.Files), 0
	file := w.Files[w.at]
	if err := file.Truncate(0); err != nil {
		return err
	}
	if _, err := file.Seek(0, 0); err != nil {
		return err
	}
	w.out.Reset((*currentFile)(w))
	return nil
}

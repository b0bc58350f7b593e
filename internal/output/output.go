// Package output writes events, connections and reports as aligned columns, CSV or JSON
// lines. Behind columns and CSV stands one machinery, see table.go; the names of the
// fields are those of JSON. Nothing here asks the system anything: what is printed is
// what it is given.
//
// Process names, cgroup paths and replayed files are hostile input. No writer
// passes on a character that a terminal would act on.
//
// The writers of events allocate nothing per event. None is safe for concurrent use.
package output

import (
	"fmt"
	"io"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Options says which columns are shown by Columns and CSV.
type Options struct {
	Time     bool   // TIME: local wall clock, HH:MM:SS
	Date     bool   // TIME with the date and microseconds
	Since    bool   // SECONDS since Start
	Start    uint64 // CLOCK_BOOTTIME in ns; 0: that of the first event
	Wide     bool   // room for IPv6 addresses and whole process names; adds FAMILY
	Extended bool   // adds everything else that is known of the socket
	Sockets  bool   // rows are sockets as they are, not transitions
}

// bufferSize is what a writer collects before it writes on its own account.
const bufferSize = 64 << 10

// buffer collects whole lines for w.
type buffer struct {
	w     io.Writer
	lines []byte
}

func newBuffer(w io.Writer) buffer {
	// The line that crosses the mark must fit as well, or the buffer grows once.
	return buffer{w: w, lines: make([]byte, 0, bufferSize+4<<10)}
}

// Flush writes what is buffered, a header included. What could not be written
// is dropped.
func (b *buffer) Flush() error {
	if len(b.lines) == 0 {
		return nil
	}
	_, err := b.w.Write(b.lines)
	b.lines = b.lines[:0]
	return err
}

// keep takes back the lines that a writer has appended to.
func (b *buffer) keep(lines []byte) error {
	b.lines = lines
	if len(lines) < bufferSize {
		return nil
	}
	return b.Flush()
}

// checkKind refuses what cannot be written, before anything is.
func checkKind(k tcp.Kind) error {
	if k > tcp.Unseen {
		return fmt.Errorf("cannot write an event of the unknown kind %d", k)
	}
	return nil
}

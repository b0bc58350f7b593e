package recording

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// created makes empty files in a new folder.
func created(t *testing.T, names ...string) (files []*os.File) {
	t.Helper()
	folder := t.TempDir()
	for _, name := range names {
		f, err := os.Create(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func newWriter(t *testing.T, size int64, files ...*os.File) *Writer {
	t.Helper()
	w, err := NewWriter(WriterConfig{Files: files, Size: size, Failed: func() { t.Error("it has failed") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// numbered is a line of a transition at this second, of a socket with this cookie.
func numbered(t *testing.T, n uint64) string {
	t.Helper()
	return lines(t, at(n, n, tcp.Close, tcp.SynSent, "10.0.0.1:40", "10.0.0.2:80"))
}

// writeMany writes n of them, one after the other.
func writeMany(t *testing.T, w *Writer, n int) {
	t.Helper()
	var events []tcp.Event
	for i := range n {
		events = append(events, at(uint64(i+1), uint64(i+1), tcp.Close, tcp.SynSent, "10.0.0.1:40", "10.0.0.2:80"))
	}
	for line := range strings.Lines(lines(t, events...)) {
		write(t, w, line)
	}
}

func write(t *testing.T, w *Writer, text string) {
	t.Helper()
	if n, err := w.Write([]byte(text)); err != nil || n != len(text) {
		t.Fatalf("%d of %d bytes: %v", n, len(text), err)
	}
}

func fileOf(t *testing.T, f *os.File) []byte {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWriter(t *testing.T) {
	for name, magic := range map[string]string{"rec.json": `{"v":1`, "rec.json.gz": gzipMagic, "rec.zst": zstdMagic} {
		files := created(t, name)
		w := newWriter(t, 0, files...)
		writeMany(t, w, 1000)
		if err := errors.Join(w.Close(), w.Close(), w.CloseWithin(time.Hour)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		data := fileOf(t, files[0])
		events, err := readAll(data)
		if err != nil || len(events) != 1000 || events[999].Cookie != 1000 || !bytes.HasPrefix(data, []byte(magic)) {
			t.Errorf("%s: %d events: %v", name, len(events), err)
		}
	}
}

// Nothing at all is a recording, too.
func TestWriterOfNothing(t *testing.T) {
	for _, name := range []string{"rec.json", "rec.gz", "rec.zst"} {
		files := created(t, name)
		if err := newWriter(t, 0, files...).Close(); err != nil {
			t.Error(err)
		}
		if events, err := readAll(fileOf(t, files[0])); err != nil || len(events) > 0 {
			t.Errorf("%s: %v, %v", name, events, err)
		}
	}
}

// A process that is killed loses what it wrote within the last second, and no more: what is
// in the file is read up to there, and then it is said that it was cut off.
func TestWriterOfAKilledProcess(t *testing.T) {
	for name, want := range map[string]string{"rec.json": "", "rec.gz": "the gzip data is cut off", "rec.zst": "the zstd data is cut off"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := created(t, name)
			w := newWriter(t, 0, files...)
			writeMany(t, w, 100)
			time.Sleep(flushInterval * 3 / 2)
			data := fileOf(t, files[0])
			events, err := readAll(data)
			if len(events) != 100 || (err == nil) != (want == "") {
				t.Errorf("%d events: %v", len(events), err)
			}
			if want != "" && (!errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// However many bytes of a file reached the disk, it gives the events from before, in order,
// and says that it is cut off. Of plain text nothing tells where a line is missing.
func TestWriterCutAnywhere(t *testing.T) {
	for _, name := range []string{"rec.json", "rec.gz", "rec.zst"} {
		files := created(t, name)
		w := newWriter(t, 0, files...)
		writeMany(t, w, 200)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data := fileOf(t, files[0])
		for length := 1; length < len(data); length += 1 + len(data)/99 {
			events, err := readAll(data[:length])
			for i, e := range events {
				if e.Cookie != uint64(i+1) {
					t.Fatalf("%s, %d bytes: event %d is %d", name, length, i+1, e.Cookie)
				}
			}
			if name == "rec.json" && (data[length-1] == '\n' || data[length] == '\n') {
				continue
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) && length >= len(zstdMagic) {
				t.Errorf("%s, %d of %d bytes: %v", name, length, len(data), err)
			}
		}
	}
}

// A file that is full is followed by the next one. Each has whole events, and in the end they
// have the last ones. They are read in any order.
func TestRotation(t *testing.T) {
	const size, last = 4 << 10, 10000 // which compress to 40 KB, more or less with time
	for _, suffix := range []string{"", ".gz", ".zst"} {
		t.Run("suffix "+suffix, func(t *testing.T) {
			files := created(t, "rec.1"+suffix, "rec.2"+suffix, "rec.3"+suffix)
			w := newWriter(t, size, files...)
			writeMany(t, w, last)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			var again []*os.File
			for _, i := range []int{1, 2, 0} {
				if n := len(fileOf(t, files[i])); n == 0 || n > size+maxPiece {
					t.Errorf("%s has %d bytes", files[i].Name(), n)
				}
				f, err := os.Open(files[i].Name())
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				again = append(again, f)
			}
			events := setOf(t, again...)
			if len(events) == 0 || len(events) == last || events[len(events)-1].Cookie != last {
				t.Fatalf("%d events", len(events))
			}
			for i, e := range events {
				if e.Cookie != events[0].Cookie+uint64(i) {
					t.Fatalf("event %d is %d after %d", i, e.Cookie, events[i-1].Cookie)
				}
			}
		})
	}
}

// setOf returns the events of a set.
func setOf(t *testing.T, files ...*os.File) (events []tcp.Event) {
	t.Helper()
	s, err := OpenSet(files)
	for err == nil {
		var e tcp.Event
		if err = s.Read(&e); err == nil {
			events = append(events, e)
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	return events
}

// written makes a file with this content.
func written(t *testing.T, name, content string) *os.File {
	t.Helper()
	f := created(t, name)[0]
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpenSet(t *testing.T) {
	first, second := written(t, "b", numbered(t, 1)+numbered(t, 2)), written(t, "a", numbered(t, 3))
	events := setOf(t, second, written(t, "empty", ""), first)
	if len(events) != 3 || events[0].Cookie != 1 || events[2].Cookie != 3 {
		t.Errorf("got %v", events)
	}
	if events := setOf(t, written(t, "empty", ""), written(t, "as well", "")); len(events) > 0 {
		t.Errorf("got %v", events)
	}
}

// The newest file of a process that was killed may have no whole event yet.
func TestOpenSetCutOff(t *testing.T) {
	for name, torn := range map[string][]byte{
		"plain": []byte(numbered(t, 9)[:20]), "gzip": gzipped(t, numbered(t, 9))[:12], "zstd": zstded(t, numbered(t, 9))[:12],
	} {
		s, err := OpenSet([]*os.File{written(t, "torn", string(torn)), written(t, "whole", numbered(t, 1))})
		if err != nil {
			t.Fatal(name, err)
		}
		var e tcp.Event
		if err := s.Read(&e); err != nil || e.Cookie != 1 {
			t.Errorf("%s: %v, %v", name, e, err)
		}
		if err := s.Read(&e); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOpenSetErrors(t *testing.T) {
	later := at(100, 7, tcp.Close, tcp.SynSent, "10.0.0.1:40", "10.0.0.2:80")
	later.Time += int64(2 * maxStep)
	device, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	one := written(t, "one", numbered(t, 1))
	for want, other := range map[string]*os.File{
		"not of one run of one host": written(t, "other", lines(t, later)),
		"not a regular file":         device,
		"not a JSON object":          written(t, "text", "no\n"),
		"gzip: invalid header":       written(t, "no.gz", gzipMagic+"no, not at all"),
	} {
		if _, err := OpenSet([]*os.File{one, other}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A disk that takes no more is an error, of the first Write that comes to know and of Close;
// and who only waits for events is called.
func TestWriterThatFails(t *testing.T) {
	for _, name := range []string{"rec", "rec.gz", "rec.zst"} {
		path := created(t, name)[0].Name()
		file, err := os.Open(path) // not for writing
		if err != nil {
			t.Fatal(err)
		}
		var failed atomic.Int32
		called := make(chan struct{}, 9)
		w, err := NewWriter(WriterConfig{Files: []*os.File{file}, Failed: func() { failed.Add(1); called <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		write(t, w, numbered(t, 1))
		select {
		case <-called: // zstd writes with the flush
		case <-time.After(30 * time.Second):
			t.Fatal("nobody was told")
		}
		if _, err := w.Write([]byte(numbered(t, 2))); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := w.Close(); err == nil || failed.Load() != 1 {
			t.Errorf("%s: Close: %v, called %d times", name, err, failed.Load())
		}
	}
}

// A disk that hangs holds up neither what is traced, for a while, nor the end.
func TestWriterThatHangs(t *testing.T) {
	reader, file, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, 0, file)
	line := numbered(t, 1)
	block := strings.Repeat(line, 1000)
	for total := 0; total+len(block) < maxPending; total += len(block) {
		write(t, w, block)
	}
	if err := w.CloseWithin(50 * time.Millisecond); !errors.Is(err, errSlow) {
		t.Errorf("got %v", err)
	}
	full := make(chan struct{})
	go func() {
		for range 10 {
			w.Write([]byte(block))
		}
		w.Write(make([]byte, maxPending)) // waits until there is room
		close(full)
	}()
	select {
	case <-full:
		t.Error("what waits is not bounded")
	case <-time.After(50 * time.Millisecond):
	}
	go io.Copy(io.Discard, reader) // the disk is back
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestWriterAllocatesNothing(t *testing.T) {
	w := newWriter(t, 64<<10, created(t, "rec.1.zst", "rec.2.zst")...)
	block := []byte(strings.Repeat(numbered(t, 1), 100))
	for range 2000 {
		w.Write(block)
	}
	if n := testing.AllocsPerRun(2000, func() { w.Write(block) }); n > 0.1 {
		t.Errorf("%v allocations for 100 lines", n)
	}
}

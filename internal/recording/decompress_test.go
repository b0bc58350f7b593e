package recording

import (
	"bytes"
	"compress/gzip"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	return compress(t, &b, w, text)
}

func zstded(t testing.TB, text string, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, options...)
	if err != nil {
		t.Fatal(err)
	}
	return compress(t, &b, w, text)
}

func compress(t testing.TB, b *bytes.Buffer, w io.WriteCloser, text string) []byte {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// readAll returns what a Source makes of a file.
func readAll(data []byte) (events []tcp.Event, err error) {
	s := Open(bytes.NewReader(data), "rec")
	for {
		var e tcp.Event
		if err := s.Read(&e); err == io.EOF {
			return events, nil
		} else if err != nil {
			return events, err
		}
		events = append(events, e)
	}
}

func TestCompressedRecording(t *testing.T) {
	text := lines(t, closed, lost)
	for name, data := range map[string][]byte{
		"plain":            []byte(text),
		"gzip":             gzipped(t, text),
		"gzip, in members": append(gzipped(t, text[:10]), gzipped(t, text[10:])...), // as `cat a.gz b.gz` makes it
		"zstd":             zstded(t, text),
		"zstd, in frames":  append(zstded(t, text[:10]), zstded(t, text[10:])...),
	} {
		events, err := readAll(data)
		if err != nil || len(events) != 2 || events[0].Cookie != closed.Cookie || events[1].Kind != tcp.Lost {
			t.Errorf("%s: %+v, %v", name, events, err)
		}
	}
}

func TestDamagedCompression(t *testing.T) {
	text := lines(t, closed)
	text = strings.Repeat(text, 5000)
	big := zstded(t, strings.Repeat(text, 10), zstd.WithWindowSize(2*zstdWindow), zstd.WithSingleSegment(false))
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"gzip cut off":    {cut(gzipped(t, text)), "reading: the gzip data is cut off: the file was not finished"},
		"zstd cut off":    {cut(zstded(t, text)), "reading: the zstd data is cut off: the file was not finished"},
		"gzip is not it":  {[]byte(gzipMagic + "no, not at all"), "reading: decompress with gzip: gzip: invalid header"},
		"zstd is not it":  {[]byte(zstdMagic + "\xff\xff\xff\xff"), "reading: decompress with zstd: "},
		"zstd of windows": {big, "reading: the zstd data needs a window of more than 8 MB"},
	} {
		_, err := readAll(test.data)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// cut takes the second half of a file away.
func cut(data []byte) []byte { return data[:len(data)/2] }

// A small file that decompresses to a huge one is one line that is too long, and no more.
func TestDecompressionIsBounded(t *testing.T) {
	bomb := gzipped(t, strings.Repeat("x", 64<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readAll(bomb)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
		t.Errorf("a file of %d bytes made the reader allocate %d MB", len(bomb), took>>20)
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte("{\"v\":1}\n"))
	f.Add(gzipped(f, "{\"v\":1}\n"))
	f.Add(zstded(f, "{\"v\":1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		readAll(data)
	})
}

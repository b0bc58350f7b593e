package recording

import (
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A compressor is one stream of compressed data after the other. Flush writes what it has
// taken, so that a reader gets it; Close ends the stream; Reset begins the next one.
type compressor interface {
	io.Writer
	Flush() error
	Close() error
	Reset(io.Writer)
}

// The suffixes of names that stand for a compression.
const (
	gzipSuffix = ".gz"
	zstdSuffix = ".zst"
)

// CutSuffix takes from a name the suffix that stands for a compression, if there is one.
func CutSuffix(name string) (rest, suffix string) {
	for _, suffix := range []string{gzipSuffix, zstdSuffix} {
		if rest, is := strings.CutSuffix(name, suffix); is {
			return rest, suffix
		}
	}
	return name, ""
}

// newCompressor returns that of a name. It is one for a file that grows while events are
// traced: little memory, and little work for each.
func newCompressor(name string, w io.Writer) (compressor, error) {
	switch _, suffix := CutSuffix(name); suffix {
	case gzipSuffix:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case zstdSuffix:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	}
	return &plainWriter{w}, nil
}

// plainWriter does not compress.
type plainWriter struct{ io.Writer }

func (p *plainWriter) Flush() error      { return nil }
func (p *plainWriter) Close() error      { return nil }
func (p *plainWriter) Reset(w io.Writer) { p.Writer = w }

package recording

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// The first bytes of what Open decompresses: RFC 1952 section 2.3.1, RFC 8878 section
// 3.1.1.
const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// zstdWindow bounds what one decoder holds. `zstd -19` needs 8 MB; `zstd --long` needs
// more, which a stranger's file must not be able to ask for.
const zstdWindow = 8 << 20

// plain reads what is compressed with gzip or zstd as what it was before, and everything
// else as it is. It holds little however much comes out. Close it.
type plain struct {
	io.Reader
	format string // "" if it is not compressed
	close  func()
}

func newPlain(r io.Reader) (plain, error) {
	in := bufio.NewReader(r)
	begin, err := in.Peek(len(zstdMagic))
	if err != nil && err != io.EOF { // what is shorter is for the Reader to judge
		return plain{}, err
	}
	switch {
	case bytes.HasPrefix(begin, []byte(gzipMagic)):
		z, err := gzip.NewReader(in)
		return plain{z, "gzip", func() {}}, decompressing("gzip", err)
	case bytes.HasPrefix(begin, []byte(zstdMagic)):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		return plain{z, "zstd", z.Close}, decompressing("zstd", err)
	}
	return plain{in, "", func() {}}, nil
}

func (p plain) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if p.format != "" && err != io.EOF {
		err = decompressing(p.format, err)
	}
	return n, err
}

// copyPlain copies what r reads as plain to w.
func copyPlain(w io.Writer, r io.Reader) error {
	p, err := newPlain(r)
	if err != nil {
		return err
	}
	defer p.close()
	_, err = io.Copy(w, p)
	return err
}

// cutOffError says that a recording ends before its end: the process that wrote it was
// killed. It is an io.ErrUnexpectedEOF.
type cutOffError string

func (e cutOffError) Error() string      { return string(e) }
func (cutOffError) Is(target error) bool { return target == io.ErrUnexpectedEOF }

// decompressing adds to an error what was attempted.
func decompressing(format string, err error) error {
	switch {
	case err == nil, errors.Is(err, io.ErrClosedPipe): // the Source was stopped
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return cutOffError("the " + format + " data is cut off: the file was not finished")
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return errors.New("the zstd data needs a window of more than 8 MB: try zstdcat --long=31 FILE | tcptrace -r -")
	}
	return fmt.Errorf("decompress with %s: %w", format, err)
}

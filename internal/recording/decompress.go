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

// copyPlain copies r to w, decompressed if it is compressed with gzip or zstd. It holds
// little however much comes out.
func copyPlain(w io.Writer, r io.Reader) error {
	in := bufio.NewReader(r)
	begin, err := in.Peek(len(zstdMagic))
	if err != nil && err != io.EOF { // what is shorter is for the Reader to judge
		return err
	}
	switch {
	case bytes.HasPrefix(begin, []byte(gzipMagic)):
		z, err := gzip.NewReader(in)
		if err != nil {
			return decompressing("gzip", err)
		}
		_, err = io.Copy(w, z)
		return decompressing("gzip", err)
	case bytes.HasPrefix(begin, []byte(zstdMagic)):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return decompressing("zstd", err)
		}
		defer z.Close()
		_, err = io.Copy(w, z)
		return decompressing("zstd", err)
	}
	_, err = io.Copy(w, in)
	return err
}

// decompressing adds to an error what was attempted.
func decompressing(format string, err error) error {
	switch {
	case err == nil, errors.Is(err, io.ErrClosedPipe): // the Source was stopped
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the %s data is cut off: the file was not finished", format)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return errors.New("the zstd data needs a window of more than 8 MB: try zstdcat --long=31 FILE | tcptrace -r -")
	}
	return fmt.Errorf("decompress with %s: %w", format, err)
}

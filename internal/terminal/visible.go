package terminal

import (
	"math"
	"os"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// AppendVisible appends s so that a terminal shows it and acts on none of it:
// what is not printable becomes an escape (\n, \x1b, \u202e), and so does a byte
// that is no UTF-8. It stops before the character that would pass limit. A
// backslash stays as it is, because cgroup paths are full of them (\x2d): what is
// visible already is not changed any more.
func AppendVisible(b []byte, s string, limit int) []byte {
	plain := 0 // most text is nothing but ASCII
	for plain < min(len(s), limit) && s[plain] >= ' ' && s[plain] < 0x7f {
		plain++
	}
	b, s, limit = append(b, s[:plain]...), s[plain:], limit-plain
	for s != "" && limit > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if isVisible(r, size) {
			b = append(b, s[:size]...)
			limit--
		} else {
			start := len(b)
			b = appendEscape(b, r, s[:size])
			if limit -= len(b) - start; limit < 0 {
				return b[:start]
			}
		}
		s = s[size:]
	}
	return b
}

// Visible returns s as AppendVisible writes it. It is one line whatever s is.
func Visible(s string) string { return string(AppendVisible(nil, s, math.MaxInt)) }

// isVisible tells of r, which was decoded from size bytes.
func isVisible(r rune, size int) bool {
	return strconv.IsPrint(r) && (r != utf8.RuneError || size > 1)
}

// appendEscape appends the escape of r, which was encoded as raw.
func appendEscape(b []byte, r rune, raw string) []byte {
	const digits = "0123456789abcdef"
	if r == utf8.RuneError && len(raw) == 1 {
		return append(b, '\\', 'x', digits[raw[0]>>4], digits[raw[0]&15])
	}
	start := len(b)
	b = strconv.AppendQuoteRune(b, r)
	return append(b[:start], b[start+1:len(b)-1]...) // without the quotes
}

// ActsOn tells of the characters beyond ASCII on which a terminal acts: the C1 controls,
// what turns the direction of writing, and the line separators.
func ActsOn(r rune) bool {
	return r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}

// A Writer writes text to a file that may be a terminal, or is looked at on one later. Of
// what is not visible it passes on newlines and tabs alone: nothing that a program, a file
// or a user has put into the text acts on the terminal. Who writes a line with foreign text
// makes that Visible first, or the text could add lines of its own.
type Writer struct{ file *os.File }

// NewWriter returns a writer to file.
func NewWriter(file *os.File) *Writer { return &Writer{file} }

// File returns the file itself, for what escapes its text or writes sequences of its own.
func (w *Writer) File() *os.File { return w.file }

// Write writes p at once. A character must not be split between two calls.
func (w *Writer) Write(p []byte) (n int, err error) {
	if _, err := w.file.Write(appendText(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// appendText is AppendVisible for text of many lines.
func appendText(b, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == '\n' || r == '\t' || isVisible(r, size) {
			b = append(b, text[:size]...)
		} else {
			b = appendEscape(b, r, string(text[:size]))
		}
		text = text[size:]
	}
	return b
}

package output

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

// appendVisible appends s so that a terminal shows it and acts on none of it:
// what is not printable becomes an escape (\n, \x1b, \u202e), and so does a byte
// that is no UTF-8. It stops before the character that would pass limit. A
// backslash stays as it is, because cgroup paths are full of them (\x2d).
func appendVisible(b []byte, s string, limit int) []byte {
	plain := 0 // most text is nothing but ASCII
	for plain < min(len(s), limit) && s[plain] >= ' ' && s[plain] < 0x7f {
		plain++
	}
	b, s, limit = append(b, s[:plain]...), s[plain:], limit-plain
	for s != "" && limit > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if strconv.IsPrint(r) && (r != utf8.RuneError || size > 1) {
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

// appendEscape appends the escape of r, which was encoded as raw.
func appendEscape(b []byte, r rune, raw string) []byte {
	if r == utf8.RuneError && len(raw) == 1 {
		return append(b, '\\', 'x', hexDigits[raw[0]>>4], hexDigits[raw[0]&15])
	}
	start := len(b)
	b = strconv.AppendQuoteRune(b, r)
	return append(b[:start], b[start+1:len(b)-1]...) // without the quotes
}

// appendJSON appends s as a JSON string without the quotes around it. The bytes are those of encoding/json
// without HTML escaping, but for two kinds of characters, which are escaped and
// stay the same to a JSON parser: those that a terminal would act on, and U+FFFD
// itself, so that what was invalid UTF-8 is written alike the second time.
//
// By hand, because a json.Encoder takes five times as long for a short string, and
// a line has a dozen.
func appendJSON(b []byte, s string) []byte {
	done := 0 // s[:done] is written
	for i := 0; i < len(s); {
		if plainJSON[s[i]] {
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r <= 0x7f || actsOnTerminal(r) || r == utf8.RuneError {
			b = append(b, s[done:i]...)
			b = appendJSONEscape(b, r)
			done = i + size
		}
		i += size
	}
	return append(b, s[done:]...)
}

// plainJSON holds the bytes that are written as they are, wherever they occur.
var plainJSON = func() (plain [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// appendJSONEscape appends the escape of r, which is below U+10000.
func appendJSONEscape(b []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\b':
		return append(b, '\\', 'b')
	case '\f':
		return append(b, '\\', 'f')
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}

// actsOnTerminal tells of the characters beyond ASCII: the C1 controls, what
// turns the direction of writing, and the line separators.
func actsOnTerminal(r rune) bool {
	return r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}

const hexDigits = "0123456789abcdef"

// Visible returns s so that a terminal shows it and acts on none of it.
func Visible(s string) string {
	return string(appendVisible(nil, s, 4*len(s)+16))
}

// Text is a string that is written to JSON as the events' strings are: nothing in
// it acts on a terminal either.
type Text string

// MarshalJSON never fails.
func (t Text) MarshalJSON() ([]byte, error) {
	return append(appendJSON([]byte{'"'}, string(t)), '"'), nil
}

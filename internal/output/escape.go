package output

import (
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/terminal"
)

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
		if r <= 0x7f || terminal.ActsOn(r) || r == utf8.RuneError {
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

const hexDigits = "0123456789abcdef"

// Text is a string that is written to JSON as the events' strings are: nothing in
// it acts on a terminal either.
type Text string

// MarshalJSON never fails.
func (t Text) MarshalJSON() ([]byte, error) {
	return append(appendJSON([]byte{'"'}, string(t)), '"'), nil
}

package output

import "testing"

func TestWrap(t *testing.T) {
	const text = "a title that is long\n\nPID     COMM            STATE\n        one two three four\n"
	const want = "a title that is\nlong\n\nPID     COMM            STATE\n        one two\n        three\n        four\n"
	if got := Wrap(text, 15); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

package terminal

import (
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

// hostile is everything that a terminal acts on, once each, and how it is shown.
var hostile = map[string]string{
	"\x1b[2J":          `\x1b[2J`,          // CSI: the screen is cleared
	"\x1b]0;pwned\a":   `\x1b]0;pwned\a`,   // OSC: the window gets a title
	"\x9b2J":           `\x9b2J`,           // CSI as a byte of its own
	"\u009b2J":         `\u009b2J`,         // and in UTF-8
	"\u0085":           `\u0085`,           // NEL, a new line
	"\r":               `\r`,               // what follows is written over what was there
	"\b\x7f":           `\b\x7f`,           // likewise
	"\a\x00\x0e":       `\a\x00\x0e`,       // a bell; SO, the other character set
	"\u202e\u2066":     `\u202e\u2066`,     // from right to left
	"\u200f\u061c":     `\u200f\u061c`,     // likewise
	"\u2028\u2029":     `\u2028\u2029`,     // line separators
	"\xff\xc0\x80\xe2": `\xff\xc0\x80\xe2`, // no UTF-8
	"\U000e0041\ufeff": `\U000e0041\ufeff`, // invisible
	"日本 é nginx \\x2d": "日本 é nginx \\x2d", // harmless
}

func TestVisible(t *testing.T) {
	for in, want := range hostile {
		if got := Visible(in); got != want {
			t.Errorf("Visible(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Visible("a\nb\tc"); got != `a\nb\tc` {
		t.Errorf("got %q: more than one line", got)
	}
}

func TestVisibleIsCut(t *testing.T) {
	for _, c := range []struct {
		line  string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"äöü", 2, "äö"}, {"", 0, ""}, {"a\x1b", 4, "a"}} {
		if got := string(AppendVisible(nil, c.line, c.width)); got != c.want {
			t.Errorf("AppendVisible(%q, %d) = %q, want %q", c.line, c.width, got, c.want)
		}
	}
}

// written is what a Writer makes of text.
func written(t *testing.T, text string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := NewWriter(w).Write([]byte(text)); err != nil || n != len(text) {
		t.Errorf("Write(%q) = %d, %v", text, n, err)
	}
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestWriter(t *testing.T) {
	for in, want := range hostile {
		if got := written(t, "a\t"+in+"\n"); got != "a\t"+want+"\n" {
			t.Errorf("%q is written as %q, want %q between a tab and a newline", in, got, want)
		}
	}
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if n, err := NewWriter(closed).Write([]byte("x")); err == nil || n != 0 {
		t.Errorf("a write that failed returned %d, %v", n, err)
	}
}

// A screen shows its own sequences and nobody else's.
func TestScreenShowsHostileText(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := OpenScreen(r, w)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for in := range hostile {
		text.WriteString(in + "\n")
	}
	if err := s.Draw(text.String()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	shown, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	own := strings.NewReplacer(enterScreen, "", leaveScreen, "", home, "", clearLine, "", clearBelow, "", string(Bold), "", string(Plain), "", "\r\n", "")
	if left := own.Replace(string(shown)); Visible(left) != left {
		t.Errorf("beside its own sequences the screen shows %q", left)
	}
}

// Whatever the text is, what is Visible is UTF-8 on one line and stays as it is.
func FuzzVisible(f *testing.F) {
	for in := range hostile {
		f.Add(in, 10)
	}
	f.Fuzz(func(t *testing.T, text string, limit int) {
		got := Visible(text)
		if !utf8.ValidString(got) || Visible(got) != got || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f || ActsOn(r) }) {
			t.Errorf("%q becomes %q", text, got)
		}
		limit &= 63
		if cut := string(AppendVisible(nil, text, limit)); !strings.HasPrefix(got, cut) || utf8.RuneCountInString(cut) > limit {
			t.Errorf("%q, cut to %d characters, becomes %q", text, limit, cut)
		}
	})
}

package output

import (
	"encoding/json"
	"testing"
)

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":             "nginx",
		"\x1b[2J\xff\u202e": `\x1b[2J\xff\u202e`,
		"":                  "",
	} {
		if got := Visible(in); got != want {
			t.Errorf("Visible(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTextInJSON(t *testing.T) {
	got, err := json.Marshal(struct{ S Text }{"a\x1b\u009b\"<"})
	if want := `{"S":"a\u001b\u009b\"\u003c"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestScreenCut(t *testing.T) {
	for _, c := range []struct {
		line  string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"äöü", 2, "äö"}, {"", 0, ""}} {
		if got := cut(c.line, c.width); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.line, c.width, got, c.want)
		}
	}
}

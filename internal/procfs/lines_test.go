package procfs

import (
	"slices"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 3*maxLine)
	got := slices.Collect(Lines(strings.NewReader("a\n\n" + long + "\nb\r\nc")))
	if want := []string{"a", "", long[:maxLine], "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %.80q, want %.80q", got, want)
	}
	for line := range Lines(strings.NewReader("a\nb")) {
		if line != "a" {
			t.Errorf("it goes on with %q", line)
		}
		break
	}
}

// FuzzParseStat reads what a process may call itself.
func FuzzParseStat(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		stat, err := ParseStat(strings.NewReader(text))
		if err != nil && stat != (Stat{}) {
			t.Errorf("%+v, %v", stat, err)
		}
		if err == nil && !strings.Contains(text, "("+stat.Name+")") {
			t.Errorf("the name is %q", stat.Name)
		}
	})
}

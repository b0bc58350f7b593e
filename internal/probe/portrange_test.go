package probe

import (
	"slices"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string][][2]uint16{
		"":                   nil,
		"8080":               {{8080, 8080}},
		"8080,9148-9150":     {{8080, 8080}, {9148, 9150}},
		"1-65535":            {{1, 65535}},
		"80,443,30000-32767": {{80, 80}, {443, 443}, {30000, 32767}},
	} {
		if got, err := parsePorts(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "1-", "-1", "70000", "1,,2"} {
		if got, err := parsePorts(text); err == nil || got != nil {
			t.Errorf("%q: got %v and no error", text, got)
		}
	}
}

package top

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// What is shown, screen by screen.
func TestScreens(t *testing.T) {
	for name, keys := range map[string][]string{
		"groups":  nil,
		"totals":  {"t"},
		"remote":  {"t", "g", "g", "g", "g", "g"},
		"filter":  {"/", "C", "u", "r"},
		"sorted":  {"t", ">", ">", ">", ">", ">", ">", ">", ">", ">", ">", ">"},
		"sockets": {"t", "down", "down", "enter"},
		"story":   {"t", "/", "n", "g", "i", "enter", "enter", "down", "enter"},
		"diagram": {"d"},
		"leaks":   {"l"},
		"help":    {"?"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ascii := range []bool{false, true} {
				r := newRig(t, capture.Mixed, Options{ASCII: ascii})
				r.play(30 * time.Second)
				r.press(keys...)
				file := name
				if ascii {
					file += "-ascii"
				}
				r.golden(file + "-80x24")
				r.resize(120, 40)
				r.golden(file + "-120x40")
				if ascii && strings.ContainsFunc(r.m.Screen(), func(c rune) bool { return c >= utf8.RuneSelf }) {
					t.Errorf("it is not ASCII")
				}
			}
		})
	}
}

// Whatever the size, what is shown fits.
func TestScreensFit(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{Styled: true})
	for i := range r.events {
		if e := &r.events[i]; e.Comm == "nginx" {
			e.Comm = "日本語のサーバー\u0301" // wide characters, and one without a width
		}
	}
	r.play(30 * time.Second)
	for _, keys := range [][]string{nil, {"enter"}, {"enter"}, {"d"}, {"l"}, {"?"}, {"?", "esc", "esc", "esc", "/", "x"}} {
		r.press(keys...)
		for width := 1; width < 200; width += 7 {
			for height := 1; height < 60; height += 5 {
				r.resize(width, height)
				lines := strings.Split(r.m.Screen(), "\n")
				if len(lines) != height {
					t.Fatalf("%v, %dx%d: %d lines", keys, width, height, len(lines))
				}
				for _, line := range lines {
					if n := ansi.StringWidth(line); n > width {
						t.Fatalf("%v, %dx%d: %d columns: %q", keys, width, height, n, line)
					}
				}
			}
		}
	}
}

// A terminal acts on nothing that a process put there.
func TestHostileNames(t *testing.T) {
	const hostile = "\x1b[31mred\x1b]0;title\a\u202e\n\x9b2J"
	for _, ascii := range []bool{false, true} {
		r := newRig(t, capture.Mixed, Options{ASCII: ascii})
		for i := range r.events {
			r.events[i].Comm, r.events[i].Cgroup, r.events[i].ContainerID = hostile, "/"+hostile, hostile
		}
		r.play(30 * time.Second)
		check := func(what string) {
			t.Helper()
			for _, text := range []string{r.m.Screen(), r.m.Report()} {
				if strings.ContainsAny(text, "\x1b\a\u202e") || !utf8.ValidString(text) {
					t.Errorf("%s: %q", what, text)
				}
			}
		}
		for range stats.Bys {
			check("groups")
			r.press("enter")
			check("sockets")
			r.press("enter")
			check("story")
			r.press("esc", "esc", "g")
		}
		r.press("l")
		check("leaks")
		r.press("esc", "/", "\u202e")
		check("filter")
	}
}

func TestStyles(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{Styled: true})
	r.play(30 * time.Second)
	if !strings.Contains(r.m.Screen(), "\x1b[7m") {
		t.Errorf("no row is marked: %q", r.m.Screen())
	}
	if strings.Contains(r.m.Report(), "\x1b") {
		t.Errorf("a report has styles: %q", r.m.Report())
	}
}

// What stays on the terminal is all that was shown, not only what there was room for.
func TestReport(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	r.resize(80, 6)
	compare(t, "report", r.m.Report())
}

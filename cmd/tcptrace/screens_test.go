package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// surroundings are what a view has to respect. ascii and styled are what follows from them.
type surroundings struct {
	env           []string
	ascii, styled bool
}

var allSurroundings = map[string]surroundings{
	"a terminal":               {[]string{"TERM=xterm", "LC_ALL=C.UTF-8"}, false, true},
	"no colors":                {[]string{"TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR=1"}, false, false},
	"it can only print":        {[]string{"TERM=dumb", "LC_ALL=C.UTF-8"}, false, false},
	"no UTF-8":                 {[]string{"TERM=xterm", "LC_ALL=C"}, true, true},
	"no UTF-8, no colors":      {[]string{"TERM=xterm", "LC_ALL=POSIX", "NO_COLOR=1"}, true, false},
	"no UTF-8, it only prints": {[]string{"TERM=dumb", "LC_ALL=", "LC_CTYPE=", "LANG="}, true, false},
}

// What each view shows on a terminal, byte by byte. Some take the width that there is.
func TestScreens(t *testing.T) {
	for _, view := range []struct {
		name   string
		args   []string
		ascii  bool // it has other characters where it may
		styled bool // likewise styles
		wide   bool // it takes the width of the terminal
		limit  int  // of lines where it does not; 0: none
	}{
		{name: "connections", args: []string{"connections"}, wide: true},
		{name: "stats", args: []string{"stats"}, ascii: true, wide: true},
		{name: "timeline", args: []string{"timeline", "-P", "54976,54994,60662"}, ascii: true, limit: 80},
		{name: "diagram", args: []string{"stats", "--diagram"}, ascii: true, styled: true, limit: 80},
	} {
		for name, at := range allSurroundings {
			for _, columns := range []int{80, 120} {
				golden, limit := view.name, view.limit
				if view.wide {
					golden, limit = golden+"-"+strconv.Itoa(columns), columns
				}
				if view.ascii && at.ascii {
					golden += "-ascii"
				}
				if view.styled && at.styled {
					golden += "-styled"
				}
				t.Run(view.name+"/"+name+"/"+strconv.Itoa(columns), func(t *testing.T) {
					t.Parallel()
					shown := screen(t, columns, at.env, view.args...)
					checkScreen(t, shown, limit, at.ascii, view.styled && at.styled)
					compareScreen(t, golden+".txt", shown)
				})
			}
		}
	}
}

// screen returns what tcptrace shows of a recording.
func screen(t *testing.T, columns int, env []string, args ...string) string {
	t.Helper()
	const end = "<end>"
	cmd := exec.Command("sh", append([]string{"-c", `"$@"; printf '<end>'`, "sh", "tcptrace"}, append(args, "-r", "testdata/mixed.json")...)...)
	cmd.Env = append(os.Environ(), append([]string{"TZ=UTC", "NO_COLOR="}, env...)...)
	term := newSizedPTY(t, uint16(columns), 24, cmd)
	term.until(end)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSuffix(term.shown.String(), end), "\r\n", "\n")
}

func checkScreen(t *testing.T, shown string, limit int, ascii, styled bool) {
	t.Helper()
	if ascii && strings.ContainsFunc(shown, func(r rune) bool { return r >= utf8.RuneSelf }) {
		t.Error("it is not ASCII")
	}
	if strings.ContainsRune(shown, '\x1b') != styled {
		t.Errorf("styled is %v", !styled)
	}
	if styled {
		return
	}
	for line := range strings.Lines(shown) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); limit > 0 && n > limit {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// compareScreen compares with a file, or writes it with UPDATE=1.
func compareScreen(t *testing.T, name, shown string) {
	t.Helper()
	path := filepath.Join("testdata", "screens", name)
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(path, []byte(shown), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if shown != string(want) {
		t.Errorf("it shows\n%s\nand is to show\n%s", shown, want)
	}
}

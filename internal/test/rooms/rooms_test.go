// Package rooms holds tests: the packages of this module import each other in one
// direction only, and text leaves them in one way only.
package rooms

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tcptrace/tcptrace/"

// rooms says which packages of this module each package may import, its tests left out.
// The domain imports none of them. Whatever yields or completes events knows the domain
// alone. A renderer is handed a report, and fetches nothing. No package imports
// internal/test. A new package needs a line here.
var rooms = map[string][]string{
	"internal/tcp":        nil,
	"internal/terminal":   nil,
	"internal/confine":    nil,
	"internal/procfs":     nil,
	"internal/symbolize":  {"internal/procfs"},
	"internal/probe":      {"internal/tcp", "internal/confine", "internal/procfs"},
	"internal/recording":  {"internal/tcp"},
	"internal/where":      {"internal/tcp"},
	"internal/names":      {"internal/tcp", "internal/procfs"},
	"internal/enrich":     {"internal/tcp", "internal/procfs", "internal/names"},
	"internal/pipeline":   {"internal/tcp", "internal/enrich"},
	"internal/leak":       {"internal/tcp", "internal/pipeline", "internal/enrich", "internal/symbolize"},
	"internal/connection": {"internal/tcp", "internal/pipeline"},
	"internal/stats":      {"internal/tcp", "internal/pipeline"},
	"internal/timeline":   {"internal/tcp", "internal/pipeline", "internal/connection"},
	"internal/output": {"internal/tcp", "internal/connection", "internal/stats", "internal/timeline", "internal/leak",
		"internal/symbolize", "internal/terminal"},
	"internal/top": {"internal/tcp", "internal/pipeline", "internal/stats", "internal/timeline", "internal/leak", "internal/output",
		"internal/terminal"},
	"internal/otlp": {"internal/tcp", "internal/connection"},
	"internal/serve": {"internal/tcp", "internal/pipeline", "internal/connection", "internal/stats", "internal/timeline",
		"internal/otlp", "internal/leak", "internal/output", "internal/terminal"},
	"cmd/tcptrace": {"internal/top", "internal/tcp", "internal/terminal", "internal/symbolize", "internal/probe",
		"internal/recording", "internal/enrich", "internal/pipeline", "internal/connection", "internal/stats", "internal/timeline",
		"internal/leak", "internal/output", "internal/procfs", "internal/where", "internal/confine", "internal/serve",
		"internal/otlp"},
}

// pure is all that the domain may import of the standard library: it has no I/O and no
// clock.
var pure = []string{"bytes", "cmp", "errors", "fmt", "iter", "maps", "math", "math/bits", "net/netip", "path", "reflect", "slices", "strconv", "strings"}

func TestImportsRunDown(t *testing.T) {
	checked := map[string]bool{}
	for room, imports := range importsOf(t, "./cmd/...", "./internal/...") {
		if strings.HasPrefix(room, "internal/test/") {
			continue // tests may look at everything
		}
		allowed, known := rooms[room]
		if !known {
			t.Errorf("%s is a new package: add it to rooms, with what it may import", room)
			continue
		}
		checked[room] = true
		for _, path := range imports {
			other, ours := strings.CutPrefix(path, module)
			switch {
			case ours && !slices.Contains(allowed, other):
				t.Errorf("%s imports %s: it may import %v", room, other, allowed)
			case !ours && room == "internal/tcp" && !slices.Contains(pure, path):
				t.Errorf("%s imports %s: it has no I/O and no clock", room, path)
			}
		}
	}
	for room := range rooms {
		if !checked[room] {
			t.Errorf("%s is in rooms, but does not exist", room)
		}
	}
}

// importsOf returns what the packages import, their tests left out.
func importsOf(t *testing.T, packages ...string) map[string][]string {
	t.Helper()
	list := exec.Command("go", append([]string{"list", "-f", `{{.ImportPath}} {{join .Imports " "}}`}, packages...)...)
	list.Dir = "../../.."
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("list the packages: %v: %s", err, stderr.Bytes())
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		path, rest, _ := strings.Cut(line, " ")
		imports[strings.TrimPrefix(path, module)] = strings.Fields(rest)
	}
	return imports
}

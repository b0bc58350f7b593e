package probe_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Every line of every table of the walk is an edge of the state diagram. (That of what is
// reported, the walk itself checks.) And the walk takes all of them that Linux takes, but
// for those that need a race or a lack of memory.
func TestTablesTakeEdges(t *testing.T) {
	files, err := filepath.Glob("walk_*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	walked := map[[2]tcp.State]bool{}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range regexp.MustCompile(`\s([A-Z_0-9]+)>([A-Z_0-9]+)\s`).FindAllSubmatch(source, -1) {
			from, errFrom := tcp.ParseState(string(line[1]))
			to, errTo := tcp.ParseState(string(line[2]))
			if errFrom != nil || errTo != nil { // OLD>NEW, which explains the tables
				continue
			}
			walked[[2]tcp.State{from, to}] = true
			if !taken(from, to) {
				t.Errorf("%s: %v>%v is not an edge of the state diagram", file, from, to)
			}
		}
	}
	raced := map[[2]tcp.State]bool{
		{tcp.SynRecv, tcp.FinWait1}: true, {tcp.SynRecv, tcp.CloseWait}: true, {tcp.Closing, tcp.Close}: true,
	}
	for _, edge := range tcp.Edges {
		pair := [2]tcp.State{edge.From, edge.To}
		if !edge.Untaken && !walked[pair] && !raced[pair] {
			t.Errorf("no table of the walk has %v>%v", edge.From, edge.To)
		}
	}
}

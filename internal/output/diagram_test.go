package output

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

var update = flag.Bool("update", false, "write the golden files anew")

// realTraffic is the report of a recording of real traffic.
func realTraffic(t *testing.T) (last *stats.Report) {
	t.Helper()
	f, err := os.Open("../../cmd/tcptrace/testdata/mixed.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tally := stats.NewTally(stats.Config{By: stats.ByHost, Max: 1000, Show: func(r *stats.Report) error { last = r; return nil }})
	source := recording.NewReader(f, f.Name())
	var e tcp.Event
	for err = source.Read(&e); err == nil; err = source.Read(&e) {
		if err := tally.Event(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	if err := tally.Close(e.BootNS); err != nil {
		t.Fatal(err)
	}
	return last
}

// crowded is a report in which every edge was taken, each so often as no other.
func crowded(t *testing.T) *stats.Report {
	r := mixed(t, stats.ByHost)
	r.Edges = append(r.Edges, stats.Edge{Edge: tcp.Edge{From: tcp.CloseWait, To: tcp.Listen}})
	for i := range r.Edges {
		e := &r.Edges[i]
		e.Count = 123_400 + uint64(i)
		e.Client, e.Server, e.Reasons = e.Count, e.Count, []stats.Reason{{Reason: tcp.LocalClose, Count: e.Count}}
	}
	for i := range r.States {
		r.States[i].Now = 987_654
	}
	return r
}

func diagramText(t *testing.T, o DiagramOptions, r *stats.Report) string {
	t.Helper()
	var b strings.Builder
	if err := NewDiagram(&b, o).Write(r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func picture(t *testing.T, role tcp.Role, r *stats.Report) string {
	t.Helper()
	var b strings.Builder
	if err := NewPicture(&b, role).Write(r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, string(want))
}

func TestDiagramGolden(t *testing.T) {
	r := realTraffic(t)
	golden(t, "diagram.txt", diagramText(t, DiagramOptions{}, r))
	golden(t, "diagram_ascii.txt", diagramText(t, DiagramOptions{ASCII: true}, r))
	golden(t, "diagram_client.txt", diagramText(t, DiagramOptions{Role: tcp.Client}, r))
	golden(t, "diagram_server.txt", diagramText(t, DiagramOptions{Role: tcp.Server}, r))
	golden(t, "diagram.svg", picture(t, "", r))
}

// Nothing in the layout touches anything else: states, counts of six digits, lines. It is
// within its frame, and a line begins and ends at the states that it joins.
func TestLayoutDoesNotOverlap(t *testing.T) {
	taken := map[point]string{}
	take := func(what string, b box) {
		for y := b.y; y < b.y+b.height; y++ {
			for x := b.x; x < b.x+b.width; x++ {
				p := point{x, y}
				if other, found := taken[p]; found {
					t.Errorf("%s and %s overlap at %v", what, other, p)
				}
				if taken[p] = what; x < 0 || x >= diagramWidth || y < 0 || y >= diagramHeight {
					t.Errorf("%s is outside at %v", what, p)
				}
			}
		}
	}
	for _, s := range spots {
		take(s.state.String(), s.box)
	}
	for i := range routes {
		r := &routes[i]
		name := r.from.String() + ">" + r.to.String()
		take("the label of "+name, r.room())
		for _, p := range inner(r) {
			take(name, box{p.x, p.y, 1, 1})
		}
		if !onBorder(r.from, r.way[0]) || !r.stub && !onBorder(r.to, r.way[len(r.way)-1]) {
			t.Errorf("%s does not join its states", name)
		}
	}
}

// inner are the characters of a route between its ends.
func inner(r *route) (all []point) {
	at := r.way[0]
	for _, corner := range r.way[1:] {
		for at != corner {
			at = at.step(direction(at, corner))
			all = append(all, at)
		}
	}
	return all[:len(all)-1]
}

func onBorder(s tcp.State, p point) bool {
	for _, spot := range spots {
		within := box{spot.x + 1, spot.y + 1, spot.width - 2, spot.height - 2}
		if spot.state == s && spot.has(p) && !within.has(p) {
			return true
		}
	}
	return false
}

// Every edge that sockets take has a route, and every state a place.
func TestLayoutIsComplete(t *testing.T) {
	for _, e := range tcp.Edges {
		if drawn := routeOf(&stats.Edge{Edge: e}) != nil; drawn == e.Untaken {
			t.Errorf("%v > %v: drawn is %v", e.From, e.To, drawn)
		}
	}
	for _, s := range crowded(t).States {
		found := false
		for _, spot := range spots {
			found = found || spot.state == s.State
		}
		if !found {
			t.Errorf("%v has no place", s.State)
		}
	}
}

// An edge that was taken is shown with its count, whatever it is, and the whole fits into a
// terminal of 80 by 40.
func TestDiagramShowsAll(t *testing.T) {
	r := crowded(t)
	for _, o := range []DiagramOptions{{}, {ASCII: true}, {Styled: true}} {
		text := diagramText(t, o, r)
		for i := range r.Edges {
			if n := strings.Count(text, strconv.FormatUint(r.Edges[i].Count, 10)); n != 1 {
				t.Errorf("%v > %v is shown %d times", r.Edges[i].From, r.Edges[i].To, n)
			}
		}
		if n := strings.Count(text, "987654"); n != len(r.States)-1 {
			t.Errorf("the sockets of %d states are shown, of all but CLOSE", n)
		}
	}
	svg := picture(t, "", r)
	for i := range r.Edges {
		if count := strconv.FormatUint(r.Edges[i].Count, 10); !strings.Contains(svg, ">"+count+"<") && !strings.Contains(svg, " "+count+"<") &&
			!strings.Contains(svg, " "+count+": not an edge") {
			t.Errorf("%v > %v is not in the picture", r.Edges[i].From, r.Edges[i].To)
		}
	}
	text := diagramText(t, DiagramOptions{}, realTraffic(t))
	if n := strings.Count(text, "\n"); n > 40 {
		t.Errorf("it has %d lines", n)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > diagramWidth {
			t.Errorf("%d wide: %s", n, line)
		}
	}
}

// Styles come on top: without them the text is the same. What is not ASCII comes only where
// it may.
func TestDiagramStyles(t *testing.T) {
	for _, r := range []*stats.Report{realTraffic(t), crowded(t)} {
		styled, plain := diagramText(t, DiagramOptions{Styled: true, ASCII: true}, r), diagramText(t, DiagramOptions{ASCII: true}, r)
		for _, style := range []terminal.Style{terminal.Plain, terminal.Bold, terminal.Faint, terminal.Red} {
			if style != terminal.Faint && !strings.Contains(styled, string(style)) {
				t.Errorf("%q is not used", style)
			}
			styled = strings.ReplaceAll(styled, string(style), "")
		}
		compare(t, styled, plain)
		for _, c := range plain {
			if c > 0x7e || c < ' ' && c != '\n' {
				t.Errorf("%q is not ASCII", c)
			}
		}
	}
}

// The path of a role is that of package tcp, and no other edge.
func TestDiagramOfRole(t *testing.T) {
	r := crowded(t)
	for role, path := range map[tcp.Role]tcp.Path{tcp.Client: tcp.ClientPath, tcp.Server: tcp.ServerPath} {
		elsewhere := uint64(0)
		text := diagramText(t, DiagramOptions{Role: role}, r)
		for i := range r.Edges {
			e := &r.Edges[i]
			if shown := strings.Contains(text, strconv.FormatUint(e.Count, 10)); shown != (e.Path&path != 0) {
				t.Errorf("%s: %v > %v: shown is %v", role, e.From, e.To, shown)
			}
			if e.Path&path == 0 {
				elsewhere += e.Count
			}
		}
		if !strings.Contains(text, "took others "+strconv.FormatUint(elsewhere, 10)+" times") {
			t.Errorf("%s: the other edges are not counted:\n%s", role, text)
		}
	}
}

// A picture loads nothing.
func TestPictureStandsAlone(t *testing.T) {
	all := pictures(t)
	r := crowded(t)
	r.Edges[0].Name = `<script>&"`
	all["hostile"] = picture(t, "", r)
	for name, svg := range all {
		for _, bad := range []string{"<script", "href", "url(", "@import", "@font-face"} {
			if strings.Contains(svg, bad) {
				t.Errorf("%s: it has %q", name, bad)
			}
		}
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestShortCount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999_999: "999999", 1e6: "1.00M", 12_345_678: "12.3M", 999_999_999: "999M", 1e9: "1.00G", 123_456_789_012: "123G",
	} {
		if got := shortCount(n); got != want || len(got) > labelWidth {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

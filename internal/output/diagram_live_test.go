package output

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

func rateOf(perSecond float64) func(from, to tcp.State) (float64, bool) {
	return func(tcp.State, tcp.State) (float64, bool) { return perSecond, true }
}

// The picture of a page has every element from the start, whatever has happened, so that only
// its texts change.
func TestLiveNeverGrows(t *testing.T) {
	empty := NewLive(stats.NewTally(stats.Config{Max: 1, By: stats.ByHost}).Report(1), rateOf(0)).SVG()
	full := NewLive(crowded(t), rateOf(12.5)).SVG()
	element := regexp.MustCompile(`<[a-z/]+`)
	a, b := element.FindAllString(empty, -1), element.FindAllString(full, -1)
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%d elements when nothing has happened, %d when everything has", len(a), len(b))
	}
	if n := strings.Count(empty, "data-edge="); n != len(routes) {
		t.Errorf("%d edges, want %d", n, len(routes))
	}
	if strings.Contains(full, "style") {
		t.Error("it has a style, which the page refuses")
	}
}

// Lines and boxes are where the picture of stats --svg has them.
func TestLiveIsThePicture(t *testing.T) {
	var picture strings.Builder
	r := crowded(t)
	if err := NewPicture(&picture, "").Write(r); err != nil {
		t.Fatal(err)
	}
	shape := regexp.MustCompile(`<(?:polyline class="way" points|rect class="state" x)="[^>]*>`)
	number := regexp.MustCompile(`\d+,\d+|y="\d+"`)
	lift := (len(strings.Split(statsTitle(r), "\n")) + 1) * cellHeight
	var want []string
	for _, s := range shape.FindAllString(picture.String(), -1) {
		want = append(want, number.ReplaceAllStringFunc(s, func(at string) string {
			var x, y int
			if n, _ := fmt.Sscanf(at, "%d,%d", &x, &y); n == 2 {
				return fmt.Sprintf("%d,%d", x, y-lift)
			}
			if _, err := fmt.Sscanf(at, `y="%d"`, &y); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf(`y="%d"`, y-lift)
		}))
	}
	got := shape.FindAllString(NewLive(r, rateOf(1)).SVG(), -1)
	if len(got) < len(routes)+len(spots) || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The texts are those of the picture.
func TestLiveTexts(t *testing.T) {
	r := mixed(t, stats.ByHost)
	l := NewLive(r, func(from, _ tcp.State) (float64, bool) { return 1234, from != tcp.TimeWait })
	if len(l.States()) != 11 {
		t.Errorf("%d states", len(l.States()))
	}
	svg := l.SVG()
	for _, e := range l.Edges() {
		taken := false
		for i := range r.Edges {
			taken = taken || r.Edges[i].From == e.From && r.Edges[i].To == e.To && r.Edges[i].Count > 0
		}
		if taken != (e.Label != "") || taken == strings.Contains(e.Classes, "never") {
			t.Errorf("%s > %s: %+v", e.From, e.To, e)
		}
		if e.From == tcp.TimeWait && taken && e.Label != "?" {
			t.Errorf("a rate that is not known is %q", e.Label)
		}
		if !strings.Contains(svg, fmt.Sprintf(`data-edge="%s-%s" class="%s"`, e.From, e.To, e.Classes)) {
			t.Errorf("%s > %s is not drawn as %s", e.From, e.To, e.Classes)
		}
	}
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestShortRate(t *testing.T) {
	for perSecond, want := range map[float64]string{
		0: "0/s", 0.1: "0.10/s", 0.25: "0.25/s", 9.999: "10.0/s", 12.34: "12.3/s", 99.96: "100/s", 123.4: "123/s", 1000: "1000/s", 9999.4: "9999/s",
		12_345: "12k/s", 99_999: "100k/s", 500_000: "500k/s", 999_999: "1.0M/s", 4.5e6: "4.5M/s", 1e10: "10G/s",
	} {
		if got := shortRate(perSecond); got != want || len(got) > labelWidth {
			t.Errorf("%g: got %s, want %s", perSecond, got, want)
		}
	}
}

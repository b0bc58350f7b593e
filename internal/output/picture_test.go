package output

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// realStories are the stories of connections of these ports, of a recording of real traffic:
// mixed.json, or far.json, in which a network between client and server takes 12 ms for a
// packet and has lost one.
func realStories(t *testing.T, recorded string, ports ...uint16) (stories []*timeline.Story) {
	t.Helper()
	var filter tcp.Filter
	for _, port := range ports {
		filter.EitherPort.Only = append(filter.EitherPort.Only, tcp.Port(port).Only...)
	}
	f, err := os.Open("../../cmd/tcptrace/testdata/" + recorded)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := timeline.NewCollector(timeline.Config{
		Max: 1000, Filter: filter, Flush: func() error { return nil },
		Show: func(s *timeline.Story) error { stories = append(stories, s); return nil },
	})
	source := recording.NewReader(f, f.Name())
	var e tcp.Event
	for err = source.Read(&e); err == nil; err = source.Read(&e) {
		if err := c.Event(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	if err := c.Close(e.BootNS); err != nil {
		t.Fatal(err)
	}
	return stories
}

func TestTimelinePictureGolden(t *testing.T) {
	zone := time.Local
	t.Cleanup(func() { time.Local = zone })
	time.Local = time.UTC
	golden(t, "timeline.svg", timelinePicture(t, nil, realStories(t, "far.json", 57228)...))
	golden(t, "timelines.svg", timelinePicture(t, nil, realStories(t, "mixed.json", 54976, 54994, 60662)...))
}

// A picture has so many stories, and says how many there are.
func TestTimelinePictureIsBounded(t *testing.T) {
	story := realStories(t, "mixed.json", 60662)
	for n, title := range map[int]string{
		0: "Timeline of 0 connections", 1: "Timeline of 1 connection",
		MaxPictured:     "Timeline of 20 connections",
		MaxPictured + 3: "Timeline of the first 20 of 23 connections",
	} {
		svg := timelinePicture(t, nil, slices.Repeat(story, n)...)
		if !strings.Contains(svg, ">"+title+"<") {
			t.Errorf("of %d connections it does not say: %s", n, title)
		}
		if drawn := strings.Count(svg, ">127.0.0.1:60662 &gt; 127.0.0.1:9:"); drawn != min(n, MaxPictured) {
			t.Errorf("%d of %d connections are drawn", drawn, n)
		}
	}
}

// Names from outside are text, in XML and on a terminal that prints it.
func TestTimelinePictureEscapes(t *testing.T) {
	s := realStories(t, "mixed.json", 54994)[0]
	s.Client.Comm, s.Server.Comm = `</text><script`, "\x1b[2J&\u202e\xff"
	s.Client.Stays[2].Owner = timeline.Owner{PID: 1, Comm: `"><script>&`, Source: tcp.FromUse}
	svg := timelinePicture(t, &timeline.Clocks{}, s)
	var all strings.Builder
	for _, text := range textsOf(t, svg) {
		all.WriteString(text.text + "\n")
	}
	for _, want := range []string{`</text><script (5186)`, `\x1b[2J&\u202e\xff (5101)`, `now of "><script>& (1)`, `1: <\x1b<`} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%s is missing in\n%s", want, all.String())
		}
	}
	if strings.ContainsFunc(svg, func(r rune) bool { return r < ' ' && r != '\n' || r == utf8.RuneError || r == '\u202e' }) {
		t.Error("it has characters that act on a terminal")
	}
}

// What is not known is drawn so: dashed, and with an open end.
func TestTimelinePictureSaysWhatIsNotKnown(t *testing.T) {
	for what, c := range map[string]struct {
		stories []*timeline.Story
		pattern string
		times   int
	}{
		"states of unknown length": {[]*timeline.Story{longStory()}, `<rect class="bar (established|closing) unseen" x="3`, 2},
		"a state before the trace": {[]*timeline.Story{longStory()}, `<rect class="bar established unseen" x="513"`, 1},
		"it goes on":               {[]*timeline.Story{longStory()}, `<path class="bar closing unseen"`, 1},
		"arrows":                   {realStories(t, "mixed.json", 54994), `<g class="guess">`, 1 + 7}, // one in the legend
		"states that were seen":    {realStories(t, "mixed.json", 54994), `<rect class="bar [a-z]+" `, 9},
		"a reset":                  {realStories(t, "mixed.json", 60662), `<text class="broken"[^>]*>rst_received<`, 1},
		"its error":                {realStories(t, "mixed.json", 60662), `>ECONNREFUSED<`, 1},
		"an end that was not seen": {realStories(t, "mixed.json", 60662), `>the other end was not seen<`, 1},
	} {
		svg := timelinePicture(t, nil, c.stories...)
		if n := len(regexp.MustCompile(c.pattern).FindAllString(svg, -1)); n != c.times {
			t.Errorf("%s: %s is drawn %d times, not %d", what, c.pattern, n, c.times)
		}
	}
}

// The lengths of bars are at least that of their text, and grow with time.
func TestTimelinePictureIsNotToScale(t *testing.T) {
	height := func(ns uint64) int {
		s := realStories(t, "mixed.json", 60662)[0]
		stay := &s.Client.Stays[0]
		stay.End = stay.Begin + ns
		var y, h int
		_, bar, _ := strings.Cut(timelinePicture(t, nil, s), `<rect class="bar opening" `)
		if _, err := fmt.Sscanf(bar, `x="313" y="%d" width="14" height="%d"`, &y, &h); err != nil {
			t.Fatalf("%v: %s", err, bar)
		}
		return h
	}
	const us, day = 1000, 86400e9
	for _, c := range []struct {
		ns   uint64
		want int
	}{{0, 2 * storyLine}, {us, 2 * storyLine}, {10 * us, 2*storyLine + decadeHeight}, {1000 * us, 2*storyLine + 3*decadeHeight}} {
		if got := height(c.ns); got != c.want {
			t.Errorf("the bar of %d ns is %d long, not %d", c.ns, got, c.want)
		}
	}
	if got := height(1000 * day); got > 150 {
		t.Errorf("the bar of 1000 days is %d long", got)
	}
}

func timelinePicture(t *testing.T, clocks *timeline.Clocks, stories ...*timeline.Story) string {
	t.Helper()
	var b strings.Builder
	p := NewTimelinePicture(&b, [2]string{strings.Repeat("<\x1b", 100), "b"})
	if clocks != nil {
		p.Clocks(*clocks)
	}
	for _, s := range stories {
		p.Write(s)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// pictures are all that is drawn: of real traffic, and of what takes most room.
func pictures(t *testing.T) map[string]string {
	t.Helper()
	long, r := longStory(), crowded(t)
	some := realStories(t, "mixed.json", 54976, 54994, 60662)
	return map[string]string{
		"diagram":            picture(t, "", realTraffic(t)),
		"crowded diagram":    picture(t, "", r),
		"client":             picture(t, tcp.Client, r),
		"server":             picture(t, tcp.Server, r),
		"timeline":           timelinePicture(t, nil, some...),
		"timeline of nobody": timelinePicture(t, nil),
		"long timeline":      timelinePicture(t, &timeline.Clocks{Handshakes: 1 << 20, Drift: 1 << 62}, long),
		"one end":            timelinePicture(t, &timeline.Clocks{}, &timeline.Story{Client: long.Client, Ambiguous: true}, &timeline.Story{Server: long.Server}),
	}
}

// A renderer of others makes a picture of that size of each: it is not blank, it has its texts,
// and nothing of it, texts in a real font above all, is outside of the frame.
func TestPicturesRender(t *testing.T) {
	for name, svg := range pictures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const around = 60
			width, height := sizeOf(t, svg)
			size, box := `width="%d" height="%d"`, `viewBox="%d %d %d %d"`
			framed := strings.Replace(svg,
				fmt.Sprintf(size+" "+box, width, height, 0, 0, width, height),
				fmt.Sprintf(size+" "+box, width+2*around, height+2*around, -around, -around, width+2*around, height+2*around), 1)
			all := render(t, framed)
			if got := all.Bounds().Size(); got != image.Pt(width+2*around, height+2*around) {
				t.Fatalf("it is drawn %v large, and is to be %dx%d", got, width, height)
			}
			frame := image.Rect(around, around, around+width, around+height)
			if got := drawn(all, nil); got != frame {
				t.Errorf("what is drawn reaches from %v to %v, and the frame from %v to %v", got.Min, got.Max, frame.Min, frame.Max)
			}
			blank := render(t, regexp.MustCompile(`(?s)<text .*?</text>`).ReplaceAllString(framed, ""))
			if texts := drawn(all, blank); texts.Dx() < width/2 || texts.Dy() < height/2 {
				t.Errorf("texts can be seen at %v alone: is a font installed?", texts)
			}
			paper := render(t, regexp.MustCompile(`<(path|polyline|polygon|rect class="(bar|state).*) .*/>`).ReplaceAllString(framed, ""))
			if lines := drawn(all, paper); lines.Empty() {
				t.Error("no lines can be seen")
			}
		})
	}
}

// render returns the picture that librsvg makes.
func render(t *testing.T, svg string) *image.NRGBA {
	t.Helper()
	if _, err := exec.LookPath("rsvg-convert"); err != nil {
		t.Fatal("rsvg-convert is not installed: run 'make deps'")
	}
	var out, said bytes.Buffer
	cmd := exec.Command("rsvg-convert")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(svg), &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("rsvg-convert: %v: %s", err, said.String())
	}
	img, err := png.Decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	pixels, is := img.(*image.NRGBA)
	if !is {
		t.Fatalf("a picture of %T", img)
	}
	return pixels
}

// drawn returns what encloses all of a picture that another one has not; nil is an empty one.
func drawn(img, other *image.NRGBA) (all image.Rectangle) {
	if other == nil {
		other = image.NewNRGBA(img.Rect)
	}
	for y := range img.Rect.Max.Y {
		a, b := img.Pix[y*img.Stride:][:img.Stride], other.Pix[y*other.Stride:][:img.Stride]
		if bytes.Equal(a, b) {
			continue
		}
		first, last := 0, len(a)-1
		for a[first] == b[first] {
			first++
		}
		for a[last] == b[last] {
			last--
		}
		all = all.Union(image.Rect(first/4, y, last/4+1, y+1))
	}
	return all
}

func sizeOf(t *testing.T, svg string) (width, height int) {
	t.Helper()
	if _, err := fmt.Sscanf(svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d"`, &width, &height); err != nil {
		t.Fatal(err)
	}
	return width, height
}

// No text covers another one or reaches over the margin, whatever font of those asked for a
// viewer has.
func TestPictureTextsHaveRoom(t *testing.T) {
	for name, svg := range pictures(t) {
		t.Run(name, func(t *testing.T) {
			texts := textsOf(t, svg)
			if len(texts) < 4 {
				t.Errorf("it has %d texts", len(texts))
			}
			width, height := sizeOf(t, svg)
			room := image.Rect(svgMargin, svgMargin/2, width-svgMargin, height-svgMargin/2)
			for i, a := range texts {
				if !a.box.In(room) {
					t.Errorf("%q at %v is not within %v", a.text, a.box, room)
				}
				for _, b := range texts[:i] {
					if a.box.Overlaps(b.box) {
						t.Errorf("%q at %v and %q at %v", a.text, a.box, b.text, b.box)
					}
				}
			}
		})
	}
}

// placed is a text and the room that it takes.
type placed struct {
	text string
	box  image.Rectangle
}

// textsOf returns the texts of a picture, which it reads as XML.
func textsOf(t *testing.T, svg string) (texts []placed) {
	t.Helper()
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var all struct {
		Texts []struct {
			X      string `xml:"x,attr"`
			Y      string `xml:"y,attr"`
			Class  string `xml:"class,attr"`
			Anchor string `xml:"text-anchor,attr"`
			Inner  string `xml:",innerxml"`
		} `xml:"text"`
		Groups []struct {
			Inner string `xml:",innerxml"`
		} `xml:"g"`
	}
	if err := xml.Unmarshal([]byte(svg), &all); err != nil {
		t.Fatal(err)
	}
	for _, g := range all.Groups {
		texts = append(texts, textsOf(t, "<svg>"+g.Inner+"</svg>")...)
	}
	for _, e := range all.Texts {
		text := plainText(t, e.Inner)
		characters := utf8.RuneCountInString(text)
		width := characters * 15 / 2
		if strings.Contains(e.Class, "key") || strings.Contains(e.Class, "times") {
			width = characters * 69 / 10
		}
		x := number(e.X) - map[string]int{"start": 0, "middle": width / 2, "end": width}[e.Anchor]
		texts = append(texts, placed{text, image.Rect(x, number(e.Y)-11, x+width, number(e.Y)+4)})
	}
	return texts
}

// plainText is a text without the marks within.
func plainText(t *testing.T, inner string) string {
	t.Helper()
	var b strings.Builder
	for d := xml.NewDecoder(strings.NewReader("<x>" + inner + "</x>")); ; {
		token, err := d.Token()
		if err == io.EOF {
			return b.String()
		} else if err != nil {
			t.Fatal(err)
		}
		if text, is := token.(xml.CharData); is {
			b.Write(text)
		}
	}
}

package serve

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// fetched is an answer with its header.
func (r *running) fetched(path string) (http.Header, string) {
	r.t.Helper()
	response := r.do(path)
	if response == nil {
		r.t.Fatalf("%s: no answer", path)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %d %v %s", path, response.StatusCode, err, body)
	}
	return response.Header, string(body)
}

// asked is an overview as a client gets it.
func (r *running) asked(service string) (o overview) {
	r.t.Helper()
	_, body := r.fetched(pathOverview + "?service=" + url.QueryEscape(service))
	if err := json.Unmarshal([]byte(body), &o); err != nil {
		r.t.Fatal(err)
	}
	return o
}

// settled waits until the page knows all events, and the look that finds the leak.
func (r *running) settled() {
	r.t.Helper()
	eventually(r.t, func() bool {
		o := r.asked("")
		return o.Verdict.Verdict == verdictLeak && o.Lost == 3 && edge(&o, "TIME_WAIT", "CLOSE").Count == 1
	})
}

func edge(o *overview, from, to string) overviewEdge {
	for _, e := range o.Edges {
		if e.From == from && e.To == to {
			return e
		}
	}
	return overviewEdge{}
}

// What the page loads comes with the right type, and from nowhere else; nothing runs but its
// script.
func TestPageIsSelfContained(t *testing.T) {
	r := started(t, nil)
	header, page := r.fetched("/")
	policy := header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'",
		"base-uri 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"} {
		if !slices.Contains(strings.Split(policy, "; "), want) {
			t.Errorf("the policy has no %s: %s", want, policy)
		}
	}
	for _, source := range []string{"unsafe", "*", "http", "data:", "blob:"} {
		if strings.Contains(policy, source) {
			t.Errorf("the policy has %s: %s", source, policy)
		}
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	texts := map[string]string{"/": page}
	for path, kind := range map[string]string{"/page.css": "text/css", "/diagram.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"} {
		header, body := r.fetched(path)
		if got := header.Get("Content-Type"); got != kind+"; charset=utf-8" || header.Get("X-Content-Type-Options") != "nosniff" || body == "" {
			t.Errorf("%s is %s", path, got)
		}
		if !strings.Contains(page, `="`+path[1:]+`"`) {
			t.Errorf("the page does not load %s", path)
		}
		texts[path] = body
	}
	host := regexp.MustCompile(`[a-z]+://[^\s"'<>)]+|["'(]//[^\s"']+|@import`)
	for path, text := range texts {
		for _, found := range host.FindAllString(text, -1) {
			if found != "http://www.w3.org/2000/svg" { // the name of a language
				t.Errorf("%s names %s", path, found)
			}
		}
	}
	if inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|javascript:|<script>`).FindString(page); inline != "" {
		t.Errorf("the policy refuses %q", inline)
	}
	if sink := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function`).FindString(texts["/page.js"]); sink != "" {
		t.Errorf("the script makes elements of text: %s", sink)
	}
}

// Names that others choose are text.
func TestPageEscapes(t *testing.T) {
	const name = `<img src=x onerror=alert(1)>"'&` + "\u202e<script>.service"
	f := newFeed()
	leaking := events(t)[7]
	leaking.Cgroup, leaking.Comm = "/system.slice/"+name, "<b>'\"\n"
	f.more <- leaking
	row := leaking
	row.Kind, row.Old, row.Reason, row.Duration, row.DurationKind, row.Holder, row.HasQueues = tcp.Socket, 0, "", 3600e9, tcp.Exact, tcp.Held, true
	r := start(t, f, nil)
	f.rows.Store(&[]tcp.Event{row})
	eventually(t, func() bool { return r.asked("").Verdict.Verdict == verdictLeak })
	service := r.asked("").Services[0].Service
	if want := strings.ReplaceAll(name, "\u202e", `\u202e`); service != want {
		t.Fatalf("the service is %q, want %q", service, want)
	}
	for _, path := range []string{"/", "/?service=" + url.QueryEscape(service)} {
		_, page := r.fetched(path)
		for _, raw := range []string{"<img", "<b>", "<script>.", "\u202e"} {
			if strings.Contains(page, raw) {
				t.Errorf("%s has %q", path, raw)
			}
		}
		root := parsed(t, page)
		if heading := textOf(byID(root, "verdict")); !strings.Contains(heading, service+" leaks: 1 socket in CLOSE_WAIT") {
			t.Errorf("%s: the verdict is %q", path, heading)
		}
		link := all(byID(root, "services"), "a")[0]
		target, err := url.Parse(attribute(link, "href"))
		if err != nil || textOf(link) != service || target.Query().Get("service") != service {
			t.Errorf("%s: the link is %q to %q", path, textOf(link), attribute(link, "href"))
		}
	}
	response := r.do("/?service=%3Cimg%20src=x%3E")
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); response.StatusCode != 404 || !strings.HasPrefix(kind, "text/plain") {
		t.Errorf("an error is %s", kind)
	}
	if _, raw := r.fetched(pathOverview); strings.ContainsAny(raw, "<>") {
		t.Error("the JSON has < or >")
	}
}

// series reads the values of a metric, by some of its labels.
func series(text, metric string, labels ...string) map[string]float64 {
	sums := make(map[string]float64)
	line := regexp.MustCompile(`(?m)^` + metric + `\{(.*)\} (\S+)$`)
	for _, found := range line.FindAllStringSubmatch(text, -1) {
		var key []string
		for _, label := range labels {
			value := regexp.MustCompile(`(?:^|,)` + label + `="([^"]*)"`).FindStringSubmatch(found[1])
			key = append(key, value[1])
		}
		n, _ := strconv.ParseFloat(found[2], 64)
		sums[strings.Join(key, " ")] += n
	}
	return sums
}

// The tables, the picture, the API and /metrics have the same numbers, of the host and of one
// service.
func TestPageEqualsMetrics(t *testing.T) {
	r := started(t, nil)
	r.settled()
	_, metrics := r.fetched("/metrics")
	taken := series(metrics, "tcptrace_transitions_total", "from", "to")
	leaking := series(metrics, "tcptrace_leak_sockets", "service")
	for _, service := range []string{"", "batch.service", "nginx.service", unknownService} {
		now := series(metrics, "tcptrace_sockets", "state")
		if service != "" {
			now = make(map[string]float64)
			for key, n := range series(metrics, "tcptrace_sockets", "service", "state") {
				if state, is := strings.CutPrefix(key, service+" "); is {
					now[state] += n
				}
			}
		}
		o := r.asked(service)
		_, page := r.fetched("/?service=" + url.QueryEscape(service))
		root := parsed(t, page)
		rows, picture := cells(byID(root, "states")), byKey(root, "data-state")
		if len(rows) != 11 || len(o.States) != 11 {
			t.Fatalf("%d rows of %d states", len(rows), len(o.States))
		}
		for i, s := range o.States {
			want := fmt.Sprint(now[s.State])
			if s.State == "CLOSE" { // what is not connected is not followed
				want = "–"
			} else if fmt.Sprint(*s.Now) != want || s.Label != want || !strings.Contains(picture[s.State], s.State+want) {
				t.Errorf("%q: %s: %+v, %q, /metrics has %s", service, s.State, s, picture[s.State], want)
			}
			if rows[i][0] != s.State || rows[i][1] != want {
				t.Errorf("%q: the row is %q, /metrics has %s in %s", service, rows[i], want, s.State)
			}
		}
		sum := 0.0
		for i, row := range cells(byID(root, "edges")) {
			e := o.Edges[i]
			n, _ := strconv.ParseFloat(row[2], 64)
			if row[0] != e.From || row[1] != e.To || n != float64(e.Count) || row[3] != e.Rate() || row[4] != e.Why {
				t.Errorf("%q: the row is %q, the API has %+v", service, row, e)
			}
			if service == "" && n != taken[e.From+" "+e.To] {
				t.Errorf("%s > %s: %g, /metrics has %g", e.From, e.To, n, taken[e.From+" "+e.To])
			}
			sum += n
		}
		if want := map[string]float64{"": 9, "batch.service": 3, "nginx.service": 6, unknownService: 0}[service]; sum != want {
			t.Errorf("%q: %g transitions, want %g", service, sum, want)
		}
		for i, row := range cells(byID(root, "services"))[:len(o.Services)] {
			one := o.Services[i]
			if row[0] != one.Service || row[1] != fmt.Sprint(leaking[one.Service]) || row[4] != fmt.Sprint(one.Sockets) {
				t.Errorf("the row is %q, the API has %+v, /metrics has %g that leak", row, one, leaking[one.Service])
			}
		}
	}
	if first := r.asked("").Services[0].Service; first != "batch.service" {
		t.Errorf("first is %s, which does not leak", first)
	}
}

// The rates of a service are its own, and what it has no part in was never taken by it.
func TestOverviewOfService(t *testing.T) {
	c := newCollector(collectorConfig{source: newFeed(), maxServices: 10, maxSockets: 100})
	c.meter.mark(capture.BootNS)
	for i, cgroup := range []string{"/system.slice/a.service", "/system.slice/b.service", "/system.slice/b.service"} {
		if err := c.Event(move(uint64(i+1), cgroup, time.Second, tcp.Close, tcp.SynSent)); err != nil {
			t.Fatal(err)
		}
	}
	s := c.snapshot(capture.BootNS + 2e9)
	for service, want := range map[string]string{"": "3 1.5 1.50/s", "a.service": "1 0.5 0.50/s", "b.service": "2 1.0 1.00/s"} {
		o, found := s.overview(service)
		if !found {
			t.Fatalf("there is no %q", service)
		}
		e := edge(o, "CLOSE", "SYN_SENT")
		if got := fmt.Sprintf("%d %s %s", e.Count, e.Rate(), e.Label); got != want {
			t.Errorf("%q: got %s, want %s", service, got, want)
		}
		if e := edge(o, "SYN_SENT", "ESTABLISHED"); e.Count != 0 || e.Label != "" || !strings.Contains(e.Classes, "never") {
			t.Errorf("%q: %+v", service, e)
		}
	}
	if _, found := s.overview("c.service"); found {
		t.Error("a service that nobody has seen is found")
	}
}

// A page has the same elements whatever has happened, so that its script makes none.
func TestPageNeverGrows(t *testing.T) {
	quiet, busy := start(t, newFeed(), nil), started(t, nil)
	busy.settled()
	_, before := quiet.fetched("/")
	_, after := busy.fetched("/")
	element := regexp.MustCompile(`<[a-z0-9]+`)
	if a, b := element.FindAllString(before, -1), element.FindAllString(after, -1); !slices.Equal(a, b) {
		t.Errorf("%d elements of an idle host, %d of a busy one", len(a), len(b))
	}
}

// Pages cost the capture one snapshot a second, however many they are; a scrape gets a new one.
func TestPagesShareASnapshot(t *testing.T) {
	r := started(t, nil)
	first := r.asked("")
	same := 0
	for range 50 {
		if r.asked("").BootNS == first.BootNS {
			same++
		}
	}
	if same < 25 {
		t.Errorf("%d of 50 answers are of the same moment", same)
	}
	eventually(t, func() bool { return r.asked("").BootNS != first.BootNS })
}

// While one page waits for a new snapshot the others are not refused, but nobody gets one that
// is too old.
func TestPagesDoNotWait(t *testing.T) {
	old := new(snapshot)
	r := &recent{last: old, made: time.Now().Add(-viewAge)}
	if r.ready() != nil {
		t.Error("nobody asks for a new one")
	}
	if r.ready() != old {
		t.Error("the second asks as well")
	}
	r.made = time.Now().Add(-2 * viewAge)
	if r.ready() != nil {
		t.Error("it is too old")
	}
	r.drop(new(snapshot))
	if r.last != old {
		t.Error("another one was dropped")
	}
	if r.drop(old); r.last != nil {
		t.Error("it is still there")
	}
}

// Sockets are picked by service and state, and the oldest come first.
func TestSocketQuery(t *testing.T) {
	r := started(t, nil)
	rows := *r.feed.rows.Load()
	young, other := rows[0], rows[0]
	young.Cookie, young.Duration = 0xabc, 1e9
	other.Cookie, other.Cgroup = 0xdef, "/system.slice/nginx.service"
	r.feed.rows.Store(&[]tcp.Event{young, other, rows[0], rows[1]})
	old := strconv.FormatUint(rows[0].Cookie, 16)
	waiting := strconv.FormatUint(rows[1].Cookie, 16)
	for query, want := range map[string][]string{
		"":                                    {"abc", "def", old, waiting},
		"?service=batch.service":              {"abc", old},
		"?service=batch.service&limit=1":      {old, "left_out"},
		"?service=batch.service&limit=2":      {old, "abc"},
		"?state=time-wait":                    {waiting},
		"?state=CLOSE_WAIT&limit=20":          {"def", old, "abc"},
		"?service=none.such":                  nil,
		"?service=nginx.service&state=LISTEN": nil,
	} {
		_, body := r.fetched(pathSockets + query)
		var got []string
		for line := range strings.Lines(body) {
			var o struct {
				Cookie  string
				LeftOut int `json:"left_out"`
			}
			if err := json.Unmarshal([]byte(line), &o); err != nil {
				t.Fatal(err)
			}
			if o.LeftOut == 1 {
				o.Cookie = "left_out"
			}
			got = append(got, o.Cookie)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", query, got, want)
		}
	}
}

// Of HTML.

func parsed(t *testing.T, page string) *html.Node {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// find returns the elements that are wanted.
func find(n *html.Node, wanted func(*html.Node) bool) (found []*html.Node) {
	for one := range n.Descendants() {
		if one.Type == html.ElementNode && wanted(one) {
			found = append(found, one)
		}
	}
	return found
}

func all(n *html.Node, name string) []*html.Node {
	return find(n, func(one *html.Node) bool { return one.Data == name })
}

func byID(n *html.Node, id string) *html.Node {
	return find(n, func(one *html.Node) bool { return attribute(one, "id") == id })[0]
}

// byKey are the texts of the groups of the picture; those of CLOSE, of which there are two,
// in one.
func byKey(n *html.Node, key string) map[string]string {
	texts := make(map[string]string)
	for _, g := range find(n, func(one *html.Node) bool { return one.Data == "g" && attribute(one, key) != "" }) {
		texts[attribute(g, key)] += strings.ReplaceAll(textOf(g), "\n", "")
	}
	return texts
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for one := range n.Descendants() {
		if one.Type == html.TextNode {
			b.WriteString(one.Data)
		}
	}
	return b.String()
}

// cells are the texts of the rows in the body of a table.
func cells(table *html.Node) (rows [][]string) {
	for _, row := range all(all(table, "tbody")[0], "tr") {
		var texts []string
		for _, cell := range find(row, func(one *html.Node) bool { return one.Data == "td" || one.Data == "th" }) {
			texts = append(texts, textOf(cell))
		}
		rows = append(rows, texts)
	}
	return rows
}

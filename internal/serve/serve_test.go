package serve

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// started starts a daemon that has seen the events.
func started(t *testing.T, change func(*Config)) *running {
	t.Helper()
	f := newFeed()
	all := events(t)
	for _, e := range all {
		f.more <- e
	}
	leaking := all[7]
	leaking.Kind, leaking.Old, leaking.Reason = tcp.Socket, 0, ""
	leaking.Duration, leaking.DurationKind, leaking.Holder = uint64(time.Hour), tcp.Exact, tcp.Held
	leaking.HasQueues = true
	waiting := all[4]
	waiting.Kind, waiting.Old, waiting.Reason, waiting.DurationKind = tcp.Socket, 0, "", tcp.Unknown
	r := start(t, f, change)
	f.rows.Store(&[]tcp.Event{leaking, waiting}) // the run has begun: they are not read twice
	eventually(t, func() bool { return f.n.Load() == uint64(len(all)) })
	return r
}

func TestMetrics(t *testing.T) {
	r := started(t, nil)
	var text string
	eventually(t, func() bool {
		_, text = r.get("/metrics")
		return strings.Contains(text, "leak_sockets")
	})
	for _, want := range []string{
		`tcptrace_sockets{service="nginx.service",state="TIME_WAIT"} 0`,
		`tcptrace_sockets{service="batch.service",state="CLOSE_WAIT"} 1`,
		`tcptrace_sockets{service="~unknown",state="LISTEN"} 1`,
		`tcptrace_transitions_total{from="CLOSE",reason="connect",to="SYN_SENT"} 2`,
		`tcptrace_state_duration_seconds_bucket{service="nginx.service",state="ESTABLISHED",le="0.25"} 0`,
		`tcptrace_state_duration_seconds_bucket{service="nginx.service",state="ESTABLISHED",le="1"} 1`,
		`tcptrace_state_duration_seconds_sum{service="nginx.service",state="ESTABLISHED"} 0.3`,
		`tcptrace_state_duration_seconds_count{service="batch.service",state="SYN_SENT"} 1`,
		`tcptrace_leak_sockets{service="batch.service",state="CLOSE_WAIT"} 1`,
		`tcptrace_leak_oldest_seconds{service="batch.service",state="CLOSE_WAIT"} 3600`,
		`tcptrace_time_wait_ends_total{reason="expired"} 1`,
		`tcptrace_ephemeral_port_usage_ratio 0.2`, // the leaking socket has one as well
		`tcptrace_lost_events_total{where="ring"} 3`,
		`tcptrace_lost_events_total{where="hook"} 0`,
		`tcptrace_listener_drops_total{where="accept_queue"} 0`,
		`tcptrace_tracked_sockets 2`,
		`tcptrace_services 3`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	series := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, `service="`) {
			series++
		}
	}
	if want := fmt.Sprintf("tcptrace_series %d\n", series); !strings.Contains(text, want) {
		t.Errorf("%d series have a service: no %s", series, want)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", err, problems)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// What is asked twice at a time is made once, and nobody gets what was made before.
func TestScrapesAtOnce(t *testing.T) {
	r := started(t, nil)
	answers := make(chan string)
	const scrapers = 40
	for range scrapers {
		go func() {
			status, body := r.get("/metrics")
			answers <- fmt.Sprint(status, " ", strings.Contains(body, "tcptrace_series"))
		}()
	}
	fine := 0
	for range scrapers {
		switch got := <-answers; got {
		case "200 true":
			fine++
		case "503 false": // one too many
		default:
			t.Errorf("got %s", got)
		}
	}
	if fine < maxAnswers {
		t.Errorf("%d of %d got an answer", fine, scrapers)
	}
}

func TestAPI(t *testing.T) {
	r := started(t, nil)
	var stats struct {
		Type        string
		Transitions int
		Lost        int
	}
	status, body := r.get(pathStats)
	if err := json.Unmarshal([]byte(body), &stats); err != nil || status != 200 || stats.Type != "stats" || stats.Transitions != 9 || stats.Lost != 3 {
		t.Errorf("stats: %d %v %+v", status, err, stats)
	}
	eventually(t, func() bool {
		_, body := r.get(pathLeaks)
		return strings.Contains(body, `"type":"leak"`) && strings.Contains(body, `"comm":"batch"`)
	})
	status, body = r.get(pathSockets)
	if status != 200 || strings.Count(body, "\n") != 2 || !strings.Contains(body, `"state":"CLOSE_WAIT"`) {
		t.Errorf("sockets: %d %s", status, body)
	}
	cookie := strconv.FormatUint(events(t)[0].Cookie, 16)
	status, body = r.get("/api/v1/timeline/" + cookie)
	if status != 200 || strings.Count(body, "\n") != 1 || !strings.Contains(body, `"duration_ms":303`) || strings.Count(body, `"state":`) < 5 {
		t.Errorf("timeline: %d %s", status, body)
	}
}

// A socket of which nothing is remembered is told as it is.
func TestTimelineOfOldSocket(t *testing.T) {
	r := started(t, nil)
	old := (*r.feed.rows.Load())[0]
	old.Cookie = 0xabc
	r.feed.rows.Store(&[]tcp.Event{old})
	status, body := r.get("/api/v1/timeline/abc")
	if status != 200 || !strings.Contains(body, `"cookie":"abc"`) || !strings.Contains(body, `"open":true`) {
		t.Errorf("got %d %s", status, body)
	}
}

func TestStatuses(t *testing.T) {
	r := started(t, nil)
	asHost := func(host string) func(*http.Request) { return func(r *http.Request) { r.Host = host } }
	with := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	origin := func(r *http.Request) { r.Header.Set("Origin", "http://"+r.URL.Host) }
	for _, c := range []struct {
		path   string
		change func(*http.Request)
		want   int
	}{
		{"/healthz", nil, 200},
		{"/readyz", nil, 200},
		{"/", nil, 200},
		{"/?service=none.such", nil, 404},
		{"/", asHost("evil.example"), 403},
		{"/", with("Sec-Fetch-Site", "cross-site"), 403},
		{"/", func(r *http.Request) { // a link of another site, which is followed
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			r.Header.Set("Sec-Fetch-Mode", "navigate")
			r.Header.Set("Sec-Fetch-Dest", "document")
		}, 200},
		{"/", func(r *http.Request) { // its frame
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			r.Header.Set("Sec-Fetch-Mode", "navigate")
			r.Header.Set("Sec-Fetch-Dest", "iframe")
		}, 403},
		{pathOverview, asHost("evil.example"), 403},
		{pathOverview, with("Sec-Fetch-Site", "cross-site"), 403},
		{"/page.html", nil, 404},
		{"/web/page.js", nil, 404},
		{pathSockets + "?limit=0", nil, 400},
		{pathSockets + "?limit=x", nil, 400},
		{pathSockets + "?state=NONE", nil, 400},
		{"/index.html", nil, 404},
		{"/v1/metrics", nil, 404},
		{"/api/v1/timeline/fff", nil, 404},
		{"/api/v1/timeline/0x1", nil, 400},
		{"/api/v1/timeline/11112222333344445", nil, 400},
		{"/api/v1/timeline/%0a", nil, 400},
		{"/events?type=all", nil, 400},
		{pathStats, func(r *http.Request) { r.Method = http.MethodPost }, 405},
		{pathStats, asHost("localhost:9293"), 200},
		{pathStats, asHost("LOCALHOST"), 200},
		{pathStats, asHost("127.0.0.1"), 200},
		{pathStats, asHost("[::1]:9293"), 200},
		{pathStats, asHost("evil.example"), 403},
		{pathStats, asHost("evil.example:9293"), 403},
		{pathStats, asHost("127.0.0.1.evil.example"), 403},
		{pathStats, asHost("192.168.0.1"), 403},
		{"/events", asHost("evil.example"), 403},
		{"/api/v1/timeline/1", asHost("evil.example"), 403},
		{pathSockets, asHost("evil.example"), 403},
		{pathLeaks, asHost("evil.example"), 403},
		{"/metrics", asHost("host.example"), 200}, // a name of this host, as Prometheus knows it
		{pathStats, origin, 200},
		{pathStats, with("Origin", "http://evil.example"), 403},
		{pathStats, with("Origin", "null"), 403},
		{pathStats, with("Sec-Fetch-Site", "cross-site"), 403},
		{pathStats, with("Sec-Fetch-Site", "same-site"), 403},
		{pathStats, with("Sec-Fetch-Site", "none"), 200},
		{"/events", with("Origin", "http://evil.example"), 403},
	} {
		change := c.change
		if change == nil {
			change = func(*http.Request) {}
		}
		if got, body := r.get(c.path, change); got != c.want {
			t.Errorf("%s: got %d (%s), want %d", c.path, got, body, c.want)
		}
	}
}

// stream reads server-sent events.
func (r *running) stream(query string) *bufio.Scanner {
	r.t.Helper()
	response := r.do("/events" + query)
	if response == nil || response.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: no stream: %+v", query, response)
	}
	r.t.Cleanup(func() { response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	if !lines.Scan() || lines.Text() != ": tcptrace" {
		r.t.Fatalf("%s begins with %q", query, lines.Text())
	}
	return lines
}

// next returns the name and the data of the next event.
func next(t *testing.T, lines *bufio.Scanner) (name, data string) {
	t.Helper()
	for lines.Scan() {
		switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
		case "event":
			name = value
		case "data":
			return name, value
		}
	}
	t.Fatalf("the stream has ended: %v", lines.Err())
	return "", ""
}

func TestEvents(t *testing.T) {
	f := newFeed()
	r := start(t, f, nil)
	transitions, connections := r.stream("?type=transition"), r.stream("")
	all := events(t)
	for _, e := range all {
		f.more <- e
	}
	for i := range all {
		name, data := next(t, transitions)
		if kind := fmt.Sprintf(`{"v":1,"type":"%s"`, all[i].Kind); name != topicTransition || !strings.HasPrefix(data, kind) || !json.Valid([]byte(data)) {
			t.Errorf("got %s %s, want %s", name, data, kind)
		}
	}
	name, data := next(t, connections)
	if name != topicConnection || !strings.Contains(data, `"type":"connection"`) || !strings.Contains(data, `"duration_ms":303`) {
		t.Errorf("got %s %s", name, data)
	}
}

// A stream outlives the time in which a request has to come, and an answer has to be read.
func TestStreamLasts(t *testing.T) {
	d := newDaemon(Config{Notifier: new(Notifier), MaxServices: 1, MaxSockets: 10}, newFeed())
	server := httptest.NewUnstartedServer(d.handler())
	const limit = 100 * time.Millisecond
	server.Config.WriteTimeout, server.Config.ReadTimeout = limit, limit
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(d.collector.closeOnce)
	r := &running{t: t, url: server.URL, client: server.Client()}
	stream := r.stream("?type=transition")
	time.Sleep(3 * limit)
	e := events(t)[0]
	if err := errors.Join(d.collector.Event(&e), d.collector.Idle()); err != nil {
		t.Fatal(err)
	}
	if name, _ := next(t, stream); name != topicTransition {
		t.Errorf("got %s", name)
	}
}

// One client too many is refused, and whoever leaves makes room.
func TestTooManyStreams(t *testing.T) {
	h := &hub{}
	a, b := &topic{hub: h}, &topic{hub: h}
	var last *client
	for i := range maxStreams {
		var err error
		if last, err = []*topic{a, b}[i%2].join(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.join(); err != errTooMany {
		t.Errorf("got %v", err)
	}
	b.leave(last)
	if _, err := a.join(); err != nil {
		t.Errorf("got %v", err)
	}
}

// What a client is too slow for is dropped, counted, and told to it; others get all.
func TestSlowClient(t *testing.T) {
	c := newCollector(collectorConfig{source: newFeed(), maxServices: 1, maxSockets: 1000})
	slow, _ := c.events.join()
	quick, _ := c.events.join()
	e := events(t)[1]
	const sent = maxWaiting + 5*batchSize
	got := uint64(0)
	for range sent {
		if err := c.Event(&e); err != nil {
			t.Fatal(err)
		}
		for len(quick.queue) > 0 {
			b := <-quick.queue
			quick.took(b)
			got += b.events
		}
	}
	const dropped = 5 * batchSize
	if got != sent || quick.dropped.Load() != 0 {
		t.Errorf("the quick one got %d of %d", got, sent)
	}
	if slow.dropped.Load() != dropped || c.hub.dropped.Load() != dropped || slow.waiting.Load() != maxWaiting {
		t.Errorf("the slow one lost %d, in all %d, %d wait", slow.dropped.Load(), c.hub.dropped.Load(), slow.waiting.Load())
	}
	for len(slow.queue) > 0 { // it wakes up on a quiet host, where each event is a batch
		slow.took(<-slow.queue)
	}
	before := slow.dropped.Load()
	for range maxWaiting {
		if err := errors.Join(c.Event(&e), c.Idle()); err != nil {
			t.Fatal(err)
		}
	}
	if slow.dropped.Load() != before || slow.waiting.Load() != maxWaiting || len(slow.queue) != maxWaiting {
		t.Errorf("of %d single events %d were dropped", maxWaiting, slow.dropped.Load()-before)
	}
	var b strings.Builder
	if err := writeFrames(&b, "x", []byte("{1}\n{2}\n")); err != nil || b.String() != "event: x\ndata: {1}\n\nevent: x\ndata: {2}\n\n" {
		t.Errorf("got %q %v", b.String(), err)
	}
}

// load makes the events of connections without an end, each of one of many services.
func load(services uint64) func(n uint64, e *tcp.Event) bool {
	cgroups := make([]string, services)
	for i := range cgroups {
		cgroups[i] = fmt.Sprintf("/system.slice/s%d.service", i)
	}
	steps := []struct{ old, new tcp.State }{
		{tcp.Close, tcp.SynSent}, {tcp.SynSent, tcp.Established}, {tcp.Established, tcp.FinWait1}, {tcp.FinWait1, tcp.FinWait2}, {tcp.FinWait2, tcp.Close},
	}
	one := tcp.Event{
		UID: tcp.NoUID, FD: tcp.NoFD, NetNS: 1, Role: tcp.Client, PID: 7, Comm: "load", OwnerSource: tcp.FromConnect,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"), Duration: 1e6, DurationKind: tcp.Exact,
	}
	return func(n uint64, e *tcp.Event) bool {
		connection, step := n/uint64(len(steps)), steps[n%uint64(len(steps))]
		*e = one
		e.Cookie, e.Cgroup = connection+1, cgroups[connection%services]
		e.Old, e.New = step.old, step.new
		e.Time = capture.Start + int64(n)
		return true
	}
}

// The capture goes on with clients that never read, and questions whose answers nobody fetches:
// here nothing would ever give them up, so it would hang if it waited for one.
func TestCaptureWaitsForNobody(t *testing.T) {
	c := newCollector(collectorConfig{source: newFeed(), maxServices: 10, maxSockets: 1000, look: 1})
	for range maxStreams / 2 {
		for _, dead := range []*topic{&c.events, &c.conns.topic} {
			if _, err := dead.join(); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill, done := load(20), make(chan error, 1)
	go func() {
		var e tcp.Event
		for n := range uint64(50_000) {
			fill(n, &e)
			e.BootNS = capture.BootNS + n
			err := c.Event(&e)
			if n%1000 == 0 {
				c.snapshots.join()
				c.statsAsked.join()
				c.leaksAsked.join()
				c.socketsAsked.join()
				select {
				case c.storiesWanted <- storyQuestion{n, make(chan storyAnswer, 1)}:
				default:
				}
				err = errors.Join(err, c.Idle(), c.Tick(e.BootNS))
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- c.Close(0)
	}()
	select {
	case err := <-done:
		if err != nil || c.hub.dropped.Load() == 0 {
			t.Errorf("got %v, %d events were dropped", err, c.hub.dropped.Load())
		}
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
	}
}

// Clients that do not read hold nothing up, and SIGTERM under load ends it all in order.
func TestDeadClients(t *testing.T) {
	f := newFeed()
	f.make = load(200)
	r := start(t, f, func(c *Config) { c.MaxServices = 500 })
	address := strings.TrimPrefix(r.url, "http://")
	for i := range 60 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		path := []string{"/events?type=transition", "/metrics", "/events"}[i%3]
		if i%10 != 9 { // one in ten does not even ask
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		}
	}
	eventually(t, func() bool {
		_, text := r.get("/metrics")
		return strings.Contains(text, "tcptrace_event_streams ") && !strings.Contains(text, "tcptrace_event_streams_dropped_total 0\n")
	})
	before := f.n.Load()
	eventually(t, func() bool { return f.n.Load() > before+2*maxWaiting })
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	got := r.end()
	if got.err != nil || got.counts.Events != f.n.Load() || got.counts.Lost != 0 {
		t.Errorf("got %+v of %d events", got, f.n.Load())
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

// A run that cannot begin ends all that waits for it.
func TestNoBeginning(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cannot := errors.New("cannot read the sockets")
	done := make(chan error, 1)
	go func() {
		run := pipeline.Config{Existing: func(func(*tcp.Event) error) error { return cannot }}
		_, err := Run(t.Context(), Config{Listeners: []net.Listener{l}, Notifier: new(Notifier), MaxServices: 1, MaxSockets: 1}, run, newFeed())
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, cannot) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
}

// A client chooses the format.
func TestFormats(t *testing.T) {
	r := started(t, nil)
	for accept, want := range map[string]string{
		"": "text/plain", "text/html": "text/plain",
		"application/openmetrics-text;version=1.0.0":                                                 "application/openmetrics-text",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
	} {
		response := r.do("/metrics", func(r *http.Request) { r.Header.Set("Accept", accept) })
		if response == nil {
			t.Fatalf("%s: no answer", accept)
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if kind := response.Header.Get("Content-Type"); err != nil || !strings.HasPrefix(kind, want) {
			t.Errorf("%s: %s %v", accept, kind, err)
		}
		if want == "application/openmetrics-text" && !strings.HasSuffix(string(text), "# EOF\n") {
			t.Errorf("%s: it has no end", accept)
		}
	}
}

// A server that fails ends the daemon.
func TestListenerFails(t *testing.T) {
	var l net.Listener
	r := start(t, newFeed(), func(c *Config) { l = c.Listeners[0] })
	l.Close()
	if got := r.end(); got.err == nil || !strings.Contains(got.err.Error(), "use of closed network connection") {
		t.Errorf("got %+v", got)
	}
}

// It is not ready before the sockets that exist are read, nor when it stops.
func TestReadiness(t *testing.T) {
	d := newDaemon(Config{Notifier: new(Notifier), MaxServices: 1, MaxSockets: 1}, newFeed())
	status := func(within time.Duration) int {
		var w recorder
		d.health(within)(&w, nil)
		return w.status
	}
	if ready, healthy := status(staleAfter), status(deadAfter); ready != 503 || healthy != 200 {
		t.Errorf("at the start: %d, %d", ready, healthy)
	}
	d.collector.ticked.Store(time.Now().UnixNano())
	if ready, healthy := status(staleAfter), status(deadAfter); ready != 200 || healthy != 200 {
		t.Errorf("at work: %d, %d", ready, healthy)
	}
	d.collector.ticked.Store(time.Now().Add(-20 * time.Second).UnixNano())
	if ready, healthy := status(staleAfter), status(deadAfter); ready != 503 || healthy != 200 {
		t.Errorf("after 20 s: %d, %d", ready, healthy)
	}
	d.collector.ticked.Store(time.Now().Add(-40 * time.Second).UnixNano())
	if healthy := status(deadAfter); healthy != 503 {
		t.Errorf("after 40 s: %d", healthy)
	}
	d.collector.ticked.Store(time.Now().UnixNano())
	d.collector.closeOnce()
	if ready, healthy := status(staleAfter), status(deadAfter); ready != 503 || healthy != 503 {
		t.Errorf("at the end: %d, %d", ready, healthy)
	}
}

type recorder struct {
	status int
	header http.Header
}

func (w *recorder) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}
func (w *recorder) WriteHeader(status int) { w.status = status }
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return len(b), nil
}

// The service manager hears of the start, of SIGHUP, that it is alive, and of the end.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "400000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	notifier, err := NewNotifier()
	if err != nil {
		t.Fatal(err)
	}
	heard := func(want string) {
		t.Helper()
		for {
			text := make([]byte, 200)
			manager.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := manager.Read(text)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if strings.HasPrefix(string(text[:n]), want) {
				return
			}
		}
	}
	r := start(t, newFeed(), func(c *Config) { c.Notifier = notifier })
	heard("READY=1")
	heard("WATCHDOG=1")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	heard("RELOADING=1\nMONOTONIC_USEC=")
	heard("READY=1")
	if said := <-r.said; !strings.HasPrefix(said, "SIGHUP: ") {
		t.Errorf("it said %q", said)
	}
	if status, _ := r.get("/readyz"); status != 200 {
		t.Errorf("after SIGHUP: %d", status)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := r.end(); got.err != nil {
		t.Error(got.err)
	}
	heard("STOPPING=1")
}

// What the sockets are cannot be looked at: all else is served.
func TestFailedLook(t *testing.T) {
	r := start(t, newFeed(), func(c *Config) {
		c.Facts = leak.Facts{}
	})
	r.feed.rows.Store(&[]tcp.Event{{Kind: tcp.Kind(99), New: tcp.CloseWait}})
	status, body := r.get(pathSockets)
	if status != 503 || !strings.Contains(body, "unknown kind") {
		t.Errorf("got %d %s", status, body)
	}
	if status, _ := r.get("/metrics"); status != 200 {
		t.Errorf("metrics: %d", status)
	}
}

package otlp

import (
	"compress/gzip"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// receiver takes what is pushed. answer may refuse a request; nil: none is.
type receiver struct {
	*httptest.Server
	lock     sync.Mutex
	answer   func(w http.ResponseWriter, n int) (handled bool)
	requests int
	headers  []http.Header
	logs     []*logspb.ResourceLogs
	metrics  []*metricspb.ResourceMetrics
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, int) bool) *receiver {
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body := io.Reader(request.Body)
	if request.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(body)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return // the client has gone
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.requests++
	r.headers = append(r.headers, request.Header)
	if r.answer != nil && r.answer(w, r.requests) {
		return
	}
	if strings.HasSuffix(request.URL.Path, "/v1/metrics") {
		var all metricscollectorpb.ExportMetricsServiceRequest
		err = proto.Unmarshal(text, &all)
		r.metrics = append(r.metrics, all.ResourceMetrics...)
	} else {
		var all collectorpb.ExportLogsServiceRequest
		err = proto.Unmarshal(text, &all)
		r.logs = append(r.logs, all.ResourceLogs...)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// records are those that came, in their order.
func (r *receiver) records() (all []*logspb.LogRecord) {
	r.lock.Lock()
	defer r.lock.Unlock()
	for _, resource := range r.logs {
		for _, scope := range resource.ScopeLogs {
			all = append(all, scope.LogRecords...)
		}
	}
	return all
}

func (r *receiver) settings(t *testing.T, env ...string) Settings {
	t.Helper()
	s, err := with(r.URL, env...).Read()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// push starts a Pusher, which the test is to stop.
func push(t *testing.T, s Settings) *Pusher {
	t.Helper()
	p, err := Start(Config{
		Settings: s, Version: "1.2.3", Host: "node-1", Say: func(string) {},
		Collect: func(context.Context) (Moment, error) { return Moment{}, errors.New("not asked for") },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

func ended(n int) *connection.Record {
	r := &connection.Record{
		Event: tcp.Event{
			Time: 1_700_000_000_000_000_000 + int64(n), Cookie: 0x1000 + uint64(n), Old: tcp.FinWait2, New: tcp.TimeWait, NetNS: 4026531840,
			Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:443"), Role: tcp.Client,
			OwnerSource: tcp.FromConnect, PID: 77, Comm: "cu\xffrl", UID: 1000, Cgroup: "/system.slice/a.service", Reason: tcp.FinReceived, Errno: 104,
			Duration: 1_500_000_000, DurationKind: tcp.Exact, HasCounters: true, BytesSent: 10, BytesReceived: 1 << 40, Retransmits: 3, SRTT: 250,
		},
		ClosedFirst: connection.Local, Outcome: "closed", Missing: true,
	}
	r.Stays[tcp.SynSent] = connection.Stay{NS: 250_000, Kind: tcp.Exact}
	r.Stays[tcp.Established] = connection.Stay{NS: 1_000_000_000, Kind: tcp.AtLeast}
	r.Stays[tcp.FinWait1] = connection.Stay{Kind: tcp.Unknown}
	return r
}

// attributes are those of a record, as text.
func attributes(record *logspb.LogRecord) map[string]string { return texts(record.Attributes) }

func texts(pairs []*commonpb.KeyValue) map[string]string {
	all := make(map[string]string)
	for _, pair := range pairs {
		switch v := pair.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			all[pair.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[pair.Key] = fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_DoubleValue:
			all[pair.Key] = fmt.Sprint(v.DoubleValue)
		case *commonpb.AnyValue_BoolValue:
			all[pair.Key] = fmt.Sprint(v.BoolValue)
		}
	}
	return all
}

func expect(t *testing.T, got map[string]string, want string) {
	t.Helper()
	var lines []string
	for key, value := range got {
		lines = append(lines, key+"="+value)
	}
	slices.Sort(lines)
	if text := strings.Join(lines, "\n"); text != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestConnectionRecord(t *testing.T) {
	r := newReceiver(t, nil)
	p := push(t, r.settings(t, "OTEL_EXPORTER_OTLP_HEADERS=X-Tenant=blue", "OTEL_RESOURCE_ATTRIBUTES=host.name=renamed", "OTEL_EXPORTER_OTLP_COMPRESSION=gzip"))
	p.Connection(ended(0), "a.service")
	p.Stop(5*time.Second, Moment{})
	records := r.records()
	if len(records) != 1 {
		t.Fatalf("got %d records", len(records))
	}
	one := records[0]
	if one.EventName != EventConnection || one.TimeUnixNano != 1_700_000_000_000_000_000 || one.ObservedTimeUnixNano != one.TimeUnixNano ||
		one.SeverityNumber != logspb.SeverityNumber_SEVERITY_NUMBER_INFO || one.SeverityText != "INFO" {
		t.Errorf("%v", one)
	}
	expect(t, attributes(one), `
network.local.address=10.0.0.1
network.local.port=40000
network.peer.address=10.0.0.2
network.peer.port=443
network.transport=tcp
network.type=ipv4
process.pid=77
tcptrace.bytes_received=1099511627776
tcptrace.bytes_sent=10
tcptrace.cgroup=/system.slice/a.service
tcptrace.closed_first=local
tcptrace.comm=cu`+"\ufffd"+`rl
tcptrace.cookie=1000
tcptrace.duration_kind=exact
tcptrace.duration_ms=1500
tcptrace.error=ECONNRESET
tcptrace.established_kind=at_least
tcptrace.established_ms=1000
tcptrace.fin_wait1_kind=unknown
tcptrace.missing=true
tcptrace.netns=4026531840
tcptrace.outcome=closed
tcptrace.reason=fin_received
tcptrace.retransmits=3
tcptrace.role=client
tcptrace.service=a.service
tcptrace.srtt_ms=0.25
tcptrace.state=TIME_WAIT
tcptrace.syn_sent_ms=0.25
tcptrace.uid=1000`)
	expect(t, texts(r.logs[0].Resource.Attributes), "host.name=renamed\nos.type=linux\nservice.instance.id=renamed\nservice.name=tcptrace\nservice.version=1.2.3")
	if scope := r.logs[0].ScopeLogs[0].Scope; scope.Name != scopeName || scope.Version != "1.2.3" {
		t.Errorf("scope %v", scope)
	}
	if h := r.headers[0]; h.Get("X-Tenant") != "blue" || h.Get("Content-Type") != "application/x-protobuf" || h.Get("User-Agent") != "tcptrace/1.2.3" {
		t.Errorf("headers %v", h)
	}
}

func TestLeakRecord(t *testing.T) {
	r := newReceiver(t, nil)
	p := push(t, r.settings(t))
	p.Leak(&Verdict{
		Time: 5, Leak: true, Verdict: "leak", Sentence: "a leaks.", Service: "a", State: tcp.CloseWait, PID: 7, Comm: "app", Sockets: 3,
		Oldest: 2e9, AtLeast: true, Growth: 1.5, GrowthKnown: true, FilesLeft: 60e9, FilesLeftKnown: true, Cause: "missing_close",
		Diagnosis: "It forgets.", Stack: []string{"main.dial at a.go:7", "main.main at a.go:1"}, Remote: netip.MustParseAddrPort("[fe80::1%2]:0"),
		LocalPort: 80, Holder: tcp.Held, Role: tcp.Server, NetNS: 9, Container: "abc", Cgroup: "/c",
	})
	p.Leak(&Verdict{Time: 6, Verdict: "ended", Sentence: "a leaks no longer.", State: tcp.CloseWait})
	p.Stop(5*time.Second, Moment{})
	records := r.records()
	if len(records) != 2 || records[0].SeverityText != "WARN" || records[1].SeverityText != "INFO" || records[0].EventName != EventLeak ||
		records[0].Body.GetStringValue() != "a leaks." {
		t.Fatalf("%v", records)
	}
	expect(t, attributes(records[0]), `
code.stacktrace=main.dial at a.go:7
main.main at a.go:1
container.id=abc
network.local.port=80
network.peer.address=fe80::1%2
network.transport=tcp
process.pid=7
tcptrace.cause=missing_close
tcptrace.cgroup=/c
tcptrace.comm=app
tcptrace.diagnosis=It forgets.
tcptrace.growth_per_min=1.5
tcptrace.holder=held
tcptrace.limit_reached_s=60
tcptrace.netns=9
tcptrace.oldest_at_least=true
tcptrace.oldest_s=2
tcptrace.role=server
tcptrace.service=a
tcptrace.sockets=3
tcptrace.state=CLOSE_WAIT
tcptrace.verdict=leak`)
}

// All changes of a socket are pushed, or none.
func TestSampling(t *testing.T) {
	for _, share := range []float64{0, 0.1, 0.5, 1} {
		p := &Pusher{sampled: threshold(share)}
		n := 0
		for cookie := range uint64(10_000) {
			if p.Sampled(cookie + 1) {
				n++
			}
		}
		if got := float64(n) / 10_000; got < share-0.02 || got > share+0.02 {
			t.Errorf("a share of %v gives %v", share, got)
		}
		if p.Sampled(0) != (share == 1) {
			t.Errorf("a share of %v: a socket without a cookie: %v", share, p.Sampled(0))
		}
	}
}

// sum is what has become of records.
func (p *Pusher) sum() (sent, rejected, dropped uint64) {
	n := p.counts[signalLogs]
	return n.sent.Load(), n.rejected.Load(), n.dropped.Load()
}

// A full batch does not wait for its second; one that is not full goes with the tick.
func TestBatches(t *testing.T) {
	r := newReceiver(t, nil)
	p := push(t, r.settings(t))
	for n := range maxBatch + 1 {
		p.Connection(ended(n), "a")
	}
	eventually(t, "a full batch", func() bool { return len(r.records()) == maxBatch })
	p.Tick(uint64(2 * gatherFor))
	eventually(t, "the rest", func() bool { return len(r.records()) == maxBatch+1 })
	p.Stop(5*time.Second, Moment{})
	for n, record := range r.records() {
		if want := uint64(ended(n).Time); record.TimeUnixNano != want {
			t.Fatalf("record %d is of %d, want %d: they are out of order", n, record.TimeUnixNano, want)
		}
	}
	if sent, rejected, dropped := p.sum(); sent != maxBatch+1 || rejected+dropped != 0 {
		t.Errorf("%d sent, %d rejected, %d dropped", sent, rejected, dropped)
	}
}

// What may help is tried again, what cannot is given up; each record is counted once.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name                    string
		answer                  func(w http.ResponseWriter, n int) bool
		sent, rejected, request uint64
	}{
		{"unavailable once", func(w http.ResponseWriter, n int) bool {
			if n == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return n == 1
		}, 1, 0, 2},
		{"too many, with a time", func(w http.ResponseWriter, n int) bool {
			if n == 1 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
			}
			return n == 1
		}, 1, 0, 2},
		{"cut off", func(w http.ResponseWriter, n int) bool {
			if n == 1 {
				panic(http.ErrAbortHandler)
			}
			return false
		}, 1, 0, 2},
		{"never", func(w http.ResponseWriter, n int) bool {
			http.Error(w, "\x1b[31mno", http.StatusBadRequest)
			return true
		}, 0, 1, 1},
		{"elsewhere", func(w http.ResponseWriter, n int) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, 0, 1, 1},
		{"in part", func(w http.ResponseWriter, n int) bool {
			body, _ := proto.Marshal(&collectorpb.ExportLogsServiceResponse{PartialSuccess: &collectorpb.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too old"}})
			_, _ = w.Write(body)
			return true
		}, 0, 1, 1},
		{"nonsense", func(w http.ResponseWriter, n int) bool { _, _ = w.Write([]byte("\xff\xff")); return true }, 1, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReceiver(t, test.answer)
			p := push(t, r.settings(t))
			p.Connection(ended(0), "a")
			p.Tick(uint64(gatherFor))
			eventually(t, "an answer", func() bool { sent, rejected, _ := p.sum(); return sent+rejected == 1 })
			p.Stop(5*time.Second, Moment{})
			sent, rejected, dropped := p.sum()
			if sent != test.sent || rejected != test.rejected || dropped != 0 || uint64(r.requests) != test.request {
				t.Errorf("%d sent, %d rejected, %d dropped, %d requests", sent, rejected, dropped, r.requests)
			}
		})
	}
}

// A receiver that is away for long costs no more than the queue, and what it did not get is
// counted. When it is back, what waits is sent.
func TestAway(t *testing.T) {
	away := true
	r := newReceiver(t, nil)
	r.answer = func(w http.ResponseWriter, n int) bool { // called under the lock
		if away {
			w.WriteHeader(http.StatusBadGateway)
		}
		return away
	}
	p := push(t, r.settings(t))
	const made = 20_000
	for n := range made {
		p.Connection(ended(n), "a.service")
	}
	p.Tick(uint64(gatherFor))
	p.Leak(&Verdict{Time: 1, Leak: true, Verdict: "leak", Service: "a.service", State: tcp.CloseWait})
	p.Tick(2 * uint64(gatherFor))
	q := p.logs.queue
	q.lock.Lock()
	size := q.size
	q.lock.Unlock()
	_, _, dropped := p.sum()
	if size > maxWaiting+moreForLeaks || dropped == 0 || dropped > made {
		t.Errorf("%d bytes wait, %d records were dropped", size, dropped)
	}
	r.lock.Lock()
	away = false
	r.lock.Unlock()
	eventually(t, "all that was kept", func() bool { sent, _, dropped := p.sum(); return sent+dropped == made+1 })
	p.Connection(ended(0), "a.service")
	p.Stop(5*time.Second, Moment{})
	all := r.records()
	if got := uint64(len(all)); got+dropped != made+2 {
		t.Errorf("%d came, %d were dropped, of %d", got, dropped, made+2)
	}
	if name := all[max(len(all)-2, 0)].EventName; name != EventLeak {
		t.Errorf("the record before the last one is %s: there is room for a verdict", name)
	}
}

// A receiver that hangs holds the end up for no longer than Stop may take, and a dead one not at all.
func TestStop(t *testing.T) {
	block := make(chan struct{})
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-block }))
	defer hang.Close()
	defer close(block)
	for name, url := range map[string]string{"hangs": hang.URL, "dead": "http://127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			s, err := with(url).Read()
			if err != nil {
				t.Fatal(err)
			}
			p := push(t, s)
			for n := range maxBatch * 2 {
				p.Connection(ended(n), "a")
			}
			p.Connection(ended(0), "a")
			began := time.Now()
			p.Stop(200*time.Millisecond, Moment{Families: []*dto.MetricFamily{{}}})
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if sent, rejected, dropped := p.sum(); sent+rejected != 0 || dropped != 2*maxBatch+1 {
				t.Errorf("%d sent, %d rejected, %d dropped", sent, rejected, dropped)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	r := &receiver{}
	r.Server = httptest.NewTLSServer(r)
	defer r.Close()
	r.Config.ErrorLog = nil
	pemOf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	s := with(r.URL, "OTEL_EXPORTER_OTLP_CERTIFICATE=ca.pem")
	s.ReadFile = func(string) ([]byte, error) { return pemOf, nil }
	settings, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	p := push(t, settings)
	p.Connection(ended(0), "a")
	p.Stop(5*time.Second, Moment{})
	if len(r.records()) != 1 {
		t.Errorf("got %d records", len(r.records()))
	}
	stranger := r.settings(t) // the roots of the system do not know it
	p = push(t, stranger)
	p.Connection(ended(0), "a")
	p.Stop(5*time.Second, Moment{})
	if sent, _, dropped := p.sum(); sent != 0 || dropped != 1 {
		t.Errorf("a certificate of nobody: %d sent, %d dropped", sent, dropped)
	}
}

// Metrics go at intervals and at the end, and are those of the semantic conventions where these
// have one.
func TestMetrics(t *testing.T) {
	r := newReceiver(t, nil)
	name, help, kind, value := "tcptrace_sockets", "Sockets.", dto.MetricType_GAUGE, 7.0
	moment := Moment{
		Families: []*dto.MetricFamily{{Name: &name, Help: &help, Type: &kind, Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: &value}}}}},
		Sockets:  map[tcp.State]int{tcp.Established: 3, tcp.SynRecv: 2},
	}
	p, err := Start(Config{
		Settings: r.settings(t, "OTEL_METRIC_EXPORT_INTERVAL=50"), Version: "1", Host: "h", Say: func(string) {},
		Collect: func(context.Context) (Moment, error) { return moment, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		r.lock.Lock()
		defer r.lock.Unlock()
		return len(r.metrics)
	}
	eventually(t, "two pushes", func() bool { return count() >= 2 })
	before := count()
	p.Stop(5*time.Second, moment)
	if count() <= before {
		t.Error("nothing came at the end")
	}
	got := make(map[string]string)
	for _, scope := range r.metrics[0].ScopeMetrics {
		for _, m := range scope.Metrics {
			for _, point := range m.GetGauge().GetDataPoints() {
				got[m.Name] = fmt.Sprint(point.GetAsDouble())
			}
			for _, point := range m.GetSum().GetDataPoints() {
				got[m.Name+" "+texts(point.Attributes)["network.connection.state"]] = fmt.Sprint(point.GetAsInt(), m.GetSum().IsMonotonic)
			}
		}
	}
	expect(t, got, "system.network.connection.count established=3 false\nsystem.network.connection.count syn_received=2 false\ntcptrace_sockets=7")
	if n := p.counts[signalMetrics]; n.sent.Load() == 0 || n.sent.Load()%3 != 0 || n.failed.Load() != 0 {
		t.Errorf("%d sent, %d failed", n.sent.Load(), n.failed.Load())
	}
}

// The goroutine that captures allocates nothing for a record once its buffers have grown.
func TestNoAllocations(t *testing.T) {
	q := newQueue(func(uint64) {})
	record := ended(0)
	record.Comm = "curl" // what is no UTF-8 is copied
	add := func() {
		q.encoder.connection(record, "a.service")
		q.add()
		if q.gathered.n == 0 {
			b, _ := q.take()
			q.done(b)
		}
	}
	for range 3 * maxBatch {
		add()
	}
	if n := testing.AllocsPerRun(2*maxBatch, add); n > 0.01 {
		t.Errorf("%v allocations a record", n)
	}
}

func BenchmarkConnection(b *testing.B) {
	q := newQueue(func(uint64) {})
	record := ended(0)
	record.Comm = "curl"
	b.ReportAllocs()
	for b.Loop() {
		q.encoder.connection(record, "a.service")
		q.add()
		if batch, is := q.take(); is {
			q.done(batch)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "-1": 0, "soon": 0, "99999": 5 * time.Minute,
		"Mon, 02 Jan 2006 15:04:05 GMT": 0} {
		if got := retryAfter(http.Header{"Retry-After": {text}}); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

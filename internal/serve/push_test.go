package serve

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// receiver notes what is pushed to it.
type receiver struct {
	lock    sync.Mutex
	records []string // event name, state or outcome, verdict, service
	metrics map[string]bool
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	text, err := io.ReadAll(request.Body)
	if err != nil {
		return // the daemon has gone
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	if strings.HasSuffix(request.URL.Path, "/metrics") {
		var all metricscollectorpb.ExportMetricsServiceRequest
		err = proto.Unmarshal(text, &all)
		for _, scope := range all.GetResourceMetrics()[0].GetScopeMetrics() {
			for _, m := range scope.Metrics {
				r.metrics[m.Name] = true
			}
		}
	} else {
		var all collectorpb.ExportLogsServiceRequest
		err = proto.Unmarshal(text, &all)
		for _, scope := range all.GetResourceLogs()[0].GetScopeLogs() {
			for _, record := range scope.LogRecords {
				words := []string{record.EventName}
				for _, key := range []string{"tcptrace.old", "tcptrace.new", "tcptrace.outcome", "tcptrace.verdict", "tcptrace.service"} {
					for _, a := range record.Attributes {
						if a.Key == key {
							words = append(words, a.Value.GetStringValue())
						}
					}
				}
				r.records = append(r.records, strings.Join(words, " "))
			}
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (r *receiver) has(record string) bool {
	r.lock.Lock()
	defer r.lock.Unlock()
	return slices.Contains(r.records, record)
}

// Connections that end, verdicts that change and metrics are pushed; the last of them as the
// daemon ends.
func TestPush(t *testing.T) {
	to := &receiver{metrics: make(map[string]bool)}
	server := httptest.NewServer(to)
	defer server.Close()
	settings, err := otlp.Source{Endpoint: server.URL, Getenv: func(string) string { return "" }}.Read()
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed()
	leaking := []tcp.Event{*move(9, "/system.slice/batch.service", 0, tcp.Established, tcp.CloseWait)}
	leaking[0].Kind, leaking[0].Old, leaking[0].Duration = tcp.Socket, 0, 60e9
	leaking[0].OwnerSource, leaking[0].PID, leaking[0].Comm, leaking[0].Holder = tcp.FromConnect, 9, "batch", tcp.Held
	f.rows.Store(&leaking)
	r := start(t, f, func(cfg *Config) { cfg.Push = PushConfig{Settings: settings, Host: "h", Transitions: 1} })
	for _, e := range events(t) {
		f.more <- e
	}
	for _, want := range []string{
		"tcptrace.leak leak batch.service", "tcptrace.connection closed nginx.service",
		"tcptrace.transition CLOSE SYN_SENT nginx.service", "tcptrace.transition TIME_WAIT CLOSE nginx.service",
	} {
		eventually(t, func() bool { return to.has(want) })
	}
	_, metrics := r.get("/metrics")
	if !strings.Contains(metrics, `tcptrace_otlp_dropped_total{signal="logs"} 0`) {
		t.Error("/metrics says nothing about what is pushed")
	}
	f.rows.Store(nil)
	eventually(t, func() bool { return to.has("tcptrace.leak ended batch.service") })
	f.more <- *move(70, "/system.slice/late.service", 0, tcp.Close, tcp.SynSent)
	f.more <- *move(70, "/system.slice/late.service", 1, tcp.SynSent, tcp.Close)
	eventually(t, func() bool { _, text := r.get("/metrics"); return strings.Contains(text, "late.service") })
	r.cancel()
	r.end()
	if !to.has("tcptrace.connection failed late.service") {
		t.Errorf("what waited was not pushed: %q", to.records)
	}
	for _, name := range []string{"tcptrace_sockets", "tcptrace_state_duration_seconds", "system.network.connection.count", "tcptrace_otlp_sent_total"} {
		if !to.metrics[name] {
			t.Errorf("%s was not pushed", name)
		}
	}
	if n := slices.IndexFunc(to.records, func(s string) bool { return s == "tcptrace.leak leak batch.service" }); slices.Contains(to.records[n+1:], to.records[n]) {
		t.Errorf("a verdict that did not change was pushed again: %q", to.records)
	}
}

// A receiver that is away changes nothing for the rest, and the daemon ends in time.
func TestPushToNobody(t *testing.T) {
	settings, err := otlp.Source{Endpoint: "http://127.0.0.1:1", Getenv: func(string) string { return "" }}.Read()
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed()
	r := start(t, f, func(cfg *Config) { cfg.Push = PushConfig{Settings: settings} })
	for _, e := range events(t) {
		f.more <- e
	}
	eventually(t, func() bool {
		_, text := r.get("/metrics")
		return strings.Contains(text, `tcptrace_otlp_failed_requests_total{signal="logs"} 1`)
	})
	if said := <-r.said; !strings.Contains(said, "OTLP: ") || !strings.Contains(said, "connection refused") {
		t.Errorf("it said %q", said)
	}
	r.cancel()
	if got := r.end(); got.err != nil && got.err != context.Canceled {
		t.Error(got.err)
	}
}

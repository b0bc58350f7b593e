package servers

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startCollector starts a real OpenTelemetry Collector at an address. It hands what it takes to the
// sink before it answers, so it is as slow as the sink, and to others in its own time.
func startCollector(t *testing.T, at string, s *sink, logs, metrics map[string]string) *exec.Cmd {
	t.Helper()
	exporters := map[string]any{"otlp_http/sink": map[string]any{
		"endpoint": s.URL, "encoding": "json", "compression": "none",
		"sending_queue": map[string]any{"enabled": false}, "retry_on_failure": map[string]any{"enabled": false},
	}}
	pipeline := func(endpoint string, others map[string]string) any {
		names := []string{"otlp_http/sink"}
		for name, url := range others {
			exporters["otlp_http/"+name] = map[string]any{endpoint: url}
			names = append(names, "otlp_http/"+name)
		}
		return map[string]any{"receivers": []string{"otlp"}, "exporters": names}
	}
	config := map[string]any{
		"receivers": map[string]any{"otlp": map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": at}}}},
		"exporters": exporters,
		"service": map[string]any{
			"telemetry": map[string]any{"metrics": map[string]any{"level": "none"}},
			"pipelines": map[string]any{"logs": pipeline("logs_endpoint", logs), "metrics": pipeline("metrics_endpoint", metrics)},
		},
	}
	text, err := json.Marshal(config) // it is YAML too
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, "", filepath.Join(*serversDir, "collector"), "--config="+path)
	eventually(t, "the Collector is ready", time.Minute, func() error {
		response, err := http.Post("http://"+at+"/v1/logs", "application/json", strings.NewReader("{}"))
		if err == nil {
			response.Body.Close()
		}
		return err
	})
	return cmd
}

// startDaemon starts tcptrace on a host of that name, which pushes as the settings say, and
// waits until it is ready. The settings are in the environment of no other program.
func startDaemon(t *testing.T, hostname, web string, settings ...string) *exec.Cmd {
	t.Helper()
	args := append([]string{hostArg, hostname, "env", "OTEL_METRIC_EXPORT_INTERVAL=1000"}, settings...)
	cmd := start(t, "", self(t), append(args, filepath.Join(*binaries, "tcptrace"), "serve", "--interval", "1s", "--stacks", "--listen", web)...)
	eventually(t, "tcptrace is ready", time.Minute, func() error { return answers("http://" + web + "/readyz") })
	return cmd
}

// metric is the sum of the metrics of a daemon that begin like that.
func metric(t *testing.T, web, prefix string) (sum float64) {
	t.Helper()
	response, err := http.Get("http://" + web + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	found := false
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+value, true
	}
	if err := lines.Err(); err != nil || !found {
		t.Fatalf("no metric %s: %v", prefix, err)
	}
	return sum
}

// sink is what is behind the Collector: it takes OTLP as JSON.
type sink struct {
	*httptest.Server
	delay  atomic.Int64 // ns, before each answer
	status atomic.Int64 // of each answer

	lock        sync.Mutex
	connections map[string]map[string]record // by service, then by cookie
	leaks       []record
	metrics     map[string]otlpMetric // the last one of each name
}

// record is what the tests want to know of a log record.
type record struct {
	host, severity, body string
	attributes           map[string]string
}

func newSink(t *testing.T) *sink {
	s := &sink{connections: make(map[string]map[string]record), metrics: make(map[string]otlpMetric)}
	s.status.Store(http.StatusOK)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP is that of http.Handler.
func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	time.Sleep(time.Duration(s.delay.Load()))
	if status := int(s.status.Load()); status != http.StatusOK {
		w.WriteHeader(status)
		return
	}
	var request otlpRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.take(&request)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, "{}")
}

func (s *sink) take(request *otlpRequest) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, resource := range request.ResourceLogs {
		for _, scope := range resource.ScopeLogs {
			for _, l := range scope.LogRecords {
				r := record{resource.Resource.Attributes["host.name"], l.SeverityText, string(l.Body), l.Attributes}
				switch l.EventName {
				case "tcptrace.connection":
					s.connection(r)
				case "tcptrace.leak":
					s.leaks = append(s.leaks, r)
				}
			}
		}
	}
	for _, resource := range request.ResourceMetrics {
		for _, scope := range resource.ScopeMetrics {
			for _, m := range scope.Metrics {
				m.host = resource.Resource.Attributes["host.name"]
				s.metrics[m.Name] = m
			}
		}
	}
}

// connection keeps those of the services of the tests.
func (s *sink) connection(r record) {
	service := r.attributes["tcptrace.service"]
	if !strings.HasPrefix(service, "tcptrace-") {
		return
	}
	if s.connections[service] == nil {
		s.connections[service] = make(map[string]record)
	}
	s.connections[service][r.attributes["tcptrace.cookie"]] = r
}

// of returns the records of a service by cookie.
func (s *sink) of(service string) map[string]record {
	s.lock.Lock()
	defer s.lock.Unlock()
	return maps.Clone(s.connections[service])
}

// has returns an error unless a service has that many records of connections.
func (s *sink) has(service string, n int) error {
	if got := len(s.of(service)); got != n {
		return fmt.Errorf("%d of %d", got, n)
	}
	return nil
}

// leak returns the first such verdict about a service.
func (s *sink) leak(service, verdict string) (record, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, r := range s.leaks {
		if r.attributes["tcptrace.service"] == service && r.attributes["tcptrace.verdict"] == verdict {
			return r, nil
		}
	}
	return record{}, fmt.Errorf("%d verdicts, and no %s of %s", len(s.leaks), verdict, service)
}

func (s *sink) metric(name string) (otlpMetric, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	m, is := s.metrics[name]
	if !is {
		return m, fmt.Errorf("%d metrics, and no %s", len(s.metrics), name)
	}
	return m, nil
}

// otlpRequest is the JSON of OTLP: as much of it as the tests look at.
type otlpRequest struct {
	ResourceLogs []struct {
		Resource  otlpResource
		ScopeLogs []struct {
			LogRecords []struct {
				EventName, SeverityText string
				Body                    otlpValue
				Attributes              otlpAttributes
			}
		}
	}
	ResourceMetrics []struct {
		Resource     otlpResource
		ScopeMetrics []struct{ Metrics []otlpMetric }
	}
}

type otlpResource struct{ Attributes otlpAttributes }

type otlpMetric struct {
	host                      string
	Name                      string
	Sum, ExponentialHistogram struct{ DataPoints []otlpPoint }
}

type otlpPoint struct {
	Attributes   otlpAttributes
	AsInt, Count string
	Scale        int
}

// otlpAttributes are attributes by key, each as text.
type otlpAttributes map[string]string

// UnmarshalJSON is that of json.Unmarshaler.
func (a *otlpAttributes) UnmarshalJSON(text []byte) error {
	var pairs []struct {
		Key   string
		Value otlpValue
	}
	if err := json.Unmarshal(text, &pairs); err != nil {
		return err
	}
	*a = make(otlpAttributes, len(pairs))
	for _, p := range pairs {
		(*a)[p.Key] = string(p.Value)
	}
	return nil
}

// otlpValue is a value as text.
type otlpValue string

// UnmarshalJSON is that of json.Unmarshaler.
func (v *otlpValue) UnmarshalJSON(text []byte) error {
	var value struct {
		StringValue, IntValue string
		DoubleValue           *float64
		BoolValue             *bool
	}
	if err := json.Unmarshal(text, &value); err != nil {
		return err
	}
	switch {
	case value.DoubleValue != nil:
		*v = otlpValue(strconv.FormatFloat(*value.DoubleValue, 'g', -1, 64))
	case value.BoolValue != nil:
		*v = otlpValue(strconv.FormatBool(*value.BoolValue))
	default:
		*v = otlpValue(value.StringValue + value.IntValue)
	}
	return nil
}

// kill ends a program as a crash does.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // by the signal
}

// freeze stops a program until what it returns is called, or the test ends.
func freeze(t *testing.T, cmd *exec.Cmd) (thaw func()) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = func() { _ = cmd.Process.Signal(syscall.SIGCONT) } // it may have ended
	t.Cleanup(thaw)
	return thaw
}

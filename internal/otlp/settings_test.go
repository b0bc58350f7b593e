package otlp

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// with are settings of an environment.
func with(endpoint string, env ...string) Source {
	values := make(map[string]string)
	for _, pair := range env {
		name, value, _ := strings.Cut(pair, "=")
		values[name] = value
	}
	return Source{
		Endpoint: endpoint, Getenv: func(name string) string { return values[name] },
		ReadFile: func(path string) ([]byte, error) { return []byte("no certificate"), nil },
	}
}

func TestEndpoints(t *testing.T) {
	for _, test := range []struct {
		name          string
		flag          string
		env           []string
		metrics, logs string
	}{
		{name: "nobody asks"},
		{name: "a variable that names no endpoint", env: []string{"OTEL_EXPORTER_OTLP_HEADERS=a=b"}},
		{name: "flag", flag: "http://a:4318", metrics: "http://a:4318/v1/metrics", logs: "http://a:4318/v1/logs"},
		{name: "flag before variables", flag: "http://a:1/base/", env: []string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://b:2"},
			metrics: "http://a:1/base/v1/metrics", logs: "http://a:1/base/v1/logs"},
		{name: "base", env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://c"}, metrics: "https://c/v1/metrics", logs: "https://c/v1/logs"},
		{name: "one signal has the whole path", env: []string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://v:9428/insert/opentelemetry/v1/logs"},
			logs: "http://v:9428/insert/opentelemetry/v1/logs"},
		{name: "one signal is off", env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:3", "OTEL_LOGS_EXPORTER=none"}, metrics: "http://c:3/v1/metrics"},
		{name: "all is off", flag: "http://a:1", env: []string{"OTEL_SDK_DISABLED=TRUE"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := with(test.flag, test.env...).Read()
			if err != nil {
				t.Fatal(err)
			}
			for _, signal := range []struct {
				target Target
				want   string
			}{{s.Metrics, test.metrics}, {s.Logs, test.logs}} {
				got := ""
				if signal.target.URL != nil {
					got = signal.target.URL.String()
				}
				if got != signal.want {
					t.Errorf("got %q, want %q", got, signal.want)
				}
			}
			if s.On() != (test.metrics+test.logs != "") {
				t.Errorf("on: %v", s.On())
			}
		})
	}
}

func TestValues(t *testing.T) {
	s, err := with("http://[::1]:4318", "OTEL_EXPORTER_OTLP_HEADERS=Authorization=Basic%20eA%3D%3D, b = c", "OTEL_EXPORTER_OTLP_LOGS_HEADERS=d=e",
		"OTEL_EXPORTER_OTLP_TIMEOUT=1500", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION=gzip", "OTEL_METRIC_EXPORT_INTERVAL=5000",
		"OTEL_RESOURCE_ATTRIBUTES=service.name=a,deployment.environment=prod%2Ceu", "OTEL_SERVICE_NAME=edge").Read()
	if err != nil {
		t.Fatal(err)
	}
	if h := s.Metrics.Headers; h["Authorization"] != "Basic eA==" || h["b"] != "c" || len(h) != 2 {
		t.Errorf("headers of metrics: %q", h)
	}
	if h := s.Logs.Headers; h["d"] != "e" || len(h) != 1 {
		t.Errorf("headers of logs: %q", h)
	}
	if !s.Metrics.Gzip || s.Logs.Gzip || s.Logs.Timeout != 1500*time.Millisecond || s.Interval != 5*time.Second {
		t.Errorf("%+v", s)
	}
	if len(s.Resource) != 2 || s.Resource[0].Value.AsString() != "prod,eu" || s.Resource[1].Value.AsString() != "edge" {
		t.Errorf("resource: %v", s.Resource)
	}
	if s.Logs.Port() != 4318 || s.Logs.Named() {
		t.Errorf("port %d, named %v", s.Logs.Port(), s.Logs.Named())
	}
	s, err = with("https://collector").Read()
	if err != nil || s.Logs.Port() != 443 || !s.Logs.Named() || s.Logs.TLS == nil || s.Logs.TLS.RootCAs == nil {
		t.Errorf("%+v, %v", s.Logs, err)
	}
}

// What does not apply is an error that names the variable, and never shows what may be a secret.
func TestWrongValues(t *testing.T) {
	for env, want := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318":           "OTEL_EXPORTER_OTLP_ENDPOINT",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://":                  "give a URL",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://u:secret@h":        "neither a user",
		"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=ftp://h":             "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://h:0":       "port",
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc":                     "http/protobuf",
		"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=http/json":           "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
		"OTEL_EXPORTER_OTLP_COMPRESSION=zstd":                  "gzip",
		"OTEL_EXPORTER_OTLP_TIMEOUT=10s":                       "milliseconds",
		"OTEL_EXPORTER_OTLP_TIMEOUT=0":                         "milliseconds",
		"OTEL_METRIC_EXPORT_INTERVAL=-1":                       "OTEL_METRIC_EXPORT_INTERVAL",
		"OTEL_METRICS_EXPORTER=prometheus":                     "OTEL_METRICS_EXPORTER",
		"OTEL_EXPORTER_OTLP_HEADERS=secret":                    "KEY=VALUE",
		"OTEL_EXPORTER_OTLP_HEADERS=a=secret%0d%0aX: y":        "KEY=VALUE",
		"OTEL_RESOURCE_ATTRIBUTES==x":                          "OTEL_RESOURCE_ATTRIBUTES",
		"OTEL_SDK_DISABLED=yes":                                "true or false",
		"OTEL_EXPORTER_OTLP_CERTIFICATE=/no":                   "no certificate in it",
		"OTEL_EXPORTER_OTLP_CLIENT_KEY=/no":                    "belong together",
		"OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE=/alone": "belong together",
	} {
		_, err := with("", "OTEL_EXPORTER_OTLP_ENDPOINT=https://h", env).Read()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want something about %q", env, err, want)
		}
		if err != nil && strings.Contains(env, "HEADERS") && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows a secret: %v", env, err)
		}
	}
	_, err := with("nonsense").Read()
	if err == nil || !strings.Contains(err.Error(), "--otlp-endpoint") {
		t.Errorf("got %v", err)
	}
}

func TestCertificateNotThere(t *testing.T) {
	s := with("https://h", "OTEL_EXPORTER_OTLP_CERTIFICATE=/not/there")
	s.ReadFile = os.ReadFile
	if _, err := s.Read(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

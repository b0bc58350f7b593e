// Package otlp pushes to OpenTelemetry: metrics at intervals, and records of what happened as
// they come, over HTTP. Nothing here makes capture wait: what cannot be sent in time is
// dropped, and counted.
package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// Settings says what is pushed, and where. The zero value pushes nothing.
type Settings struct {
	Metrics, Logs Target
	Interval      time.Duration        // from one push of metrics to the next
	Resource      []attribute.KeyValue // what the user says of this host, the name of the service included
}

// Target is where one signal goes.
type Target struct {
	URL     *url.URL // nil: this signal is not pushed
	Headers map[string]string
	Timeout time.Duration // of one request
	Gzip    bool
	TLS     *tls.Config // nil: not needed
}

// On reports whether anything is pushed.
func (s *Settings) On() bool { return len(s.Targets()) > 0 }

// Targets are those of the signals that are pushed.
func (s *Settings) Targets() []Target {
	return slices.DeleteFunc([]Target{s.Metrics, s.Logs}, func(t Target) bool { return t.URL == nil })
}

// Port returns the port that a target is at.
func (t *Target) Port() uint16 {
	if port, err := strconv.ParseUint(t.URL.Port(), 10, 16); err == nil {
		return uint16(port)
	}
	if t.URL.Scheme == "https" {
		return 443
	}
	return 80
}

// Named reports whether the host of the target is a name, which has to be resolved.
func (t *Target) Named() bool {
	_, err := netip.ParseAddr(t.URL.Hostname())
	return err != nil
}

// Source is where settings come from.
type Source struct {
	Endpoint string                            // of a flag, which comes before the environment; may be empty
	Getenv   func(string) string               // the standard variables that begin with OTEL_
	ReadFile func(path string) ([]byte, error) // certificates
}

const (
	defaultTimeout  = 10 * time.Second
	defaultInterval = time.Minute
)

// Read reads the settings. Where nobody names an endpoint, nothing is pushed: the localhost that
// the specification has as the default would be a guess. A value that does not apply is an
// error, which names it.
func (s Source) Read() (Settings, error) {
	settings := Settings{Interval: defaultInterval}
	var err error
	if off, bad := s.boolean("OTEL_SDK_DISABLED"); off || bad != nil {
		return settings, bad
	}
	if settings.Interval, err = s.milliseconds(defaultInterval, "OTEL_METRIC_EXPORT_INTERVAL"); err != nil {
		return settings, err
	}
	if settings.Resource, err = s.resource(); err != nil {
		return settings, err
	}
	if settings.Metrics, err = s.target("METRICS", "/v1/metrics"); err != nil {
		return settings, err
	}
	settings.Logs, err = s.target("LOGS", "/v1/logs")
	return settings, err
}

// of returns the value of a variable for one signal, else for all, and the name that it has.
func (s Source) of(signal, what string) (name, value string) {
	name = "OTEL_EXPORTER_OTLP_" + signal + "_" + what
	if value = s.Getenv(name); value == "" {
		name = "OTEL_EXPORTER_OTLP_" + what
		value = s.Getenv(name)
	}
	return name, value
}

// target reads what there is about one signal.
func (s Source) target(signal, path string) (t Target, err error) {
	exporter := "OTEL_" + signal + "_EXPORTER"
	switch value := s.Getenv(exporter); value {
	case "", "otlp":
	case "none":
		return Target{}, nil
	default:
		return Target{}, wrong(exporter, value, "give otlp or none")
	}
	if t.URL, err = s.endpoint(signal, path); err != nil || t.URL == nil {
		return Target{}, err
	}
	if name, value := s.of(signal, "PROTOCOL"); value != "" && value != "http/protobuf" {
		return Target{}, wrong(name, value, "give http/protobuf, which collectors take at port 4318")
	}
	name, value := s.of(signal, "COMPRESSION")
	switch value {
	case "", "none":
	case "gzip":
		t.Gzip = true
	default:
		return Target{}, wrong(name, value, "give gzip or none")
	}
	name, value = s.of(signal, "HEADERS")
	if t.Headers, err = pairs(name, value); err != nil {
		return Target{}, err
	}
	name, _ = s.of(signal, "TIMEOUT")
	if t.Timeout, err = s.milliseconds(defaultTimeout, name); err != nil {
		return Target{}, err
	}
	if t.URL.Scheme == "https" {
		t.TLS, err = s.tls(signal)
	}
	return t, err
}

// endpoint returns where a signal goes; nil: nowhere. The variable of one signal has the whole
// path, the others are a base.
func (s Source) endpoint(signal, path string) (*url.URL, error) {
	name, value, base := "--otlp-endpoint", s.Endpoint, true
	if value == "" {
		name, value = s.of(signal, "ENDPOINT")
		base = !strings.Contains(name, signal)
	}
	if value == "" {
		return nil, nil
	}
	u, err := url.Parse(value)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, wrong(name, value, "give a URL, such as http://127.0.0.1:4318")
	case u.Port() != "" && !isPort(u.Port()):
		return nil, wrong(name, value, "its port is not one")
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, wrong(name, value, "give neither a user nor a query in it; OTEL_EXPORTER_OTLP_HEADERS takes an authorization")
	}
	if base {
		u = u.JoinPath(path)
	}
	return u, nil
}

func isPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port != 0
}

// tls reads the certificates. Those of the system are read here as well: later they may no
// longer be in reach.
func (s Source) tls(signal string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if name, path := s.of(signal, "CERTIFICATE"); path != "" {
		pem, err := s.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read the certificate that %s names: %w", name, err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, wrong(name, path, "there is no certificate in it")
		}
	}
	config.RootCAs = roots
	certName, cert := s.of(signal, "CLIENT_CERTIFICATE")
	keyName, key := s.of(signal, "CLIENT_KEY")
	if cert == "" && key == "" {
		return config, nil
	}
	if cert == "" || key == "" {
		return nil, fmt.Errorf("%s and %s belong together: set both", certName, keyName)
	}
	certPEM, certErr := s.ReadFile(cert)
	keyPEM, keyErr := s.ReadFile(key)
	if err := errors.Join(certErr, keyErr); err != nil {
		return nil, fmt.Errorf("cannot read the client certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot use the client certificate that %s names: %w", certName, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// milliseconds reads a time.
func (s Source) milliseconds(otherwise time.Duration, name string) (time.Duration, error) {
	value := s.Getenv(name)
	if value == "" {
		return otherwise, nil
	}
	const day = 24 * 60 * 60 * 1000
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 || n > day {
		return 0, wrong(name, value, "give milliseconds, from 1 to 86400000")
	}
	return time.Duration(n) * time.Millisecond, nil
}

func (s Source) boolean(name string) (bool, error) {
	switch value := s.Getenv(name); strings.ToLower(value) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, wrong(name, value, "give true or false")
	}
}

// resource reads what the user says of this host. OTEL_SERVICE_NAME comes before service.name.
func (s Source) resource() (all []attribute.KeyValue, err error) {
	const name = "OTEL_RESOURCE_ATTRIBUTES"
	attributes, err := pairs(name, s.Getenv(name))
	if err != nil {
		return nil, err
	}
	if service := s.Getenv("OTEL_SERVICE_NAME"); service != "" {
		attributes["service.name"] = service
	}
	for key, value := range attributes {
		all = append(all, attribute.String(key, value))
	}
	slices.SortFunc(all, func(a, b attribute.KeyValue) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return all, nil
}

// pairs understands KEY=VALUE,…, of which the values are percent-encoded.
func pairs(name, text string) (map[string]string, error) {
	all := make(map[string]string)
	for part := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		key, value, found := strings.Cut(part, "=")
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		key = strings.TrimSpace(key)
		if !found || err != nil || key == "" || strings.ContainsFunc(key+decoded, isControl) {
			return nil, fmt.Errorf("%s is wrong: give KEY=VALUE,KEY=VALUE, the values percent-encoded", name) // not the text: it may be a secret
		}
		all[key] = decoded
	}
	return all, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func wrong(name, value, instead string) error {
	return fmt.Errorf("%s is %q: %s", name, value, instead)
}

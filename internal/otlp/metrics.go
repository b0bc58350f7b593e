package otlp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/protobuf/proto"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Moment is what is pushed of one moment.
type Moment struct {
	Families []*dto.MetricFamily
	Sockets  map[tcp.State]int
}

// metrics pushes what /metrics serves, which OpenTelemetry's own bridge makes into its metrics.
// They are totals since the start, so a push that fails loses nothing.
type metrics struct {
	collect  func(context.Context) (Moment, error)
	exporter *otlpmetrichttp.Exporter
	client   *client
	resource *resource.Resource
	sent     *counts
	interval time.Duration
	began    time.Time
	version  string
}

func newMetrics(c *client, s *Settings, r *resource.Resource, sent *counts, collect func(context.Context) (Moment, error)) (*metrics, error) {
	seen := *c.http
	seen.Transport = &answers{c.http.Transport, sent}
	options := []otlpmetrichttp.Option{
		otlpmetrichttp.WithEndpointURL(s.Metrics.URL.String()), otlpmetrichttp.WithHeaders(s.Metrics.Headers), otlpmetrichttp.WithHTTPClient(&seen),
		otlpmetrichttp.WithCompression(otlpmetrichttp.NoCompression),
		otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{Enabled: true, InitialInterval: firstRetry, MaxInterval: lastRetry, MaxElapsedTime: s.Interval / 2}),
	}
	if s.Metrics.Gzip {
		options = append(options, otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression))
	}
	exporter, err := otlpmetrichttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("cannot push metrics: %w", err)
	}
	return &metrics{
		collect: collect, exporter: exporter, client: c, resource: r, sent: sent, interval: s.Interval,
		began: time.Now(), version: c.version,
	}, nil
}

// run pushes until stop is closed, and once more then.
func (m *metrics) run(ctx context.Context, stop <-chan struct{}) {
	ticker := time.NewTicker(m.interval)
	defer ticker.Stop()
	during, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-stop
		cancel() // what waits for its turn to be sent again
	}()
	for {
		select {
		case <-ticker.C:
			m.push(during)
		case <-stop:
			return
		}
	}
}

// push sends the metrics of now.
func (m *metrics) push(ctx context.Context) {
	moment, err := m.collect(ctx)
	if err != nil {
		m.client.complain("no metrics to push: " + err.Error())
		return
	}
	m.send(ctx, moment)
}

func (m *metrics) send(ctx context.Context, moment Moment) {
	gatherer := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return moment.Families, nil })
	scopes, err := bridge.NewMetricProducer(bridge.WithGatherer(gatherer)).Produce(ctx)
	if err == nil {
		scopes = append(scopes, m.connections(moment.Sockets))
		err = m.exporter.Export(ctx, &metricdata.ResourceMetrics{Resource: m.resource, ScopeMetrics: scopes})
	}
	if err != nil && ctx.Err() == nil {
		m.client.complain(err.Error()) // counted as the answer came
	}
	if err == nil {
		m.sent.sent.Add(points(moment.Families) + uint64(len(moment.Sockets)))
	}
}

func points(families []*dto.MetricFamily) (n uint64) {
	for _, f := range families {
		n += uint64(len(f.Metric))
	}
	return n
}

// conventional are the names that the semantic conventions have for the states, see
// network.connection.state.
var conventional = map[tcp.State]string{
	tcp.Close: "closed", tcp.CloseWait: "close_wait", tcp.Closing: "closing", tcp.Established: "established",
	tcp.FinWait1: "fin_wait_1", tcp.FinWait2: "fin_wait_2", tcp.LastAck: "last_ack", tcp.Listen: "listen",
	tcp.SynRecv: "syn_received", tcp.SynSent: "syn_sent", tcp.TimeWait: "time_wait",
}

// connections is the one metric of ours that the semantic conventions know.
func (m *metrics) connections(sockets map[tcp.State]int) metricdata.ScopeMetrics {
	sum := metricdata.Sum[int64]{Temporality: metricdata.CumulativeTemporality}
	for state, n := range sockets {
		name := conventional[state]
		if name == "" {
			continue
		}
		sum.DataPoints = append(sum.DataPoints, metricdata.DataPoint[int64]{
			Attributes: attribute.NewSet(attribute.String("network.transport", "tcp"), attribute.String("network.connection.state", name)),
			StartTime:  m.began, Time: time.Now(), Value: int64(n),
		})
	}
	return metricdata.ScopeMetrics{
		Scope: instrumentation.Scope{Name: scopeName, Version: m.version},
		Metrics: []metricdata.Metrics{{
			Name: "system.network.connection.count", Description: "The number of connections.", Unit: "{connection}", Data: sum,
		}},
	}
}

// answers counts what the receiver makes of requests, on their way to the exporter.
type answers struct {
	next http.RoundTripper
	sent *counts
}

// RoundTrip is that of http.RoundTripper.
func (a *answers) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := a.next.RoundTrip(request)
	if err != nil {
		a.sent.failed.Add(1)
		return nil, err
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		a.sent.failed.Add(1)
		return response, nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	response.Body.Close()
	if err != nil {
		a.sent.failed.Add(1)
		return nil, err
	}
	var answer collectorpb.ExportMetricsServiceResponse
	if proto.Unmarshal(body, &answer) == nil { // one that cannot be read says nothing
		a.sent.rejected.Add(uint64(max(answer.GetPartialSuccess().GetRejectedDataPoints(), 0)))
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

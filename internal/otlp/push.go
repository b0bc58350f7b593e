package otlp

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	"golang.org/x/sys/unix"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// scopeName is the name of the instrumentation scope.
const scopeName = "github.com/tcptrace/tcptrace"

// Config says what a Pusher pushes.
type Config struct {
	Settings
	Version, Host string
	// Transitions is the share of sockets of which all transitions are pushed, 0 to 1.
	Transitions float64
	// Collect returns what the metrics are now. It is asked once for each push.
	Collect func(context.Context) (Moment, error)
	Say     func(string) // says a line to the user, not more often than is bearable
}

// Pusher pushes until it is stopped. Its methods Connection, Transition, Leak and Tick belong to
// the goroutine that captures; they do not block.
type Pusher struct {
	cfg      Config
	counts   map[string]*counts // by signal
	logs     *logs              // nil: they are not pushed
	metrics  *metrics           // nil: they are not pushed
	stop     chan struct{}
	deadline context.Context // of all that is sent
	abort    context.CancelFunc
	running  sync.WaitGroup
	handed   uint64 // CLOCK_BOOTTIME in ns: when the queue was last handed over
	sampled  uint64 // sockets with a hash below this are pushed; see Transition
}

// The signals, as a label.
const (
	signalMetrics = "metrics"
	signalLogs    = "logs"
)

// Start starts pushing. A receiver that is not there is no error.
func Start(cfg Config) (*Pusher, error) {
	p := &Pusher{cfg: cfg, stop: make(chan struct{}), counts: map[string]*counts{signalMetrics: {}, signalLogs: {}}}
	p.deadline, p.abort = context.WithCancel(context.Background())
	attributes := p.resource()
	if cfg.Logs.URL != nil {
		sent := p.counts[signalLogs]
		var err error
		if p.logs, err = newLogs(newClient(cfg.Logs, &sent.failed, cfg.Version, cfg.Say), pairsOf(attributes), cfg.Version, sent); err != nil {
			return nil, err
		}
		p.sampled = threshold(cfg.Transitions)
	}
	if cfg.Metrics.URL != nil {
		sent := p.counts[signalMetrics]
		var err error
		c := newClient(cfg.Metrics, &sent.failed, cfg.Version, cfg.Say)
		if p.metrics, err = newMetrics(c, &p.cfg.Settings, resource.NewSchemaless(attributes...), sent, cfg.Collect); err != nil {
			return nil, err
		}
	}
	if p.logs != nil {
		p.running.Go(func() { p.logs.run(p.deadline, p.stop) })
	}
	if p.metrics != nil {
		p.running.Go(func() { p.metrics.run(p.deadline, p.stop) })
	}
	return p, nil
}

// resource says what is known of this host. What the user says comes first.
func (p *Pusher) resource() []attribute.KeyValue {
	all := []attribute.KeyValue{
		attribute.String("service.name", "tcptrace"), attribute.String("service.version", p.cfg.Version),
		attribute.String("host.name", p.cfg.Host), attribute.String("os.type", "linux"),
	}
	// Of two with one key the last one counts.
	set := attribute.NewSet(append(all, p.cfg.Resource...)...)
	if instance := attribute.Key("service.instance.id"); !set.HasValue(instance) {
		// Prometheus has its label instance from it: without one, all hosts would share their series.
		host, _ := set.Value("host.name")
		set = attribute.NewSet(append(set.ToSlice(), attribute.KeyValue{Key: instance, Value: host})...)
	}
	return set.ToSlice()
}

func pairsOf(attributes []attribute.KeyValue) (all []*commonpb.KeyValue) {
	for _, a := range attributes {
		value := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a.Value.String()}}
		all = append(all, &commonpb.KeyValue{Key: string(a.Key), Value: value})
	}
	return all
}

// Connections reports whether records of connections are pushed.
func (p *Pusher) Connections() bool { return p.logs != nil }

// Connection pushes a connection that has ended.
func (p *Pusher) Connection(r *connection.Record, service string) {
	if p.logs == nil || p.logs.queue.refuses() {
		return
	}
	p.logs.queue.encoder.connection(r, service)
	p.logs.queue.add()
}

// Leak pushes a verdict. It says what no other record does, so there is room for it where there is
// none left for them.
func (p *Pusher) Leak(v *Verdict) {
	if p.logs == nil {
		return
	}
	q := p.logs.queue
	q.encoder.leak(v)
	q.gathered.leaks = true
	q.add()
}

// Sampled reports whether the transitions of a socket are pushed: all of them, or none. A socket
// without a cookie, as a half-open one, has none pushed unless all have.
func (p *Pusher) Sampled(cookie uint64) bool {
	switch p.sampled {
	case 0:
		return false
	case ^uint64(0):
		return true
	}
	return cookie != 0 && cookie*0x9e3779b97f4a7c15 < p.sampled
}

// threshold is the bound of the hash for a share.
func threshold(share float64) uint64 {
	if share >= 1 {
		return ^uint64(0)
	}
	return uint64(share * (1 << 63) * 2)
}

// Transition pushes a state change.
func (p *Pusher) Transition(e *tcp.Event, service string) {
	if p.logs.queue.refuses() {
		return
	}
	p.logs.queue.encoder.transition(e, service)
	p.logs.queue.add()
}

// Tick hands over what is a second old.
func (p *Pusher) Tick(now uint64) {
	if p.logs == nil || now-p.handed < uint64(gatherFor) {
		return
	}
	p.handed = now
	p.logs.queue.hand()
}

// Stop sends what waits and the last metrics, and returns when that is done, or after a time.
// Capture has ended: nothing else is called meanwhile or later. last may be empty.
func (p *Pusher) Stop(within time.Duration, last Moment) {
	timer := time.AfterFunc(within, p.abort)
	defer timer.Stop()
	if p.logs != nil {
		p.logs.queue.hand()
	}
	close(p.stop)
	if p.metrics != nil && len(last.Families) > 0 {
		p.running.Go(func() { p.metrics.send(p.deadline, last) })
	}
	p.running.Wait()
	p.abort()
}

// Describe and Collect are those of prometheus.Collector: what became of what was to be pushed.
func (p *Pusher) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sentDesc, rejectedDesc, failedDesc, droppedDesc} {
		ch <- d
	}
}

var (
	sentDesc     = describe("sent", "Records and data points that the OTLP receiver took.")
	rejectedDesc = describe("rejected", "Records and data points that the OTLP receiver refused for good.")
	failedDesc   = describe("failed_requests", "OTLP requests that failed; most are sent again.")
	droppedDesc  = describe("dropped", "Records that were not pushed because the OTLP receiver was too slow or away.")
)

func describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("tcptrace_otlp_"+name+"_total", help, []string{"signal"}, nil)
}

// Collect is that of prometheus.Collector.
func (p *Pusher) Collect(ch chan<- prometheus.Metric) {
	for signal, n := range p.counts {
		for desc, value := range map[*prometheus.Desc]uint64{
			sentDesc: n.sent.Load(), rejectedDesc: n.rejected.Load(), failedDesc: n.failed.Load(), droppedDesc: n.dropped.Load(),
		} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), signal)
		}
	}
}

// errnoName is the name of an error, such as ECONNRESET; empty: there is none.
func errnoName(n uint32) string {
	if n == 0 {
		return ""
	}
	return unix.ErrnoName(syscall.Errno(n))
}

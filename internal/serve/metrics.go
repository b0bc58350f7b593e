package serve

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds of the classic buckets, in powers of 2: 4^-5 s to 4^6 s. They are bounds of the
// native buckets as well, so the counts are exact.
const firstBound, lastBound, boundStep = -10, 12, 2

// The metrics, but for those of the process itself.
var (
	byServiceState = []string{"service", "state"}

	socketsDesc     = describe("sockets", "Sockets that are in a state now, by service.", byServiceState...)
	dwellDesc       = describe("state_duration_seconds", "Time that sockets spent in a state, counted when it ends, by service.", byServiceState...)
	inexactDesc     = describe("state_durations_inexact_total", "Times in a state that are in no histogram: older than the trace (at_least), or unknown.", "state", "kind")
	transitionsDesc = describe("transitions_total", "State changes of the host.", "from", "to", "reason")
	endsDesc        = describe("time_wait_ends_total", "Ends of TIME_WAIT, by what ended it.", "reason")
	leakSocketsDesc = describe("leak_sockets", "Sockets of groups that leak.", byServiceState...)
	leakOldestDesc  = describe("leak_oldest_seconds", "Age in its state of the oldest socket that leaks.", byServiceState...)
	leakGrowthDesc  = describe("leak_growth_per_second", "How fast the groups that leak grow, as far as they were watched for long enough.", byServiceState...)
	exhaustedDesc   = describe("open_files_exhausted_seconds", "Time until the first leaking process of a service has no descriptor left, at its present growth.", "service")
	portsDesc       = describe("ephemeral_port_usage_ratio", "Share of the local ports that are taken for the worst destination, of those with sockets in TIME_WAIT.")
	portsUnseenDesc = describe("ephemeral_port_unknown_destinations", "Destinations whose range of local ports is not known: their network namespace began after tcptrace.")
	lostDesc        = describe("lost_events_total", "Events that are missing in all counts, by where they were lost.", "where")
	dropsDesc       = describe("listener_drops_total", "SYNs and ACKs that listeners dropped, by where.", "where")
	cookiesDesc     = describe("listener_syn_cookies_total", "SYNs that listeners answered with a SYN cookie.")
	seriesDesc      = describe("series", "Series of sockets by service in this answer: what the cap is for.")
	servicesDesc    = describe("services", "Services that have series of their own.")
	trackedDesc     = describe("tracked_sockets", "Sockets that are followed now.")
	forgottenDesc   = describe("forgotten_sockets_total", "Sockets that had to make room for others: their counts are too low.")
	failedDesc      = describe("failed_looks_total", "Looks at the sockets that failed: nothing is said about leaks or ports then.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tcptrace_"+name, help, labels, nil)
}

// Describe describes nothing: which metrics there are depends on what was seen.
func (s *snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect hands on the metrics of a snapshot.
func (s *snapshot) Collect(ch chan<- prometheus.Metric) {
	series := s.collectServices(ch) + s.collectLeaks(ch)
	for _, t := range s.transitions {
		ch <- counter(transitionsDesc, t.count, t.from.String(), t.to.String(), t.reason)
	}
	for _, end := range s.timeWaitEnds {
		ch <- counter(endsDesc, end.Count, string(end.Reason))
	}
	for at, n := range s.inexact {
		if n != (inexact{}) {
			ch <- counter(inexactDesc, n.atLeast, tcp.State(at).String(), string(tcp.AtLeast))
			ch <- counter(inexactDesc, n.unknown, tcp.State(at).String(), string(tcp.Unknown))
		}
	}
	if s.portsKnown {
		ch <- gauge(portsDesc, s.ports)
	}
	ch <- gauge(portsUnseenDesc, float64(s.portsUnknown))
	s.collectLosses(ch)
	ch <- gauge(seriesDesc, float64(series))
	ch <- gauge(servicesDesc, float64(len(s.services)))
	ch <- gauge(trackedDesc, float64(s.tracked))
	ch <- counter(forgottenDesc, s.forgotten)
	ch <- counter(failedDesc, s.failedLooks)
}

// collectServices hands on what there is by service, and returns how many series that is.
func (s *snapshot) collectServices(ch chan<- prometheus.Metric) (series int) {
	for i := range s.services {
		one := &s.services[i]
		for at, seen := range one.seen {
			state := tcp.State(at)
			if !seen || state == tcp.Close { // what is not connected is not followed
				continue
			}
			ch <- gauge(socketsDesc, float64(one.sockets[at]), one.name, state.String())
			series++
		}
		for at, h := range one.dwell {
			if h != nil {
				ch <- &distribution{h, one.name, tcp.State(at).String()}
				series += seriesOfHistogram
			}
		}
	}
	return series
}

func (s *snapshot) collectLeaks(ch chan<- prometheus.Metric) (series int) {
	for _, l := range s.leaks {
		ch <- gauge(leakSocketsDesc, float64(l.sockets), l.service, l.state.String())
		ch <- gauge(leakOldestDesc, seconds(l.oldest), l.service, l.state.String())
		series += 2
		if l.growthKnown {
			ch <- gauge(leakGrowthDesc, l.growth/60, l.service, l.state.String())
			series++
		}
	}
	for _, e := range s.exhausted {
		ch <- gauge(exhaustedDesc, seconds(e.left), e.service)
		series++
	}
	return series
}

// collectLosses hands on what was not seen. A counter is there from the start, so that its
// first rise is seen.
func (s *snapshot) collectLosses(ch chan<- prometheus.Metric) {
	collectCounts(ch, lostDesc, s.lost, []string{tcp.WhereRing, tcp.WhereMap, tcp.WhereHook})
	drops, cookies := []counted(nil), uint64(0)
	for _, n := range s.unseen {
		if n.what == tcp.WhereCookie {
			cookies = n.count
			continue
		}
		drops = append(drops, n)
	}
	collectCounts(ch, dropsDesc, drops, []string{tcp.WhereAcceptQueue, tcp.WhereSYNQueue, tcp.WhereListener})
	ch <- counter(cookiesDesc, cookies)
}

func collectCounts(ch chan<- prometheus.Metric, desc *prometheus.Desc, counts []counted, always []string) {
	known := make(map[string]uint64)
	for _, what := range always {
		known[what] = 0
	}
	for _, n := range counts {
		known[n.what] = n.count
	}
	for what, n := range known {
		ch <- counter(desc, n, what)
	}
}

func counter(desc *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
}

func gauge(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

// distribution is a histogram as a metric, with classic and native buckets: the text formats
// have no native ones, and a client that knows both takes those.
type distribution struct {
	h              *stats.Histogram
	service, state string
}

// seriesOfHistogram is how many series it is in a text format: buckets, +Inf, sum and count.
const seriesOfHistogram = (lastBound-firstBound)/boundStep + 1 + 3

// SeriesPerService is how many series one service can have: of each state but CLOSE the sockets
// and a histogram, of CLOSE_WAIT and CLOSE three about leaks, and when descriptors run out.
const SeriesPerService = 10*(1+seriesOfHistogram) + 2*3 + 1

// Desc describes it.
func (d *distribution) Desc() *prometheus.Desc { return dwellDesc }

// Write writes it.
func (d *distribution) Write(m *dto.Metric) error {
	m.Label = []*dto.LabelPair{
		{Name: proto.String("service"), Value: proto.String(d.service)},
		{Name: proto.String("state"), Value: proto.String(d.state)},
	}
	const schema = 2 // see stats.Histogram
	m.Histogram = &dto.Histogram{
		SampleCount: proto.Uint64(d.h.Count), SampleSum: proto.Float64(d.h.Sum / 1e9), Bucket: d.classic(),
		Schema: proto.Int32(schema), ZeroThreshold: proto.Float64(prometheus.DefNativeHistogramZeroThreshold), ZeroCount: proto.Uint64(d.h.Zero),
	}
	m.Histogram.PositiveSpan, m.Histogram.PositiveDelta = native(d.h.Buckets())
	return nil
}

// classic are the cumulative buckets.
func (d *distribution) classic() (all []*dto.Bucket) {
	below, at, buckets := d.h.Zero, 0, d.h.Buckets()
	for power := firstBound; power <= lastBound; power += boundStep {
		for at < len(buckets) && buckets[at].Number <= 4*power {
			below += buckets[at].Count
			at++
		}
		all = append(all, &dto.Bucket{UpperBound: proto.Float64(powerOf2(power)), CumulativeCount: proto.Uint64(below)})
	}
	return all
}

func powerOf2(power int) float64 {
	if power < 0 {
		return 1 / float64(uint64(1)<<-power)
	}
	return float64(uint64(1) << power)
}

// native are the spans of buckets that are not empty, and each count less the one before.
func native(buckets []stats.Bucket) (spans []*dto.BucketSpan, deltas []int64) {
	next, last := 0, int64(0)
	for _, b := range buckets {
		if len(spans) == 0 || b.Number != next {
			spans = append(spans, &dto.BucketSpan{Offset: proto.Int32(int32(b.Number - next)), Length: proto.Uint32(0)})
		}
		*spans[len(spans)-1].Length++
		deltas = append(deltas, int64(b.Count)-last)
		next, last = b.Number+1, int64(b.Count)
	}
	return spans, deltas
}

package serve

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tcptrace/tcptrace/internal/stats"
)

// Both kinds of buckets are those that Prometheus' own client makes of the same durations.
func TestHistogramIsThatOfPrometheus(t *testing.T) {
	var bounds []float64
	for power := firstBound; power <= lastBound; power += boundStep {
		bounds = append(bounds, powerOf2(power))
	}
	source := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		theirs := prometheus.NewHistogram(prometheus.HistogramOpts{
			Buckets: bounds, NativeHistogramBucketFactor: 1.19, NativeHistogramMaxBucketNumber: 1000,
		})
		var h stats.Histogram
		for range source.IntN(200) + 1 {
			ns := uint64(math.Exp(source.Float64() * 35))
			if source.IntN(10) == 0 {
				ns = 0
			}
			h.Add(ns)
			theirs.Observe(float64(ns) / 1e9)
		}
		var want, got dto.Metric
		if err := theirs.Write(&want); err != nil {
			t.Fatal(err)
		}
		if err := (&distribution{&h, "a", "CLOSE"}).Write(&got); err != nil {
			t.Fatal(err)
		}
		if got.Histogram.GetSchema() != want.Histogram.GetSchema() {
			t.Fatalf("schema %d, want %d", got.Histogram.GetSchema(), want.Histogram.GetSchema())
		}
		if diff := cmp.Diff(plainOf(&want), plainOf(&got), cmpopts.EquateApprox(1e-9, 0)); diff != "" {
			t.Fatalf("-theirs +ours:\n%s", diff)
		}
	}
}

// plainHistogram is a dto.Histogram without what varies: spans may be written in more ways.
type plainHistogram struct {
	Count, Zero uint64
	Sum         float64
	Classic     map[float64]uint64
	Native      map[int32]int64
}

func plainOf(m *dto.Metric) plainHistogram {
	h := m.Histogram
	p := plainHistogram{h.GetSampleCount(), h.GetZeroCount(), h.GetSampleSum(), map[float64]uint64{}, map[int32]int64{}}
	for _, b := range h.Bucket {
		p.Classic[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	at, number, count := 0, int32(0), int64(0)
	for _, span := range h.PositiveSpan {
		number += span.GetOffset()
		for range span.GetLength() {
			count += h.PositiveDelta[at]
			if count != 0 {
				p.Native[number] = count
			}
			at++
			number++
		}
	}
	return p
}

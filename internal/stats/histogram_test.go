package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Quantiles are within 10 % of the true value, whatever the distribution.
func TestQuantile(t *testing.T) {
	source := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() float64{
		"uniform":     func() float64 { return source.Float64() * 1e9 },
		"logarithmic": func() float64 { return math.Exp(source.Float64() * 43) },
		"exponential": func() float64 { return source.ExpFloat64() * 5e6 },
		"two humps":   func() float64 { return math.Abs(source.NormFloat64())*1e3 + float64(source.IntN(2))*6e10 },
		"constant":    func() float64 { return 1_234_567 },
		"small":       func() float64 { return float64(source.IntN(9)) },
		"great":       func() float64 { return math.Exp2(63.99) },
	} {
		for _, n := range []int{1, 2, 3, 10, 99, 20_000} {
			var h Histogram
			sorted, sum := make([]uint64, n), 0.0
			for i := range sorted {
				sorted[i] = uint64(draw())
				h.Add(sorted[i])
				sum += float64(sorted[i])
			}
			slices.Sort(sorted)
			if h.Count != uint64(n) || h.Min != sorted[0] || h.Max != sorted[n-1] || h.Sum != sum {
				t.Fatalf("%s: %d of %d, from %d to %d, in all %v, want %v", name, h.Count, n, h.Min, h.Max, h.Sum, sum)
			}
			for _, q := range []float64{0, 0.001, 0.5, 0.9, 0.99, 1} {
				truth := float64(sorted[max(0, int(math.Ceil(q*float64(n)))-1)])
				if got := float64(h.Quantile(q)); math.Abs(got-truth) > 0.1*truth && math.Abs(got-truth) > 1 {
					t.Errorf("%s: of %d the quantile %v is %v, should be %v", name, n, q, got, truth)
				}
			}
		}
	}
}

// Every duration is in the bucket that the definition of the schema gives.
func TestBuckets(t *testing.T) {
	source := rand.New(rand.NewPCG(3, 4))
	for range 100_000 {
		ns := source.Uint64() >> source.IntN(64)
		var h Histogram
		h.Add(ns)
		if ns == 0 {
			if h.Zero != 1 || h.Buckets() != nil {
				t.Fatal("0 is in a bucket")
			}
			continue
		}
		seconds, b := float64(ns)/1e9, h.Buckets()
		low, high := math.Exp2(float64(b[0].Number-1)/4), math.Exp2(float64(b[0].Number)/4)
		if len(b) != 1 || b[0].Count != 1 || b[0].Upper < ns || seconds <= low*(1-1e-12) || seconds > high*(1+1e-12) {
			t.Fatalf("%d ns is in %+v, from %v s to %v s", ns, b, low, high)
		}
	}
	for number, ns := range map[int]uint64{0: 1e9, 4: 2e9, -4: 5e8, -36: 1953125} { // the bounds belong to the bucket below
		var h Histogram
		h.Add(ns)
		h.Add(ns + 1)
		if b := h.Buckets(); len(b) != 2 || b[0].Number != number || b[0].Upper != ns || b[1].Number != number+1 {
			t.Errorf("%d ns is in %+v", ns, b)
		}
	}
}

func TestShape(t *testing.T) {
	var h Histogram
	for _, ns := range []uint64{0, 1, 500, 5e3, 5e4, 5e5, 5e6, 5e7, 5e8, 5e9, 5e10, 5e11, 5e12, 5e15} {
		h.Add(ns)
	}
	if got, want := h.Shape(1), []uint64{3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := h.Shape(3); len(got) != 31 || got[0] != 3 || got[30] != 2 || got[3] != 1 {
		t.Errorf("%v", got)
	}
}

func BenchmarkHistogram(b *testing.B) {
	var h Histogram
	for i := range b.N {
		h.Add(uint64(i) * 7919)
	}
}

package stats

import (
	"math"
	"math/bits"
)

// A Histogram is the distribution of durations in exponential buckets, each 2^(1/4) times as
// wide as the one before: schema 2 of Prometheus' native histograms, scale 2 of
// OpenTelemetry, both in seconds. It takes 2 KiB, and two are merged by adding their counts.
// The zero Histogram is empty.
type Histogram struct {
	Count    uint64
	Zero     uint64 // durations of 0
	Min, Max uint64 // ns; apply if Count is not 0
	// Sum is that of all, in ns: a busy host would overflow 64 bits of whole ns within the hour.
	Sum     float64
	buckets [buckets]uint64
}

// The buckets. Number i holds the durations above 2^((i-1)/4) s, up to 2^(i/4) s: from
// 1 ns to more than can be written in 64 bits of ns.
const (
	firstBucket = -119
	lastBucket  = 137
	buckets     = lastBucket - firstBucket + 1
)

// upper are the bounds of the buckets in ns, rounded down, which is the same for a whole
// number of ns. The last bucket takes all the rest.
var upper = func() (bounds [buckets]uint64) {
	// 2^(0/4) to 2^(3/4) s in ns
	fractions := [4]float64{1e9, 1.189207115002721e9, 1.4142135623730951e9, 1.681792830507429e9}
	for i := range buckets - 1 {
		bounds[i] = uint64(bound(firstBucket+i, fractions))
	}
	bounds[buckets-1] = math.MaxUint64
	return bounds
}()

// bound is 2^(number/4) s in ns.
func bound(number int, fractions [4]float64) float64 {
	whole, ns := number>>2, fractions[number&3]
	for ; whole > 0; whole-- {
		ns *= 2
	}
	for ; whole < 0; whole++ {
		ns /= 2
	}
	return ns
}

// firstOf is, by the length of a number in bits, the bucket of the least number of that length.
var firstOf = func() (first [65]uint16) {
	for length := 1; length <= 64; length++ {
		for upper[first[length]] < 1<<(length-1) {
			first[length]++
		}
	}
	return first
}()

// Add counts a duration in ns.
func (h *Histogram) Add(ns uint64) {
	if h.Count == 0 || ns < h.Min {
		h.Min = ns
	}
	h.Max = max(h.Max, ns)
	h.Sum += float64(ns)
	h.Count++
	if ns == 0 {
		h.Zero++
		return
	}
	i := firstOf[bits.Len64(ns)]
	for upper[i] < ns { // five times at most
		i++
	}
	h.buckets[i]++
}

// Quantile returns the duration in ns below or at which a share q of all are, 0 to 1: of n
// durations in order, number q·n rounded up. It lies within 9.1 % of the true value, the
// middle of a bucket, and is exact for the least and the greatest. It applies if Count is
// not 0.
func (h *Histogram) Quantile(q float64) uint64 {
	rank := uint64(q * float64(h.Count))
	if float64(rank) < q*float64(h.Count) {
		rank++
	}
	switch {
	case rank <= 1:
		return h.Min
	case rank >= h.Count:
		return h.Max
	}
	seen := h.Zero
	for i := 0; seen < rank; i++ {
		if seen += h.buckets[i]; seen >= rank {
			return min(max(middle(i), h.Min), h.Max)
		}
	}
	return 0
}

// middle is the middle of a bucket on the logarithmic scale: 2^(-1/8) times its bound.
func middle(i int) uint64 {
	if i == buckets-1 {
		return upper[i-1]
	}
	return uint64(0.9170040432046712 * float64(upper[i]))
}

// Bucket is one of those that are not empty.
type Bucket struct {
	Number int    // as Prometheus counts; OpenTelemetry has one less
	Upper  uint64 // ns, see Histogram
	Count  uint64
}

// Buckets returns those that are not empty, in order, without Zero.
func (h *Histogram) Buckets() (all []Bucket) {
	for i, n := range h.buckets {
		if n > 0 {
			all = append(all, Bucket{firstBucket + i, upper[i], n})
		}
	}
	return all
}

// Shape counts the durations in the decades from 1 µs to 10,000 s, each divided in so many
// parts, for the eye: the first number is that of what is up to 1 µs, the last also has what
// is longer. A bucket counts where its middle is.
func (h *Histogram) Shape(parts int) []uint64 {
	counts := make([]uint64, 1+10*parts)
	counts[0] = h.Zero
	for i, n := range h.buckets {
		if n > 0 {
			part := math.Ceil(math.Log10(float64(middle(i))/1e3) * float64(parts))
			counts[int(min(max(part, 0), float64(len(counts)-1)))] += n
		}
	}
	return counts
}

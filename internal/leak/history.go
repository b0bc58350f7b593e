package leak

// Growth is measured over the last third of the watch, within these bounds: growth
// that has ended accuses nobody, and a slow leak still grows within the window.
const (
	MinWatch  = 10e9  // ns; also how long a group is watched before it is judged by growth or acquitted
	maxWindow = 600e9 // ns
)

// historySize is enough: checkpoints are an eighth of the window apart, and there are
// twelve at most in a window that grows by a third of the time.
const historySize = 16

// History holds how many sockets a group had, from before the window on.
type History struct {
	points [historySize]struct {
		at    uint64
		count int
	}
	n int
}

// Growth takes the count of a refresh, and returns how many sockets came per minute
// within the window; false: not watched for long enough.
func (h *History) Growth(now, watched uint64, count int) (perMinute float64, known bool) {
	window := min(max(MinWatch, watched/3), maxWindow)
	for h.n > 1 && now-h.points[1].at >= window || h.n == historySize {
		copy(h.points[:], h.points[1:h.n])
		h.n--
	}
	if h.n > 0 {
		if span := now - h.points[0].at; span >= MinWatch {
			perMinute, known = float64(count-h.points[0].count)/(float64(span)/60e9), true
		}
	}
	if h.n == 0 || now-h.points[h.n-1].at >= window/8 {
		h.points[h.n].at, h.points[h.n].count = now, count
		h.n++
	}
	return perMinute, known
}

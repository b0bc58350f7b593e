package timeline

import (
	"cmp"
	"math"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Clocks is what two recordings say about the clocks of their hosts.
type Clocks struct {
	Handshakes int // how many are whole in both recordings
	// Offset is the time of the second host less that of the first, by the wall clock, give or
	// take Error; both in ns. They apply if Handshakes is not 0 and Drift is.
	Offset int64
	Error  uint64
	// Drift is by how much the handshakes contradict each other, in ns: so much at least did
	// the clocks change against each other. 0: there is an offset that fits all of them.
	Drift uint64
}

// bounds are between which the time of the second host less that of the first lies.
type bounds struct{ low, high int64 }

func (b bounds) middle() int64 { return b.low + (b.high-b.low)/2 }
func (b bounds) half() uint64  { return uint64(b.high-b.low+1) / 2 }

func (b bounds) and(other bounds) bounds {
	return bounds{max(b.low, other.low), min(b.high, other.high)}
}

func (b bounds) empty() bool { return b.low > b.high }

var unbounded = bounds{math.MinInt64 / 2, math.MaxInt64 / 2}

// handshakeBounds says what one handshake tells of the clocks: nothing arrives before it was
// sent. The SYN leaves when the client enters SYN_SENT and arrives when the server enters
// SYN_RECV; its answer arrives when the client is ESTABLISHED; and what the client sends then
// makes the server ESTABLISHED. A server that did not keep the half-open connection (SYN
// cookies) enters SYN_RECV too late; before Linux 5.12 that cannot be told, see End.half.
func handshakeBounds(first, second *End) (bounds, bool) {
	client, server := first, second
	if first.Role == tcp.Server {
		client, server = second, first
	}
	c, known := client.handshake(tcp.SynSent)
	s, alsoKnown := server.handshake(tcp.SynRecv)
	if !known || !alsoKnown || !server.half || server.Cookie == 0 || client.Role != tcp.Client {
		return bounds{}, false
	}
	b := bounds{int64(s.began) - int64(c.done), min(int64(s.began)-int64(c.began), int64(s.done)-int64(c.done))}
	if client == second {
		b = bounds{-b.high, -b.low}
	}
	return b, true
}

// candidate is two ends of two recordings that may be of one connection.
type candidate struct {
	first, second *End
	bounds        bounds
	whole         bool // bounds are known
}

// A Pair of recordings, each of its own host. Collect each with the Collector that it gives,
// then call Join.
type Pair struct {
	cfg        Config
	stories    []*Story // of one recording: they need nothing of the other recording
	alone      [2][]*End
	collectors [2]*Collector
	left       uint64 // ends that found no place in alone
	unjudged   tcp.Unjudged
}

// maxSame is how often the addresses of a connection may come again in a recording. What has
// been there more often is not joined.
const maxSame = 64

// NewPair returns a Pair. Of cfg, Max holds for each recording: it is also how many of its
// connections are kept to be joined. Show and Flush are not called.
func NewPair(cfg Config) *Pair {
	p := &Pair{cfg: cfg}
	for i := range p.collectors {
		own := cfg
		own.Limit, own.recording, own.all = 0, i, true
		own.Show = func(s *Story) error { return p.keep(i, s) }
		own.Flush = func() error { return nil }
		p.collectors[i] = NewCollector(own)
	}
	return p
}

// Collector returns the consumer of the first recording, 0, or of the second, 1.
func (p *Pair) Collector(i int) *Collector { return p.collectors[i] }

// Forgotten returns how many ends had to make room for others.
func (p *Pair) Forgotten() uint64 {
	return p.left + p.collectors[0].Forgotten() + p.collectors[1].Forgotten()
}

// Unjudged returns how many ends the filter could not judge.
func (p *Pair) Unjudged() tcp.Unjudged { return p.unjudged }

// keep takes a connection of one recording. What is on the loopback interface alone never has
// an end elsewhere.
func (p *Pair) keep(i int, s *Story) error {
	ends := s.Ends()
	if len(ends) == 2 || ends[0].Local.Addr().IsLoopback() {
		if p.wanted(s) {
			p.stories = append(p.stories, s)
		}
		return nil
	}
	if len(p.alone[i]) == p.cfg.Max {
		p.left++
		return nil
	}
	p.alone[i] = append(p.alone[i], ends[0])
	return nil
}

// Join returns the stories of both recordings, in the order in which they began on the first
// host, as far as the clocks tell; and what is known of the clocks.
func (p *Pair) Join() ([]*Story, Clocks) {
	candidates := p.candidates()
	theta, clocks := estimate(candidates)
	stories := p.stories
	joined := map[*End]bool{}
	if clocks.Handshakes > 0 {
		for _, c := range joins(candidates, theta, clocks.Drift > 0) {
			joined[c.first], joined[c.second] = true, true
			stories = append(stories, c.story(theta, clocks.Drift > 0))
		}
	}
	several := ambiguous(candidates)
	for _, ends := range p.alone {
		for _, e := range ends {
			if !joined[e] {
				e.ambiguous = e.ambiguous || several[e]
				stories = append(stories, storyOf(e, nil))
			}
		}
	}
	if clocks.Handshakes > 0 && clocks.Drift == 0 {
		clocks.Offset += p.wall(1) - p.wall(0)
	}
	return p.inOrder(stories, theta), clocks
}

// wall is that of the wall clock to CLOCK_BOOTTIME on a host, in ns.
func (p *Pair) wall(i int) int64 { return p.collectors[i].offset }

// inOrder returns the stories that the filter selects, as many as are wanted.
func (p *Pair) inOrder(stories []*Story, theta bounds) []*Story {
	stories = slices.DeleteFunc(stories, func(s *Story) bool { return !p.wanted(s) })
	shift := int64(0)
	if theta != unbounded {
		shift = theta.middle()
	}
	begin := func(s *Story) int64 {
		at, _ := s.Begin()
		if s.Ends()[0].Recording == 1 {
			at -= shift
		}
		return at
	}
	slices.SortStableFunc(stories, func(a, b *Story) int { return cmp.Compare(begin(a), begin(b)) })
	if p.cfg.Limit != 0 && uint64(len(stories)) > p.cfg.Limit {
		stories = stories[:p.cfg.Limit]
	}
	return stories
}

// wanted reports whether the filter selects a story, and counts what it cannot judge.
func (p *Pair) wanted(s *Story) bool {
	if selected(s) {
		return true
	}
	for _, e := range s.Ends() {
		p.unjudged.Add(e.missing)
	}
	return false
}

// candidates are all that have each other's addresses.
func (p *Pair) candidates() (all []candidate) {
	var by [2]map[addresses][]*End
	for i, ends := range p.alone {
		by[i] = map[addresses][]*End{}
		for _, e := range ends {
			by[i][e.addresses()] = append(by[i][e.addresses()], e)
		}
	}
	for _, e := range p.alone[0] {
		others := by[1][e.addresses().reversed()]
		if len(others) > maxSame || len(by[0][e.addresses()]) > maxSame {
			e.ambiguous = true
			continue
		}
		for _, other := range others {
			if e.Role == tcp.Server && other.Role == tcp.Server {
				continue
			}
			c := candidate{first: e, second: other}
			c.bounds, c.whole = handshakeBounds(e, other)
			all = append(all, c)
		}
	}
	return all
}

// ambiguous are the ends with more than one candidate.
func ambiguous(candidates []candidate) map[*End]bool {
	count := map[*End]int{}
	for _, c := range candidates {
		count[c.first]++
		count[c.second]++
	}
	several := map[*End]bool{}
	for _, c := range candidates {
		if count[c.first] > 1 || count[c.second] > 1 {
			several[c.first], several[c.second] = true, true
		}
	}
	return several
}

// estimate takes the handshakes of all connections whose addresses are unique in both
// recordings.
func estimate(candidates []candidate) (theta bounds, clocks Clocks) {
	theta = unbounded
	several := ambiguous(candidates)
	for _, c := range candidates {
		if c.whole && !several[c.first] && !c.first.ambiguous && !c.second.ambiguous {
			clocks.Handshakes++
			theta = theta.and(c.bounds)
		}
	}
	if theta.empty() {
		clocks.Drift = uint64(theta.low - theta.high)
	} else if clocks.Handshakes > 0 {
		clocks.Offset, clocks.Error = theta.middle(), theta.half()
	}
	return theta, clocks
}

// joins are the candidates that fit, neither of which fits another. Where the clocks drift no
// time tells which it was, and the addresses have to be unique.
func joins(candidates []candidate, theta bounds, drift bool) []candidate {
	several := ambiguous(candidates)
	fits := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool {
		switch {
		case c.first.ambiguous || c.second.ambiguous:
			return true
		case drift:
			return several[c.first] || !c.whole
		case c.whole:
			return c.bounds.and(theta).empty()
		}
		return !nearly(c, theta)
	})
	still := ambiguous(fits)
	return slices.DeleteFunc(fits, func(c candidate) bool {
		return still[c.first] || !c.whole && several[c.first]
	})
}

// nearly is fit for any offset between the bounds.
func nearly(c candidate, theta bounds) bool {
	return fit(c.first, c.second, theta.low) || fit(c.first, c.second, theta.high)
}

// story is that of a candidate. Where the clocks drift its own handshake says what the offset
// was.
func (c candidate) story(theta bounds, drift bool) *Story {
	b := theta
	if drift {
		b = c.bounds
	} else if c.whole {
		b = b.and(c.bounds)
	}
	s := storyOf(c.first, c.second)
	s.Offset, s.Error = b.middle(), b.half()
	if s.Client == c.second {
		s.Offset = -s.Offset
	}
	return s
}

package timeline

import (
	"iter"
	"slices"
)

// Ends yields the ends that are not over. They are valid until the next event; as a pointer,
// each is that end for as long as it is kept.
func (c *Collector) Ends() iter.Seq[*End] {
	return func(yield func(*End) bool) {
		for l := range c.lives.All() {
			if l.Value != nil && !l.Value.told && !yield(l.Value) {
				return
			}
		}
	}
}

// Peek returns the story of an end as it is at a time, of CLOCK_BOOTTIME in ns. Nothing changes
// it later. The end may be over.
func (c *Collector) Peek(e *End, now uint64) *Story {
	p, ambiguous := c.peer(e)
	s := storyOf(e.copyAt(now), p.copyAt(now))
	s.Ambiguous = ambiguous
	return s
}

// peer is what match would return, and whether several could be. It decides nothing: the port
// of a client that is not known yet may tell them apart later.
func (c *Collector) peer(e *End) (p *End, ambiguous bool) {
	if e.peer != nil || e.told || e.ambiguous {
		return e.peer, e.ambiguous && e.peer == nil
	}
	var fits []*End
	for _, p := range c.ends[e.addresses().reversed()] {
		if p != e && !p.told && !p.ambiguous && p.NetNS == e.NetNS && fit(e, p, 0) {
			fits = append(fits, p)
		}
	}
	if len(fits) != 1 {
		return nil, len(fits) > 1
	}
	return fits[0], false
}

// copyAt returns a copy of an end, which may be nil, as it is at a time.
func (e *End) copyAt(now uint64) *End {
	if e == nil {
		return nil
	}
	at := *e
	at.Stays = slices.Clone(e.Stays)
	at.peer = nil
	if !e.over {
		at.close(now)
	}
	return &at
}

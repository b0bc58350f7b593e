package serve

import (
	"bytes"
	"errors"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// The bounds of what is remembered for the story of a single socket.
const (
	maxHistory = 1 << 14 // transitions of the host, in 7 MB
	maxEvents  = 512     // of them, those that are of one connection and its other end
	maxPairs   = 16      // addresses that one socket had
)

// history keeps the latest transitions.
type history struct {
	events []tcp.Event // a ring
	next   int
	full   bool
}

func newHistory(size int) *history { return &history{events: make([]tcp.Event, size)} }

func (h *history) add(e *tcp.Event) {
	h.events[h.next] = *e
	if h.next++; h.next == len(h.events) {
		h.next, h.full = 0, true
	}
}

// each calls f with every event, the oldest first.
func (h *history) each(f func(*tcp.Event)) {
	if h.full {
		for i := h.next; i < len(h.events); i++ {
			f(&h.events[i])
		}
	}
	for i := range h.next {
		f(&h.events[i])
	}
}

// ends are the addresses of a connection, as both its ends have them.
type ends struct{ one, other netip.AddrPort }

func endsOf(e *tcp.Event) ends {
	if e.Local.Compare(e.Remote) <= 0 {
		return ends{e.Local, e.Remote}
	}
	return ends{e.Remote, e.Local}
}

// of returns the events of a socket and of what has or had its addresses: its half-open time,
// which has no cookie, and its other end.
func (h *history) of(cookie uint64) (events []tcp.Event) {
	pairs := make(map[ends]struct{})
	h.each(func(e *tcp.Event) {
		if e.Cookie == cookie && len(pairs) < maxPairs && e.Local.Port() != 0 && e.Remote.Port() != 0 {
			pairs[endsOf(e)] = struct{}{}
		}
	})
	h.each(func(e *tcp.Event) {
		if _, is := pairs[endsOf(e)]; (is || e.Cookie == cookie) && len(events) < maxEvents {
			events = append(events, *e)
		}
	})
	return events
}

// storyJSON tells the story of a socket, as tcptrace timeline -j does; nil: there is none.
func storyJSON(cookie uint64, events []tcp.Event, now uint64) ([]byte, error) {
	var b bytes.Buffer
	lines := output.NewTimelineJSON(&b)
	story := timeline.NewCollector(timeline.Config{
		Max: maxEvents, Filter: tcp.Filter{Cookies: []uint64{cookie}}, Show: lines.Write, Flush: lines.Flush,
	})
	for i := range events {
		if err := story.Event(&events[i]); err != nil {
			return nil, err
		}
	}
	err := errors.Join(story.Close(now), lines.Flush())
	return b.Bytes(), err
}

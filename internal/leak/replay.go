package leak

import (
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// maxReplayed bounds a Replay: an entry takes some 500 bytes, 130 MB at the most.
const maxReplayed = 1 << 18

// Replay rebuilds from events the sockets that are in some states, so that a
// recording can be looked at as the live kernel is. It belongs to one goroutine.
type Replay struct {
	states   []tcp.State
	now      uint64
	sockets  map[identity]tcp.Event
	unplaced int
}

// NewReplay returns a Replay of the sockets in the states.
func NewReplay(states ...tcp.State) *Replay {
	return &Replay{states: states, sockets: make(map[identity]tcp.Event)}
}

// Event takes the next event of the recording.
func (r *Replay) Event(e *tcp.Event) {
	if e.Kind == tcp.Lost {
		return
	}
	id := identify(e)
	if !slices.Contains(r.states, e.New) {
		delete(r.sockets, id)
		return
	}
	if _, known := r.sockets[id]; !known && len(r.sockets) == maxReplayed {
		r.unplaced++
		return
	}
	row := *e
	if e.Kind == tcp.Transition {
		row.Kind, row.Old, row.Duration, row.DurationKind = tcp.Socket, 0, 0, tcp.Exact
	}
	r.sockets[id] = row
}

// Unplaced is how many sockets found no room.
func (r *Replay) Unplaced() int { return r.unplaced }

// SetNow sets the time up to which events were taken, of CLOCK_BOOTTIME in ns.
func (r *Replay) SetNow(now uint64) { r.now = now }

// Existing hands the sockets in the states as they are now to emit.
func (r *Replay) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	for _, row := range r.sockets {
		if !slices.Contains(states, row.New) {
			continue
		}
		row.Duration += r.now - min(row.BootNS, r.now)
		row.BootNS = r.now
		if err := emit(&row); err != nil {
			return err
		}
	}
	return nil
}

type identity struct {
	cookie        uint64 // when it is not 0, the rest is empty
	netns         uint32
	local, remote netip.AddrPort
}

func identify(e *tcp.Event) identity {
	if e.Cookie != 0 {
		return identity{cookie: e.Cookie}
	}
	return identity{netns: e.NetNS, local: e.Local, remote: e.Remote}
}

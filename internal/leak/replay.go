package leak

import (
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// maxReplayed bounds a Replay: an entry takes some 500 bytes, 130 MB at the most.
const maxReplayed = 1 << 18

// Replay rebuilds from events the sockets that are in one state, so that a
// recording can be looked at as the live kernel is. It belongs to one goroutine.
type Replay struct {
	state    tcp.State
	sockets  map[identity]tcp.Event
	unplaced int
}

// NewReplay returns a Replay of the sockets in the state.
func NewReplay(state tcp.State) *Replay {
	return &Replay{state: state, sockets: make(map[identity]tcp.Event)}
}

// tcp.Event takes the next event of the recording.
func (r *Replay) Event(e *tcp.Event) {
	if e.Kind == tcp.Lost {
		return
	}
	id := identify(e)
	if e.New != r.state {
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

// Rows hands the sockets as they were at the time now, of CLOCK_BOOTTIME in ns, to
// emit.
func (r *Replay) Rows(now uint64, emit func(*tcp.Event) error) error {
	for _, row := range r.sockets {
		row.Duration += now - min(row.BootNS, now)
		row.BootNS = now
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

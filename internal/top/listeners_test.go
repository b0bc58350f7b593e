package top

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// listenersRig has two listeners of nginx and one of another program.
func listenersRig(t *testing.T, recorded bool) *rig {
	t.Helper()
	r := newRig(t, capture.Mixed, Options{})
	existing := r.c.cfg.Leaks.Existing
	r.c.cfg.Leaks.Rule.Recorded = recorded
	r.c.cfg.Leaks.Existing = func(states []tcp.State, emit func(*tcp.Event) error) error {
		if states[0] != tcp.Listen {
			return existing(states, emit)
		}
		for i, comm := range []string{"nginx", "nginx", "other"} {
			row := tcp.Event{
				Kind: tcp.Socket, New: tcp.Listen, Comm: comm, PID: 40, OwnerSource: tcp.FromSnapshot, BootNS: r.now,
				Local:     netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(80+i)),
				HasQueues: true, RxQueue: uint32(3 * i), TxQueue: 2, HasDrops: true, Drops: uint32(17 * i),
			}
			if err := emit(&row); err != nil {
				return err
			}
		}
		return nil
	}
	r.play(30 * time.Second)
	r.press("/", "n", "g", "i", "enter", "enter")
	return r
}

// The listeners of the group, and no others, stand above its sockets: the one with drops first.
func TestListeners(t *testing.T) {
	r := listenersRig(t, false)
	r.golden("listeners-80x24")
	r.resize(120, 40)
	r.golden("listeners-120x40")
	s := r.m.shown()
	if len(s.Listeners) != 2 || !s.Listeners[0].full() || s.Listeners[1].full() {
		t.Errorf("the listeners are %+v", s.Listeners)
	}
}

// A recording does not say how queues are now.
func TestListenersOfARecording(t *testing.T) {
	r := listenersRig(t, true)
	for _, l := range r.m.shown().Listeners {
		if l.Queues || l.HasDrops || l.full() {
			t.Errorf("%+v", l)
		}
	}
	if !strings.Contains(r.m.Screen(), "0.0.0.0:81                     -       -       -      40") {
		t.Errorf("it shows\n%s", r.m.Screen())
	}
}

// Listeners are looked for every other second, and when another group is asked for.
func TestListenersAreLookedForNowAndThen(t *testing.T) {
	r := listenersRig(t, false)
	looks := 0
	existing := r.c.cfg.Leaks.Existing
	r.c.cfg.Leaks.Existing = func(states []tcp.State, emit func(*tcp.Event) error) error {
		if states[0] == tcp.Listen {
			looks++
		}
		return existing(states, emit)
	}
	for i, want := range []int{0, 1, 1, 2} {
		if r.play(time.Duration(31+i) * time.Second); looks != want {
			t.Errorf("after %d s: %d looks, want %d", i+1, looks, want)
		}
	}
	r.press("esc", "esc", "enter") // the first of all groups
	if looks != 3 || len(r.m.shown().Listeners) != 0 {
		t.Errorf("of another group: %d looks, %+v", looks, r.m.shown().Listeners)
	}
}

// However many there are, the sockets have their room.
func TestManyListeners(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	s := &Snapshot{Request: r.m.here().request, MoreListeners: 5}
	for i := range 100 {
		s.Listeners = append(s.Listeners, ListenerRow{Local: netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:1111:2222:3333:4444:5555:6666]:%d", i+1))})
	}
	r.m.Update(s)
	for width := 1; width < 120; width += 9 {
		r.resize(width, 24)
		lines := r.m.listenerLines(s, 7)
		if len(lines) != 7 || lines[6] != "and 100 more listeners" {
			t.Errorf("%d columns: %q", width, lines)
		}
	}
}

package top

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// ListenerRow is a listener of a group.
type ListenerRow struct {
	Local        netip.AddrPort
	PID          uint32
	Queues       bool   // what follows is known
	Queue, Limit uint32 // connections that wait for accept(), and how many may
	HasDrops     bool
	Drops        uint32 // connections that it had to drop so far
}

// full reports whether the listener takes no more, as sk_acceptq_is_full in the kernel's
// include/net/sock.h has it.
func (l *ListenerRow) full() bool { return l.Queues && l.Queue > l.Limit }

// listenersOf are the listeners of the group that is asked for. They are looked for every
// leaksInterval, and when another group is asked for.
func (c *Collector) listenersOf(r *Request, now uint64) error {
	if r.Kind != Sockets || r.Group.Other || *r == c.listenersFor && now < c.listenersNext {
		return nil
	}
	c.listenersFor, c.listenersNext, c.listeners, c.moreListeners = *r, now+leaksInterval, nil, 0
	err := c.cfg.Leaks.Existing([]tcp.State{tcp.Listen}, func(row *tcp.Event) error {
		switch {
		case r.By.KeyOf(row) != r.Group.Key, !c.cfg.Leaks.Filter.Match(row):
		case len(c.listeners) == maxRows:
			c.moreListeners++
		default:
			c.listeners = append(c.listeners, c.listenerRow(row))
		}
		return nil
	})
	slices.SortStableFunc(c.listeners, func(a, b ListenerRow) int { // those with a problem first
		return cmp.Or(cmp.Compare(b.Drops, a.Drops), cmp.Compare(b.Queue, a.Queue), a.Local.Compare(b.Local))
	})
	return err
}

// listenerRow is a row of it. A recording does not say how the queue is now.
func (c *Collector) listenerRow(row *tcp.Event) ListenerRow {
	l := ListenerRow{Local: row.Local}
	if row.OwnerSource != "" {
		l.PID = row.PID
	}
	if !c.cfg.Leaks.Rule.Recorded {
		l.Queues, l.Queue, l.Limit, l.HasDrops, l.Drops = row.HasQueues, row.RxQueue, row.TxQueue, row.HasDrops, row.Drops
	}
	return l
}

// listenerLines are the listeners of a group, above its sockets.
func (m *Model) listenerLines(s *Snapshot, room int) []string {
	all := s.Listeners
	if len(all) == 0 {
		return nil
	}
	ends := 24
	for i := range all {
		ends = max(ends, len(all[i].Local.String()))
	}
	ends = max(min(ends, m.width-32), 1)
	lines := []string{m.header(" " + pad("LISTENER", ends) + "   QUEUE   LIMIT   DROPS     PID")}
	shown := min(len(all), max(room-2, 1))
	for i := range all[:shown] {
		l := &all[i]
		lines = append(lines, m.line(fmt.Sprintf("%s %7s %7s %7s %7s", pad(l.Local.String(), ends),
			unless(!l.Queues, countText(uint64(l.Queue))), unless(!l.Queues, countText(uint64(l.Limit))),
			unless(!l.HasDrops, countText(uint64(l.Drops))), unless(l.PID == 0, strconv.Itoa(int(l.PID)))), false, l.full()))
	}
	if rest := len(all) - shown + s.MoreListeners; rest > 0 {
		lines = append(lines, "and "+leak.Counted(rest, "more listener"))
	}
	return lines
}

package leak

import "github.com/tcptrace/tcptrace/internal/tcp"

// oldAges is how many times Rule.OlderThan the oldest socket is at least when its age
// accuses it.
const oldAges = 3

// judge decides by age and by growth:
//
//   - A group is old when its oldest socket has been in the state for three times
//     OlderThan (30 s by default). It grows when it got more sockets of late, see
//     history: growth that has ended does not count. Its sockets stay when at least
//     half of those it had when the judgement began are still there.
//   - Watched for less than 10 s, an old group leaks, and any other is undecided.
//   - Watched for longer, a group leaks if its sockets stay and it is old or grows;
//     otherwise it is slow: its sockets leave the state in the end, or it is young and
//     steady.
//   - A group whose sockets were seen to leave stays slow until sockets have stayed for
//     twice as long as the oldest took then.
//   - A socket that a reset or a timeout takes out of CLOSE_WAIT has left it. Whether
//     its process has closed it shows in CLOSE; where that is not visible, a group
//     whose sockets leave in this way is undecided.
//   - ESTABLISHED sockets may be as old as they like, and so may those that are kept for
//     another connect(), see disconnected: only a group that grows, and whose sockets stay,
//     leaks. Sockets that all still send are never said to leak.
func (g *Group) judge(now uint64, closeVisible bool) {
	w := &g.watch
	if 2*g.Stayed < w.baseCount {
		w.doubtful = !closeVisible && 2*(g.Stayed+w.resetBase) >= w.baseCount
		w.base, w.baseCount, w.resetBase, w.leaving = now, g.Count, 0, true
		w.span = max(MinWatch, 2*g.Oldest)
		g.Stayed = g.Count
	}
	watched := now-w.base >= w.span
	if watched {
		w.leaving, w.doubtful = false, false
	}
	g.Leaving = w.leaving
	g.Cause = g.cause()
	old := g.Oldest >= oldAges*g.rule.OlderThan && g.State != tcp.Established && !g.disconnected()
	grows := g.GrowthKnown && g.Growth > 0
	switch {
	case g.Cause == StillSending:
		g.Verdict = Slow
	case w.leaving && w.doubtful:
		g.Verdict = Undecided
	case w.leaving:
		g.Verdict = Slow
	case old, watched && grows:
		g.Verdict = Leak
	case watched:
		g.Verdict = Slow
	default:
		g.Verdict = Undecided
	}
}

// disconnected says of most sockets of the group that they have forgotten the port of their
// peer, as after a connect() that has failed while it waited, or to AF_UNSPEC (tcp_disconnect).
// Then connect() works again, and a client may keep them for that.
func (g *Group) disconnected() bool { return 2*g.forgot > g.Count }

// cause follows the majority.
func (g *Group) cause() Cause {
	switch g.State {
	case tcp.Close:
		return DescriptorOpen
	case tcp.FinWait2:
		return PeerOpen
	case tcp.SynRecv, tcp.NewSynRecv:
		return g.halfOpenCause()
	case tcp.SynSent, tcp.FinWait1, tcp.LastAck, tcp.Closing:
		return PeerSilent
	case tcp.CloseWait:
		return g.closeWaitCause()
	}
	return CauseUnknown
}

func (g *Group) halfOpenCause() Cause {
	switch {
	case 2*g.QueueFull > g.Count:
		return AcceptQueueFull
	case 2*g.Acked > g.Count:
		return HandshakeComplete
	case 2*g.NotAcked > g.Count:
		return PeerSilent
	}
	return CauseUnknown
}

func (g *Group) closeWaitCause() Cause {
	most := max(g.Data, g.FinUnread, g.Read)
	switch {
	case 2*g.Unaccepted > g.Count:
		return Unaccepted
	case most == 0, 2*(g.Unaccepted+g.unseen) > g.Count:
		return CauseUnknown
	case g.Data == most:
		return NotReading
	case g.FinUnread == most:
		return EOFUnread
	case g.Sending == g.Count:
		return StillSending
	}
	return MissingClose
}

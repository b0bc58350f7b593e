package leak

import (
	"fmt"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Verdict says whether a group of sockets leaks.
type Verdict string

// The verdicts. See LeakGroup.judge for the rule.
const (
	Leak      Verdict = "leak"
	Slow      Verdict = "slow"      // they are closed in the end
	Undecided Verdict = "undecided" // too young, and not watched for long enough
)

func (v Verdict) weight() int {
	switch v {
	case Leak:
		return 2
	case Undecided:
		return 1
	}
	return 0
}

// Cause says what the sockets of a group wait for, by the evidence of the kernel.
type Cause string

// The causes. Those of CLOSE_WAIT are told apart by what the application has read:
// rcv_nxt - copied_seq.
const (
	MissingClose Cause = "missing_close" // it has read the end of file, and has not closed
	NotReading   Cause = "not_reading"   // bytes and the end of file wait to be read
	EOFUnread    Cause = "eof_unread"    // only the end of file waits
	StillSending Cause = "still_sending" // it has read the end of file and sends on: a half-close
	PeerOpen     Cause = "peer_open"     // FIN_WAIT2: the peer has not closed
	PeerSilent   Cause = "peer_silent"   // the peer does not answer
	CauseUnknown Cause = "unknown"
)

const (
	// minLeakWatch is how long a group is watched before its growth says anything.
	minLeakWatch = 10e9
	// leakAges is how many times --older-than the oldest socket is at least when its
	// age accuses it.
	leakAges = 3
)

// judge decides by age and by growth:
//
//   - A group is old when its oldest socket has been in the state for three times
//     OlderThan (30 s by default). It grows when it has more sockets than when it was
//     first seen. Its sockets stay when at least half of those it had then are still
//     there.
//   - Watched for less than 10 s, an old group leaks, and any other is undecided.
//   - Watched for longer, a group leaks if its sockets stay and it is old or grows;
//     otherwise it is slow: its sockets are closed in the end, or it is young and
//     steady.
//   - A group whose sockets were seen to be closed stays slow until sockets have
//     stayed for twice as long as the oldest took then.
//   - A socket that a reset or a timeout takes out of CLOSE_WAIT was not closed: it
//     counts as one that stays.
//   - ESTABLISHED sockets may be as old as they like: only a group that grows, and
//     whose sockets stay, leaks. Sockets that all still send are never said to leak.
func (g *LeakGroup) judge(now uint64) {
	w := &g.watch
	if 2*g.Stayed < w.baseCount {
		w.base, w.baseCount, w.resetBase, w.closing = now, g.Count, 0, true
		w.span = max(minLeakWatch, 2*g.Oldest)
		g.Stayed = g.Count
	}
	watched := now-w.base >= w.span
	if watched {
		w.closing = false
	}
	g.Closing = w.closing
	g.Cause = g.cause()
	old := g.Oldest >= leakAges*g.rule.OlderThan && g.rule.State != tcp.Established
	grows := g.Count+w.reset > w.firstCount
	switch {
	case w.closing, g.Cause == StillSending:
		g.Verdict = Slow
	case old, watched && grows:
		g.Verdict = Leak
	case watched:
		g.Verdict = Slow
	default:
		g.Verdict = Undecided
	}
}

// cause follows the majority.
func (g *LeakGroup) cause() Cause {
	switch g.rule.State {
	case tcp.FinWait2:
		return PeerOpen
	case tcp.SynSent, tcp.SynRecv, tcp.NewSynRecv, tcp.FinWait1, tcp.LastAck, tcp.Closing:
		return PeerSilent
	case tcp.CloseWait:
	default:
		return CauseUnknown
	}
	most := max(g.Data, g.FinUnread, g.Read)
	switch {
	case most == 0:
		return CauseUnknown
	case g.Data == most:
		return NotReading
	case g.FinUnread == most:
		return EOFUnread
	case g.Sending == g.Count:
		return StillSending
	default:
		return MissingClose
	}
}

// Diagnosis says in a sentence or two what is the matter with the group.
func (g *LeakGroup) Diagnosis() string {
	if g.Reset > 0 {
		return fmt.Sprintf("%s %d more were reset by the peer, or timed out, while watched: not closed either, their descriptors stay open.", g.diagnosis(), g.Reset)
	}
	return g.diagnosis()
}

func (g *LeakGroup) diagnosis() string {
	switch g.Verdict {
	case Slow:
		return g.slow()
	case Undecided:
		return fmt.Sprintf("Too early to tell: the oldest is %s%s. %s", g.bound(), Span(g.Oldest), g.evidence())
	}
	return g.evidence()
}

func (g *LeakGroup) slow() string {
	switch {
	case g.Cause == StillSending:
		return g.evidence()
	case g.Closing && g.GrowthKnown && g.Growth > 0:
		return fmt.Sprintf("Slow, not leaking: sockets are closed, the oldest is %s%s; the count grows by %.1f a minute.",
			g.bound(), Span(g.Oldest), g.Growth)
	case g.Closing:
		return fmt.Sprintf("Slow, not leaking: sockets are closed, the oldest is %s%s.", g.bound(), Span(g.Oldest))
	}
	return fmt.Sprintf("Slow, not leaking: the oldest is %s%s and the count is steady.", g.bound(), Span(g.Oldest))
}

func (g *LeakGroup) bound() string {
	if g.AtLeast {
		return "at least "
	}
	return ""
}

// evidence puts the cause in words.
func (g *LeakGroup) evidence() string {
	age := g.bound() + Span(g.Oldest)
	switch g.Cause {
	case MissingClose:
		return fmt.Sprintf("The peer closed %s ago; the application read the end of file and never called close(): a missing close().", age)
	case NotReading:
		return fmt.Sprintf("The peer closed %s ago. The application has not read since; %d bytes and the end of file wait: a blocked or forgotten reader.",
			age, g.Unread)
	case EOFUnread:
		return fmt.Sprintf("The peer closed %s ago. The application has read all data but not the end of file: a forgotten connection, such as one idle in a pool.", age)
	case StillSending:
		return fmt.Sprintf("The peer closed its side %s ago; the application has read that and data is still on its way to the peer: a half-close, or a peer that does not take it.", age)
	case PeerOpen:
		if g.PID != 0 {
			return fmt.Sprintf("The application shut down its side %s ago and keeps the socket open; the peer has not closed: it waits for a peer that leaks.", age)
		}
		return fmt.Sprintf("Closed here %s ago; the peer has not closed: the peer leaks.", age)
	case PeerSilent:
		return peerSilent(g.rule.State, age)
	}
	if g.rule.State == tcp.CloseWait {
		return fmt.Sprintf("The peer closed %s ago. Whether the application has read the end of file is not known.", age)
	}
	return fmt.Sprintf("In %s for %s.", g.rule.State, age)
}

func peerSilent(state tcp.State, age string) string {
	switch state {
	case tcp.SynSent:
		return fmt.Sprintf("The peer has not answered the SYN for %s: it is down, or a firewall drops it.", age)
	case tcp.SynRecv, tcp.NewSynRecv:
		return fmt.Sprintf("The peer has not completed the handshake for %s: a SYN flood, or our answer does not arrive.", age)
	}
	return fmt.Sprintf("Closed here %s ago; the peer does not acknowledge it: it is gone, or does not read.", age)
}

// Span writes a time in ns for the eye: 850ms, 12s, 4m05s, 4h12m, 2d03h.
func Span(ns uint64) string {
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch s := ns / 1e9; {
	case s == 0:
		return fmt.Sprintf("%dms", ns/1e6)
	case s < minute:
		return fmt.Sprintf("%ds", s)
	case s < hour:
		return fmt.Sprintf("%dm%02ds", s/minute, s%minute)
	case s < day:
		return fmt.Sprintf("%dh%02dm", s/hour, s%hour/minute)
	default:
		return fmt.Sprintf("%dd%02dh", s/day, s%day/hour)
	}
}

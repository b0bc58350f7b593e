package leak

import (
	"fmt"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// diagnose says in a sentence or two what is the matter with the group.
func (g *Group) diagnose() string {
	if g.Reset > 0 {
		return fmt.Sprintf("%s Reset by the peer or timed out while watched: %s more.", g.sentence(), Counted(g.Reset, "socket"))
	}
	return g.sentence()
}

func (g *Group) sentence() string {
	switch {
	case g.Verdict == Slow && g.Cause != StillSending:
		return g.slow()
	case g.Verdict == Undecided && g.Leaving:
		return "Sockets leave by a reset or a timeout; whether their process closes them is not visible here. " + g.evidence()
	case g.Verdict == Undecided:
		return fmt.Sprintf("Too early to tell: the oldest is %s. %s", g.age(), g.evidence())
	}
	return g.evidence()
}

func (g *Group) slow() string {
	switch {
	case g.Leaving && g.GrowthKnown && g.Growth > 0:
		return fmt.Sprintf("Slow, not leaking: sockets leave the state, the oldest is %s; the count grows by %.1f a minute.", g.age(), g.Growth)
	case g.Leaving:
		return fmt.Sprintf("Slow, not leaking: sockets leave the state, the oldest is %s.", g.age())
	}
	return fmt.Sprintf("Slow, not leaking: the oldest is %s and the count does not grow.", g.age())
}

// age is that of the oldest socket.
func (g *Group) age() string {
	if g.AtLeast {
		return "at least " + Span(g.Oldest)
	}
	return Span(g.Oldest)
}

// evidence puts the cause in words.
func (g *Group) evidence() string {
	switch g.State {
	case tcp.CloseWait:
		return g.closeWaitEvidence()
	case tcp.Close:
		if g.disconnected() {
			return fmt.Sprintf("The connection ended, or connect() failed, %s ago; the process still holds the descriptor: a missing close(), or it is kept for another connect().", g.age())
		}
		return fmt.Sprintf("The connection %s %s ago; the process still holds the descriptor: a missing close().", ending(g.Reason), g.age())
	case tcp.FinWait2:
		return g.closedHere() + "; the peer has not closed."
	case tcp.FinWait1, tcp.LastAck, tcp.Closing:
		return g.closedHere() + "; the peer does not acknowledge it: it is gone, or does not read."
	case tcp.SynSent:
		return fmt.Sprintf("The peer has not answered the SYN for %s: it is down, its accept queue is full, or a firewall drops the SYN or the answer.", g.age())
	case tcp.SynRecv, tcp.NewSynRecv:
		return g.halfOpenEvidence()
	}
	return fmt.Sprintf("In %s for %s.", g.State, g.age())
}

// closedHere says how our side came to send its FIN. A descriptor that is still open
// means shutdown(); without a word about all descriptors it may have been either.
func (g *Group) closedHere() string {
	switch g.Holder {
	case tcp.Held:
		return fmt.Sprintf("The application shut down its side %s ago and keeps the socket open", g.age())
	case tcp.Gone:
		return fmt.Sprintf("Closed here %s ago", g.age())
	}
	return fmt.Sprintf("Closed or shut down here %s ago", g.age())
}

func (g *Group) closeWaitEvidence() string {
	switch g.Cause {
	case MissingClose:
		return fmt.Sprintf("The peer closed %s ago; the application read the end of file and never called close(): a missing close().", g.age())
	case NotReading:
		return fmt.Sprintf("The peer closed %s ago. The application has not read since; %s and the end of file wait: an idle connection, "+
			"such as one in a pool, to which the peer said something last, or a blocked or forgotten reader.", g.age(), Counted(int(g.Unread), "byte"))
	case EOFUnread:
		return fmt.Sprintf("The peer closed %s ago. The application has read all data but not the end of file: a forgotten connection, such as one idle in a pool.", g.age())
	case StillSending:
		return fmt.Sprintf("The peer closed its side %s ago; the application has read that and data is still on its way to the peer: a half-close, or a peer that does not take it.", g.age())
	case Unaccepted:
		return fmt.Sprintf("The peer closed %s ago; the connection is still in the accept queue: no process has called accept().", g.age())
	}
	if g.unseen > 0 {
		return fmt.Sprintf("The peer closed %s ago. Whether a process has accepted the connection is not known.", g.age())
	}
	return fmt.Sprintf("The peer closed %s ago. Whether the application has read the end of file is not known.", g.age())
}

func (g *Group) halfOpenEvidence() string {
	switch g.Cause {
	case AcceptQueueFull:
		if 2*g.NotAcked > g.Count {
			return fmt.Sprintf("Half-open for %s: the peer's ACK has not come, and our accept queue is full: the handshake cannot end before the application calls accept().", g.age())
		}
		return fmt.Sprintf("Half-open for %s: our accept queue is full, and the handshake cannot end before the application calls accept().", g.age())
	case HandshakeComplete:
		return fmt.Sprintf("Half-open for %s although the peer has done its part: the connection waits here, for room in our accept queue or for its first data (TCP_DEFER_ACCEPT).", g.age())
	case PeerSilent:
		return fmt.Sprintf("The peer has not completed the handshake for %s: a SYN flood, or our answer or the peer's ACK is lost.", g.age())
	}
	return fmt.Sprintf("Half-open for %s: the last ACK of the handshake has not come, or it has and the connection waits here, for room in the accept queue or for its first data (TCP_DEFER_ACCEPT).", g.age())
}

// ending says how a connection came to its end, as far as that is known.
func ending(r tcp.Reason) string {
	switch r {
	case tcp.RSTReceived:
		return "was reset by the peer"
	case tcp.Timeout:
		return "timed out"
	}
	return "ended"
}

// Counted writes a number of things: "1 socket", "2 sockets". The plural of the noun
// is with an s.
func Counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
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

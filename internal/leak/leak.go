// Package leak finds sockets that sit in a state, groups them, and says whether each
// group leaks and why. It makes a Report, in which every fact is resolved; what prints
// it has nothing to fetch. What is not in the events (open files, port ranges, stacks)
// comes from functions that the caller gives, see Facts.
package leak

import (
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// By names what sockets are grouped by, beside their state.
type By string

// What sockets can be grouped by.
const (
	ByOwner     By = "owner" // process and remote end
	ByPID       By = "pid"
	ByComm      By = "comm"
	ByContainer By = "container"
	ByPod       By = "pod"
	ByUnit      By = "unit"
	ByRemote    By = "remote"
	ByLocalPort By = "lport"
	ByStack     By = "stack"
)

// Bys lists them, the default first.
var Bys = []By{ByOwner, ByPID, ByComm, ByContainer, ByPod, ByUnit, ByRemote, ByLocalPort, ByStack}

// Rule says which sockets a Table counts, and into which group.
type Rule struct {
	States    []tcp.State
	OlderThan uint64 // ns in the state from which on a socket counts
	By        By     // empty: ByOwner
	// Recorded says that the rows are rebuilt from a recording: what changes without
	// an event, as queues and descriptors do, is not known of them.
	Recorded bool
}

// DefaultOlderThan is Rule.OlderThan, if nothing else is said.
const DefaultOlderThan = 10 * time.Second

// DefaultRule is what is looked at if nothing else is said: sockets that only their owner can
// end. A recording does not tell which descriptors are kept after CLOSE.
func DefaultRule(recorded bool) Rule {
	r := Rule{States: []tcp.State{tcp.CloseWait, tcp.Close}, OlderThan: uint64(DefaultOlderThan), By: ByOwner, Recorded: recorded}
	if recorded {
		r.States = r.States[:1]
	}
	return r
}

// timeWait reports whether it is about destinations, not about leaks.
func (r *Rule) timeWait() bool { return slices.Equal(r.States, []tcp.State{tcp.TimeWait}) }

// Verdict says whether a group of sockets leaks.
type Verdict string

// The verdicts. See Group.judge for the rule.
const (
	Leak      Verdict = "leak"
	Slow      Verdict = "slow"      // they leave the state in the end
	Undecided Verdict = "undecided" // too young, not watched for long enough, or not visible
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
	MissingClose      Cause = "missing_close"      // it has read the end of file, and has not closed
	NotReading        Cause = "not_reading"        // bytes and the end of file wait to be read
	EOFUnread         Cause = "eof_unread"         // only the end of file waits
	StillSending      Cause = "still_sending"      // it has read the end of file and sends on: a half-close
	Unaccepted        Cause = "unaccepted"         // no process has called accept()
	DescriptorOpen    Cause = "descriptor_open"    // CLOSE: the connection is over, the descriptor is not
	PeerOpen          Cause = "peer_open"          // FIN_WAIT2: the peer has not closed
	PeerSilent        Cause = "peer_silent"        // the peer does not answer
	AcceptQueueFull   Cause = "accept_queue_full"  // SYN_RECV: our listener has no room
	HandshakeComplete Cause = "handshake_complete" // SYN_RECV: the peer has done its part
	CauseUnknown      Cause = "unknown"
)

package tcp

import (
	"fmt"
	"strings"
)

// State is a TCP state, numbered as in the kernel's include/net/tcp_states.h.
type State uint8

// The states, in the kernel's order. 0 is not a state: it marks a field that does
// not apply.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv
)

var stateNames = [...]string{
	Established: "ESTABLISHED", SynSent: "SYN_SENT", SynRecv: "SYN_RECV",
	FinWait1: "FIN_WAIT1", FinWait2: "FIN_WAIT2", TimeWait: "TIME_WAIT",
	Close: "CLOSE", CloseWait: "CLOSE_WAIT", LastAck: "LAST_ACK",
	Listen: "LISTEN", Closing: "CLOSING", NewSynRecv: "NEW_SYN_RECV",
}

// String returns the kernel's name, as ss and tcpstates print it; for a number
// that is not a state it returns "state(N)".
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// States returns all of them, NewSynRecv included.
func States() (all []State) {
	for s := Established; s <= NewSynRecv; s++ {
		all = append(all, s)
	}
	return all
}

// ParseState understands the kernel's names and the usual other spellings, in
// either case and with '-' or '_': close-wait, FIN_WAIT_1, CLOSED, syn-received,
// estab.
func ParseState(name string) (State, error) {
	n := strings.ReplaceAll(strings.ToUpper(name), "-", "_")
	switch n {
	case "ESTAB":
		return Established, nil
	case "CLOSED":
		return Close, nil
	case "SYN_RECEIVED", "SYN_RCVD":
		return SynRecv, nil
	case "LISTENING":
		return Listen, nil
	case "FIN_WAIT_1":
		return FinWait1, nil
	case "FIN_WAIT_2":
		return FinWait2, nil
	}
	for s, known := range stateNames {
		if known != "" && (n == known || n == strings.ReplaceAll(known, "_", "")) {
			return State(s), nil
		}
	}
	return 0, fmt.Errorf("unknown TCP state %q: the states are %s", name, strings.Join(stateNames[1:], ", "))
}

package tcp

import (
	"fmt"
	"strings"
	"testing"
)

func TestStateNames(t *testing.T) {
	const names = "ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT " +
		"CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING NEW_SYN_RECV"
	for i, want := range strings.Fields(names) {
		if got := State(i + 1).String(); got != want {
			t.Errorf("State(%d) = %q, want %q", i+1, got, want)
		}
	}
}

func TestStateStringOfAnyNumber(t *testing.T) {
	for i := range 256 {
		s := State(i)
		if s >= Established && s <= NewSynRecv {
			if got, err := ParseState(s.String()); err != nil || got != s {
				t.Errorf("ParseState(%q) = %v, %v", s, got, err)
			}
			continue
		}
		if got, want := s.String(), fmt.Sprintf("state(%d)", i); got != want {
			t.Errorf("State(%d) = %q, want %q", i, got, want)
		}
		if got, err := ParseState(s.String()); err == nil {
			t.Errorf("ParseState(%q) = %v, want an error", s, got)
		}
	}
}

func TestParseStateSpellings(t *testing.T) {
	spellings := map[State]string{
		Established: "ESTABLISHED established Established estab ESTAB",
		SynSent:     "SYN_SENT syn_sent syn-sent SYN-SENT synsent",
		SynRecv:     "SYN_RECV syn-recv synrecv syn-received SYN_RECEIVED syn-rcvd SYN_RCVD",
		FinWait1:    "FIN_WAIT1 fin-wait1 FIN_WAIT_1 fin-wait-1 FIN-WAIT-1 finwait1",
		FinWait2:    "FIN_WAIT2 fin-wait2 FIN_WAIT_2 fin-wait-2 FIN-WAIT-2 finwait2",
		TimeWait:    "TIME_WAIT time-wait timewait",
		Close:       "CLOSE close CLOSED closed",
		CloseWait:   "CLOSE_WAIT close-wait closewait",
		LastAck:     "LAST_ACK last-ack lastack",
		Listen:      "LISTEN listen LISTENING listening",
		Closing:     "CLOSING closing",
		NewSynRecv:  "NEW_SYN_RECV new-syn-recv newsynrecv",
	}
	for want, names := range spellings {
		for _, name := range strings.Fields(names) {
			if got, err := ParseState(name); err != nil || got != want {
				t.Errorf("ParseState(%q) = %v, %v, want %v", name, got, err, want)
			}
		}
	}
}

func TestParseStateRefuses(t *testing.T) {
	for _, name := range []string{"", " ", "-", "FIN_WAIT", "CLOSE WAIT", "CLOSE_WAIT ", "7", "\x00", "ESTABLİSHED"} {
		got, err := ParseState(name)
		if err == nil {
			t.Errorf("ParseState(%q) = %v, want an error", name, got)
			continue
		}
		if !strings.Contains(err.Error(), "ESTABLISHED, SYN_SENT") {
			t.Errorf("ParseState(%q): the error does not name the states: %v", name, err)
		}
	}
}

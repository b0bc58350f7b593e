package tcp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// follow feeds a capture, in which each line ends with "= " and what is expected: the
// number of the life, "began", "ended", "missing" where transitions are, and "N over" for a
// life that the event proved to be over. It returns the lines with what the Tracker said.
func follow(t *testing.T, t2 *Tracker[int], text string) (got, want []string) {
	t.Helper()
	lives, said := 0, ""
	forget := t2.forget
	t2.forget = func(l *Life[int]) {
		said += fmt.Sprintf(" %d over", l.Value)
		if forget != nil {
			forget(l)
		}
	}
	for _, line := range lines(text) {
		event, _, _ := strings.Cut(line, " = ")
		ev := capture(t, []string{event})[0]
		said = ""
		found := t2.Find(&ev)
		step := t2.Observe(&ev)
		if step.Began {
			lives++
			step.Life.Value = lives
			said = " began" + said
		} else if found != step.Life {
			t.Errorf("%s: Find and Observe disagree", line)
		}
		if step.Ended {
			said += " ended"
		}
		if step.Missing {
			said += " missing"
		}
		got = append(got, fmt.Sprintf("%s = %d%s", event, step.Life.Value, said))
		want = append(want, line)
	}
	return got, want
}

func TestTracker(t *testing.T) {
	tests := []struct{ name, capture string }{
		{"a client that closes first, and its server", `
			s CLOSE>LISTEN           0.0.0.0:80 0.0.0.0:0  = 1 began
			c CLOSE>SYN_SENT         1.0.0.1:0  1.0.0.2:80 = 2 began
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:40 = 3 began
			c SYN_SENT>ESTABLISHED   1.0.0.1:40 1.0.0.2:80 = 2
			d SYN_RECV>ESTABLISHED   1.0.0.2:80 1.0.0.1:40 = 3
			c ESTABLISHED>FIN_WAIT1  1.0.0.1:40 1.0.0.2:80 = 2
			d ESTABLISHED>CLOSE_WAIT 1.0.0.2:80 1.0.0.1:40 = 3
			c FIN_WAIT1>FIN_WAIT2    1.0.0.1:40 1.0.0.2:80 = 2
			d CLOSE_WAIT>LAST_ACK    1.0.0.2:80 1.0.0.1:40 = 3
			c FIN_WAIT2>TIME_WAIT    1.0.0.1:40 1.0.0.2:80 = 2
			d LAST_ACK>CLOSE         1.0.0.2:80 1.0.0.1:40 = 3 ended
			c TIME_WAIT>TIME_WAIT    1.0.0.1:40 1.0.0.2:80 = 2
			c TIME_WAIT>CLOSE        1.0.0.1:40 1.0.0.2:80 = 2 ended
			s LISTEN>CLOSE           0.0.0.0:80 0.0.0.0:0  = 1 ended`},
		{"a handshake that fails, and the next one", `
			- LISTEN>SYN_RECV 1.0.0.2:80 1.0.0.1:40 = 1 began
			- SYN_RECV>CLOSE  1.0.0.2:80 1.0.0.1:40 = 1 ended
			- LISTEN>SYN_RECV 1.0.0.2:80 1.0.0.1:40 = 2 began
			d SYN_RECV>CLOSE  1.0.0.2:80 1.0.0.1:40 = 2 ended`},
		{"a child without a half-open connection: Fast Open, SYN cookies", `
			d LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 = 1 began
			d SYN_RECV>ESTABLISHED 1.0.0.2:80 1.0.0.1:40 = 1`},
		{"a socket that connects again in its own TIME_WAIT, twice", `
			c CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 1 began
			c SYN_SENT>ESTABLISHED 1.0.0.1:40 1.0.0.2:80 = 1
			c FIN_WAIT2>TIME_WAIT  1.0.0.1:40 1.0.0.2:80 = 1 missing
			c CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 2 began
			c SYN_SENT>ESTABLISHED 1.0.0.1:41 1.0.0.2:80 = 2
			c CLOSING>TIME_WAIT    1.0.0.1:41 1.0.0.2:80 = 2 missing
			c CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 3 began
			c TIME_WAIT>CLOSE      1.0.0.1:40 1.0.0.2:80 = 1 ended
			c SYN_SENT>ESTABLISHED 1.0.0.1:42 1.0.0.2:80 = 3
			c TIME_WAIT>CLOSE      1.0.0.1:41 1.0.0.2:80 = 2 ended
			c ESTABLISHED>CLOSE    1.0.0.1:42 1.0.0.2:80 = 3 ended`},
		{"another socket, or the same one, takes over a TIME_WAIT's addresses", `
			c FIN_WAIT2>TIME_WAIT  1.0.0.1:40 1.0.0.2:80 = 1 began
			d CLOSE>SYN_SENT       1.0.0.1:40 1.0.0.2:80 = 2 began
			c TIME_WAIT>CLOSE      1.0.0.1:40 1.0.0.2:80 = 1 ended
			d SYN_SENT>ESTABLISHED 1.0.0.1:40 1.0.0.2:80 = 2
			d FIN_WAIT2>TIME_WAIT  1.0.0.1:40 1.0.0.2:80 = 2 missing
			d CLOSE>SYN_SENT       1.0.0.1:40 1.0.0.2:80 = 3 began
			d TIME_WAIT>CLOSE      1.0.0.1:40 1.0.0.2:80 = 2 ended
			d SYN_SENT>ESTABLISHED 1.0.0.1:40 1.0.0.2:80 = 3`},
		{"a connect() to addresses in TIME_WAIT that fails ends nothing", `
			c FIN_WAIT2>TIME_WAIT 1.0.0.1:40 1.0.0.2:80 = 1 began
			d CLOSE>SYN_SENT      1.0.0.1:40 1.0.0.2:80 = 2 began
			d SYN_SENT>CLOSE      1.0.0.1:40 1.0.0.2:80 = 2 ended
			c TIME_WAIT>CLOSE     1.0.0.1:40 1.0.0.2:80 = 1 ended`},
		{"a SYN reopens a TIME_WAIT", `
			d FIN_WAIT2>TIME_WAIT  1.0.0.2:80 1.0.0.1:40 = 1 began
			d TIME_WAIT>CLOSE      1.0.0.2:80 1.0.0.1:40 = 1 ended
			- LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 = 2 began
			e SYN_RECV>ESTABLISHED 1.0.0.2:80 1.0.0.1:40 = 2`},
		{"the end of a TIME_WAIT was lost: its addresses are in use", `
			d FIN_WAIT2>TIME_WAIT  1.0.0.2:80 1.0.0.1:40 = 1 began
			- LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 = 2 began 1 over
			c FIN_WAIT2>TIME_WAIT  1.0.0.1:41 1.0.0.2:80 = 3 began
			d CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 4 began
			d SYN_SENT>ESTABLISHED 1.0.0.1:41 1.0.0.2:80 = 4 3 over
			e FIN_WAIT2>TIME_WAIT  1.0.0.1:41 1.0.0.2:80 = 5 began
			f FIN_WAIT2>TIME_WAIT  1.0.0.1:41 1.0.0.2:80 = 6 began 5 over
			e TIME_WAIT>CLOSE      1.0.0.1:41 1.0.0.2:80 = 7 began ended`},
		{"the beginning of a TIME_WAIT was lost", `
			c ESTABLISHED>FIN_WAIT1 1.0.0.1:40 1.0.0.2:80 = 1 began
			c TIME_WAIT>CLOSE       1.0.0.1:40 1.0.0.2:80 = 1 ended missing
			c CLOSE>SYN_SENT        1.0.0.1:0  1.0.0.2:80 = 2 began
			c TIME_WAIT>CLOSE       1.0.0.1:40 1.0.0.2:80 = 3 began ended
			c SYN_SENT>ESTABLISHED  1.0.0.1:41 1.0.0.2:80 = 2
			c TIME_WAIT>CLOSE       1.0.0.1:40 1.0.0.2:80 = 4 began ended
			c ESTABLISHED>CLOSE     1.0.0.1:41 1.0.0.2:80 = 2 ended`},
		{"an orphan in FIN_WAIT2 keeps its cookie", `
			c FIN_WAIT1>FIN_WAIT2 1.0.0.1:40 1.0.0.2:80 = 1 began
			c FIN_WAIT2>TIME_WAIT 1.0.0.1:40 1.0.0.2:80 = 1
			c TIME_WAIT>CLOSE     1.0.0.1:40 1.0.0.2:80 = 1 ended
			d FIN_WAIT1>FIN_WAIT2 1.0.0.1:40 1.0.0.2:80 = 2 began
			d FIN_WAIT2>CLOSE     1.0.0.1:40 1.0.0.2:80 = 2 ended`},
		{"equal except for the device", `
			- LISTEN>SYN_RECV      [fe80::2]:80 [fe80::1]:40 dev=2 = 1 began
			- LISTEN>SYN_RECV      [fe80::2]:80 [fe80::1]:40 dev=3 = 2 began
			d SYN_RECV>ESTABLISHED [fe80::2]:80 [fe80::1]:40 dev=3 = 2
			e SYN_RECV>ESTABLISHED [fe80::2]:80 [fe80::1]:40 dev=2 = 1
			d FIN_WAIT2>TIME_WAIT  [fe80::2]:80 [fe80::1]:40 dev=3 = 2 missing
			e FIN_WAIT2>TIME_WAIT  [fe80::2]:80 [fe80::1]:40 dev=2 = 1 missing
			d TIME_WAIT>CLOSE      [fe80::2]:80 [fe80::1]:40 dev=3 = 2 ended
			e TIME_WAIT>CLOSE      [fe80::2]:80 [fe80::1]:40 dev=2 = 1 ended`},
		{"equal except for the namespace", `
			- LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 netns=2 = 1 began
			- LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 netns=3 = 2 began
			d SYN_RECV>ESTABLISHED 1.0.0.2:80 1.0.0.1:40 netns=2 = 1
			- SYN_RECV>CLOSE       1.0.0.2:80 1.0.0.1:40 netns=3 = 2 ended`},
		{"the end of a half-open connection was lost", `
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:40 = 1 began
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:40 = 2 began 1 over
			d ESTABLISHED>CLOSE_WAIT 1.0.0.2:80 1.0.0.1:40 = 3 began 2 over
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:41 = 4 began
			e LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:41 = 5 began 4 over
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:42 = 6 began
			f CLOSE>SYN_SENT         1.0.0.2:80 1.0.0.1:42 = 7 began
			f SYN_SENT>CLOSE         1.0.0.2:80 1.0.0.1:42 = 7 ended
			g SYN_RECV>ESTABLISHED   1.0.0.2:80 1.0.0.1:42 = 6`},
		{"what cannot follow is another connection of the socket", `
			c CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 1 began
			c CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 2 began 1 over
			c ESTABLISHED>CLOSE    1.0.0.1:40 1.0.0.2:80 = 2 ended missing
			c >FIN_WAIT2           1.0.0.1:40 1.0.0.2:80 = 3 began
			c SYN_SENT>ESTABLISHED 1.0.0.1:41 1.0.0.2:80 = 4 began 3 over
			c CLOSE>LISTEN         0.0.0.0:80 0.0.0.0:0  = 5 began 4 over
			c ESTABLISHED>CLOSE    1.0.0.1:40 1.0.0.2:80 = 6 began 5 over ended`},
		{"rows", `
			c >ESTABLISHED           1.0.0.1:40 1.0.0.2:80 = 1 began
			c >ESTABLISHED           1.0.0.1:40 1.0.0.2:80 = 1
			c >CLOSE_WAIT            1.0.0.1:40 1.0.0.2:80 = 1 missing
			c CLOSE_WAIT>LAST_ACK    1.0.0.1:40 1.0.0.2:80 = 1
			c LAST_ACK>CLOSE         1.0.0.1:40 1.0.0.2:80 = 1 ended
			- >SYN_RECV              1.0.0.2:80 1.0.0.1:40 = 2 began
			- >SYN_RECV              1.0.0.2:80 1.0.0.1:40 = 2
			d SYN_RECV>ESTABLISHED   1.0.0.2:80 1.0.0.1:40 = 2
			e >TIME_WAIT             1.0.0.1:40 1.0.0.2:80 = 3 began
			e >TIME_WAIT             1.0.0.1:40 1.0.0.2:80 = 3
			e >ESTABLISHED           1.0.0.1:41 1.0.0.2:80 = 4 began
			e TIME_WAIT>CLOSE        1.0.0.1:40 1.0.0.2:80 = 3 ended
			e >TIME_WAIT             1.0.0.1:41 1.0.0.2:80 = 4 missing`},
		{"a descriptor whose connection is over is used again", `
			c >CLOSE         1.0.0.1:40 1.0.0.2:80 = 1 began
			c >CLOSE         1.0.0.1:40 1.0.0.2:80 = 1
			c CLOSE>SYN_SENT 1.0.0.1:0  1.0.0.2:80 = 2 began 1 over
			d >CLOSE_WAIT    1.0.0.1:41 1.0.0.2:80 = 3 began
			d >CLOSE         1.0.0.1:41 1.0.0.2:80 = 3 missing
			d >ESTABLISHED   1.0.0.1:41 1.0.0.2:80 = 4 began 3 over`},
		{"no cookies, as before Linux 5.12", `
			- CLOSE>SYN_SENT         1.0.0.1:0  1.0.0.2:80 = 1 began
			- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:40 = 2 began
			- SYN_SENT>ESTABLISHED   1.0.0.1:40 1.0.0.2:80 = 1
			- SYN_RECV>ESTABLISHED   1.0.0.2:80 1.0.0.1:40 = 2
			- FIN_WAIT2>TIME_WAIT    1.0.0.1:40 1.0.0.2:80 = 1 missing
			- CLOSE>SYN_SENT         1.0.0.1:40 1.0.0.2:80 = 3 began
			- TIME_WAIT>CLOSE        1.0.0.1:40 1.0.0.2:80 = 1 ended
			- SYN_SENT>SYN_RECV      1.0.0.1:40 1.0.0.2:80 = 3
			- SYN_RECV>ESTABLISHED   1.0.0.1:40 1.0.0.2:80 = 3
			- >CLOSE_WAIT            1.0.0.2:80 1.0.0.1:40 = 2 missing
			- LAST_ACK>CLOSE         1.0.0.2:80 1.0.0.1:40 = 2 ended missing`},
		{"a cookie comes later: somebody ran ss -e", `
			- CLOSE>SYN_SENT         1.0.0.1:0  1.0.0.2:80 = 1 began
			c SYN_SENT>ESTABLISHED   1.0.0.1:40 1.0.0.2:80 = 1
			- >ESTABLISHED           1.0.0.2:80 1.0.0.1:40 = 2 began
			d ESTABLISHED>CLOSE_WAIT 1.0.0.2:80 1.0.0.1:40 = 2
			- >ESTABLISHED           1.0.0.2:80 1.0.0.1:41 = 3 began
			e CLOSE_WAIT>LAST_ACK    1.0.0.2:80 1.0.0.1:41 = 4 began 3 over`},
		{"connections without cookie and port cannot be told apart", `
			- CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 1 began
			- CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 2 began 1 over
			- SYN_SENT>ESTABLISHED 1.0.0.1:40 1.0.0.2:80 = 3 began
			- CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 4 began 2 over
			- SYN_SENT>CLOSE       1.0.0.1:41 1.0.0.2:80 = 5 began ended
			- SYN_SENT>CLOSE       1.0.0.1:0  1.0.0.2:80 = 6 began 4 over ended
			- CLOSE>SYN_SENT       1.0.0.1:0  1.0.0.2:80 = 7 began
			- SYN_SENT>ESTABLISHED 1.0.0.1:43 1.0.0.2:80 = 7
			- CLOSE>LISTEN         0.0.0.0:80 0.0.0.0:0  = 8 began
			- CLOSE>LISTEN         0.0.0.0:80 0.0.0.0:0  = 9 began 8 over
			- LISTEN>CLOSE         0.0.0.0:80 0.0.0.0:0  = 10 began ended
			- LISTEN>CLOSE         0.0.0.0:80 0.0.0.0:0  = 11 began 9 over ended`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			tracker := NewTracker[int](100, nil)
			got, want := follow(t, tracker, test.capture)
			for i := range want {
				if strings.Join(strings.Fields(got[i]), " ") != strings.Join(strings.Fields(want[i]), " ") {
					t.Errorf("got  %s\nwant %s", got[i], want[i])
				}
			}
			if tracker.Forgotten() != 0 {
				t.Errorf("%d lives had no place", tracker.Forgotten())
			}
		})
	}
}

func TestTrackerForgetsTheOldest(t *testing.T) {
	var forgotten []uint64
	tracker := NewTracker(3, func(l *Life[int]) { forgotten = append(forgotten, l.Cookie) })
	ev := Event{New: Established, Old: SynSent, Remote: netip.MustParseAddrPort("1.0.0.2:80")}
	for ev.Cookie = 1; ev.Cookie <= 5; ev.Cookie++ {
		ev.Local = netip.AddrPortFrom(netip.MustParseAddr("1.0.0.1"), uint16(ev.Cookie))
		tracker.Observe(&ev)
	}
	ended := Event{Kind: Transition, Cookie: 9, Old: Established, New: Close}
	tracker.Observe(&ended) // it needs no place
	var left []uint64
	for l := range tracker.All() {
		left = append(left, l.Cookie)
		tracker.Drop(l)
	}
	if !slices.Equal(forgotten, []uint64{1, 2}) || !slices.Equal(left, []uint64{3, 4, 5}) || tracker.Forgotten() != 2 || tracker.Len() != 0 {
		t.Errorf("forgotten %v (%d), left %v and %d", forgotten, tracker.Forgotten(), left, tracker.Len())
	}
}

// What can follow a state is what can follow any of its successors too.
func TestLaterStatesAreClosed(t *testing.T) {
	for from := Established; from <= NewSynRecv; from++ {
		for via := Established; via <= NewSynRecv; via++ {
			for to := Established; to <= NewSynRecv; to++ {
				if follows(from, via) && follows(via, to) && !follows(from, to) {
					t.Errorf("%v > %v > %v, and yet not %[1]v > %[3]v", from, via, to)
				}
			}
		}
		if from != Close && !follows(from, Close) || from != Close && follows(Close, from) {
			t.Errorf("CLOSE and %v", from)
		}
	}
}

// anything makes an event of few sockets, addresses and states, so that they meet.
func anything(n uint32) Event {
	pick := func(among uint32) uint32 {
		defer func() { n /= among }()
		return n % among
	}
	return Event{
		Kind: Kind(pick(2)), Old: State(1 + pick(12)), New: State(1 + pick(12)), Cookie: uint64(pick(4)),
		Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 1}), uint16(pick(3))),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 2}), uint16(pick(2))),
		Device: pick(2), NetNS: pick(2),
	}
}

// Whatever comes, the bound holds, each life is found again where it is, and whatever
// began has ended, was forgotten or is there.
func FuzzTracker(f *testing.F) {
	source := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var events []byte
		for range 200 {
			events = binary.LittleEndian.AppendUint32(events, source.Uint32())
		}
		f.Add(events)
	}
	f.Fuzz(func(t *testing.T, events []byte) {
		const bound = 5
		began, gone := 0, 0
		tracker := NewTracker(bound, func(*Life[int]) { gone++ })
		for ; len(events) >= 4; events = events[4:] {
			ev := anything(binary.LittleEndian.Uint32(events))
			found := tracker.Find(&ev)
			step := tracker.Observe(&ev)
			if step.Began {
				began++
				step.Life.Value = began
			} else if step.Life != found {
				t.Fatalf("%+v: Find found another life", ev)
			} else if !follows(step.From, before(&ev)) {
				t.Fatalf("%+v: no edges lead there from %v", ev, step.From)
			}
			if step.Ended {
				gone++
			}
			if step.Life.State != ev.New || step.Life.Value == 0 {
				t.Fatalf("%+v: %+v", ev, step)
			}
			check(t, tracker, &ev, step)
			if tracker.Len() > bound || tracker.Len() != began-gone {
				t.Fatalf("%d lives of %d, %d are gone", tracker.Len(), began, gone)
			}
		}
	})
}

// check finds the life of the event again, and compares the tables with the ring.
func check(t *testing.T, tracker *Tracker[int], ev *Event, step Step[int]) {
	t.Helper()
	row := *ev
	row.Kind = Socket
	if l := tracker.Find(&row); !step.Ended && l != step.Life && step.Life.crowd == 0 &&
		step.Life.State != SynRecv && step.Life.Cookie == ev.Cookie {
		t.Fatalf("%+v: the life is not found again", ev)
	}
	listed, ring := len(tracker.cookies), 0
	for _, table := range tracker.pairs {
		listed += len(table)
	}
	for l := range tracker.All() {
		ring++
		if l.place == byCookie && tracker.cookies[l.Cookie] != l ||
			l.place < addressed && tracker.pairs[l.place][l.pair] != l || l.place == nowhere {
			t.Fatalf("%+v is not in its table", l)
		}
	}
	if ring != listed || ring != tracker.Len() {
		t.Fatalf("%d in the ring, %d in the tables, %d counted", ring, listed, tracker.Len())
	}
}

// The documentation promises these sizes.
func TestTrackerSizes(t *testing.T) {
	if n := unsafe.Sizeof(Life[struct{}]{}); n > 88 {
		t.Errorf("a Life takes %d bytes", n)
	}
	if n := unsafe.Sizeof(pair{}); n != 44 {
		t.Errorf("a pair takes %d bytes: it is padded", n)
	}
	if n := unsafe.Sizeof(held{}); n > 384 {
		t.Errorf("a held event takes %d bytes", n)
	}
}

// churn is the life of a client and of a server, which the benchmark repeats.
const churn = `
	c CLOSE>SYN_SENT         1.0.0.1:0  1.0.0.2:80
	- LISTEN>SYN_RECV        1.0.0.2:80 1.0.0.1:40
	c SYN_SENT>ESTABLISHED   1.0.0.1:40 1.0.0.2:80
	d SYN_RECV>ESTABLISHED   1.0.0.2:80 1.0.0.1:40
	c ESTABLISHED>FIN_WAIT1  1.0.0.1:40 1.0.0.2:80
	d ESTABLISHED>CLOSE_WAIT 1.0.0.2:80 1.0.0.1:40
	c FIN_WAIT1>FIN_WAIT2    1.0.0.1:40 1.0.0.2:80
	d CLOSE_WAIT>LAST_ACK    1.0.0.2:80 1.0.0.1:40
	c FIN_WAIT2>TIME_WAIT    1.0.0.1:40 1.0.0.2:80
	d LAST_ACK>CLOSE         1.0.0.2:80 1.0.0.1:40
	c TIME_WAIT>CLOSE        1.0.0.1:40 1.0.0.2:80`

func TestTrackerDoesNotAllocate(t *testing.T) {
	tracker := NewTracker[int](1<<10, nil)
	events := capture(t, lines(churn))
	all := func() {
		for i := range events {
			tracker.Observe(&events[i])
		}
	}
	if n := testing.AllocsPerRun(1000, all); n != 0 {
		t.Errorf("%v allocations for a connection", n)
	}
	if n := tracker.Len(); n != 0 {
		t.Errorf("%d lives are left", n)
	}
}

func BenchmarkTracker(b *testing.B) {
	tracker := NewTracker[int](1<<10, nil)
	events := capture(b, lines(churn))
	b.ReportAllocs()
	for i := range b.N {
		tracker.Observe(&events[i%len(events)])
	}
}

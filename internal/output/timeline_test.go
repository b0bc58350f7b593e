package output

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// longStory has everything that is wide: IPv6, names full of escapes, days, two hosts.
func longStory() *timeline.Story {
	const day = 86400e9
	client := &timeline.End{Event: closed, Begun: true, Opened: tcp.Connect, Missing: true, Open: true}
	client.Local, client.Remote = netip.MustParseAddrPort("[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"), netip.MustParseAddrPort("[fd00:1111:2222:3333:4444:5555:6666:8888]:65535")
	client.Role, client.Comm, client.PID, client.OwnerSource = tcp.Client, strings.Repeat("\x1b", 15), 4194304, tcp.FromUse
	client.HasCounters, client.BytesSent, client.BytesReceived, client.Retransmits, client.SRTT = true, 1<<63, 1<<63, 1<<31, 1<<31
	own := timeline.Owner{PID: 4194303, Comm: strings.Repeat("\x1b", 15), Source: tcp.FromUse}
	client.Stays = []timeline.Stay{
		{State: tcp.SynSent, Begin: day, End: 2 * day, Kind: tcp.Exact, Next: tcp.Established, Reason: tcp.HandshakeDone, Owner: own},
		{State: tcp.Established, Begin: 2 * day, End: 3 * day, Kind: tcp.Unknown},
		{State: tcp.FinWait1, Begin: 3 * day, End: 3 * day, Kind: tcp.Unknown, Next: tcp.FinWait2, Reason: tcp.FinAcked,
			Owner: timeline.Owner{PID: 4194304, Comm: own.Comm, Source: tcp.FromUse}},
		{State: tcp.FinWait2, Begin: 3 * day, End: 9 * day, Kind: tcp.Exact},
	}
	server := &timeline.End{Event: client.Event, Recording: 1, Lost: true}
	server.Local, server.Remote, server.Role = client.Remote, client.Local, tcp.Server
	server.Stays = []timeline.Stay{{
		State: tcp.Established, Begin: day, End: 5 * day, Kind: tcp.AtLeast, Next: tcp.Close,
		Reason: tcp.NeighborUnreachable, Errno: 113,
	}}
	return &timeline.Story{Client: client, Server: server, Offset: -1e9, Error: 5e6}
}

// No line is longer than 80 columns, nothing acts on a terminal, and ASCII is that.
func TestTimelineFits(t *testing.T) {
	for _, ascii := range []bool{false, true} {
		for _, alone := range []bool{false, true} {
			s := longStory()
			if alone {
				s = &timeline.Story{Client: s.Client, Ambiguous: true}
			}
			var out strings.Builder
			w := NewTimeline(&out, ascii, [2]string{"a", "b"})
			for _, err := range []error{w.Clocks(timeline.Clocks{Handshakes: 1 << 20, Drift: 1 << 62}), w.Write(s)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			for line := range strings.Lines(out.String()) {
				line = strings.TrimSuffix(line, "\n")
				if n := utf8.RuneCountInString(line); n > 80 {
					t.Errorf("%d columns: %s", n, line)
				}
				if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || ascii && r > '~' }) {
					t.Errorf("%q", line)
				}
			}
		}
	}
}

// What is not known is drawn as such, and what was not seen is not drawn as seen.
func TestTimelineSaysWhatIsNotKnown(t *testing.T) {
	var out strings.Builder
	if err := NewTimeline(&out, true, [2]string{}).Write(longStory()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"fd00:1111:2222:3333:4444:5555:6666:7777]:65535 >\n", " ms so far", "its end was not seen", "some changes were not seen",
		"\n  <=1000.000 |                                | ESTABLISHED before the trace\n", "\n<=172800000.000 | FIN_WAIT1 not seen how ", "| FIN_WAIT2 goes on", ">=345600000.000 ms  --###", "ESTABLISHED              ? ms  ----\n",
		"FIN_WAIT2    518400000.000 ms  #################################...\n", "  now of \\x1b", "| FIN_WAIT2 fin_acked            |<---",
		"times of 2: +- 5.000 ms",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), ">| CLOSE neighbor_unreachable") {
		t.Error("a dashed line for what the other end did not send")
	}
}

func TestTimelineClocks(t *testing.T) {
	for _, test := range []struct {
		clocks     timeline.Clocks
		text, json string
	}{
		{timeline.Clocks{}, "No handshake is whole", `{"v":1,"type":"clocks","handshakes":0}`},
		{
			timeline.Clocks{Handshakes: 1, Offset: 2_500_000, Error: 1_000}, "is 2.500 ± 0.001 ms ahead of that of 1, by 1 handshake.",
			`{"v":1,"type":"clocks","handshakes":1,"clock_offset_ms":2.500000,"clock_error_ms":0.001000}`,
		},
		{
			timeline.Clocks{Handshakes: 2, Offset: -2_500_000, Error: 1_000}, "is 2.500 ± 0.001 ms behind that of 1, by 2 handshakes.",
			`{"v":1,"type":"clocks","handshakes":2,"clock_offset_ms":-2.500000,"clock_error_ms":0.001000}`,
		},
		{
			timeline.Clocks{Handshakes: 2, Drift: 3_000_000}, "2 handshakes contradict each other by 3.000 ms",
			`{"v":1,"type":"clocks","handshakes":2,"drift_ms":3.000000}`,
		},
	} {
		var text, lines strings.Builder
		j := NewTimelineJSON(&lines)
		for _, err := range []error{NewTimeline(&text, false, [2]string{"a", "b"}).Clocks(test.clocks), j.Clocks(test.clocks), j.Flush()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if !strings.Contains(text.String(), test.text) || lines.String() != test.json+"\n" {
			t.Errorf("%+v: %s%s", test.clocks, text.String(), lines.String())
		}
	}
}

// The JSON is JSON, and has no fields that are not listed.
func TestTimelineJSON(t *testing.T) {
	var out strings.Builder
	j := NewTimelineJSON(&out)
	s := longStory()
	s.Ambiguous = true
	for _, err := range []error{j.Clocks(timeline.Clocks{}), j.Write(s)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	known := map[string]bool{"v": true, "type": true, "state": true, "duration_ms": true, "duration_kind": true}
	for _, name := range append(TimelineFields(), Fields()...) {
		known[name] = true
	}
	var check func(any)
	check = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				if !known[name] {
					t.Errorf("%s is not listed", name)
				}
				check(inner)
			}
		case []any:
			for _, inner := range v {
				check(inner)
			}
		}
	}
	for line := range strings.Lines(out.String()) {
		var object any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		check(object)
	}
}

package output

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// mixed is the report of a capture in which everything happens.
func mixed(t testing.TB, by stats.By) (last *stats.Report) {
	t.Helper()
	counter := stats.NewTally(stats.Config{By: by, Max: 100, Show: func(r *stats.Report) error { last = r; return nil }})
	for _, e := range capture.Events(t, capture.Mixed) {
		if err := counter.Event(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := counter.Close(capture.BootNS + 90e9); err != nil {
		t.Fatal(err)
	}
	return last
}

func statsText(t *testing.T, o StatsOptions, r *stats.Report) string {
	t.Helper()
	var b strings.Builder
	if err := NewStats(&b, o).Write(r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A line is no wider than what there is, however long the names and many the reasons; without
// UTF-8 there is nothing but ASCII; and nothing ever acts on a terminal.
func TestStatsFit(t *testing.T) {
	for _, by := range stats.Bys {
		r := mixed(t, by)
		r.Groups = append(r.Groups, stats.Group{GroupName: stats.GroupName{Name: strings.Repeat("long", 100) + "\x1b[2J", Comm: "ünïcode"}})
		for _, why := range tcp.Reasons {
			r.Edges[0].Count, r.Edges[0].Reasons = 1, append(r.Edges[0].Reasons, stats.Reason{Reason: why, Count: 12345})
		}
		for _, o := range []StatsOptions{{Width: 80, Top: 99}, {Width: 80, Top: 99, ASCII: true}, {Width: 120, Top: 99}, {Width: 300, Top: 99}} {
			for line := range strings.Lines(statsText(t, o, r)) {
				line = strings.TrimSuffix(line, "\n")
				if n := utf8.RuneCountInString(line); n > o.Width {
					t.Errorf("%d wide, of %d: %s", n, o.Width, line)
				}
				for _, c := range line {
					if c < ' ' || o.ASCII && c > 0x7e && by != stats.ByPID {
						t.Errorf("%q in %q", c, line)
					}
				}
			}
		}
	}
}

func TestStatsGoldenAt80And120(t *testing.T) {
	utc(t)
	compare(t, statsText(t, StatsOptions{Width: 80, Top: 3, Time: true}, mixed(t, stats.ByUnit)), golden80)
	compare(t, statsText(t, StatsOptions{Width: 120, Top: 3, ASCII: true}, mixed(t, stats.ByPID)), golden120)
}

func TestShort(t *testing.T) {
	for ns, want := range map[uint64]string{
		0: "0ns", 999: "999ns", 1000: "1.00us", 12_345: "12.3us", 999_999: "999us", 1_234_567: "1.23ms", 99_990_000: "99.9ms",
		1e9: "1.00s", 59_999_999_999: "59.9s", 60e9: "1m00s", 3600e9: "1h00m", 400 * 86400e9: "400d00h",
	} {
		if got := string(appendShort(nil, ns)); got != want || len(got) > 7 {
			t.Errorf("%d ns are %q, want %q", ns, got, want)
		}
	}
}

// JSON has every state, every edge and every group, and its sums are those of the report.
func TestStatsJSON(t *testing.T) {
	r := mixed(t, stats.ByComm)
	var b strings.Builder
	if err := NewStatsJSON(&b).Write(r); err != nil {
		t.Fatal(err)
	}
	var o struct {
		Transitions uint64
		States      []struct {
			State string
			Exact *struct {
				Count   uint64
				P50     float64 `json:"p50_ms"`
				Buckets []struct {
					Number int
					Upper  float64 `json:"le_ms"`
					Count  uint64
				}
			}
		}
		Edges []struct {
			Count   uint64
			Reasons map[string]uint64
		}
		Groups []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(b.String()), &o); err != nil || strings.Count(b.String(), "\n") != 1 {
		t.Fatalf("%v in %s", err, b.String())
	}
	var edges, reasons uint64
	for _, e := range o.Edges {
		edges += e.Count
		for _, n := range e.Reasons {
			reasons += n
		}
	}
	if edges != r.Transitions || reasons != r.Transitions || o.Transitions != r.Transitions || len(o.States) != 11 || len(o.Edges) != len(tcp.Edges) || len(o.Groups) != 5 {
		t.Errorf("%d in edges, %d in reasons, of %d; %d states, %d edges, %d groups", edges, reasons, r.Transitions, len(o.States), len(o.Edges), len(o.Groups))
	}
	for i, s := range o.States {
		if s.Exact == nil {
			continue
		}
		var sum uint64
		for _, bucket := range s.Exact.Buckets {
			sum += bucket.Count
		}
		if sum != s.Exact.Count || sum != r.States[i].Exact.Count {
			t.Errorf("%s has %d in buckets, of %d", s.State, sum, s.Exact.Count)
		}
	}
}

// What the figures leave out is said.
func TestStatsSayWhatIsMissing(t *testing.T) {
	r := mixed(t, stats.ByComm)
	r.Forgotten, r.Unended = 1, 2
	r.Groups = append(r.Groups, stats.Group{GroupName: stats.GroupName{Name: stats.OtherGroup, Other: true}})
	r.Edges = append(r.Edges, stats.Edge{Edge: tcp.Edge{From: tcp.CloseWait, To: tcp.Listen}, Count: 1, Reasons: []stats.Reason{{Count: 1}}})
	text := statsText(t, StatsOptions{Width: 80, Top: 99}, r)
	for _, want := range []string{
		"CLOSE_WAIT > LISTEN                1      0.01 not an edge of the diagram: ? 1\n",
		"~other: there are more than 1024 groups\n",
		"17 events lost: all counts may be too low, and what is there now too high\n",
		"1 socket not followed: what is there now is too low (raise --max-sockets)\n",
		"2 sockets ended unseen: counted in no edge\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

func BenchmarkStats(b *testing.B) {
	r := mixed(b, stats.ByComm)
	for b.Loop() {
		if err := NewStats(&strings.Builder{}, StatsOptions{Width: 80, Top: 10}).Write(r); err != nil {
			b.Fatal(err)
		}
	}
}

const golden80 = `12:21:30 1m30s: 39 transitions
Connections: 7 opened, 4 closed, 2 reset, 2 failed, 1 broken; 1 open

STATE          NOW    COUNT     MIN     P50     P90     P99     MAX US MS S  KS
CLOSE            -        0       -       -       -       -       - -
LISTEN           0        0       -       -       -       -       - -
        1 more for a time that is not known
SYN_SENT         0        6   100us   188us   500us   500us   500us   ▂█
SYN_RECV         0        3   100us   223us   1m03s   1m03s   1m03s   ██    █
ESTABLISHED      0        7   100ms   648ms   2.00s   2.00s   2.00s      ▃██
        1 more for a time that is not known
FIN_WAIT1        0        4  50.0us  55.9us   200us   200us   200us   █▃
FIN_WAIT2        0        3  59.0us   192ms   1m00s   1m00s   1m00s   █   █ █
CLOSING          0        1   100us   100us   100us   100us   100us   █
TIME_WAIT        2        1   1m00s   1m00s   1m00s   1m00s   1m00s         █
        1 more for at least 1m01s: older than the trace
CLOSE_WAIT       1        1  60.0us  60.0us  60.0us  60.0us  60.0us   █
LAST_ACK         0        1  40.0us  40.0us  40.0us  40.0us  40.0us   █

EDGE                           COUNT     PER_S REASONS
LISTEN > CLOSE                     1      0.01 local_close 1
CLOSE > SYN_SENT                   6      0.07 connect 6
SYN_SENT > CLOSE                   1      0.01 rst_received 1
LISTEN > SYN_RECV                  3      0.03 syn_received 3
SYN_SENT > ESTABLISHED             5      0.06 handshake_done 5
SYN_RECV > ESTABLISHED             2      0.02 handshake_done 2
ESTABLISHED > FIN_WAIT1            4      0.04 local_close 3, local_shutdown 1
ESTABLISHED > CLOSE_WAIT           2      0.02 fin_received 2
FIN_WAIT1 > FIN_WAIT2              3      0.03 fin_acked 3
FIN_WAIT1 > CLOSING                1      0.01 fin_received 1
CLOSE_WAIT > LAST_ACK              1      0.01 local_close 1
FIN_WAIT2 > TIME_WAIT              2      0.02 fin_received 2
CLOSING > TIME_WAIT                1      0.01 fin_acked 1
LAST_ACK > CLOSE                   1      0.01 fin_acked 1
TIME_WAIT > CLOSE                  2      0.02 expired 2
SYN_RECV > CLOSE                   1      0.01 syn_timeout 1
ESTABLISHED > CLOSE                2      0.02 rst_received 1, aborted_linger 1
FIN_WAIT2 > CLOSE                  1      0.01 timeout 1

UNIT                     OPENED  CLOSED   RESET  FAILED  BROKEN UNKNOWN    OPEN
-                             3       1       2       1       0       0       0
nginx.service                 2       2       0       1       0       0       0
billing.service               1       0       0       0       1       0       1
and 1 more group; --top shows more
17 events lost: all counts may be too low, and what is there now too high
`

const golden120 = `1m30s: 39 transitions
Connections: 7 opened, 4 closed, 2 reset, 2 failed, 1 broken; 1 open

STATE          NOW    COUNT     MIN     P50     P90     P99     MAX US          MS          S           KS
CLOSE            -        0       -       -       -       -       - -
LISTEN           0        0       -       -       -       -       - -
        1 more for a time that is not known
SYN_SENT         0        6   100us   188us   500us   500us   500us         ==@@
SYN_RECV         0        3   100us   223us   1m03s   1m03s   1m03s         @ @                     @
ESTABLISHED      0        7   100ms   648ms   2.00s   2.00s   2.00s                     = ===@=
        1 more for a time that is not known
FIN_WAIT1        0        4  50.0us  55.9us   200us   200us   200us        @= =
FIN_WAIT2        0        3  59.0us   192ms   1m00s   1m00s   1m00s        @              @         @
CLOSING          0        1   100us   100us   100us   100us   100us         @
TIME_WAIT        2        1   1m00s   1m00s   1m00s   1m00s   1m00s                                 @
        1 more for at least 1m01s: older than the trace
CLOSE_WAIT       1        1  60.0us  60.0us  60.0us  60.0us  60.0us        @
LAST_ACK         0        1  40.0us  40.0us  40.0us  40.0us  40.0us        @

EDGE                           COUNT     PER_S REASONS
LISTEN > CLOSE                     1      0.01 local_close 1
CLOSE > SYN_SENT                   6      0.07 connect 6
SYN_SENT > CLOSE                   1      0.01 rst_received 1
LISTEN > SYN_RECV                  3      0.03 syn_received 3
SYN_SENT > ESTABLISHED             5      0.06 handshake_done 5
SYN_RECV > ESTABLISHED             2      0.02 handshake_done 2
ESTABLISHED > FIN_WAIT1            4      0.04 local_close 3, local_shutdown 1
ESTABLISHED > CLOSE_WAIT           2      0.02 fin_received 2
FIN_WAIT1 > FIN_WAIT2              3      0.03 fin_acked 3
FIN_WAIT1 > CLOSING                1      0.01 fin_received 1
CLOSE_WAIT > LAST_ACK              1      0.01 local_close 1
FIN_WAIT2 > TIME_WAIT              2      0.02 fin_received 2
CLOSING > TIME_WAIT                1      0.01 fin_acked 1
LAST_ACK > CLOSE                   1      0.01 fin_acked 1
TIME_WAIT > CLOSE                  2      0.02 expired 2
SYN_RECV > CLOSE                   1      0.01 syn_timeout 1
ESTABLISHED > CLOSE                2      0.02 rst_received 1, aborted_linger 1
FIN_WAIT2 > CLOSE                  1      0.01 timeout 1

PID                                                              OPENED  CLOSED   RESET  FAILED  BROKEN UNKNOWN    OPEN
11 nginx                                                              2       2       0       0       0       0       0
32 job                                                                2       0       2       0       0       0       0
20 billing                                                            1       0       0       0       1       0       1
and 4 more groups; --top shows more
17 events lost: all counts may be too low, and what is there now too high
`

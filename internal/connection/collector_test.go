package connection

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// collect returns the records of the events, at whose last time the run ends.
func collect(t testing.TB, cfg Config, events []tcp.Event) (records []Record, c *Collector) {
	t.Helper()
	if cfg.Max == 0 {
		cfg.Max = 100
	}
	cfg.Show = func(r *Record) error { records = append(records, *r); return nil }
	cfg.Flush = func() error { return nil }
	c = NewCollector(cfg)
	now := uint64(0)
	for i := range events {
		now = max(now, events[i].BootNS)
		if err := c.Event(&events[i]); err == pipeline.Enough {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(now); err != nil {
		t.Fatal(err)
	}
	return records, c
}

// brief describes a record in a line: ends, duration, times in states in the order of
// States, and what ended it.
func brief(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d>%d %s%s %s", r.Local.Port(), r.Remote.Port(), mark(r.DurationKind), ms(r.Duration), r.Role)
	for _, s := range States {
		if stay := r.Stays[s]; stay.Kind != "" {
			fmt.Fprintf(&b, " %v=%s", s, mark(stay.Kind))
			if stay.Kind != tcp.Unknown {
				b.WriteString(ms(stay.NS))
			}
		}
	}
	if r.Open {
		fmt.Fprintf(&b, " open in %v", r.New)
	} else {
		fmt.Fprintf(&b, " %s by %s: %s, %v", r.Outcome, r.ClosedFirst, r.Reason, r.New)
	}
	if r.TimeWaitEnd != "" {
		fmt.Fprintf(&b, " %s", r.TimeWaitEnd)
	}
	if r.Missing {
		b.WriteString(" missing")
	}
	return b.String()
}

func mark(k tcp.DurationKind) string {
	return map[tcp.DurationKind]string{tcp.AtLeast: ">=", tcp.Unknown: "?"}[k]
}

func ms(ns uint64) string { return fmt.Sprintf("%g", float64(ns)/1e6) }

func compare(t *testing.T, records []Record, want string) {
	t.Helper()
	var got []string
	for i := range records {
		got = append(got, brief(&records[i]))
	}
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if !slices.Equal(got, lines) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

func TestMixed(t *testing.T) {
	records, c := collect(t, Config{}, capture.Events(t, capture.Mixed))
	compare(t, records, `
		40000>80 1500.12 client SYN_SENT=0.25 ESTABLISHED=1499.75 FIN_WAIT1=0.061 FIN_WAIT2=0.059 closed by local: fin_received, TIME_WAIT
		80>40000 1500.09 server SYN_RECV=0.223 ESTABLISHED=1499.767 CLOSE_WAIT=0.06 LAST_ACK=0.04 closed by remote: fin_acked, CLOSE
		80>40001 300.2 server SYN_RECV=0.1 ESTABLISHED=100 FIN_WAIT1=0.1 FIN_WAIT2=200 closed by local: fin_received, TIME_WAIT
		40002>9 0.109 client SYN_SENT=0.109 failed by : rst_received, CLOSE
		40003>443 500.2 client SYN_SENT=0.2 ESTABLISHED=500 reset by remote: rst_received, CLOSE
		40004>443 700.3 client SYN_SENT=0.3 ESTABLISHED=700 reset by local: aborted_linger, CLOSE
		40005>443 200.4 client SYN_SENT=0.1 ESTABLISHED=200 FIN_WAIT1=0.2 CLOSING=0.1 closed by simultaneous: fin_acked, TIME_WAIT
		80>1234 63000 server SYN_RECV=63000 failed by : syn_timeout, CLOSE
		50000>5432 >=80000.05 client ESTABLISHED=? FIN_WAIT1=0.05 FIN_WAIT2=60000 broken by local: timeout, CLOSE`)
	if c.Forgotten() != 0 || c.Unended() != 0 || c.Made() != 9 {
		t.Errorf("%d forgotten, %d unended, %d made", c.Forgotten(), c.Unended(), c.Made())
	}
}

// With TIME_WAIT a connection is over when that is, or the run: then it is not open.
func TestMixedWithTimeWaitAndOpen(t *testing.T) {
	records, _ := collect(t, Config{TimeWait: true, Open: true}, capture.Events(t, capture.Mixed))
	compare(t, records, `
		80>40000 1500.09 server SYN_RECV=0.223 ESTABLISHED=1499.767 CLOSE_WAIT=0.06 LAST_ACK=0.04 closed by remote: fin_acked, CLOSE
		50001>5432 >=61200  TIME_WAIT=>=61200 closed by unknown: , CLOSE expired
		40002>9 0.109 client SYN_SENT=0.109 failed by : rst_received, CLOSE
		40003>443 500.2 client SYN_SENT=0.2 ESTABLISHED=500 reset by remote: rst_received, CLOSE
		40004>443 700.3 client SYN_SENT=0.3 ESTABLISHED=700 reset by local: aborted_linger, CLOSE
		40000>80 61500.12 client SYN_SENT=0.25 ESTABLISHED=1499.75 FIN_WAIT1=0.061 FIN_WAIT2=0.059 TIME_WAIT=60000 closed by local: fin_received, CLOSE expired
		80>1234 63000 server SYN_RECV=63000 failed by : syn_timeout, CLOSE
		50000>5432 >=80000.05 client ESTABLISHED=? FIN_WAIT1=0.05 FIN_WAIT2=60000 broken by local: timeout, CLOSE
		80>40001 87000 server SYN_RECV=0.1 ESTABLISHED=100 FIN_WAIT1=0.1 FIN_WAIT2=200 TIME_WAIT=86699.8 closed by local: fin_received, TIME_WAIT
		40005>443 82000 client SYN_SENT=0.1 ESTABLISHED=200 FIN_WAIT1=0.2 CLOSING=0.1 TIME_WAIT=81799.6 closed by simultaneous: fin_acked, TIME_WAIT
		40006>5432 80000 client SYN_SENT=0.5 ESTABLISHED=2000 CLOSE_WAIT=77999.5 open in CLOSE_WAIT`)
}

// As many connections end as have a record, and where nothing is missing the times in the
// states add up to the whole, to the nanosecond.
func TestRecordsAgreeWithTheStream(t *testing.T) {
	events := capture.Events(t, capture.Mixed)
	finished := 0
	for i := range events {
		if events[i].Finishes() {
			finished++
		}
	}
	for _, timeWait := range []bool{false, true} {
		records, _ := collect(t, Config{TimeWait: timeWait, Open: true}, events)
		ended, summed := 0, 0
		for i := range records {
			seenToEnd := records[i].StartBoot >= capture.BootNS || records[i].Stays[tcp.TimeWait].Kind == ""
			if !records[i].Open && seenToEnd {
				ended++
			}
			if addsUp(t, &records[i]) {
				summed++
			}
		}
		if ended != finished {
			t.Errorf("%d records of %d connections that ended", ended, finished)
		}
		if summed != 9 { // all but those that are older than the capture
			t.Errorf("%d of %d records add up", summed, len(records))
		}
	}
}

// addsUp reports whether the sum of the stays is to be that of the connection, and fails the
// test if it is not.
func addsUp(t testing.TB, r *Record) bool {
	t.Helper()
	var sum uint64
	for _, stay := range r.Stays {
		if stay.Kind != "" && stay.Kind != tcp.Exact {
			return false
		}
		sum += stay.NS
	}
	if r.DurationKind != tcp.Exact || r.Missing {
		return false
	}
	if sum != r.Duration || r.Duration != r.BootNS-r.StartBoot || uint64(r.Time-r.Start) != r.Duration {
		t.Errorf("%s: the states add up to %d ns, the connection took %d", brief(r), sum, r.Duration)
	}
	return true
}

func TestRecords(t *testing.T) {
	for _, test := range []struct{ name, capture, want string }{
		{"rows: a state that is the first has a start", `
			0s a >SYN_SENT                1.0.0.1:40 1.0.0.2:80 exact=2s role=client
			0s b >SYN_SENT                1.0.0.1:41 1.0.0.2:80 at_least=2s role=client
			0s c >CLOSE_WAIT              1.0.0.1:42 1.0.0.2:80 at_least=9s role=client
			1s a SYN_SENT>ESTABLISHED     1.0.0.1:40 1.0.0.2:80 exact=3s role=client
			1s b SYN_SENT>CLOSE           1.0.0.1:41 1.0.0.2:80 syn_timeout at_least=3s role=client
			2s a ESTABLISHED>CLOSE        1.0.0.1:40 1.0.0.2:80 timeout role=client
			3s c CLOSE_WAIT>LAST_ACK      1.0.0.1:42 1.0.0.2:80 local_close at_least=12s role=client
			4s c LAST_ACK>CLOSE           1.0.0.1:42 1.0.0.2:80 fin_acked role=client`, `
			41>80 >=3000 client SYN_SENT=>=3000 failed by : syn_timeout, CLOSE
			40>80 4000 client SYN_SENT=3000 ESTABLISHED=1000 broken by : timeout, CLOSE
			42>80 >=13000 client CLOSE_WAIT=>=12000 LAST_ACK=1000 closed by remote: fin_acked, CLOSE`},
		{"transitions that were lost", `
			0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client
			1s a FIN_WAIT1>FIN_WAIT2      1.0.0.1:40 1.0.0.2:80 fin_acked exact=100ms role=client
			2s a FIN_WAIT2>TIME_WAIT      1.0.0.1:40 1.0.0.2:80 fin_received role=client
			3s b CLOSE>SYN_SENT           1.0.0.1:41 1.0.0.2:80 role=client
			4s b FIN_WAIT1>CLOSE          1.0.0.1:41 1.0.0.2:80 rst_received exact=1ms role=client
			5s c CLOSE>SYN_SENT           1.0.0.1:42 1.0.0.2:80 role=client
			6s c CLOSE_WAIT>LAST_ACK      1.0.0.1:42 1.0.0.2:80 exact=1ms role=client
			7s c CLOSE>SYN_SENT           1.0.0.1:43 1.0.0.2:80 role=client
			8s c SYN_SENT>CLOSE           1.0.0.1:43 1.0.0.2:80 rst_received role=client`, `
			40>80 2000 client SYN_SENT=? FIN_WAIT1=100 FIN_WAIT2=1000 closed by local: fin_received, TIME_WAIT missing
			41>80 1000 client SYN_SENT=? FIN_WAIT1=1 reset by local: rst_received, CLOSE missing
			43>80 1000 client SYN_SENT=1000 failed by : rst_received, CLOSE`},
		{"a simultaneous open of which something was lost was never established all the same", `
			0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client
			2s a SYN_RECV>CLOSE           1.0.0.1:40 1.0.0.2:80 rst_received exact=1s role=client`, `
			40>80 2000 client SYN_SENT=? SYN_RECV=1000 failed by : rst_received, CLOSE missing`},
		{"the end of a TIME_WAIT tells that it is over, not how", `
			0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client
			1s a SYN_SENT>ESTABLISHED     1.0.0.1:40 1.0.0.2:80 role=client
			2s a ESTABLISHED>FIN_WAIT1    1.0.0.1:40 1.0.0.2:80 local_close role=client
			9s a TIME_WAIT>CLOSE          1.0.0.1:40 1.0.0.2:80 expired unknown= role=client`, `
			40>80 9000 client SYN_SENT=1000 ESTABLISHED=1000 FIN_WAIT1=? TIME_WAIT=? closed by unknown: , CLOSE expired missing`},
		{"Fast Open: it closes before the handshake is done", `
			0s a LISTEN>SYN_RECV          1.0.0.2:80 1.0.0.1:40 role=server
			1s a SYN_RECV>FIN_WAIT1       1.0.0.2:80 1.0.0.1:40 local_close role=server
			2s a FIN_WAIT1>FIN_WAIT2      1.0.0.2:80 1.0.0.1:40 fin_acked role=server
			3s a FIN_WAIT2>CLOSE          1.0.0.2:80 1.0.0.1:40 timewait_overflow role=server`, `
			80>40 3000 server SYN_RECV=1000 FIN_WAIT1=1000 FIN_WAIT2=1000 closed by local: timewait_overflow, CLOSE`},
		{"a simultaneous open does not make SYN_RECV the first state", `
			0s a >SYN_RECV                1.0.0.1:40 1.0.0.2:80 exact=1s role=client
			1s a SYN_RECV>CLOSE           1.0.0.1:40 1.0.0.2:80 rst_received exact=2s role=client`, `
			40>80 >=2000 client SYN_RECV=2000 failed by : rst_received, CLOSE`},
		{"killed, and an end of which no cause is known", `
			0s a >ESTABLISHED             1.0.0.1:40 1.0.0.2:80 unknown=
			0s b >ESTABLISHED             1.0.0.1:41 1.0.0.2:80 unknown=
			1s a ESTABLISHED>CLOSE        1.0.0.1:40 1.0.0.2:80 killed unknown=
			1s b ESTABLISHED>CLOSE        1.0.0.1:41 1.0.0.2:80 unknown=`, `
			40>80 >=1000  ESTABLISHED=? reset by local: killed, CLOSE
			41>80 >=1000  ESTABLISHED=?  by unknown: , CLOSE`},
		{"listeners, and descriptors that are not connected", `
			0s a >CLOSE                   1.0.0.1:40 1.0.0.2:80 unknown=
			0s b CLOSE>LISTEN             0.0.0.0:80 0.0.0.0:0
			1s b LISTEN>CLOSE             0.0.0.0:80 0.0.0.0:0`, ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			records, _ := collect(t, Config{}, capture.Events(t, test.capture))
			compare(t, records, test.want)
			for i := range records {
				addsUp(t, &records[i])
			}
		})
	}
}

// What one event does not know any more, an earlier one did.
func TestRecordKeepsWhatWasKnown(t *testing.T) {
	records, _ := collect(t, Config{TimeWait: true}, capture.Events(t, `
		0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client pid=7/curl cgroup=/a
		1s a SYN_SENT>ESTABLISHED     1.0.0.1:40 1.0.0.2:80 role=client pid=8/wget
		2s a ESTABLISHED>FIN_WAIT1    1.0.0.1:40 1.0.0.2:80 local_close bytes=10/20/3/40
		3s a FIN_WAIT1>FIN_WAIT2      1.0.0.1:40 1.0.0.2:80 fin_acked
		4s a FIN_WAIT2>TIME_WAIT      1.0.0.1:40 1.0.0.2:80 fin_received errno=104
		5s a TIME_WAIT>CLOSE          1.0.0.1:40 1.0.0.2:80 reused_by_connect`))
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	r := &records[0]
	if r.PID != 8 || r.Comm != "wget" || r.Cgroup != "/a" || r.Role != tcp.Client || r.Cookie == 0 ||
		!r.HasCounters || r.BytesSent != 10 || r.BytesReceived != 20 || r.Retransmits != 3 || r.SRTT != 40 ||
		r.Errno != 104 || r.Reason != tcp.FinReceived || r.TimeWaitEnd != tcp.ReusedByConnect {
		t.Errorf("%+v", r)
	}
}

// A later row that knows less changes nothing, one that knows more does.
func TestRowsOfOneConnection(t *testing.T) {
	records, _ := collect(t, Config{Open: true}, capture.Events(t, `
		10s a >CLOSE_WAIT 1.0.0.1:40 1.0.0.2:80 at_least=9s
		20s a >CLOSE_WAIT 1.0.0.1:40 1.0.0.2:80 unknown=
		20s b >CLOSE_WAIT 1.0.0.1:41 1.0.0.2:80 unknown=
		30s b >CLOSE_WAIT 1.0.0.1:41 1.0.0.2:80 at_least=9s
		30s c >CLOSE_WAIT 1.0.0.1:42 1.0.0.2:80 unknown=
		40s c >CLOSE_WAIT 1.0.0.1:42 1.0.0.2:80 at_least=30s`))
	compare(t, records, `
		40>80 >=39000  CLOSE_WAIT=>=39000 open in CLOSE_WAIT
		41>80 >=20000  CLOSE_WAIT=>=20000 open in CLOSE_WAIT
		42>80 >=30000  CLOSE_WAIT=>=30000 open in CLOSE_WAIT`)
}

// Past the bound the oldest is forgotten. It still has a record, with what its end tells.
func TestForgotten(t *testing.T) {
	records, c := collect(t, Config{Max: 1, Open: true}, capture.Events(t, `
		0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client
		1s b CLOSE>SYN_SENT           1.0.0.1:41 1.0.0.2:80 role=client
		2s a ESTABLISHED>CLOSE        1.0.0.1:40 1.0.0.2:80 rst_received exact=500ms role=client`))
	compare(t, records, `
		40>80 >=500 client ESTABLISHED=500 reset by remote: rst_received, CLOSE
		41>80 1000 client SYN_SENT=1000 open in SYN_SENT`)
	if c.Forgotten() != 1 || c.Unended() != 0 {
		t.Errorf("%d forgotten, %d unended", c.Forgotten(), c.Unended())
	}
	if _, c = collect(t, Config{}, capture.Events(t, `
		0s a CLOSE>SYN_SENT           1.0.0.1:40 1.0.0.2:80 role=client
		1s a CLOSE>SYN_SENT           1.0.0.1:41 1.0.0.2:80 role=client`)); c.Unended() != 1 {
		t.Errorf("%d unended, want the first", c.Unended())
	}
}

// A TIME_WAIT whose end was lost: another connection has its addresses.
func TestTimeWaitThatIsProvedToBeOver(t *testing.T) {
	records, c := collect(t, Config{TimeWait: true}, capture.Events(t, `
		0s a LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 role=server
		1s a SYN_RECV>FIN_WAIT1   1.0.0.2:80 1.0.0.1:40 local_close role=server
		2s a FIN_WAIT1>FIN_WAIT2  1.0.0.2:80 1.0.0.1:40 fin_acked role=server
		3s a FIN_WAIT2>TIME_WAIT  1.0.0.2:80 1.0.0.1:40 fin_received role=server
		9s b LISTEN>SYN_RECV      1.0.0.2:80 1.0.0.1:40 role=server`))
	compare(t, records, `
		80>40 3000 server SYN_RECV=1000 FIN_WAIT1=1000 FIN_WAIT2=1000 TIME_WAIT=? closed by local: fin_received, TIME_WAIT`)
	if c.Unended() != 0 || c.Forgotten() != 0 {
		t.Errorf("%d unended, %d forgotten", c.Unended(), c.Forgotten())
	}
}

func TestLimit(t *testing.T) {
	events := capture.Events(t, capture.Mixed)
	if records, _ := collect(t, Config{Limit: 2, Open: true}, events); len(records) != 2 {
		t.Errorf("%d records", len(records))
	}
}

// Whatever comes, records add up, and there is one at most of each life.
func FuzzCollector(f *testing.F) {
	source := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		var events []byte
		for range 100 {
			events = binary.LittleEndian.AppendUint32(events, source.Uint32())
		}
		f.Add(events, true)
		f.Add(events, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, timeWait bool) {
		var events []tcp.Event
		for now := uint64(capture.BootNS); len(data) >= 4; data = data[4:] {
			now += uint64(data[0])
			events = append(events, anything(binary.LittleEndian.Uint32(data), now))
		}
		records, _ := collect(t, Config{Max: 4, TimeWait: timeWait, Open: true}, events)
		if len(records) > len(events) {
			t.Errorf("%d records of %d events", len(records), len(events))
		}
		for i := range records {
			if r := &records[i]; r.StartBoot > r.BootNS || r.Open && r.Outcome != "" {
				t.Errorf("%+v", r)
			}
		}
	})
}

func anything(n uint32, now uint64) tcp.Event {
	pick := func(among uint32) uint32 {
		defer func() { n /= among }()
		return n % among
	}
	return tcp.Event{
		Kind: tcp.Kind(pick(3)), Old: tcp.State(pick(13)), New: tcp.State(1 + pick(12)), Cookie: uint64(pick(4)),
		Time: int64(now), BootNS: now, Duration: uint64(pick(100)), DurationKind: kindNames[pick(4)],
		Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 1}), uint16(pick(3))),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 0, 0, 2}), 80),
	}
}

// Config.Max promises this size.
func TestLifeBytes(t *testing.T) {
	if n := unsafe.Sizeof(tcp.Life[life]{}); n > LifeBytes {
		t.Errorf("a life takes %d bytes", n)
	}
}

// churn is the life of a client and of its server.
const churn = `
	1s          c  CLOSE>SYN_SENT         10.0.0.7:0     10.0.0.1:80    connect role=client pid=30/curl
	1.000040s   s  LISTEN>SYN_RECV        10.0.0.1:80    10.0.0.7:40000 syn_received role=server pid=10/nginx
	1.000250s   c  SYN_SENT>ESTABLISHED   10.0.0.7:40000 10.0.0.1:80    handshake_done role=client pid=30/curl
	1.000263s   s  SYN_RECV>ESTABLISHED   10.0.0.1:80    10.0.0.7:40000 handshake_done role=server pid=10/nginx
	2.5s        c  ESTABLISHED>FIN_WAIT1  10.0.0.7:40000 10.0.0.1:80    local_close role=client pid=30/curl
	2.500030s   s  ESTABLISHED>CLOSE_WAIT 10.0.0.1:80    10.0.0.7:40000 fin_received role=server pid=11/nginx
	2.500061s   c  FIN_WAIT1>FIN_WAIT2    10.0.0.7:40000 10.0.0.1:80    fin_acked role=client pid=30/curl
	2.500090s   s  CLOSE_WAIT>LAST_ACK    10.0.0.1:80    10.0.0.7:40000 local_close role=server pid=11/nginx
	2.500120s   c  FIN_WAIT2>TIME_WAIT    10.0.0.7:40000 10.0.0.1:80    fin_received role=client pid=30/curl
	2.500130s   s  LAST_ACK>CLOSE         10.0.0.1:80    10.0.0.7:40000 fin_acked role=server pid=11/nginx
	62.5s       c  TIME_WAIT>CLOSE        10.0.0.7:40000 10.0.0.1:80    expired role=client pid=30/curl`

func discarding(cfg Config) *Collector {
	cfg.Max = 1 << 10
	cfg.Show = func(*Record) error { return nil }
	cfg.Flush = func() error { return nil }
	return NewCollector(cfg)
}

func TestCollectorDoesNotAllocate(t *testing.T) {
	events := capture.Events(t, churn)
	for _, timeWait := range []bool{false, true} {
		c := discarding(Config{TimeWait: timeWait})
		all := func() {
			for i := range events {
				if err := c.Event(&events[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := testing.AllocsPerRun(1000, all); n != 0 {
			t.Errorf("%v allocations for a connection", n)
		}
		if n := c.lives.Len(); n != 0 {
			t.Errorf("%d lives are left", n)
		}
	}
}

func BenchmarkCollector(b *testing.B) {
	events := capture.Events(b, churn)
	c := discarding(Config{})
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if err := c.Event(&events[i%len(events)]); err != nil {
			b.Fatal(err)
		}
	}
}

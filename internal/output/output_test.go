package output

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// closed is an event in which everything is known.
var closed = tcp.Event{
	Kind: tcp.Transition, Time: 1_795_000_000_000_000_042, BootNS: 98_765_432_109_876,
	Cookie: 0xbeef, SkAddr: 0xffff888012345678, NetNS: 4026531840,
	Local:  netip.MustParseAddrPort("10.0.0.7:43210"),
	Remote: netip.MustParseAddrPort("192.0.2.80:443"),
	Old:    tcp.Established, New: tcp.Close,
	Duration: 12_000_345, DurationKind: tcp.Exact, Reason: tcp.RSTReceived, Errno: 104,
	Role: tcp.Client, PID: 4711, Comm: "curl", UID: 1000, FD: 5, OwnerSource: tcp.FromConnect,
	CgroupID: 77, Cgroup: "/system.slice/docker-0123.scope", ContainerID: strings.Repeat("0123456789abcdef", 4),
	HasCounters: true, BytesSent: 18_446_744_073_709_551_615, BytesReceived: 2, Retransmits: 3, SRTT: 250,
	HasQueues: true, RxQueue: 6, TxQueue: 7,
}

// listening is a socket of which little is known.
var listening = tcp.Event{
	Kind: tcp.Socket, Time: 1_795_000_001_000_000_000, BootNS: 98_765_500_000_000,
	Local: netip.MustParseAddrPort("[::]:80"), Remote: netip.MustParseAddrPort("[::]:0"), MPTCP: true,
	New: tcp.Listen, Duration: 185_000_000_000, DurationKind: tcp.AtLeast, Role: tcp.Listener,
	UID: tcp.NoUID, FD: tcp.NoFD,
}

var lost = tcp.Event{
	Kind: tcp.Lost, Time: 1_795_000_002_000_000_000, BootNS: 98_765_600_000_000,
	UID: tcp.NoUID, FD: tcp.NoFD, Lost: 17, Where: "ring\nbuffer",
}

var unseenCookies = tcp.Event{
	Kind: tcp.Unseen, Time: 1_795_000_003_000_000_000, BootNS: 98_765_700_000_000,
	UID: tcp.NoUID, FD: tcp.NoFD, NetNS: 4026531840, Lost: 1494, Where: tcp.WhereCookie,
}

type writer interface {
	Write(*tcp.Event) error
	Flush() error
}

// lines returns what the writer that open returns makes of the events.
func lines(t *testing.T, open func(io.Writer) writer, events ...tcp.Event) string {
	t.Helper()
	var out bytes.Buffer
	w := open(&out)
	for i := range events {
		if err := w.Write(&events[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func asJSON(w io.Writer) writer { return NewJSON(w) }

func asColumns(o Options) func(io.Writer) writer {
	return func(w io.Writer) writer { return NewColumns(w, o) }
}

func asCSV(o Options) func(io.Writer) writer {
	return func(w io.Writer) writer { return NewCSV(w, o) }
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestJSON(t *testing.T) {
	got := lines(t, asJSON, closed, listening, lost, unseenCookies)
	compare(t, got, `{"v":1,"type":"transition","time":"2026-11-18T11:06:40.000000042Z","boot_ns":"98765432109876","cookie":"beef","skaddr":"0xffff888012345678","netns":4026531840,"family":"ipv4","protocol":"tcp","laddr":"10.0.0.7","lport":43210,"raddr":"192.0.2.80","rport":443,"old_state":"ESTABLISHED","new_state":"CLOSE","duration_ms":12.000345,"duration_kind":"exact","reason":"rst_received","errno":"ECONNRESET","role":"client","pid":4711,"comm":"curl","uid":1000,"fd":5,"owner_source":"connect","cgroup":"/system.slice/docker-0123.scope","container_id":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","unit":"docker-0123.scope","bytes_sent":18446744073709551615,"bytes_received":2,"retransmits":3,"srtt_us":250,"rx_queue":6,"tx_queue":7}
{"v":1,"type":"socket","time":"2026-11-18T11:06:41.000000000Z","boot_ns":"98765500000000","family":"ipv6","protocol":"mptcp","laddr":"::","lport":80,"raddr":"::","rport":0,"state":"LISTEN","duration_ms":185000.000000,"duration_kind":"at_least","role":"listener"}
{"v":1,"type":"lost","time":"2026-11-18T11:06:42.000000000Z","boot_ns":"98765600000000","events":17,"where":"ring\nbuffer"}
{"v":1,"type":"unseen","time":"2026-11-18T11:06:43.000000000Z","boot_ns":"98765700000000","netns":4026531840,"events":1494,"where":"syn_cookie"}
`)
}

func TestColumns(t *testing.T) {
	escape := closed
	escape.Comm = "\x1b[2Jünïcode!"
	one, hostile := unseenCookies, unseenCookies
	one.Lost, one.Where, hostile.Where = 1, tcp.WhereAcceptQueue, "\x1b[2J"
	compare(t, lines(t, asColumns(Options{}), closed, listening, lost, unseenCookies, one, hostile, escape), `PID     COMM       LADDR           LPORT RADDR           RPORT OLD_STATE   -> NEW_STATE    DURATION_MS REASON
4711    curl       10.0.0.7        43210 192.0.2.80      443   ESTABLISHED -> CLOSE             12.000 rst_received
-       -          ::              80    ::              0     -           -> LISTEN      >=185000.000 -
# lost 17 events (ring\nbuffer)
# 1494 SYNs answered with a SYN cookie: not shown until the handshake is complete (network namespace 4026531840)
# 1 packet of handshakes dropped: an accept queue was full (network namespace 4026531840)
# 1494 packets not shown: \x1b[2J (network namespace 4026531840)
4711    \x1b[2Jünï 10.0.0.7        43210 192.0.2.80      443   ESTABLISHED -> CLOSE             12.000 rst_received
`)
}

func TestColumnsWideExtended(t *testing.T) {
	utc(t)
	compare(t, lines(t, asColumns(Options{Time: true, Since: true, Wide: true, Extended: true}), closed, listening), `TIME     SECONDS      PID     COMM             FAMILY LADDR                                   LPORT RADDR                                   RPORT OLD_STATE   -> NEW_STATE    DURATION_MS REASON            BOOT_NS          COOKIE           NETNS      DEVICE PROTOCOL ROLE     OWNER_SOURCE HOLDER UNACCEPTED ACKED FD   UID    ERRNO        RX_QUEUE TX_QUEUE  DROPS BYTES_SENT BYTES_RECEIVED RETRANSMITS SRTT_US SKADDR             CONTAINER_ID CONTAINER                        IMAGE                                            POD                                      POD_UID                              NAMESPACE    UNIT                             CGROUP
11:06:40 0.000000     4711    curl             ipv4   10.0.0.7                                43210 192.0.2.80                              443   ESTABLISHED -> CLOSE             12.000 rst_received      98765432109876   beef             4026531840 -      tcp      client   connect      -      -          -     5    1000   ECONNRESET          6        7      - 18446744073709551615              2           3     250 0xffff888012345678 0123456789ab -                                -                                                -                                        -                                    -            docker-0123.scope                /system.slice/docker-0123.scope
11:06:41 0.067890     -       -                ipv6   ::                                      80    ::                                      0     -           -> LISTEN      >=185000.000 -                 98765500000000   -                -          -      mptcp    listener -            -      -          -     -    -      -                   -        -      -          -              -           -       - -                  -            -                                -                                                -                                        -                                    -            -                                -
`)
}

func TestCSV(t *testing.T) {
	utc(t)
	quoted := closed
	quoted.Comm = " a,\"b\"\n"
	compare(t, lines(t, asCSV(Options{Time: true, Since: true}), closed, quoted, listening, lost, unseenCookies), `TYPE,TIME,SECONDS,PID,COMM,LADDR,LPORT,RADDR,RPORT,OLD_STATE,NEW_STATE,DURATION_MS,DURATION_KIND,REASON,EVENTS,WHERE
transition,11:06:40,0.000000000,4711,curl,10.0.0.7,43210,192.0.2.80,443,ESTABLISHED,CLOSE,12.000345,exact,rst_received,,
transition,11:06:40,0.000000000,4711," a,""b""\n",10.0.0.7,43210,192.0.2.80,443,ESTABLISHED,CLOSE,12.000345,exact,rst_received,,
socket,11:06:41,0.067890124,,,::,80,::,0,,LISTEN,185000.000000,at_least,,,
lost,11:06:42,0.167890124,,,,,,,,,,,,17,ring\nbuffer
unseen,11:06:43,0.267890124,,,,,,,,,,,,1494,syn_cookie
`)
	compare(t, lines(t, asCSV(Options{Sockets: true}), listening, unseenCookies), `TYPE,STATE,RX_QUEUE,TX_QUEUE,DROPS,LADDR,LPORT,RADDR,RPORT,PID,COMM,FD,DURATION_MS,DURATION_KIND,NETNS,EVENTS,WHERE
socket,LISTEN,,,,::,80,::,0,,,,185000.000000,at_least,,,
unseen,,,,,,,,,,,,,,4026531840,1494,syn_cookie
`)
}

// utc makes the local time the same on every machine.
func utc(t *testing.T) {
	zone := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = zone })
}

// JSON, columns and CSV call a field by one name.
func TestFieldNames(t *testing.T) {
	full, gap := closed, lost
	full.Details = &tcp.Details{Cmdline: "a", Holders: []tcp.Process{{PID: 1}}, HoldersMore: 1}
	full.Cgroup, full.Names = "/a.service", &tcp.Names{Container: "a", Image: "a", Pod: "a", PodUID: "a", Namespace: "a"}
	full.Device, full.Holder, full.HasDrops, full.Unaccepted, full.Acked = 2, tcp.Held, true, true, true
	written := map[string]bool{}
	for line := range strings.Lines(lines(t, asJSON, full, listening, gap)) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatal(err)
		}
		for name := range object {
			written[name] = true
		}
	}
	if got, want := slices.Sorted(slices.Values(Fields())), slices.Sorted(maps.Keys(written)); !slices.Equal(got, want) {
		t.Errorf("the table has %v\nJSON has %v", got, want)
	}
}

// Names that a process can give itself, and what is made of them.
func TestHostileNames(t *testing.T) {
	for _, test := range []struct{ comm, column, json string }{
		{"\x1b]0;owned\a", `\x1b]0;owned\a`, `"\u001b]0;owned\u0007"`},
		{"a\r\nb\tc", `a\r\nb\tc`, `"a\r\nb\tc"`},
		{"\x9b31m", `\x9b31m`, `"\ufffd31m"`},                   // C1 as a byte: not UTF-8
		{"\u009b31m\x7f", `\u009b31m\x7f`, `"\u009b31m\u007f"`}, // C1 as UTF-8
		{"a\u202etxt.exe", `a\u202etxt.exe`, `"a\u202etxt.exe"`},
		{"\xe2\x80", `\xe2\x80`, `"\ufffd\ufffd"`},
		{"\ufffd", "\ufffd", `"\ufffd"`},
		{`C:\"<&>`, `C:\"<&>`, `"C:\\\"<&>"`},
		{"日本語 🦀", "日本語 🦀", `"日本語 🦀"`},
		{"\u2028\u2029", `\u2028\u2029`, `"\u2028\u2029"`},
		{"", "-", `""`},
	} {
		e := closed
		e.Comm = test.comm
		line := strings.SplitAfter(lines(t, asColumns(Options{Wide: true}), e), "\n")[1]
		if name := strings.TrimRight(line[len("4711    "):strings.Index(line, " ipv4   10.0")], " "); name != test.column {
			t.Errorf("column of %q: %s, want %s", test.comm, name, test.column)
		}
		if got := lines(t, asJSON, e); !strings.Contains(got, `"comm":`+test.json+`,`) {
			t.Errorf("JSON of %q: %s, want %s", test.comm, got, test.json)
		}
	}
}

// A name is cut to its column without leaving half an escape.
func TestCut(t *testing.T) {
	for s, want := range map[string]string{
		"0123456789":        "0123456789",
		"0123456789a":       "0123456789",
		"1234567\x1b[2J":    "1234567",
		"123456\x1b[2J":     `123456\x1b`,
		"éééééééééééé":      "éééééééééé",
		"\xff\xff\xff\xff":  `\xff\xff`,
		"\U000e0041\u202e0": `\U000e0041`,
	} {
		if got := string(terminal.AppendVisible(nil, s, 10)); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestTimes(t *testing.T) {
	p := newFormatter(Options{Start: 1_000_000_000}, 3, ">=")
	for _, test := range []struct {
		e          tcp.Event
		s, ms, age string
	}{
		{tcp.Event{BootNS: 999_999_000, Duration: 999, DurationKind: tcp.Exact}, "-0.000001", "0.000", "0.000s"},
		{tcp.Event{BootNS: 61_000_001_000, Duration: 59_999_999_999, DurationKind: tcp.AtLeast}, "60.000001", ">=59999.999", ">=59.999s"},
		{tcp.Event{BootNS: 1 << 63, Duration: 3599e9, DurationKind: tcp.Exact}, "9223372035.854775", "3599000.000", "59m59s"},
		{tcp.Event{Duration: 86399e9, DurationKind: tcp.Exact}, "-1.000000", "86399000.000", "23h59m"},
		{tcp.Event{Duration: 1<<64 - 1, DurationKind: tcp.Exact}, "-1.000000", "18446744073709.551", "213503d23h"},
		{tcp.Event{Duration: 5, DurationKind: tcp.Unknown}, "-1.000000", "", ""},
		{tcp.Event{Duration: 5}, "-1.000000", "", ""},
	} {
		compare(t, string(p.seconds(nil, &test.e)), test.s)
		compare(t, string(p.milliseconds(nil, &test.e)), test.ms)
		compare(t, string(p.age(nil, &test.e)), test.age)
	}
}

// Every line is as wide as the header says, whatever is shown.
func TestAligned(t *testing.T) {
	for bits := range 32 {
		o := Options{Time: bits&1 != 0, Since: bits&2 != 0, Wide: bits&4 != 0, Extended: bits&8 != 0, Sockets: bits&16 != 0}
		short := closed
		short.BytesSent = 1
		text := lines(t, asColumns(o), short, listening)
		if o.Sockets {
			short.Kind = tcp.Socket
			text = socketsText(t, SocketsOptions{Options: o}, stats.InventoryConfig{}, []tcp.Event{short, listening})
		}
		got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		titles := strings.Fields(got[0])
		last := strings.LastIndex(got[0], titles[len(titles)-1])
		for _, line := range got[1:] {
			if len(line) <= last || line[last-1] != ' ' || line[last] == ' ' || len(strings.Fields(line)) != len(titles) {
				t.Errorf("%+v:\n%s\n%s", o, got[0], line)
			}
		}
	}
}

// Every record has the cells of the header, and encoding/csv writes it alike.
func FuzzCSV(f *testing.F) {
	f.Add("curl", true, false)
	f.Add(" \"a\",\n\r\x1b", false, true)
	f.Add(`\.`, true, true)
	f.Fuzz(func(t *testing.T, text string, extended, sockets bool) {
		e, gap := closed, lost
		e.Comm, e.Cgroup, gap.Where = text, text, text
		got := lines(t, asCSV(Options{Extended: extended, Sockets: sockets}), e, gap)
		records, err := csv.NewReader(strings.NewReader(got)).ReadAll()
		if err != nil || len(records) != 3 {
			t.Fatalf("%v in\n%s", err, got)
		}
		if i := slices.Index(records[0], "COMM"); records[1][i] != string(terminal.AppendVisible(nil, text, math.MaxInt)) {
			t.Errorf("COMM is %q for %q", records[1][i], text)
		}
		var want bytes.Buffer
		if err := csv.NewWriter(&want).WriteAll(records); err != nil {
			t.Fatal(err)
		}
		compare(t, got, want.String())
	})
}

func TestUnknownKind(t *testing.T) {
	for _, w := range []writer{NewJSON(io.Discard), NewCSV(io.Discard, Options{}), NewColumns(io.Discard, Options{})} {
		if err := w.Write(&tcp.Event{Kind: 9}); err == nil {
			t.Errorf("%T: no error", w)
		}
	}
}

type sizes struct {
	written []int
	err     error
}

func (s *sizes) Write(p []byte) (int, error) {
	s.written = append(s.written, len(p))
	return len(p), s.err
}

// Nothing is written before the buffer is full, and then whole lines.
func TestBuffered(t *testing.T) {
	out := &sizes{}
	j := NewJSON(out)
	line := len(lines(t, asJSON, closed))
	for n := 1; len(out.written) == 0; n++ {
		if err := j.Write(&closed); err != nil {
			t.Fatal(err)
		}
		if len(out.written) == 0 && n*line >= bufferSize {
			t.Fatal("the buffer grows")
		}
	}
	if out.written[0]%line != 0 {
		t.Errorf("%d bytes are no whole lines of %d", out.written[0], line)
	}
	out.err = io.ErrClosedPipe
	if err := errors.Join(j.Write(&closed), j.Flush()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error is %v", err)
	}
}

func TestAllocations(t *testing.T) {
	for _, w := range everyWriter() {
		events := []tcp.Event{closed, listening, lost, unseenCookies}
		if n := testing.AllocsPerRun(2000, func() {
			for i := range events {
				_ = w.Write(&events[i]) // io.Discard takes everything
			}
		}); n != 0 {
			t.Errorf("%T allocates %v times per event", w, n)
		}
	}
}

func everyWriter() []writer {
	o := Options{Time: true, Since: true, Wide: true, Extended: true}
	return []writer{NewJSON(io.Discard), NewColumns(io.Discard, o), NewCSV(io.Discard, o)}
}

// typical is an event as most are: an owner in a cgroup, and no counters.
func typical() tcp.Event {
	e := closed
	e.SkAddr, e.Errno, e.ContainerID, e.HasCounters, e.HasQueues = 0, 0, "", false, false
	return e
}

func benchmark(b *testing.B, w writer, e tcp.Event) {
	b.ReportAllocs()
	for b.Loop() {
		e.Time += 1000
		if err := w.Write(&e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJSON(b *testing.B)     { benchmark(b, NewJSON(io.Discard), typical()) }
func BenchmarkJSONFull(b *testing.B) { benchmark(b, NewJSON(io.Discard), closed) }
func BenchmarkColumns(b *testing.B)  { benchmark(b, NewColumns(io.Discard, Options{}), typical()) }
func BenchmarkCSV(b *testing.B)      { benchmark(b, NewCSV(io.Discard, Options{}), typical()) }

package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
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

// lines returns what output.JSON makes of the events.
func lines(t *testing.T, events ...tcp.Event) string {
	t.Helper()
	var out bytes.Buffer
	w := output.NewJSON(&out)
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

// read returns the events of a recording, and what ended it if that is not EOF.
func read(recording string) (events []tcp.Event, err error) {
	r := NewReader(strings.NewReader(recording), "rec")
	for {
		var e tcp.Event
		if err := r.Read(&e); err == io.EOF {
			return events, nil
		} else if err != nil {
			return events, err
		}
		events = append(events, e)
	}
}

// A row of sockets that several processes hold comes back as it was.
func TestRecordingDetails(t *testing.T) {
	row := listening
	row.Details = &tcp.Details{
		Cmdline: "nginx: \x1b[2J", HoldersMore: 3,
		Holders: []tcp.Process{{PID: 812, Comm: "nginx", FD: 6}, {PID: 813, Comm: "a\nb", FD: tcp.NoFD}},
	}
	text := lines(t, row)
	events, err := read(text)
	if err != nil || len(events) != 1 || !reflect.DeepEqual(events[0].Details, row.Details) {
		t.Errorf("got %+v and %v", events, err)
	}
	for _, test := range [][3]string{
		{`"fd":6`, `"fd":-6`, "cannot be number -6"},
		{`"fd":6`, `"fd":4294967295`, "fd is 4294967295, which is out of range"},
		{`"pid":812,`, ``, "pid of holders is missing"},
		{`"comm":"nginx",`, ``, "comm of holders is missing"},
		{`"holders":[`, `"held_by":[`, "holders is missing"},
	} {
		if _, err := read(strings.Replace(text, test[0], test[1], 1)); err == nil || !strings.Contains(err.Error(), test[2]) {
			t.Errorf("%s: got %v, want %s", test[1], err, test[2])
		}
	}
}

func TestRecordingErrors(t *testing.T) {
	whole := strings.Split(lines(t, closed, listening, lost, unseenCookies), "\n")
	change, socket, gap, cookies := whole[0], whole[1], whole[2], whole[3]
	edit := func(line, old, replacement string) string {
		if !strings.Contains(line, old) {
			t.Fatalf("%s is not in %s", old, line)
		}
		return strings.Replace(line, old, replacement, 1)
	}
	for _, test := range []struct{ line, want string }{
		{"", `not a JSON object: unexpected end of JSON input`},
		{"PID COMM", `not a JSON object: invalid character 'P' looking for beginning of value`},
		{"[1]", `a line must be a JSON object, not array`},
		{"null", `v is missing`},
		{change + change, `not a JSON object: invalid character '{' after top-level value`},
		{edit(change, `"v":1`, `"v":2`), `v is 2, but this tcptrace reads version 1`},
		{edit(change, `"v":1,`, ``), `v is missing`},
		{edit(change, `transition`, `\u001b[2J`), `type is "\x1b[2J": no such type is known`},
		{edit(change, `T11:`, ` 11:`), `time is "2026-11-18 11:06:40.000000042Z": not a time of RFC 3339`},
		{edit(change, `2026-`, `3026-`), `time is "3026-11-18T11:06:40.000000042Z": out of range`},
		{edit(change, `"98765432109876"`, `98765432109876`), `boot_ns cannot be number`},
		{edit(change, `"98765432109876"`, `"18446744073709551616"`), `boot_ns is "18446744073709551616": not a decimal number of 64 bits`},
		{edit(change, `"98765432109876"`, `"18446744073709551615"`), `boot_ns is "18446744073709551615": not a time since the boot: it is more than 292 years`},
		{edit(change, `"98765432109876"`, `"9223372036854775808"`), `boot_ns is "9223372036854775808": not a time since the boot: it is more than 292 years`},
		{edit(change, `beef`, `beeg`), `cookie is "beeg": not a hexadecimal number of 64 bits`},
		{edit(change, `0xffff888012345678`, `ffff888012345678`), `skaddr is "ffff888012345678": it must begin with 0x`},
		{edit(change, `4026531840`, `-1`), `netns cannot be number -1`},
		{edit(change, `"ipv4"`, `"ipv6"`), `family is "ipv6", but the addresses are 10.0.0.7 and 192.0.2.80`},
		{edit(change, `"family":"ipv4",`, ``), `family is missing`},
		{edit(change, `"10.0.0.7"`, `"::1"`), `family is "ipv4", but the addresses are ::1 and 192.0.2.80`},
		{edit(change, `"tcp"`, `"udp"`), `protocol is "udp": no such value is known`},
		{edit(change, `10.0.0.7`, `10.0.0.700`), `laddr is "10.0.0.700": not a plain IPv4 or IPv6 address`},
		{edit(change, `10.0.0.7`, `::ffff:10.0.0.7`), `laddr is "::ffff:10.0.0.7": not a plain IPv4 or IPv6 address`},
		{edit(socket, `"laddr":"::"`, `"laddr":"fe80::1%\u001b"`), `laddr is "fe80::1%\x1b": not a plain IPv4 or IPv6 address`},
		{edit(change, `:43210`, `:65536`), `lport cannot be number 65536`},
		{edit(change, `"rport":443,`, ``), `rport is missing`},
		{edit(change, `ESTABLISHED`, `ESTAB`), `old_state is "ESTAB": no such state is known`},
		{edit(change, `"new_state":"CLOSE",`, ``), `new_state is missing`},
		{edit(socket, `"state":"LISTEN",`, ``), `state is missing`},
		{edit(change, `12.000345`, `-1`), `duration_ms is "-1": not a number of milliseconds`},
		{edit(change, `12.000345`, `1e99`), `duration_ms is "1e99": not a number of milliseconds`},
		{edit(change, `"duration_ms":12.000345,`, ``), `of duration_ms and its duration_kind some are missing`},
		{edit(change, `"exact"`, `"unknown"`), `of duration_ms and its duration_kind some are missing`},
		{edit(change, `rst_received`, `rst`), `reason is "rst": no such value is known`},
		{edit(change, `ECONNRESET`, `ENOSUCH`), `errno is "ENOSUCH": no such error is known`},
		{edit(change, `"client"`, `""`), `role is "": no such value is known`},
		{edit(change, `"pid":4711,`, ``), `of pid, comm and owner_source some are missing`},
		{edit(change, `"fd":5`, `"fd":2147483648`), `fd is 2147483648, which is out of range`},
		{edit(change, `"srtt_us":250,`, ``), `of bytes_sent, bytes_received, retransmits and srtt_us some are missing`},
		{edit(change, `,"tx_queue":7`, ``), `of rx_queue and tx_queue some are missing`},
		{edit(change, `18446744073709551615`, `18446744073709551616`), `bytes_sent cannot be number 18446744073709551616`},
		{edit(gap, `"events":17,`, ``), `events is missing`},
		{edit(gap, `,"where":"ring\nbuffer"`, ``), `where is missing`},
		{edit(cookies, `"netns":4026531840,`, ``), `netns is missing`},
		{strings.Repeat(" ", maxLine) + change, `the line is longer than 65536 bytes: not a recording of tcptrace`},
	} {
		events, err := read(change + "\n" + test.line + "\n" + change + "\n")
		if want := "rec:2: " + test.want; err == nil || err.Error() != want || len(events) != 1 {
			t.Errorf("%.120s\n got %v after %d events\nwant %s after 1", test.line, err, len(events), want)
		}
	}
}

func TestRecordingCutOff(t *testing.T) {
	recording := lines(t, closed, listening, lost, unseenCookies)
	ends := map[int]int{0: 0} // where the recording is whole, and how many events it has there
	for i, c := range recording {
		if c == '\n' {
			ends[i], ends[i+1] = len(ends)/2+1, len(ends)/2+1
		}
	}
	for n := range recording {
		events, err := read(recording[:n])
		want := "rec:" + strconv.Itoa(len(events)+1) + ": the last line is cut off: the recording was not finished"
		if count, whole := ends[n]; whole && (err != nil || len(events) != count) {
			t.Errorf("at %d: %d events, %v", n, len(events), err)
		} else if !whole && (err == nil || err.Error() != want) {
			t.Errorf("at %d: %v", n, err)
		}
	}
}

// What jq and newer versions make of a line is still understood.
func TestRecordingLiberal(t *testing.T) {
	for ms, want := range map[string]uint64{
		"12": 12e6, "12.5": 125e5, "0.000001": 1, "1e-06": 1, "1.5e3": 15e8,
		"0.30000000000000004": 3e5, "18446744073709.551615": 1<<64 - 1,
	} {
		line := strings.Replace(lines(t, closed), "12.000345", ms, 1)
		line = strings.Replace(line, "{", `{ "new":[{"v":2}], "state":null, `, 1)
		if events, err := read(line); err != nil || events[0].Duration != want {
			t.Errorf("%s: %v, %v", ms, events, err)
		}
	}
}

type failing struct{ line string }

func (f *failing) Read(p []byte) (int, error) {
	n := copy(p, f.line)
	f.line = f.line[n:]
	if n == 0 {
		return 0, syscall.EIO
	}
	return n, nil
}

func TestRecordingUnreadable(t *testing.T) {
	r := NewReader(&failing{lines(t, lost)}, "rec")
	e := closed
	if err := r.Read(&e); err != nil || e != lost {
		t.Fatalf("%+v, %v", e, err)
	}
	for range 2 { // the error is final
		if err := r.Read(&e); !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "rec:2: ") || e != lost {
			t.Fatalf("%+v, %v", e, err)
		}
	}
}

// A line that came through a pipe is an event before the next one is written.
func TestRecordingPipe(t *testing.T) {
	in, out := io.Pipe()
	both := lines(t, lost, lost)
	more := lines(t, closed)
	go func() {
		for _, s := range []string{both + more[:9], more[9:]} {
			if _, err := io.WriteString(out, s); err != nil {
				return // the test has failed
			}
		}
		_ = out.Close() // never fails
	}()
	r := NewReader(in, "-")
	var got []bool
	for {
		var e tcp.Event
		if err := r.Read(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.More())
	}
	if len(got) != 3 || !got[0] || got[1] || got[2] {
		t.Errorf("More is %v, want true false false", got)
	}
}

// Every value that the domain declares can be read back.
func TestEveryValueIsKnown(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../tcp/event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		kind, ok := spec.Type.(*ast.Ident)
		literal, isLiteral := spec.Values[0].(*ast.BasicLit)
		if !ok || !isLiteral || literal.Kind != token.STRING {
			return true
		}
		value, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		e := closed
		switch seen[kind.Name]++; kind.Name {
		case "Reason":
			e.Reason = tcp.Reason(value)
		case "DurationKind":
			e.DurationKind = tcp.DurationKind(value)
		case "Role":
			e.Role = tcp.Role(value)
		case "OwnerSource":
			e.OwnerSource = tcp.OwnerSource(value)
		}
		if _, err := read(lines(t, e)); err != nil {
			t.Error(err)
		}
		return true
	})
	if len(seen) != 4 {
		t.Errorf("types of constants: %v", seen)
	}
	for n := range uint32(200) {
		e := closed
		e.Errno = n
		if events, err := read(lines(t, e)); err != nil || events[0].Errno != n {
			t.Errorf("errno %d %s: %v", n, unix.ErrnoName(syscall.Errno(n)), err)
		}
	}
}

// normal is e as a recording holds it: without what no field has, and with
// U+FFFD for what is not UTF-8.
func normal(e tcp.Event) tcp.Event {
	text := func(s string) string { return string([]rune(s)) }
	if e.Kind == tcp.Lost {
		return tcp.Event{Kind: e.Kind, Time: e.Time, BootNS: e.BootNS, UID: tcp.NoUID, FD: tcp.NoFD, Lost: e.Lost, Where: text(e.Where)}
	}
	e.CgroupID, e.Lost, e.Where = 0, 0, ""
	e.Comm, e.Cgroup, e.ContainerID = text(e.Comm), text(e.Cgroup), text(e.ContainerID)
	if e.Kind == tcp.Socket {
		e.Old = 0
	}
	if e.DurationKind != tcp.Exact && e.DurationKind != tcp.AtLeast {
		e.Duration = 0
	}
	if e.OwnerSource == "" {
		e.PID, e.Comm = 0, ""
	}
	if !e.HasCounters {
		e.BytesSent, e.BytesReceived, e.Retransmits, e.SRTT = 0, 0, 0, 0
	}
	if !e.HasQueues {
		e.RxQueue, e.TxQueue = 0, 0
	}
	return e
}

// arbitrary makes an event of any numbers and texts.
func arbitrary(pick uint64, n uint64, t int64, m uint32, addr []byte, comm, cgroup string) tcp.Event {
	choose := func(among uint64) uint64 {
		defer func() { pick /= among }()
		return pick % among
	}
	local, remote := netip.AddrFrom4([4]byte{1, 2, 3, byte(n)}), netip.AddrFrom4([4]byte(append(addr, 0, 0, 0, 0)))
	if len(addr) >= 16 {
		local, remote = netip.IPv6Unspecified(), netip.AddrFrom16([16]byte(addr))
		if remote.Is4In6() {
			remote = local
		}
	}
	return tcp.Event{
		Kind: tcp.Kind(choose(3)), Time: t, BootNS: n >> 1, Cookie: n, SkAddr: n * choose(2), NetNS: m, MPTCP: choose(2) == 1,
		Local: netip.AddrPortFrom(local, uint16(n)), Remote: netip.AddrPortFrom(remote, uint16(m)),
		Old: tcp.State(1 + choose(12)), New: tcp.State(1 + choose(12)),
		Duration: n, DurationKind: []tcp.DurationKind{"", tcp.Exact, tcp.AtLeast, tcp.Unknown}[choose(4)],
		Reason: []tcp.Reason{"", tcp.Killed}[choose(2)], Errno: m * uint32(choose(2)),
		Role: []tcp.Role{"", tcp.Server}[choose(2)], OwnerSource: []tcp.OwnerSource{"", tcp.FromUse}[choose(2)],
		PID: m, Comm: comm, UID: m, FD: max(int32(m), tcp.NoFD), Cgroup: cgroup, ContainerID: cgroup, CgroupID: n,
		HasCounters: choose(2) == 1, BytesSent: n, BytesReceived: n, Retransmits: m, SRTT: m,
		HasQueues: choose(2) == 1, RxQueue: m, TxQueue: m, Lost: n, Where: comm,
	}
}

// Whatever the event, its line is valid JSON that encoding/json reads as the same
// values, the Reader reads as the same event, and that event writes as the same
// bytes.
func FuzzJSON(f *testing.F) {
	f.Add(uint64(0), uint64(0), int64(0), uint32(0), []byte{}, "", "")
	f.Add(uint64(1<<63-1), uint64(1<<64-1), int64(-1), uint32(1<<32-1), []byte("\xfe\x800123456789abcd"), "\x1b\xff\u2028\ufffd", `/a\x2d"b`)
	f.Add(uint64(1), uint64(12_000_345), int64(1<<63-1), uint32(104), []byte{127, 0, 0, 1}, "comm", "\u202e\u0085")
	f.Add(uint64(2), uint64(12_000_345), int64(-1<<63), uint32(104), []byte{127, 0, 0, 1}, "\b\f\n\r\t\x00\x7f", "")
	f.Fuzz(func(t *testing.T, pick, n uint64, wall int64, m uint32, addr []byte, comm, cgroup string) {
		e := arbitrary(pick, n, wall, m, addr, comm, cgroup)
		if len(comm)+len(cgroup) > maxLine/16 {
			return // longer than any that the kernel has
		}
		line := lines(t, e)
		var values struct {
			Time, Comm, Cgroup, Where string
			BytesSent                 *uint64 `json:"bytes_sent"`
		}
		if err := json.Unmarshal([]byte(line), &values); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		want := normal(e)
		if values.Comm != want.Comm || values.Cgroup != want.Cgroup || values.Where != want.Where ||
			(values.BytesSent != nil) != want.HasCounters || want.HasCounters && *values.BytesSent != want.BytesSent {
			t.Errorf("%+v, want %+v", values, want)
		}
		events, err := read(line)
		if err != nil || len(events) != 1 {
			t.Fatalf("%v: %s", err, line)
		}
		if events[0] != want {
			t.Errorf("read %+v\nwant %+v", events[0], want)
		}
		compare(t, lines(t, events...), line)
	})
}

// Whatever the recording, an event is whole: written again it reads as the same
// event. An error leaves none.
func FuzzReader(f *testing.F) {
	for _, e := range []tcp.Event{closed, listening, lost, unseenCookies} {
		var line bytes.Buffer
		j := output.NewJSON(&line)
		if err := errors.Join(j.Write(&e), j.Flush()); err != nil {
			f.Fatal(err)
		}
		f.Add(line.Bytes())
		f.Add(line.Bytes()[:line.Len()/2])
	}
	f.Fuzz(func(t *testing.T, recording []byte) {
		r := NewReader(bytes.NewReader(recording), "rec")
		for {
			e := tcp.Event{Cookie: 1<<64 - 1}
			before := e
			err := r.Read(&e)
			if err != nil && e != before {
				t.Fatalf("%v, and yet %+v", err, e)
			}
			if err == io.EOF || err != nil && strings.HasPrefix(err.Error(), "rec:") {
				return
			}
			if err != nil {
				t.Fatalf("no line is named: %v", err)
			}
			again, err := read(lines(t, e))
			if err != nil || again[0] != e {
				t.Fatalf("%+v\nis read again as %+v: %v", e, again, err)
			}
		}
	})
}

// again repeats a line for ever.
type again struct{ line, rest []byte }

func (a *again) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		a.rest = a.line
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	var line bytes.Buffer
	j := output.NewJSON(&line)
	e := closed
	if err := errors.Join(j.Write(&e), j.Flush()); err != nil {
		b.Fatal(err)
	}
	r := NewReader(&again{line: line.Bytes()}, "rec")
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Read(&e); err != nil {
			b.Fatal(err)
		}
	}
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

package recording

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

const sec = 1_000_000_000

// at makes a transition, or with from 0 a row, this many seconds after the boot.
func at(t uint64, cookie uint64, from, to tcp.State, local, remote string) tcp.Event {
	e := tcp.Event{
		Kind: tcp.Transition, Time: int64(t * sec), BootNS: t * sec, Cookie: cookie, Old: from, New: to,
		Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), UID: tcp.NoUID, FD: tcp.NoFD,
	}
	if from == 0 {
		e.Kind = tcp.Socket
	}
	return e
}

// aged gives a row an age.
func aged(e tcp.Event, seconds uint64, kind tcp.DurationKind) tcp.Event {
	e.Duration, e.DurationKind = seconds*sec, kind
	return e
}

// list reads a recording to its end and returns what exists then, in short.
func list(t *testing.T, s *Source, states ...tcp.State) (rows []string) {
	t.Helper()
	var e tcp.Event
	var err error
	for err == nil {
		err = s.Read(&e)
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	err = s.Existing(states, func(e *tcp.Event) error {
		age := string(e.DurationKind)
		if e.DurationKind.Known() {
			age = fmt.Sprintf("%s %d", e.DurationKind, e.Duration/sec)
		}
		rows = append(rows, fmt.Sprintf("%x %v %v %v %s", e.Cookie, e.New, e.Local, e.Remote, age))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestExisting(t *testing.T) {
	const client, again, server, web = "10.0.0.1:40", "10.0.0.1:41", "10.0.0.2:80", "0.0.0.0:80"
	tests := []struct {
		name   string
		states []tcp.State
		events []tcp.Event
		want   []string
	}{
		{"a handshake that completes is not half-open", []tcp.State{tcp.SynRecv, tcp.Established},
			[]tcp.Event{
				at(1, 0, tcp.Listen, tcp.SynRecv, server, client),
				at(2, 0, tcp.Listen, tcp.SynRecv, server, again),
				at(3, 0xb, tcp.SynRecv, tcp.Established, server, client),
				at(5, 9, tcp.Close, tcp.Listen, web, "0.0.0.0:0"),
			},
			[]string{"b ESTABLISHED 10.0.0.2:80 10.0.0.1:40 exact 2", "0 SYN_RECV 10.0.0.2:80 10.0.0.1:41 exact 3"}},
		{"also where nobody asks for the state that follows", []tcp.State{tcp.SynRecv},
			[]tcp.Event{
				at(1, 0, tcp.Listen, tcp.SynRecv, server, client),
				at(3, 0xb, tcp.SynRecv, tcp.Established, server, client),
			}, nil},
		{"a socket that connects again in its own TIME_WAIT", []tcp.State{tcp.SynSent, tcp.TimeWait},
			[]tcp.Event{
				at(1, 0xa, tcp.FinWait2, tcp.TimeWait, client, server),
				at(2, 0xa, tcp.Close, tcp.SynSent, "10.0.0.1:0", server),
				at(4, 0xc, tcp.FinWait1, tcp.FinWait2, again, server),
			},
			[]string{"a TIME_WAIT 10.0.0.1:40 10.0.0.2:80 exact 3", "a SYN_SENT 10.0.0.1:0 10.0.0.2:80 exact 2"}},
		{"and the end of that TIME_WAIT", []tcp.State{tcp.SynSent, tcp.TimeWait},
			[]tcp.Event{
				at(1, 0xa, tcp.FinWait2, tcp.TimeWait, client, server),
				at(2, 0xa, tcp.Close, tcp.SynSent, "10.0.0.1:0", server),
				at(4, 0xa, tcp.TimeWait, tcp.Close, client, server),
			},
			[]string{"a SYN_SENT 10.0.0.1:0 10.0.0.2:80 exact 2"}},
		{"a socket in use again is not what it was, though its end was lost", []tcp.State{tcp.CloseWait},
			[]tcp.Event{
				at(1, 0xa, tcp.Established, tcp.CloseWait, client, server),
				at(9, 0xa, tcp.Close, tcp.SynSent, "10.0.0.1:0", server),
				at(9, 0xb, tcp.Established, tcp.CloseWait, client, server),
			},
			[]string{"b CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 exact 0"}},
		{"rows, with the age that they know", []tcp.State{tcp.CloseWait, tcp.Established},
			[]tcp.Event{
				aged(at(100, 1, 0, tcp.CloseWait, client, server), 60, tcp.AtLeast),
				aged(at(100, 2, 0, tcp.Established, client, server), 7, tcp.Unknown),
				at(101, 3, tcp.Established, tcp.CloseWait, client, server),
				aged(at(103, 3, 0, tcp.CloseWait, client, server), 0, tcp.Unknown),
				aged(at(104, 4, 0, tcp.CloseWait, client, server), 500, tcp.Exact), // older than the boot
				at(110, 5, tcp.Established, tcp.FinWait1, again, server),
			},
			[]string{
				"1 CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 at_least 70", "2 ESTABLISHED 10.0.0.1:40 10.0.0.2:80 unknown",
				"3 CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 exact 9", "4 CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 exact 110",
			}},
		{"a descriptor whose connection is over", []tcp.State{tcp.Close},
			[]tcp.Event{
				at(1, 1, 0, tcp.Close, client, server),
				at(1, 2, 0, tcp.Close, client, server),
				at(2, 2, tcp.Close, tcp.SynSent, client, server),
				at(2, 3, tcp.Established, tcp.Close, client, server),
			},
			[]string{"1 CLOSE 10.0.0.1:40 10.0.0.2:80 "}},
		{"two that differ by their device", []tcp.State{tcp.TimeWait},
			[]tcp.Event{
				on(2, at(1, 1, tcp.FinWait2, tcp.TimeWait, "[fe80::1]:40", "[fe80::2]:80")),
				on(3, at(1, 2, tcp.FinWait2, tcp.TimeWait, "[fe80::1]:40", "[fe80::2]:80")),
				on(3, at(2, 2, tcp.TimeWait, tcp.Close, "[fe80::1]:40", "[fe80::2]:80")),
			},
			[]string{"1 TIME_WAIT [fe80::1]:40 [fe80::2]:80 exact 1"}},
		{"the last event may be older than the one before", []tcp.State{tcp.CloseWait},
			[]tcp.Event{
				at(5, 1, tcp.Established, tcp.CloseWait, client, server),
				at(4, 2, tcp.Established, tcp.CloseWait, client, server),
			},
			[]string{"1 CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 exact 0", "2 CLOSE_WAIT 10.0.0.1:40 10.0.0.2:80 exact 1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := Open(strings.NewReader(lines(t, test.events...)), "rec")
			s.Track(test.states...)
			if diff := cmp.Diff(test.want, list(t, s, test.states...)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if s.Forgotten() != 0 {
				t.Errorf("%d are forgotten", s.Forgotten())
			}
		})
	}
}

func on(device uint32, e tcp.Event) tcp.Event {
	e.Device = device
	return e
}

// A row of Existing has what the last event said of the socket, except the numbers that
// have changed since.
func TestExistingIsWhole(t *testing.T) {
	last := closed
	last.Old, last.New, last.Device, last.Holder, last.MPTCP = tcp.Established, tcp.CloseWait, 3, tcp.Gone, true
	last.HasDrops, last.Drops = true, 8
	for _, e := range []tcp.Event{last, listening} {
		s := Open(strings.NewReader(lines(t, e)), "rec")
		s.Track(e.New)
		list(t, s)
		want := e
		want.Kind, want.Old, want.Reason, want.Errno, want.CgroupID = tcp.Socket, 0, "", 0, 0
		want.HasCounters, want.BytesSent, want.BytesReceived, want.Retransmits, want.SRTT = false, 0, 0, 0, 0
		want.HasQueues, want.RxQueue, want.TxQueue, want.HasDrops, want.Drops = false, 0, 0, false, 0
		if e.Kind == tcp.Transition {
			want.Duration, want.DurationKind = 0, tcp.Exact
		}
		err := s.Existing([]tcp.State{e.New}, func(got *tcp.Event) error {
			if *got != want {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
			return io.ErrShortWrite
		})
		if err != io.ErrShortWrite || s.Now() != e.BootNS {
			t.Errorf("%v at %d, want the error of emit and %d", err, s.Now(), e.BootNS)
		}
	}
}

func TestExistingOfAStateThatWasNotKept(t *testing.T) {
	s := Open(strings.NewReader(lines(t, closed)), "rec")
	s.Track(tcp.CloseWait)
	err := s.Existing([]tcp.State{tcp.CloseWait, tcp.LastAck}, nil)
	if err == nil || !strings.Contains(err.Error(), "LAST_ACK") {
		t.Errorf("got %v, want an error that names LAST_ACK", err)
	}
}

func TestRecordingInAnotherEncoding(t *testing.T) {
	for begin, want := range map[string]string{
		"\xff\xfe{\x00\"\x00":    "iconv -f UTF-16 -t UTF-8 FILE",
		"\x00{\x00\"":            "iconv -f UTF-16BE -t UTF-8 FILE",
		"\xef\xbb\xbf{\"v\":1}":  "tail -c +4 FILE",
		"\xfd7zXZ\x00\x00\x04\n": "xzcat FILE",
		"BZh91AY&SY":             "bzcat FILE",
	} {
		_, err := read(begin)
		if want += " | tcptrace -r -"; err == nil || !strings.HasPrefix(err.Error(), "rec:1: this is ") || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: got %v, want a hint at %s", begin, err, want)
		}
	}
}

// A Source whose input blocks ends when it is told to, with what it has got.
func TestStop(t *testing.T) {
	in, out := io.Pipe()
	t.Cleanup(func() { in.Close() })
	s := Open(in, "-")
	go out.Write([]byte(lines(t, closed, lost) + `{"v":1,`)) // the writer hangs in the midst of a line
	var e tcp.Event
	for _, want := range []tcp.Event{closed, lost} {
		want.CgroupID = 0
		if err := s.Read(&e); err != nil || e != want {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	end := make(chan error)
	go func() { end <- s.Read(&e) }()
	select {
	case err := <-end:
		t.Fatalf("Read returned %v before Stop", err)
	case <-time.After(20 * time.Millisecond):
	}
	s.Stop()
	s.Stop()
	for range 2 {
		select {
		case err := <-end:
			if err != io.EOF {
				t.Errorf("got %v, want EOF", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Read does not return")
		}
		go func() { end <- s.Read(&e) }()
	}
	<-end
}

// At a deadline a Source is as it was then: the next event has not happened yet.
func TestDeadline(t *testing.T) {
	const local, remote = "10.0.0.1:40", "10.0.0.2:80"
	s := Open(strings.NewReader(lines(t,
		at(10, 1, tcp.Established, tcp.CloseWait, local, remote),
		at(20, 1, tcp.CloseWait, tcp.LastAck, local, remote),
	)), "rec")
	s.Track(tcp.CloseWait, tcp.LastAck)
	s.SetDeadline(10 * sec)
	var got []string
	for deadline := uint64(12); len(got) < 9; deadline += 4 {
		var e tcp.Event
		switch err := s.Read(&e); err {
		case nil:
			got = append(got, fmt.Sprint(e.New))
			continue
		case io.EOF:
			got = append(got, "end")
		case os.ErrDeadlineExceeded:
			got = append(got, fmt.Sprint(s.Now()/sec, s.More()))
			s.SetDeadline(deadline * sec)
		default:
			t.Fatal(err)
		}
		err := s.Existing([]tcp.State{tcp.CloseWait}, func(e *tcp.Event) error {
			got = append(got, fmt.Sprintf("%v for %d at %d %d", e.New, e.Duration/sec, e.Time/sec, e.BootNS/sec))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"CLOSE_WAIT", "10 true", "CLOSE_WAIT for 0 at 10 10", "16 true", "CLOSE_WAIT for 6 at 16 16", "LAST_ACK", "end", "end", "end",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Without Stop a recording that is cut off says so, and the input's error is passed on.
func TestSourceErrors(t *testing.T) {
	whole := lines(t, lost)
	var e tcp.Event
	s := Open(strings.NewReader(whole+whole[:9]), "rec")
	if err := errors.Join(s.Read(&e)); err != nil || e != lost {
		t.Fatalf("%+v, %v", e, err)
	}
	if err := s.Read(&e); !errors.Is(err, errCutOff) {
		t.Errorf("got %v, want %v", err, errCutOff)
	}
	s = Open(&failing{whole}, "rec")
	s.Read(&e)
	if err := s.Read(&e); err == nil || !strings.Contains(err.Error(), "rec:2: reading: input/output error") {
		t.Errorf("got %v", err)
	}
}

// crowd is a recording of n sockets, which is made while it is read.
type crowd struct {
	n, made int
	event   func(n int) tcp.Event
	buf     bytes.Buffer
}

func (c *crowd) Read(p []byte) (int, error) {
	if c.buf.Len() == 0 {
		w := output.NewJSON(&c.buf)
		for range 100 {
			if c.made == c.n {
				break
			}
			e := c.event(c.made)
			c.made++
			if err := w.Write(&e); err != nil {
				return 0, err
			}
		}
		if err := w.Flush(); err != nil {
			return 0, err
		}
	}
	return c.buf.Read(p)
}

// What a Source keeps stays within what Track promises, whatever the recording holds.
func TestTrackMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes most of a minute under the race detector; make test runs it")
	}
	const promised = 80 << 20
	tests := []struct {
		name          string
		sockets       int
		state         tcp.State
		cgroup        func(n int) string
		kept, atLeast int
	}{
		{"many that are found by their addresses, which takes most", 270_000, tcp.TimeWait, func(int) string { return "/" }, maxSockets, maxSockets},
		{"an owner for each", 30_000, tcp.CloseWait, func(n int) string { return fmt.Sprintf("/%d", n) }, 20_000, 15_000},
		{"a long cgroup path for each", 12_000, tcp.CloseWait, func(n int) string {
			return fmt.Sprintf("/%d/%s", n, strings.Repeat("x", 4000))
		}, 3000, 2000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := closed
			e.Old, e.New = tcp.Established, test.state
			if test.state == tcp.TimeWait {
				e.Old = tcp.FinWait2
			}
			s := Open(&crowd{n: test.sockets, event: func(n int) tcp.Event {
				e.Cookie, e.Cgroup = uint64(n+1), test.cgroup(n)
				e.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, byte(n >> 16), byte(n >> 8), byte(n)}), 443)
				return e
			}}, "rec")
			s.Track(test.state)
			before := heap()
			kept := len(list(t, s, test.state))
			held := int(heap()) - int(before)
			t.Logf("%d of %d sockets are kept, in %.1f MB", kept, test.sockets, float64(held)/(1<<20))
			if kept > test.kept || kept < test.atLeast || kept+int(s.Forgotten()) != test.sockets {
				t.Errorf("%d are kept, %d forgotten; want %d to %d, of %d", kept, s.Forgotten(), test.atLeast, test.kept, test.sockets)
			}
			if held > promised {
				t.Errorf("%d bytes are held, %d are promised", held, promised)
			}
			runtime.KeepAlive(s)
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	for range 2 { // texts that nobody uses any more go with the second one
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// Whatever the recording, what exists are whole rows of the states that were asked for,
// which can be written and read again.
func FuzzSource(f *testing.F) {
	for _, e := range []tcp.Event{closed, listening, lost, at(1, 0, tcp.Listen, tcp.SynRecv, "10.0.0.1:80", "10.0.0.2:9")} {
		var line bytes.Buffer
		j := output.NewJSON(&line)
		if err := errors.Join(j.Write(&e), j.Flush()); err != nil {
			f.Fatal(err)
		}
		f.Add(line.Bytes(), uint64(1e9))
		f.Add(bytes.Repeat(line.Bytes(), 3), uint64(0))
	}
	states := []tcp.State{tcp.SynSent, tcp.SynRecv, tcp.Listen, tcp.CloseWait, tcp.TimeWait, tcp.Close}
	f.Fuzz(func(t *testing.T, recording []byte, deadline uint64) {
		s := Open(bytes.NewReader(recording), "rec")
		defer s.Stop()
		s.Track(states...)
		s.SetDeadline(deadline)
		var e tcp.Event
		for err := error(nil); err == nil; {
			if err = s.Read(&e); err == os.ErrDeadlineExceeded {
				s.SetDeadline(0)
				err = nil
			}
		}
		var rows []tcp.Event
		err := s.Existing(states, func(e *tcp.Event) error {
			rows = append(rows, *e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := read(lines(t, rows...))
		if err != nil || !slices.Equal(again, rows) {
			t.Fatalf("%+v\nis read again as %+v: %v", rows, again, err)
		}
	})
}

// When all is over, nothing is left of it.
func TestTrackLeavesNothing(t *testing.T) {
	var events []tcp.Event
	for n := range uint64(20) {
		open, end := closed, closed
		open.Cookie, open.New, open.Comm = n, tcp.CloseWait, fmt.Sprint(n%3)
		end.Cookie, end.Old, end.Comm = n, tcp.CloseWait, fmt.Sprint(n%7)
		end.Local = netip.AddrPortFrom(open.Local.Addr(), uint16(1+n))
		open.Local = end.Local
		events = append(events, open, end)
	}
	slices.SortStableFunc(events, func(a, b tcp.Event) int { return int(b.New) - int(a.New) })
	s := Open(strings.NewReader(lines(t, events...)), "rec")
	s.Track(tcp.CloseWait)
	if left := list(t, s, tcp.CloseWait); len(left) != 0 {
		t.Errorf("%q are left", left)
	}
	if len(s.sockets.traits) != 0 || s.sockets.bytes != 0 {
		t.Errorf("%d descriptions of %d bytes are left", len(s.sockets.traits), s.sockets.bytes)
	}
}

// Tracking costs a recording nothing per event but what reading costs anyway.
func BenchmarkSource(b *testing.B) {
	for name, states := range map[string][]tcp.State{"untracked": nil, "tracked": {tcp.CloseWait}} {
		b.Run(name, func(b *testing.B) {
			var line bytes.Buffer
			j := output.NewJSON(&line)
			e := closed
			e.New = tcp.CloseWait
			if err := errors.Join(j.Write(&e), j.Flush()); err != nil {
				b.Fatal(err)
			}
			s := Open(&again{line: line.Bytes()}, "rec")
			if states != nil {
				s.Track(states...)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Read(&e); err != nil {
					b.Fatal(err)
				}
			}
			s.Stop()
		})
	}
}

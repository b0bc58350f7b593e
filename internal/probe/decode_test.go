package probe

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// record makes the bytes of an event, as the ring holds them.
func record(e bpfEvent) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&e)), eventSize)...)
}

// words reads an address as the kernel keeps it: network order in memory.
func words(addr string) (w [4]uint32) {
	bytes := netip.MustParseAddr(addr).As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	return w
}

func comm(name string) (c [16]uint8) {
	copy(c[:], name)
	return c
}

func closeWait() bpfEvent {
	e := bpfEvent{
		Time: 5_000_000_000, Duration: 1_234_567, Cookie: 0x1f, Sk: 0xffff888000000000, Cgroup: 77,
		BytesSent: 10, BytesReceived: 20, Pid: 42, Uid: 1000, Fd: 7,
		Retransmits: 1, SrttUs: 55, RxQueue: 3, TxQueue: 4, Error: uint16(syscall.EPIPE),
		OldState: uint8(tcp.Established), NewState: uint8(tcp.CloseWait),
		Reason: bpfReasonREASON_FIN_RECEIVED, DurationKind: bpfDurationKindDURATION_EXACT,
		Role: bpfRoleROLE_SERVER, OwnerSource: bpfOwnerSourceOWNER_USE,
		Flags: bpfEventFlagsEVENT_COUNTERS | bpfEventFlagsEVENT_QUEUES | bpfEventFlagsEVENT_MPTCP,
		Comm:  comm("nginx"),
	}
	e.Conn.Laddr, e.Conn.Lport = words("::ffff:10.0.0.1"), 80
	e.Conn.Raddr, e.Conn.Rport = words("::ffff:10.0.0.2"), 54321
	e.Conn.Netns = 4026531833
	return e
}

func testDecoder() *decoder {
	d := newDecoder(false)
	d.wallOffset = 1_000
	return d
}

func TestDecode(t *testing.T) {
	want := tcp.Event{
		Kind: tcp.Transition, Time: 5_000_001_000, BootNS: 5_000_000_000, Cookie: 0x1f, NetNS: 4026531833, MPTCP: true,
		Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort("10.0.0.2:54321"),
		Old: tcp.Established, New: tcp.CloseWait, Duration: 1_234_567, DurationKind: tcp.Exact,
		Reason: tcp.FinReceived, Errno: uint32(syscall.EPIPE), Role: tcp.Server,
		PID: 42, Comm: "nginx", UID: 1000, FD: 7, OwnerSource: tcp.FromUse, CgroupID: 77,
		HasCounters: true, BytesSent: 10, BytesReceived: 20, Retransmits: 1, SRTT: 55,
		HasQueues: true, RxQueue: 3, TxQueue: 4,
	}
	var got tcp.Event
	if err := testDecoder().decode(record(closeWait()), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDecodeAddresses(t *testing.T) {
	for kernel, want := range map[string]string{
		"::ffff:192.0.2.1": "192.0.2.1", // an IPv4 socket, or a v4-mapped one
		"::ffff:0.0.0.0":   "0.0.0.0",
		"::":               "::", // a dual-stack listener
		"2001:db8::1":      "2001:db8::1",
	} {
		w := words(kernel)
		if got := addrPort(&w, 1).Addr().String(); got != want {
			t.Errorf("%s is decoded as %s, want %s", kernel, got, want)
		}
	}
}

// Without an owner there is no pid, name or descriptor, whatever the record holds.
func TestDecodeWithoutOwner(t *testing.T) {
	e := closeWait()
	e.OwnerSource = bpfOwnerSourceOWNER_NONE
	var got tcp.Event
	if err := testDecoder().decode(record(e), &got); err != nil {
		t.Fatal(err)
	}
	if got.PID != 0 || got.Comm != "" || got.FD != tcp.NoFD || got.OwnerSource != "" {
		t.Errorf("got pid %d, comm %q, fd %d, source %q, want none", got.PID, got.Comm, got.FD, got.OwnerSource)
	}
}

// FuzzDecode holds decode to its promise: an error, or an event of known words.
func FuzzDecode(f *testing.F) {
	f.Add(record(closeWait()))
	f.Add([]byte{})
	f.Add(make([]byte, eventSize+1))
	d := testDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		aligned := append(make([]byte, 0, max(len(data), 8)), data...)
		before := tcp.Event{Cookie: 1}
		ev := before
		err := d.decode(aligned, &ev)
		if (len(data) != eventSize) && err == nil {
			t.Fatalf("%d bytes were taken for an event", len(data))
		}
		if err != nil && ev != before {
			t.Fatal("an error changed the event")
		}
		if err == nil && (!ev.Local.Addr().IsValid() || !ev.Remote.Addr().IsValid()) {
			t.Fatalf("invalid address: %v, %v", ev.Local, ev.Remote)
		}
	})
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	d, rec := testDecoder(), record(closeWait())
	var ev tcp.Event
	if n := testing.AllocsPerRun(100, func() { _ = d.decode(rec, &ev) }); n != 0 {
		t.Errorf("%v allocations for each event, want none", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	d, rec := testDecoder(), record(closeWait())
	var ev tcp.Event
	b.ReportAllocs()
	for b.Loop() {
		if err := d.decode(rec, &ev); err != nil {
			b.Fatal(err)
		}
	}
}

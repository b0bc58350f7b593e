package probe

import (
	"bytes"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The tables turn the contract's numbers into the domain's words. Their indices
// are the generated constants, so neither side can drift unnoticed.
var (
	reasons = [...]tcp.Reason{
		bpfReasonREASON_NONE:                 "",
		bpfReasonREASON_CONNECT:              tcp.Connect,
		bpfReasonREASON_LISTEN:               tcp.ListenCall,
		bpfReasonREASON_SYN_RECEIVED:         tcp.SynReceived,
		bpfReasonREASON_HANDSHAKE_DONE:       tcp.HandshakeDone,
		bpfReasonREASON_CONNECT_FAILED:       tcp.ConnectFailed,
		bpfReasonREASON_LOCAL_CLOSE:          tcp.LocalClose,
		bpfReasonREASON_LOCAL_SHUTDOWN:       tcp.LocalShutdown,
		bpfReasonREASON_FIN_RECEIVED:         tcp.FinReceived,
		bpfReasonREASON_FIN_ACKED:            tcp.FinAcked,
		bpfReasonREASON_RST_RECEIVED:         tcp.RSTReceived,
		bpfReasonREASON_RST_SENT:             tcp.RSTSent,
		bpfReasonREASON_ICMP_RECEIVED:        tcp.ICMPReceived,
		bpfReasonREASON_TIMEOUT:              tcp.Timeout,
		bpfReasonREASON_SYN_TIMEOUT:          tcp.SynTimeout,
		bpfReasonREASON_ABORTED:              tcp.Aborted,
		bpfReasonREASON_LISTENER_CLOSED:      tcp.ListenerClosed,
		bpfReasonREASON_BACKLOG_FULL:         tcp.BacklogFull,
		bpfReasonREASON_EXPIRED:              tcp.Expired,
		bpfReasonREASON_REUSED_BY_CONNECT:    tcp.ReusedByConnect,
		bpfReasonREASON_REOPENED_BY_SYN:      tcp.ReopenedBySyn,
		bpfReasonREASON_NETNS_EXIT:           tcp.NetnsExit,
		bpfReasonREASON_KILLED:               tcp.Killed,
		bpfReasonREASON_TIMEWAIT_OVERFLOW:    tcp.TimewaitOverflow,
		bpfReasonREASON_ABORTED_LINGER:       tcp.AbortedLinger,
		bpfReasonREASON_DISCONNECTED:         tcp.Disconnected,
		bpfReasonREASON_LISTEN_FAILED:        tcp.ListenFailed,
		bpfReasonREASON_NEIGHBOR_UNREACHABLE: tcp.NeighborUnreachable,
		bpfReasonREASON_TOO_MANY_ORPHANS:     tcp.TooManyOrphans,
	}
	durationKinds = [...]tcp.DurationKind{
		bpfDurationKindDURATION_NONE:     "",
		bpfDurationKindDURATION_EXACT:    tcp.Exact,
		bpfDurationKindDURATION_AT_LEAST: tcp.AtLeast,
		bpfDurationKindDURATION_UNKNOWN:  tcp.Unknown,
	}
	roles = [...]tcp.Role{
		bpfRoleROLE_NONE:     "",
		bpfRoleROLE_CLIENT:   tcp.Client,
		bpfRoleROLE_SERVER:   tcp.Server,
		bpfRoleROLE_LISTENER: tcp.Listener,
	}
	ownerSources = [...]tcp.OwnerSource{
		bpfOwnerSourceOWNER_NONE:      "",
		bpfOwnerSourceOWNER_CONNECT:   tcp.FromConnect,
		bpfOwnerSourceOWNER_LISTEN:    tcp.FromListen,
		bpfOwnerSourceOWNER_ACCEPT:    tcp.FromAccept,
		bpfOwnerSourceOWNER_USE:       tcp.FromUse,
		bpfOwnerSourceOWNER_SNAPSHOT:  tcp.FromSnapshot,
		bpfOwnerSourceOWNER_CLOSE:     tcp.FromClose,
		bpfOwnerSourceOWNER_INHERITED: tcp.FromInherited,
	}
	holderStates = [...]tcp.Holder{
		bpfHolderHOLDER_UNKNOWN: "",
		bpfHolderHOLDER_HELD:    tcp.Held,
		bpfHolderHOLDER_GONE:    tcp.Gone,
	}
)

const eventSize = int(unsafe.Sizeof(bpfEvent{}))

// maxNames bounds the cache of process names: every name costs 16 bytes and its
// string. Past it the cache starts again, which costs one allocation a name.
const maxNames = 4096

// decoder turns records into events without allocating: names, of which there are
// few, are kept.
type decoder struct {
	clock      bootClock
	wallOffset int64 // ns: the wall clock less the clock of events
	kernelAddr bool  // fill in Event.SkAddr
	names      map[[16]uint8]string
	lastComm   [16]uint8 // most events are of the process that the one before was of
	lastName   string
	holders    *holderList // of sockets that several processes hold; nil: nobody looked
}

func newDecoder(kernelAddr bool) *decoder {
	clock := newBootClock()
	return &decoder{
		clock:      clock,
		wallOffset: clock.wallOffset(),
		kernelAddr: kernelAddr,
		names:      make(map[[16]uint8]string),
	}
}

// decode fills ev from one record. The record is not kept. A record of another
// size, or with a number that the contract does not know, is an error: it would
// mean that the object does not belong to this binary.
func (d *decoder) decode(record []byte, ev *tcp.Event) error {
	if len(record) != eventSize {
		return fmt.Errorf("decode event: %d bytes instead of %d", len(record), eventSize)
	}
	// The one cast in this codebase: binary.Decode takes 1.2 µs, this 4 ns. The
	// length was checked, and rings and read buffers are 8-byte aligned.
	raw := (*bpfEvent)(unsafe.Pointer(unsafe.SliceData(record)))
	if int(raw.Reason) >= len(reasons) || int(raw.DurationKind) >= len(durationKinds) ||
		int(raw.Role) >= len(roles) || int(raw.OwnerSource) >= len(ownerSources) || int(raw.Holder) >= len(holderStates) {
		return fmt.Errorf("decode event: reason %d, duration kind %d, role %d, owner source %d or holder %d is out of range",
			raw.Reason, raw.DurationKind, raw.Role, raw.OwnerSource, raw.Holder)
	}
	*ev = tcp.Event{
		Time:          int64(raw.Time) + d.wallOffset,
		BootNS:        raw.Time,
		Cookie:        raw.Cookie,
		NetNS:         raw.Conn.Netns,
		Device:        raw.Conn.Device,
		MPTCP:         raw.Flags&bpfEventFlagsEVENT_MPTCP != 0,
		Local:         addrPort(&raw.Conn.Laddr, raw.Conn.Lport),
		Remote:        addrPort(&raw.Conn.Raddr, raw.Conn.Rport),
		Old:           tcp.State(raw.OldState),
		New:           tcp.State(raw.NewState),
		Duration:      raw.Duration,
		DurationKind:  durationKinds[raw.DurationKind],
		Reason:        reasons[raw.Reason],
		Errno:         uint32(raw.Error),
		Role:          roles[raw.Role],
		UID:           raw.Uid,
		FD:            tcp.NoFD,
		OwnerSource:   ownerSources[raw.OwnerSource],
		CgroupID:      raw.Cgroup,
		Stack:         raw.Stack,
		HasCounters:   raw.Flags&bpfEventFlagsEVENT_COUNTERS != 0,
		BytesSent:     raw.BytesSent,
		BytesReceived: raw.BytesReceived,
		Retransmits:   raw.Retransmits,
		SRTT:          raw.SrttUs,
		HasQueues:     raw.Flags&bpfEventFlagsEVENT_QUEUES != 0,
		RxQueue:       raw.RxQueue,
		TxQueue:       raw.TxQueue,
		Unaccepted:    raw.Flags&bpfEventFlagsEVENT_UNACCEPTED != 0,
		Acked:         raw.Flags&bpfEventFlagsEVENT_ACKED != 0,
		HasDrops:      raw.Flags&bpfEventFlagsEVENT_DROPS != 0,
		Drops:         raw.Drops,
	}
	if raw.Kind == bpfKindSOCKET {
		ev.Kind = tcp.Socket
	}
	if d.kernelAddr {
		ev.SkAddr = raw.Sk
	}
	if ev.OwnerSource != "" {
		ev.PID = raw.Pid
		ev.FD = raw.Fd
		ev.Holder = holderStates[raw.Holder]
		ev.Comm = d.name(&raw.Comm)
	}
	if d.holders != nil {
		ev.Details = d.holders.of(raw.Sk, ev)
	}
	return nil
}

func (d *decoder) name(comm *[16]uint8) string {
	if *comm == d.lastComm {
		return d.lastName
	}
	name, known := d.names[*comm]
	if !known {
		if len(d.names) >= maxNames {
			clear(d.names)
		}
		text, _, _ := bytes.Cut(comm[:], []byte{0})
		name = string(text)
		d.names[*comm] = name
	}
	d.lastComm, d.lastName = *comm, name
	return name
}

// addrPort reads an address of the contract: network order, IPv4 as v4-mapped.
func addrPort(words *[4]uint32, port uint16) netip.AddrPort {
	addr := *(*[16]byte)(unsafe.Pointer(words))
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port)
}

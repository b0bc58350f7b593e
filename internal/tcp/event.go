// Package tcp is the domain: the states of a TCP socket, the event that tells of
// one change, and what can be concluded from a sequence of events. It is pure:
// no I/O, no clock, no goroutine, so that a recording and the live kernel are
// treated alike.
package tcp

import "net/netip"

// Kind says what an Event tells.
type Kind uint8

// The kinds of Event.
const (
	Transition Kind = iota // a socket went from Old to New
	Socket                 // a socket that exists: it is in New
	Lost                   // Lost events are missing here
)

// Reason says why a state ended: what happened on the wire or in the process.
// The empty Reason means that no cause is known.
type Reason string

// The reasons. Which kernel function proves each is noted in bpf/reason.h.
const (
	Connect          Reason = "connect"           // connect() sent a SYN
	ListenCall       Reason = "listen"            // listen()
	SynReceived      Reason = "syn_received"      // the peer's SYN arrived
	HandshakeDone    Reason = "handshake_done"    // the handshake completed
	ConnectFailed    Reason = "connect_failed"    // connect() failed before a SYN was sent: no free port, no route
	LocalClose       Reason = "local_close"       // close(), or the exit of the last owner
	LocalShutdown    Reason = "local_shutdown"    // shutdown()
	FinReceived      Reason = "fin_received"      // the peer's FIN arrived
	FinAcked         Reason = "fin_acked"         // the peer acknowledged our FIN
	RSTReceived      Reason = "rst_received"      // the peer reset or refused the connection
	RSTSent          Reason = "rst_sent"          // we reset the connection: data came after close
	ICMPReceived     Reason = "icmp_received"     // an ICMP error ended it: unreachable, prohibited
	Timeout          Reason = "timeout"           // retransmission, keepalive, user timeout, tcp_fin_timeout
	SynTimeout       Reason = "syn_timeout"       // the handshake was given up
	Aborted          Reason = "aborted"           // SOCK_DESTROY, close with unread data, linger 0, connect(AF_UNSPEC)
	ListenerClosed   Reason = "listener_closed"   // its listener closed before accept()
	BacklogFull      Reason = "backlog_full"      // the accept queue had no room
	Expired          Reason = "expired"           // TIME_WAIT ran its time
	ReusedByConnect  Reason = "reused_by_connect" // connect() took over the address pair
	ReopenedBySyn    Reason = "reopened_by_syn"   // a new SYN took over the address pair
	NetnsExit        Reason = "netns_exit"        // the network namespace is gone
	Killed           Reason = "killed"            // SOCK_DESTROY of a TIME_WAIT
	TimewaitOverflow Reason = "timewait_overflow" // tcp_max_tw_buckets: TIME_WAIT was not entered
)

// DurationKind says how well Event.Duration is known. Empty means that a
// duration does not apply, as for the first transition of a new socket.
type DurationKind string

// The kinds of duration.
const (
	Exact   DurationKind = "exact"
	AtLeast DurationKind = "at_least" // the state is older than the trace
	Unknown DurationKind = "unknown"
)

// Role is the part that a socket plays in its connection.
type Role string

// The roles.
const (
	Client   Role = "client"
	Server   Role = "server"
	Listener Role = "listener"
)

// OwnerSource says how the owner of a socket is known. Empty means that the
// owner is not known; PID, Comm and FD do not apply then.
type OwnerSource string

// The sources, see design.md section 5.
const (
	FromConnect   OwnerSource = "connect"
	FromListen    OwnerSource = "listen"
	FromAccept    OwnerSource = "accept"
	FromUse       OwnerSource = "use"
	FromSnapshot  OwnerSource = "snapshot"
	FromClose     OwnerSource = "close"
	FromInherited OwnerSource = "inherited"
)

// NoUID in Event.UID and NoFD in Event.FD mark an unknown value. (uid_t)-1 is
// never a user's id: setuid(2) refuses it.
const (
	NoUID = ^uint32(0)
	NoFD  = int32(-1)
)

// Event is one thing that happened to one socket, or, as Socket, one socket as
// it is. It is a plain value that can be reused and copied; its strings are
// shared, never built per event.
type Event struct {
	Kind Kind

	Time   int64  // wall clock, ns since the Unix epoch
	BootNS uint64 // CLOCK_BOOTTIME, ns since the boot

	Cookie   uint64 // as after "sk:" in ss -e; 0: half-open, none yet
	SkAddr   uint64 // kernel address of struct sock; 0: not asked for
	NetNS    uint32 // inode of the network namespace; 0: unknown
	MPTCP    bool   // a subflow of an MPTCP connection
	Local    netip.AddrPort
	Remote   netip.AddrPort
	Old, New State // Socket: Old is 0

	Duration     uint64 // ns in Old; Socket: ns in New so far
	DurationKind DurationKind
	Reason       Reason
	Errno        uint32 // the socket's error, 0 for none

	Role        Role
	PID         uint32
	Comm        string // name of the process, raw: may hold any byte but NUL
	UID         uint32 // NoUID: unknown
	FD          int32  // NoFD: unknown
	OwnerSource OwnerSource
	CgroupID    uint64 // cgroup v2 id, the inode of its directory; 0: unknown
	Cgroup      string // cgroup v2 path, raw; filled in by enrich
	ContainerID string // filled in by enrich

	Stack uint32 // names the code that opened the socket, see probe.Stack; 0: not kept

	HasCounters   bool // the next four apply
	BytesSent     uint64
	BytesReceived uint64
	Retransmits   uint32
	SRTT          uint32 // smoothed round trip time, µs

	HasQueues bool   // the next two apply
	RxQueue   uint32 // unread bytes; a listener's accept queue
	TxQueue   uint32 // unacknowledged bytes; a listener's backlog limit

	Lost  uint64 // Lost: how many events since the last one
	Where string // Lost: where they were dropped
}

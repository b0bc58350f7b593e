package tcp

// Reason says why a state ended: what happened on the wire or in the process.
// The empty Reason means that no cause is known.
type Reason string

// The reasons. bpf/reason.h notes which kernel function proves each.
const (
	Connect             Reason = "connect"              // connect() sent a SYN
	ListenCall          Reason = "listen"               // listen()
	SynReceived         Reason = "syn_received"         // the peer's SYN arrived
	HandshakeDone       Reason = "handshake_done"       // the handshake completed
	ConnectFailed       Reason = "connect_failed"       // connect() failed before a SYN was sent: no free port, no route
	LocalClose          Reason = "local_close"          // close(), or the exit of the last owner
	LocalShutdown       Reason = "local_shutdown"       // shutdown()
	FinReceived         Reason = "fin_received"         // the peer's FIN arrived
	FinAcked            Reason = "fin_acked"            // the peer acknowledged our FIN
	RSTReceived         Reason = "rst_received"         // the peer reset or refused the connection
	RSTSent             Reason = "rst_sent"             // we reset the connection: data came after close, a SYN within a handshake
	ICMPReceived        Reason = "icmp_received"        // an ICMP error ended it: unreachable, prohibited
	NeighborUnreachable Reason = "neighbor_unreachable" // the next hop did not answer ARP or neighbor discovery
	Timeout             Reason = "timeout"              // retransmission, keepalive, user timeout, tcp_fin_timeout
	SynTimeout          Reason = "syn_timeout"          // the handshake was given up
	Aborted             Reason = "aborted"              // we reset it: close() with unread data, or TCP_LINGER2 below 0
	AbortedLinger       Reason = "aborted_linger"       // we reset it: close() with SO_LINGER and a time of 0
	Disconnected        Reason = "disconnected"         // connect() to AF_UNSPEC; a connection is reset by it
	ListenFailed        Reason = "listen_failed"        // listen() failed: another socket listens there
	TooManyOrphans      Reason = "too_many_orphans"     // tcp_max_orphans or tcp_mem: the kernel gave up a closed socket
	ListenerClosed      Reason = "listener_closed"      // its listener closed before accept()
	BacklogFull         Reason = "backlog_full"         // the accept queue had no room; with tcp_abort_on_overflow we reset it
	Expired             Reason = "expired"              // TIME_WAIT ran its time
	ReusedByConnect     Reason = "reused_by_connect"    // connect() took over the address pair
	ReopenedBySyn       Reason = "reopened_by_syn"      // a new SYN took over the address pair
	NetnsExit           Reason = "netns_exit"           // the network namespace is gone
	Killed              Reason = "killed"               // SOCK_DESTROY, as by ss -K
	TimewaitOverflow    Reason = "timewait_overflow"    // tcp_max_tw_buckets: TIME_WAIT was not entered
)

// Reasons lists every reason: for whatever reads, filters, completes or documents them.
var Reasons = []Reason{
	Connect, ListenCall, SynReceived, HandshakeDone, ConnectFailed, LocalClose, LocalShutdown,
	FinReceived, FinAcked, RSTReceived, RSTSent, ICMPReceived, NeighborUnreachable, Timeout, SynTimeout,
	Aborted, AbortedLinger, Disconnected, ListenFailed, TooManyOrphans, ListenerClosed, BacklogFull, Expired, ReusedByConnect, ReopenedBySyn, NetnsExit, Killed,
	TimewaitOverflow,
}

package tcp

// Reason says why a state ended: what happened on the wire or in the process.
// The empty Reason means that no cause is known.
type Reason string

// The reasons. bpf/reason.h notes which kernel function proves each.
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

// Reasons lists every reason: for whatever reads, filters, completes or documents them.
var Reasons = []Reason{
	Connect, ListenCall, SynReceived, HandshakeDone, ConnectFailed, LocalClose, LocalShutdown,
	FinReceived, FinAcked, RSTReceived, RSTSent, ICMPReceived, Timeout, SynTimeout, Aborted,
	ListenerClosed, BacklogFull, Expired, ReusedByConnect, ReopenedBySyn, NetnsExit, Killed,
	TimewaitOverflow,
}

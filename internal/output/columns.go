package output

import (
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"golang.org/x/sys/unix"
)

// column is one thing that can be told of an event: a field in JSON where it has
// a key, a column on the terminal and in CSV where it has a title. Exactly one of
// number, text and append yields its value, and each can say that the event has
// none: the JSON field is absent then, the CSV cell empty, the column "-".
type column struct {
	key, title  string
	width, wide int  // in characters, wide with Options.Wide; 0: as long as it gets
	right       bool // aligned to the right
	on          kinds
	bare        bool // append yields a JSON number, not a string

	number func(*tcp.Event) (uint64, bool)
	text   func(*tcp.Event) (string, bool) // may be hostile: escaped by each writer, cut to width on the terminal
	append func([]byte, *tcp.Event) []byte // plain ASCII; appending nothing says that there is no value
}

// kinds is a set of tcp.Kind.
type kinds uint8

const (
	changes kinds = 1 << tcp.Transition
	rows    kinds = 1 << tcp.Socket
	losses  kinds = 1 << tcp.Lost
	sockets       = changes | rows
	all           = sockets | losses
)

func (k kinds) has(kind tcp.Kind) bool { return k>>kind&1 != 0 }

// The layouts, by title. CGROUP comes last, where it can be as long as it is.
const (
	streamLayout  = "PID COMM IP LADDR LPORT RADDR RPORT OLDSTATE -> NEWSTATE MS REASON"
	streamMore    = "COOKIE NETNS PROTO ROLE OWNER FD UID ERRNO RX TX BYTES_SENT BYTES_RECV RETRANS SRTT_US SKADDR CONTAINER CGROUP"
	socketsLayout = "STATE RECV-Q SEND-Q LOCAL REMOTE PID COMM FD AGE NETNS"
	socketsMore   = "COOKIE PROTO ROLE OWNER UID BYTES_SENT BYTES_RECV RETRANS SRTT_US SKADDR CONTAINER CGROUP"
)

// table returns every column there is, in the order of the JSON fields. The first
// two of those, v and type, are written by JSON itself.
func (p *pen) table() []column {
	return slices.Concat(p.whenColumns(), socketColumns, p.changeColumns(), ownerColumns, measureColumns)
}

func (p *pen) whenColumns() []column {
	return []column{
		{title: "TYPE", on: all, text: func(e *tcp.Event) (string, bool) { return kindNames[e.Kind], true }},
		{key: "time", on: all, append: p.rfc3339},
		{title: "TIME", width: 8, on: all, append: p.wallClock},
		{title: "TIME(s)", width: 12, on: all, append: p.seconds},
		{key: "boot_ns", on: all, append: func(b []byte, e *tcp.Event) []byte { return strconv.AppendUint(b, e.BootNS, 10) }},
	}
}

var socketColumns = []column{
	{key: "cookie", title: "COOKIE", width: 16, on: sockets, append: cookie},
	{key: "skaddr", title: "SKADDR", width: 18, on: sockets, append: skaddr},
	{key: "netns", title: "NETNS", width: 10, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.NetNS), e.NetNS != 0 }},
	{key: "family", on: sockets, text: family},
	{title: "IP", width: 2, on: sockets, append: ipVersion},
	{key: "protocol", title: "PROTO", width: 5, on: sockets, text: protocol},
	{key: "laddr", title: "LADDR", width: 15, wide: 39, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return e.Local.Addr().AppendTo(b) }},
	{key: "lport", title: "LPORT", width: 5, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Local.Port()), true }},
	{key: "raddr", title: "RADDR", width: 15, wide: 39, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return e.Remote.Addr().AppendTo(b) }},
	{key: "rport", title: "RPORT", width: 5, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Remote.Port()), true }},
	{title: "LOCAL", width: 21, wide: 47, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Local) }},
	{title: "REMOTE", width: 21, wide: 47, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Remote) }},
}

func (p *pen) changeColumns() []column {
	newState := func(e *tcp.Event) (string, bool) { return e.New.String(), true }
	return []column{
		{key: "old_state", title: "OLDSTATE", width: 11, on: changes, text: func(e *tcp.Event) (string, bool) { return e.Old.String(), true }},
		{title: "->", width: 2, on: sockets, append: func(b []byte, _ *tcp.Event) []byte { return append(b, "->"...) }},
		{key: "new_state", on: changes, text: newState},
		{key: "state", on: rows, text: newState},
		{title: "NEWSTATE", width: 11, on: sockets, text: newState},
		{title: "STATE", width: 11, on: sockets, text: newState},
		{key: "duration_ms", title: "MS", width: 12, right: true, on: sockets, bare: true, append: p.milliseconds},
		{title: "AGE", width: 9, on: sockets, append: p.age},
		{key: "duration_kind", title: "MS_KIND", on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.DurationKind) }},
		{key: "reason", title: "REASON", width: 17, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Reason) }},
		{key: "errno", title: "ERRNO", width: 12, on: sockets, append: errno},
	}
}

var ownerColumns = []column{
	{key: "role", title: "ROLE", width: 8, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Role) }},
	{key: "pid", title: "PID", width: 7, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.PID), e.OwnerSource != "" }},
	{key: "comm", title: "COMM", width: 10, wide: 16, on: sockets, text: func(e *tcp.Event) (string, bool) { return e.Comm, e.OwnerSource != "" }},
	{key: "uid", title: "UID", width: 6, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.UID), e.UID != tcp.NoUID }},
	{key: "fd", title: "FD", width: 4, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.FD), e.FD >= 0 }},
	{key: "owner_source", title: "OWNER", width: 9, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.OwnerSource) }},
	{key: "cgroup", title: "CGROUP", on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Cgroup) }},
	{key: "container_id", title: "CONTAINER", width: 12, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.ContainerID) }},
}

var measureColumns = []column{
	{key: "bytes_sent", title: "BYTES_SENT", width: 10, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return e.BytesSent, e.HasCounters }},
	{key: "bytes_received", title: "BYTES_RECV", width: 10, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return e.BytesReceived, e.HasCounters }},
	{key: "retransmits", title: "RETRANS", width: 7, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Retransmits), e.HasCounters }},
	{key: "srtt_us", title: "SRTT_US", width: 7, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.SRTT), e.HasCounters }},
	{key: "rx_queue", title: "RX", width: 6, right: true, on: sockets, number: rxQueue},
	{key: "tx_queue", title: "TX", width: 6, right: true, on: sockets, number: txQueue},
	{title: "RECV-Q", width: 6, right: true, on: sockets, number: rxQueue},
	{title: "SEND-Q", width: 6, right: true, on: sockets, number: txQueue},
	{key: "events", title: "LOST", on: losses, number: func(e *tcp.Event) (uint64, bool) { return e.Lost, true }},
	{key: "where", title: "WHERE", on: losses, text: func(e *tcp.Event) (string, bool) { return e.Where, true }},
}

// known is a text that is not known when it is empty.
func known[T ~string](s T) (string, bool) { return string(s), s != "" }

func rxQueue(e *tcp.Event) (uint64, bool) { return uint64(e.RxQueue), e.HasQueues }
func txQueue(e *tcp.Event) (uint64, bool) { return uint64(e.TxQueue), e.HasQueues }

func cookie(b []byte, e *tcp.Event) []byte {
	if e.Cookie == 0 {
		return b
	}
	return strconv.AppendUint(b, e.Cookie, 16)
}

func skaddr(b []byte, e *tcp.Event) []byte {
	if e.SkAddr == 0 {
		return b
	}
	return strconv.AppendUint(append(b, "0x"...), e.SkAddr, 16)
}

func family(e *tcp.Event) (string, bool) {
	if e.Local.Addr().Is4() {
		return ipv4, true
	}
	return ipv6, e.Local.IsValid()
}

func ipVersion(b []byte, e *tcp.Event) []byte {
	name, _ := family(e)
	return append(b, name[len("ipv"):]...)
}

func protocol(e *tcp.Event) (string, bool) {
	if e.MPTCP {
		return protoMPTCP, true
	}
	return protoTCP, true
}

// endpoint prints a port that is not chosen yet, or any port, as ss does: "*".
func endpoint(b []byte, a netip.AddrPort) []byte {
	b = a.AppendTo(b)
	if a.IsValid() && a.Port() == 0 {
		b[len(b)-1] = '*'
	}
	return b
}

func errno(b []byte, e *tcp.Event) []byte {
	if e.Errno == 0 {
		return b
	}
	if name := unix.ErrnoName(syscall.Errno(e.Errno)); name != "" {
		return append(b, name...)
	}
	return strconv.AppendUint(b, uint64(e.Errno), 10)
}

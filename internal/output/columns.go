package output

import (
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// column is one thing that can be told of an event, on the terminal and in CSV.
// Exactly one of number, text and append yields its value, and each can say that the
// event has none: the CSV cell is empty then, the column "-".
type column struct {
	title       string
	width, wide int  // in characters, wide with Options.Wide; 0: as long as it gets
	right       bool // aligned to the right
	on          kinds

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
	streamMore    = "COOKIE NETNS DEVICE PROTO ROLE OWNER HOLDER FD UID ERRNO RX TX BYTES_SENT BYTES_RECV RETRANS SRTT_US SKADDR CONTAINER CGROUP"
	socketsLayout = "STATE RECV-Q SEND-Q LOCAL REMOTE PID COMM FD AGE NETNS"
	socketsMore   = "COOKIE DEVICE PROTO ROLE OWNER HOLDER UID DROPS BYTES_SENT BYTES_RECV RETRANS SRTT_US SKADDR CONTAINER CGROUP"
)

// table returns every column there is.
func (p *pen) table() []column {
	return slices.Concat(p.whenColumns(), socketColumns, p.changeColumns(), ownerColumns, measureColumns)
}

func (p *pen) whenColumns() []column {
	return []column{
		{title: "TYPE", on: all, text: func(e *tcp.Event) (string, bool) { return e.Kind.String(), true }},
		{title: "TIME", width: 8, on: all, append: p.wallClock},
		{title: "TIME(s)", width: 12, on: all, append: p.seconds},
	}
}

var socketColumns = []column{
	{title: "COOKIE", width: 16, on: sockets, append: cookie},
	{title: "SKADDR", width: 18, on: sockets, append: skaddr},
	{title: "NETNS", width: 10, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.NetNS), e.NetNS != 0 }},
	{title: "DEVICE", width: 6, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Device), e.Device != 0 }},
	{title: "IP", width: 2, on: sockets, append: ipVersion},
	{title: "PROTO", width: 5, on: sockets, text: func(e *tcp.Event) (string, bool) { return e.Protocol(), true }},
	{title: "LADDR", width: 15, wide: 39, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return e.Local.Addr().AppendTo(b) }},
	{title: "LPORT", width: 5, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Local.Port()), true }},
	{title: "RADDR", width: 15, wide: 39, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return e.Remote.Addr().AppendTo(b) }},
	{title: "RPORT", width: 5, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Remote.Port()), true }},
	{title: "LOCAL", width: 21, wide: 47, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Local) }},
	{title: "REMOTE", width: 21, wide: 47, on: sockets, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Remote) }},
}

func (p *pen) changeColumns() []column {
	newState := func(e *tcp.Event) (string, bool) { return e.New.String(), true }
	return []column{
		{title: "OLDSTATE", width: 11, on: changes, text: func(e *tcp.Event) (string, bool) { return e.Old.String(), true }},
		{title: "->", width: 2, on: sockets, append: func(b []byte, _ *tcp.Event) []byte { return append(b, "->"...) }},
		{title: "NEWSTATE", width: 11, on: sockets, text: newState},
		{title: "STATE", width: 11, on: sockets, text: newState},
		{title: "MS", width: 12, right: true, on: sockets, append: p.milliseconds},
		{title: "AGE", width: 9, on: sockets, append: p.age},
		{title: "MS_KIND", on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.DurationKind) }},
		{title: "REASON", width: 17, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Reason) }},
		{title: "ERRNO", width: 12, on: sockets, append: errno},
	}
}

var ownerColumns = []column{
	{title: "ROLE", width: 8, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Role) }},
	{title: "PID", width: 7, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.PID), e.OwnerSource != "" }},
	{title: "COMM", width: 10, wide: 16, on: sockets, text: func(e *tcp.Event) (string, bool) { return e.Comm, e.OwnerSource != "" }},
	{title: "UID", width: 6, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.UID), e.UID != tcp.NoUID }},
	{title: "FD", width: 4, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.FD), e.FD >= 0 }},
	{title: "OWNER", width: 9, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.OwnerSource) }},
	{title: "HOLDER", width: 6, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Holder) }},
	{title: "CGROUP", on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.Cgroup) }},
	{title: "CONTAINER", width: 12, on: sockets, text: func(e *tcp.Event) (string, bool) { return known(e.ContainerID) }},
}

var measureColumns = []column{
	{title: "BYTES_SENT", width: 10, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return e.BytesSent, e.HasCounters }},
	{title: "BYTES_RECV", width: 10, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return e.BytesReceived, e.HasCounters }},
	{title: "RETRANS", width: 7, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Retransmits), e.HasCounters }},
	{title: "SRTT_US", width: 7, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.SRTT), e.HasCounters }},
	{title: "RX", width: 6, right: true, on: sockets, number: rxQueue},
	{title: "TX", width: 6, right: true, on: sockets, number: txQueue},
	{title: "RECV-Q", width: 6, right: true, on: sockets, number: rxQueue},
	{title: "SEND-Q", width: 6, right: true, on: sockets, number: txQueue},
	{title: "DROPS", width: 6, right: true, on: sockets, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Drops), e.HasDrops }},
	{title: "LOST", on: losses, number: func(e *tcp.Event) (uint64, bool) { return e.Lost, true }},
	{title: "WHERE", on: losses, text: func(e *tcp.Event) (string, bool) { return e.Where, true }},
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

func ipVersion(b []byte, e *tcp.Event) []byte {
	return append(b, e.Family()[len("ipv"):]...)
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

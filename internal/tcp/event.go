// Package tcp is the domain: the states of a TCP socket, the event that describes
// one change, and what can be concluded from a sequence of events. It is pure:
// no I/O, no clock, no goroutine, so that a recording and the live kernel are
// treated in the same way.
package tcp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Kind says what an Event is.
type Kind uint8

// The kinds of Event.
const (
	Transition Kind = iota // a socket went from Old to New
	Socket                 // a socket that exists: it is in New
	Lost                   // Lost events are missing here
	Unseen                 // what listeners of a network namespace did that leaves no socket to show
)

var kindNames = [...]string{Transition: "transition", Socket: "socket", Lost: "lost", Unseen: "unseen"}

// OfSocket reports whether an event of this kind is about a socket.
func (k Kind) OfSocket() bool { return k == Transition || k == Socket }

// String returns the name as in the JSON field type; for a number that is not a Kind it
// returns "kind(N)".
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind understands what String returns.
func ParseKind(name string) (Kind, error) {
	if i := slices.Index(kindNames[:], name); i >= 0 {
		return Kind(i), nil
	}
	return 0, fmt.Errorf("unknown type %q: the types are %s", name, strings.Join(kindNames[:], ", "))
}

// SchemaVersion is the field v of JSON. It rises when the meaning of a field changes,
// not when a field is added.
const SchemaVersion = 1

// What the JSON fields family and protocol hold.
const (
	IPv4, IPv6           = "ipv4", "ipv6"
	ProtoTCP, ProtoMPTCP = "tcp", "mptcp"
)

// Family returns IPv4 or IPv6, empty where no address is known.
func (e *Event) Family() string {
	switch {
	case e.Local.Addr().Is4():
		return IPv4
	case e.Local.IsValid():
		return IPv6
	}
	return ""
}

// Protocol returns ProtoTCP, or ProtoMPTCP for a subflow of an MPTCP connection.
func (e *Event) Protocol() string {
	if e.MPTCP {
		return ProtoMPTCP
	}
	return ProtoTCP
}

// RemoteEnd is what a user calls the other end: the service of a client, and the host, not
// the port of the moment, of whoever came to a server.
func (e *Event) RemoteEnd() netip.AddrPort {
	if e.Role == Server || e.Role == "" && e.Local.Port() < e.Remote.Port() {
		return netip.AddrPortFrom(e.Remote.Addr(), 0)
	}
	return e.Remote
}

// DurationKind says how well Event.Duration is known. Empty means that a
// duration does not apply, as for the first transition of a new socket.
type DurationKind string

// The kinds of duration.
const (
	Exact   DurationKind = "exact"
	AtLeast DurationKind = "at_least" // the state is older than the trace
	Unknown DurationKind = "unknown"
)

// Known reports whether a duration of this kind has a value: exact, or a lower bound.
func (k DurationKind) Known() bool { return k == Exact || k == AtLeast }

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

// Holder says whether the owner of a socket still holds a descriptor of it. Empty means
// that this is not known.
type Holder string

// The values of Holder.
const (
	Held Holder = "held"
	Gone Holder = "gone" // closed, exited, or passed on
)

// NoUID in Event.UID and NoFD in Event.FD mark an unknown value. (uid_t)-1 is
// never a user's id: setuid(2) refuses it.
const (
	NoUID = ^uint32(0)
	NoFD  = int32(-1)
)

// Names are what people call the place of a socket. What is not known is empty; all is raw, and
// may hold any byte.
type Names struct {
	Container string // as its runtime or its pod calls it
	Image     string // as it was asked for
	Pod       string // of Kubernetes
	PodUID    string
	Namespace string // of Kubernetes, or else the project of Docker Compose
}

// Size is how many bytes the texts take.
func (n *Names) Size() int {
	return len(n.Container) + len(n.Image) + len(n.Pod) + len(n.PodUID) + len(n.Namespace)
}

// Named returns the names of an event, none where nothing is known.
func (e *Event) Named() Names {
	if e.Names == nil {
		return Names{}
	}
	return *e.Names
}

// Details are what only a table of sockets shows.
type Details struct {
	Cmdline string // of the owner, its arguments parted by spaces, raw

	// Holders are the processes that hold the socket, the owner among them, by PID: a server and
	// its workers, a parent and its child. nil: the owner alone, or nobody looked.
	Holders     []Process
	HoldersMore uint32 // others, for which there was no room
}

// Process is one that holds a socket.
type Process struct {
	PID  uint32
	Comm string // raw
	FD   int32  // one of its descriptors of the socket; NoFD: unknown
}

// Others is how many processes hold the socket beside the owner.
func (e *Event) Others() uint64 {
	if e.Details == nil || e.Details.Holders == nil {
		return 0
	}
	return uint64(len(e.Details.Holders)-1) + uint64(e.Details.HoldersMore)
}

// Where an event was lost: Event.Where.
const (
	WhereRing = "ring" // the ring buffer was full
	WhereMap  = "map"  // a socket found no room in a table: not an event, but the socket that would have events
	WhereHook = "hook" // the kernel did not run the program; reported at the next event of the socket
)

// Event is one thing that happened to one socket, or, as Socket, one socket as
// it is. It is a plain value that can be reused and copied; its strings are
// shared, never built per event.
type Event struct {
	Kind Kind

	Time   int64  // wall clock, ns since the Unix epoch
	BootNS uint64 // CLOCK_BOOTTIME, ns since the boot

	Cookie uint64 // as after "sk:" in ss -e; 0: half-open, none yet
	SkAddr uint64 // kernel address of struct sock; 0: not asked for
	NetNS  uint32 // inode of the network namespace; 0: unknown
	Device uint32 // index of the device that it is bound to, or of its scope; 0: none
	MPTCP  bool   // a subflow of an MPTCP connection
	// Unaccepted: it waits in its listener's accept queue; the owner is the listener's.
	Unaccepted bool
	// Acked: half-open, and the peer has completed the handshake: it waits for us.
	Acked    bool
	Local    netip.AddrPort
	Remote   netip.AddrPort
	Old, New State // Socket: Old is 0

	HasCounters bool // BytesSent, BytesReceived, Retransmits and SRTT apply
	HasQueues   bool // RxQueue and TxQueue apply
	HasDrops    bool // Drops applies

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
	Holder      Holder
	CgroupID    uint64 // cgroup v2 id, the inode of its directory; 0: unknown
	Cgroup      string // cgroup v2 path, raw; filled in by enrich
	ContainerID string // filled in by enrich
	Names       *Names // of the container; nil: none is known. Shared, never changed.

	BytesSent     uint64
	BytesReceived uint64
	Retransmits   uint32
	SRTT          uint32 // smoothed round trip time, µs

	RxQueue uint32 // unread bytes; a listener's accept queue, also where the socket is half-open
	TxQueue uint32 // unacknowledged bytes; a listener's backlog limit, likewise
	Drops   uint32 // connections that a listener had to drop so far (sk_drops)

	Stack uint32 // names the code that opened the socket, see probe.Stack; 0: not kept

	Details *Details // nil: none

	Lost  uint64 // Lost: how many events since the last one; Unseen: how many packets, likewise
	Where string // Lost: WhereRing and the like; Unseen: WhereCookie and the like
}

// Inherit fills in what the event does not know of its socket, as the event before it of the
// same socket has it: owner, user, place, role, cookie, counters.
func (e *Event) Inherit(before *Event) {
	if e.OwnerSource == "" {
		e.OwnerSource, e.PID, e.Comm, e.FD, e.Holder = before.OwnerSource, before.PID, before.Comm, before.FD, before.Holder
	}
	if e.UID == NoUID {
		e.UID = before.UID
	}
	if e.Cgroup == "" {
		e.CgroupID, e.Cgroup, e.ContainerID, e.Names = before.CgroupID, before.Cgroup, before.ContainerID, before.Names
	}
	if e.Role == "" {
		e.Role = before.Role
	}
	if e.Cookie == 0 {
		e.Cookie = before.Cookie
	}
	if !e.HasCounters {
		e.HasCounters = before.HasCounters
		e.BytesSent, e.BytesReceived, e.Retransmits, e.SRTT = before.BytesSent, before.BytesReceived, before.Retransmits, before.SRTT
	}
}

package tcp

// What an event of kind Unseen counts: Event.Where.
const (
	WhereCookie      = "syn_cookie"   // SYNs answered with a SYN cookie: no half-open connection is kept
	WhereAcceptQueue = "accept_queue" // SYNs and ACKs dropped, as an accept queue was full
	WhereSYNQueue    = "syn_queue"    // SYNs dropped, as a SYN queue was full and SYN cookies are off
	WhereListener    = "listener"     // SYNs and ACKs that a listener dropped for another reason
)

// maxNamespaces bounds Namespaces, for a recording that names as many as it likes. A host
// uses their numbers again.
const maxNamespaces = 1 << 16

// Namespaces are the network namespaces in which a Filter selects sockets. The kernel counts
// what its listeners drop for each namespace as a whole, so these are as near as such a
// count comes to the filter. It belongs to one goroutine.
type Namespaces struct {
	filter Filter
	last   uint32 // known, and most likely asked for again
	known  map[uint32]bool
}

// NewNamespaces returns Namespaces for a filter, which is not to be changed any more.
func NewNamespaces(f Filter) *Namespaces {
	// A SYN that is dropped never gets to a state, nor to an end.
	f.States, f.MinDuration, f.Reasons, f.Errnos, f.Where = nil, 0, nil, nil, nil
	return &Namespaces{filter: f, known: make(map[uint32]bool)}
}

// Note takes every event of a socket, whether the filter selects it or not.
func (n *Namespaces) Note(ev *Event) {
	if ev.NetNS == n.last {
		return
	}
	if !n.known[ev.NetNS] {
		if len(n.known) == maxNamespaces || !n.filter.Match(ev) {
			return
		}
		n.known[ev.NetNS] = true
	}
	n.last = ev.NetNS
}

// Have reports whether the filter has selected a socket in a namespace so far.
func (n *Namespaces) Have(netns uint32) bool { return n.known[netns] }

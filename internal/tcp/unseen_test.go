package tcp

import (
	"net/netip"
	"slices"
	"testing"
)

// What the kernel counts for a namespace is about a filter that selects sockets there, in
// whatever state they are.
func TestSelectUnseen(t *testing.T) {
	web := func(netns uint32) *Event {
		return &Event{
			Kind: Socket, New: Listen, NetNS: netns, UID: NoUID, FD: NoFD,
			Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort("0.0.0.0:0"),
		}
	}
	for name, test := range map[string]struct {
		filter Filter
		want   []uint32
	}{
		"no filter":        {Filter{}, []uint32{1, 2}},
		"a namespace":      {Filter{NetNS: []uint32{2, 3}}, []uint32{2}},
		"a port":           {Filter{LocalPorts: Port(80)}, []uint32{1, 2}},
		"another port":     {Filter{LocalPorts: Port(81)}, nil},
		"a state":          {Filter{States: []State{SynRecv}}, []uint32{1, 2}},
		"a time":           {Filter{States: []State{SynRecv}, MinDuration: 1, NetNS: []uint32{1}}, []uint32{1}},
		"a process":        {Filter{PIDs: []uint32{4711}}, []uint32{1}},
		"an end":           {Filter{Reasons: []Reason{Timeout}, Errnos: []uint32{110}, Where: func(*Event) bool { return false }}, []uint32{1, 2}},
		"a state and more": {Filter{States: []State{SynRecv}, PIDs: []uint32{4711}}, []uint32{1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewSelector(test.filter)
			nothing := func(*Event) error { return nil }
			owned := web(1)
			owned.PID, owned.OwnerSource = 4711, FromListen
			for _, e := range []*Event{web(1), owned, web(2)} {
				if err := s.Select(e, nothing); err != nil {
					t.Fatal(err)
				}
			}
			var got []uint32
			for netns := range uint32(5) {
				err := s.Select(&Event{Kind: Unseen, NetNS: netns, Lost: 1}, func(e *Event) error {
					got = append(got, e.NetNS)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("namespaces %v, want %v", got, test.want)
			}
		})
	}
}

// A recording may name as many namespaces as it likes.
func TestNamespacesAreBounded(t *testing.T) {
	n := NewNamespaces(Filter{})
	for netns := range uint32(2 * maxNamespaces) {
		n.Note(&Event{NetNS: netns + 1, Local: netip.MustParseAddrPort("10.0.0.1:80")})
	}
	if len(n.known) != maxNamespaces {
		t.Errorf("%d are kept", len(n.known))
	}
}

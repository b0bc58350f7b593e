package tcp

import (
	"net/netip"
	"testing"
)

func TestMissing(t *testing.T) {
	row := func(set func(*Event)) *Event {
		e := &Event{
			Kind: Socket, New: Established, Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort("10.0.0.2:3000"),
			OwnerSource: FromUse, PID: 7, Comm: "nginx", UID: 33, Cgroup: "/web", Duration: 5e9, DurationKind: Exact,
		}
		set(e)
		return e
	}
	noOwner := func(e *Event) { e.OwnerSource, e.PID, e.Comm = "", 0, "" }
	for _, test := range []struct {
		name   string
		filter Filter
		event  *Event
		want   Fact
	}{
		{"all is known and fits", Filter{PIDs: []uint32{7}, MinDuration: 1e9}, row(func(*Event) {}), NoFact},
		{"all is known and does not fit", Filter{PIDs: []uint32{8}, MinDuration: 9e9}, row(func(*Event) {}), NoFact},
		{"no owner", Filter{PIDs: []uint32{8}}, row(noOwner), Owner},
		{"no owner, by name", Filter{Comm: []string{"a*"}}, row(noOwner), Owner},
		{"no owner, but a port that does not fit", Filter{PIDs: []uint32{7}, LocalPorts: Port(81)}, row(noOwner), NoFact},
		{"no user", Filter{UIDs: []uint32{33}}, row(func(e *Event) { e.UID = NoUID }), User},
		{"no cgroup", Filter{Cgroups: []string{"/db"}}, row(func(e *Event) { e.Cgroup = "" }), Place},
		{"no cgroup, by container", Filter{Containers: []string{"ab"}}, row(func(e *Event) { e.Cgroup = "" }), Place},
		{"another container, its cgroup unknown", Filter{Containers: []string{"ab"}}, row(func(e *Event) { e.Cgroup, e.ContainerID = "", "cd" }), NoFact},
		{"no container in a known cgroup", Filter{Containers: []string{"ab"}}, row(func(*Event) {}), NoFact},
		{"a TIME_WAIT from before", Filter{Containers: []string{"ab"}}, row(func(e *Event) { e.New, e.Cgroup = TimeWait, "" }), Forgotten},
		{"the end of one", Filter{UIDs: []uint32{33}}, row(func(e *Event) { e.Kind, e.Old, e.New, e.UID = Transition, TimeWait, Close, NoUID }), Forgotten},
		{"unknown age", Filter{MinDuration: 1e9}, row(func(e *Event) { e.Duration, e.DurationKind = 0, Unknown }), Age},
		{"too little for all that is known", Filter{MinDuration: 9e9}, row(func(e *Event) { e.DurationKind = AtLeast }), Age},
		{"old enough in any case", Filter{MinDuration: 1e9}, row(func(e *Event) { e.DurationKind = AtLeast }), NoFact},
		{"unknown age in another state", Filter{MinDuration: 1e9, States: []State{CloseWait}}, row(func(e *Event) { e.DurationKind = Unknown }), NoFact},
		{"a first transition has no age", Filter{MinDuration: 1e9}, row(func(e *Event) { e.Kind, e.Duration, e.DurationKind = Transition, 0, "" }), NoFact},
		{"two facts", Filter{MinDuration: 9e9, Comm: []string{"a"}}, row(func(e *Event) { noOwner(e); e.DurationKind = AtLeast }), Age},
		{"a fact, and one that does not fit", Filter{MinDuration: 9e9, Comm: []string{"a"}}, row(func(e *Event) { e.DurationKind = AtLeast }), NoFact},
	} {
		if got := test.filter.Missing(test.event); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

func TestSelectorUnjudged(t *testing.T) {
	s := NewSelector(Filter{Comm: []string{"nginx"}})
	timeWait := func(cookie uint64, kind Kind, from, to State) *Event {
		return &Event{
			Kind: kind, Cookie: cookie, NetNS: 1, Old: from, New: to, UID: NoUID, FD: NoFD,
			Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(cookie)),
		}
	}
	owned := func(e *Event, comm string) *Event {
		e.OwnerSource, e.Comm = FromClose, comm
		return e
	}
	for _, e := range []*Event{
		timeWait(1, Socket, 0, TimeWait),                  // stays
		timeWait(2, Socket, 0, TimeWait),                  // ends
		owned(timeWait(3, Socket, 0, TimeWait), "apache"), // another's
		timeWait(4, Socket, 0, Established),               // will be another's
		timeWait(5, Socket, 0, Established),               // will match
		timeWait(2, Transition, TimeWait, Close),
		owned(timeWait(4, Transition, Established, CloseWait), "apache"),
		owned(timeWait(5, Transition, Established, CloseWait), "nginx"),
	} {
		if err := s.Select(e, func(*Event) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := s.Unjudged(), (Unjudged{Forgotten: 2}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What was of unknown age stays so when the socket goes on to its next state.
func TestSelectorUnjudgedAge(t *testing.T) {
	s := NewSelector(Filter{MinDuration: 10e9})
	at := func(cookie uint64) Event {
		return Event{
			Cookie: cookie, NetNS: 1,
			Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(cookie)),
		}
	}
	for _, cookie := range []uint64{1, 2} {
		row, last := at(cookie), at(cookie)
		row.Kind, row.New, row.DurationKind = Socket, CloseWait, Unknown
		last.Old, last.New, last.DurationKind, last.Duration = LastAck, Close, Exact, 5
		if cookie == 2 {
			row.DurationKind, row.Duration = Exact, 5
		}
		for _, e := range []*Event{&row, &last} {
			if err := s.Select(e, func(*Event) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, want := s.Unjudged(), (Unjudged{Age: 1}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

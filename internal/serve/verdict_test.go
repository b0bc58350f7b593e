package serve

import (
	"errors"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// looked are snapshots after looks at the sockets, 10 s apart.
func looked(reports ...*leak.Report) *snapshot {
	m, l := newMeter(10, 10), look{}
	m.event(move(1, "/system.slice/a.service", 0, tcp.Close, tcp.SynSent))
	for i, r := range reports {
		var failed error
		if r == nil {
			failed = errors.New("no room\x1b[2J")
		}
		l = l.next(uint64(10*(i+1))*1e9, r, failed, m)
	}
	now := uint64(10*len(reports)) * 1e9
	return &snapshot{host: &stats.Report{Time: int64(now), BootNS: now}, look: l}
}

func quiet() *leak.Report {
	return &leak.Report{States: []tcp.State{tcp.CloseWait, tcp.Close}, Watched: leak.MinWatch, OlderThan: 10e9}
}

func leaking(more int) *leak.Report {
	r := quiet()
	r.Leaks = 1 + more
	r.Groups = []*leak.Group{{
		Cgroup: "/system.slice/a.service", Comm: "a\x1b", PID: 7, State: tcp.CloseWait, Count: 37, Oldest: 3600e9, AtLeast: true, Growth: 12, GrowthKnown: true,
		Left: 60e9, LeftKnown: true, Verdict: leak.Leak, Diagnosis: "A missing close().",
	}}
	return r
}

// A sentence says what a name is that is no unit's and no container's.
func TestWho(t *testing.T) {
	for service, want := range map[string]string{
		"a.service": "a.service", "/": "Cgroup /", otherService: "One of the services in ~other", unknownService: "A service that is not known",
	} {
		if got := (&finding{service: service}).who(); got != want {
			t.Errorf("%s: got %s", service, got)
		}
	}
}

func with(change func(*leak.Report)) *leak.Report {
	r := quiet()
	change(r)
	return r
}

// It is an all-clear only if a leak would have been seen.
func TestVerdict(t *testing.T) {
	lost := looked(quiet())
	lost.lost = []counted{{tcp.WhereMap, 1}, {tcp.WhereRing, 7}}
	skipped := looked(quiet())
	skipped.look.skipped = "the sockets of a network namespace are not listed: EPERM"
	leaked := looked(leaking(0))
	leaked.lost = []counted{{tcp.WhereHook, 5}}
	none := looked(quiet())
	none.lost = []counted{{tcp.WhereMap, 0}, {tcp.WhereRing, 3}} // a look reads the table
	const not = "Not known whether sockets leak: "
	for name, c := range map[string]struct {
		s                          *snapshot
		verdict, sentence, details string
	}{
		"no look":   {looked(), verdictUnknown, not + "nobody has looked yet.", ""},
		"none":      {none, verdictNone, "No leak seen since 1970-01-01 00:00:10 UTC.", "Last look at the sockets in CLOSE_WAIT and CLOSE: 1970-01-01 00:00:10 UTC. What is there for less than 10s does not count yet."},
		"longer":    {looked(quiet(), quiet()), verdictNone, "No leak seen since 1970-01-01 00:00:10 UTC.", "Last look at the sockets in CLOSE_WAIT and CLOSE: 1970-01-01 00:00:20 UTC. What is there for less than 10s does not count yet."},
		"over":      {looked(quiet(), leaking(0), quiet()), verdictNone, "No leak seen since 1970-01-01 00:00:20 UTC.", "Last look at the sockets in CLOSE_WAIT and CLOSE: 1970-01-01 00:00:30 UTC. What is there for less than 10s does not count yet."},
		"recovered": {looked(quiet(), nil, quiet()), verdictNone, "No leak seen since 1970-01-01 00:00:20 UTC.", "Last look at the sockets in CLOSE_WAIT and CLOSE: 1970-01-01 00:00:30 UTC. What is there for less than 10s does not count yet."},
		"failed":    {looked(leaking(0), nil), verdictUnknown, not + `the last look failed: no room\x1b[2J.`, ""},
		"lost":      {lost, verdictUnknown, not + "1 event was lost since the start, and what was not seen may leak.", ""},
		"skipped":   {skipped, verdictUnknown, not + "at the start, the sockets of a network namespace are not listed: EPERM.", ""},
		"early": {looked(with(func(r *leak.Report) { r.Watched = 3e9 })), verdictUnknown,
			not + "it is too early to tell: they have been watched for 3s.", ""},
		"undecided": {looked(with(func(r *leak.Report) { r.Undecided, r.UnknownAge, r.Unplaced = 2, 1, 4 })), verdictUnknown,
			not + "2 groups may leak, it is too early to tell.", "1 socket of unknown age. 4 sockets without a group, for lack of room."},
		"leak": {looked(quiet(), leaking(2)), verdictLeak, "a.service leaks: 37 sockets in CLOSE_WAIT, the oldest for at least 1h00m.",
			`Of a\x1b (process 7), +12.0 a minute, no descriptor is left in 1m00s. A missing close(). 2 more groups of sockets leak.`},
		"leak and lost": {leaked, verdictLeak, "a.service leaks: 37 sockets in CLOSE_WAIT, the oldest for at least 1h00m.",
			`Of a\x1b (process 7), +12.0 a minute, no descriptor is left in 1m00s. A missing close(). 5 events were lost since the start, and what was not seen may leak.`},
	} {
		got := c.s.verdict()
		if got.Verdict != c.verdict || got.Sentence != c.sentence || strings.Join(got.Details, " ") != c.details {
			t.Errorf("%s: got %s\n%s\n%q\nwant %s\n%s\n%q", name, got.Verdict, got.Sentence, strings.Join(got.Details, " "), c.verdict, c.sentence, c.details)
		}
	}
}

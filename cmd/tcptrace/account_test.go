package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

func TestAccount(t *testing.T) {
	var nothing account
	all := account{
		counts: pipeline.Counts{Events: 9, Unknown: 8, Lost: 7}, losses: probe.Losses{Lost: 6, Untracked: 5, MissedTransitions: 4, SkippedRuns: 3},
		dropped: 2, unjudged: tcp.Unjudged{tcp.User: 1},
	}
	const rest = "4 state changes not seen (the kernel ran no hook for them), 3 hook runs skipped by the kernel (recursion), " +
		"2 sockets not shown whole (too many undecided for the filter), 1 socket left out by --uid: their user is not known"
	for _, test := range []struct{ got, want string }{
		{nothing.ofTrace(), "0 events, 0 lost, 0 unknown durations"},
		{nothing.ofLeaks(), ""},
		{nothing.ofRecording(), ""},
		{all.ofTrace(), "9 events, 6 lost, 8 unknown durations, 5 sockets not tracked (raise --max-sockets), " + rest},
		{all.ofLeaks(), "6 events lost, 5 sockets not tracked (no more fit in the table), " + rest},
		{account{counts: pipeline.Counts{Lost: 7}, forgotten: 2}.ofRecording(),
			"7 events were lost when this was recorded, 2 sockets of the recording left out (no more fit in memory)"},
	} {
		if test.got != test.want {
			t.Errorf("got  %q\nwant %q", test.got, test.want)
		}
	}
}

// A line for each network namespace of the filter, but not for hundreds of them.
func TestAccountOfListeners(t *testing.T) {
	const cookie, full = " answered with a SYN cookie: not shown until the handshake is complete", " of handshakes dropped: an accept queue was full"
	var losses probe.Losses
	var want []string
	for netns := range uint32(maxUnseen + 2) {
		losses.Unseen = append(losses.Unseen, probe.Unseen{NetNS: netns, Packets: map[string]uint64{tcp.WhereCookie: 1, tcp.WhereAcceptQueue: uint64(netns)}})
		losses.UnknownUnseen = append(losses.UnknownUnseen, netns)
	}
	want = append(want, "network namespace 1: 1 SYN"+cookie+"; 1 packet"+full)
	for netns := 2; netns <= maxUnseen; netns++ {
		want = append(want, fmt.Sprintf("network namespace %d: 1 SYN%s; %[1]d packets%[3]s", netns, cookie, full))
	}
	want = append(want, fmt.Sprintf("1 more network namespace: 1 SYN%s; %d packets%s", cookie, maxUnseen+1, full),
		"network namespaces 1 2 3 4 5 6 7 8 and 1 more: what listeners dropped, or answered with SYN cookies, is not known: "+
			"they began or ended meanwhile, or could not be read")
	all := account{losses: losses, namespaces: tcp.NewNamespaces(tcp.Filter{})}
	for netns := range uint32(maxUnseen + 2) {
		all.namespaces.Note(&tcp.Event{NetNS: netns, Local: netip.MustParseAddrPort("10.0.0.1:80")}) // 0 is not a namespace
	}
	if diff := cmp.Diff(want, all.ofListeners()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, nothing := range []account{{losses: losses}, {losses: losses, namespaces: tcp.NewNamespaces(tcp.Filter{})}} {
		if got := nothing.ofListeners(); got != nil {
			t.Errorf("got %q outside of the filter", got)
		}
	}
}

package main

import (
	"testing"

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

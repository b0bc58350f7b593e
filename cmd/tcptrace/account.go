package main

import (
	"fmt"
	"strings"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
)

// account is what a run has to say at its end: what was seen and, above all, what was not.
type account struct {
	counts  pipeline.Counts
	losses  probe.Losses
	dropped uint64 // tcp.Selector.Dropped
}

// ofTrace says it of a live trace, in one line.
func (a account) ofTrace() string {
	parts := []string{fmt.Sprintf("%d events, %d lost, %d unknown durations", a.counts.Events, a.losses.Lost, a.counts.Unknown)}
	return strings.Join(append(parts, a.missing()...), ", ")
}

// missing says what is not shown although it happened, the lost events apart.
func (a account) missing() (parts []string) {
	for _, m := range []struct {
		n    uint64
		what string
	}{
		{a.losses.Untracked, "%d sockets not tracked (raise --max-sockets)"},
		{a.losses.MissedTransitions, "%d state changes not seen (the kernel ran no hook for them)"},
		{a.losses.SkippedRuns, "%d hook runs skipped by the kernel (recursion)"},
		{a.dropped, "%d sockets not shown whole (too many undecided for the filter)"},
	} {
		if m.n != 0 {
			parts = append(parts, fmt.Sprintf(m.what, m.n))
		}
	}
	return parts
}

// ofRecording says it of a recording, "" where nothing is missing.
func (a account) ofRecording() string {
	var parts []string
	if a.counts.Lost != 0 {
		parts = append(parts, fmt.Sprintf("%d events were lost when this was recorded", a.counts.Lost))
	}
	return strings.Join(append(parts, a.missing()...), ", ")
}

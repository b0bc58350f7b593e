package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// account is what a run has to say at its end: what was seen and, above all, what was not.
type account struct {
	counts    pipeline.Counts
	losses    probe.Losses
	dropped   uint64       // tcp.Selector.Dropped
	unjudged  tcp.Unjudged // tcp.Selector.Unjudged
	forgotten uint64       // recording.Source.Forgotten
	where     error        // expression.failed
	view      []string     // what the view itself does not show

	namespaces *tcp.Namespaces // of the filter; nil: what listeners do unseen is not said
}

// maxUnseen is for how many network namespaces a line says what listeners did unseen.
const maxUnseen = 8

// ofListeners says what listeners did unseen in the namespaces of the filter, a line for each.
func (a account) ofListeners() (lines []string) {
	if a.namespaces == nil {
		return nil
	}
	others := func(u probe.Unseen) bool { return !a.namespaces.Have(u.NetNS) }
	all := slices.DeleteFunc(slices.Clone(a.losses.Unseen), others)
	shown := all[:min(len(all), maxUnseen)]
	for _, u := range shown {
		lines = append(lines, output.Unseen(fmt.Sprintf("network namespace %d", u.NetNS), u.Packets))
	}
	if rest := all[len(shown):]; len(rest) > 0 {
		sum := make(map[string]uint64)
		for _, u := range rest {
			for where, n := range u.Packets {
				sum[where] += n
			}
		}
		lines = append(lines, output.Unseen(leak.Counted(len(rest), "more network namespace"), sum))
	}
	return append(lines, a.ofUnknownListeners()...)
}

// ofUnknownListeners names some of the namespaces in which listeners may have done more.
func (a account) ofUnknownListeners() []string {
	unknown := slices.DeleteFunc(slices.Clone(a.losses.UnknownUnseen), func(netns uint32) bool { return !a.namespaces.Have(netns) })
	if len(unknown) == 0 {
		return nil
	}
	names := fmt.Sprint(unknown[:min(len(unknown), maxUnseen)])
	text := "network namespaces " + strings.Trim(names, "[]")
	if more := len(unknown) - maxUnseen; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return []string{text + ": what listeners dropped, or answered with SYN cookies, is not known: they began or ended meanwhile, or could not be read"}
}

// ofTrace says it of a live trace, in one line.
func (a account) ofTrace() string {
	parts := []string{fmt.Sprintf("%d events, %d lost, %d unknown durations", a.counts.Events, a.losses.Lost, a.counts.Unknown)}
	parts = append(parts, counted(a.losses.Untracked, "%d sockets not tracked (raise --max-sockets)")...)
	return strings.Join(append(parts, a.missing()...), ", ")
}

// ofLeaks says it of a watch, "" where nothing is missing. What the last report could not
// judge is in that report.
func (a account) ofLeaks() string {
	return strings.Join(slices.Concat(
		counted(a.losses.Lost, "%d events lost"),
		counted(a.losses.Untracked, "%d sockets not tracked (no more fit in the table)"),
		a.missing(),
	), ", ")
}

// ofRecording says it of a recording, "" where nothing is missing.
func (a account) ofRecording() string {
	return strings.Join(append(counted(a.counts.Lost, "%d events were lost when this was recorded"), a.missing()...), ", ")
}

// missing says what else is not shown although it happened.
func (a account) missing() (parts []string) {
	return slices.Concat(
		counted(a.losses.MissedTransitions, "%d state changes not seen (the kernel ran no hook for them)"),
		counted(a.losses.SkippedRuns, "%d hook runs skipped by the kernel (recursion)"),
		counted(a.dropped, "%d sockets not shown whole (too many undecided for the filter)"),
		counted(a.forgotten, "%d sockets of the recording left out (no more fit in memory)"),
		a.view,
		output.Unjudged(a.unjudged),
		whereFailed(a.where),
	)
}

// whereFailed says that --where could not be evaluated everywhere.
func whereFailed(err error) []string {
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("--where failed for some sockets, which are left out: %v", err)}
}

// finish says the account of a run that ended with err, which it returns. It says nothing
// where nobody reads, or what was counted is not known.
func (e *env) finish(err error, account ...string) error {
	unknown := errors.Is(err, syscall.EPIPE) || errors.Is(err, pipeline.ErrBlocked) || errors.Is(err, pipeline.ErrUnfinished)
	for _, line := range account {
		if line != "" && !unknown {
			e.say(line)
		}
	}
	return err
}

// counted is what is said of n, if there are any.
func counted(n uint64, format string) []string {
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf(format, n)}
}

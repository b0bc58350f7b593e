package main

import (
	"errors"
	"fmt"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// check prints the findings. Where there are none, it fails if it could not have found
// any: a false all-clear is worse than no answer.
func (r *leaksRun) check() error {
	limits := leak.Limits{Count: (*int)(r.cmd.MaxCount), Growth: (*float64)(r.cmd.MaxGrowth)}
	findings := r.last.Findings(limits)
	for _, line := range output.Findings(findings) {
		_ = r.env.show(line) // an error does not change the result
	}
	if len(findings) > 0 {
		return leaksFound{}
	}
	return errors.Join(append(r.blind(), r.tooEarly(limits))...)
}

// tooEarly returns an error for groups of which the watch was too short to say that they
// do not leak. A group that came up during a watch that was long enough is for the next.
func (r *leaksRun) tooEarly(limits leak.Limits) error {
	if n := r.last.Undecided; n > 0 && limits == (leak.Limits{}) && r.last.Watched < leak.MinWatch {
		return fmt.Errorf("%s may leak, it is too early to tell: watch for longer, as with -d %s",
			leak.Counted(n, "group"), leak.Span(leak.MinWatch+2e9))
	}
	return nil
}

// warn says on stderr what the last report could not judge.
func (r *leaksRun) warn() {
	if format, _ := r.cmd.format(); format.name != "columns" && r.last.Unresolved > 0 { // columns say it below the groups
		r.env.say(leak.Counted(r.last.Unresolved, "group") + " without open files and stacks, for lack of time")
	}
	for _, err := range r.blind() {
		r.env.say(err.Error())
	}
}

// blind returns why the absence of a finding in the last report proves nothing.
func (r *leaksRun) blind() (why []error) {
	if r.unseen != nil {
		why = append(why, r.unseen)
	}
	if n := r.last.UnknownAge; n > 0 {
		why = append(why, fmt.Errorf("%s in %s of unknown age: watch for longer than --older-than, as with -d %s",
			leak.Counted(n, "socket"), output.StateNames(r.last.States), leak.Span(r.last.OlderThan+1e9)))
	}
	if n := r.last.Unplaced; n > 0 {
		why = append(why, fmt.Errorf("%s without a group, for lack of room: sum up with --by pid, or select fewer", leak.Counted(n, "socket")))
	}
	for _, sentence := range output.Unjudged(r.last.Unjudged) {
		why = append(why, errors.New(sentence))
	}
	if r.last.AnyMatch || r.kernel == nil { // a recording does not say what existed beside it
		return why
	}
	there := census{
		where:     r.where,
		sockets:   func(emit func(*tcp.Event) error) error { return r.kernel.TrackedSockets(tcp.States(), emit) },
		namespace: func(inode uint32) bool { _, _, err := r.kernel.PortRange(inode); return err == nil },
		unjudged:  r.last.Unjudged,
	}
	if err := there.nothing(r.filter); err != nil {
		why = append(why, err)
	}
	return why
}

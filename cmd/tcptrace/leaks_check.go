package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// check prints the findings. Where there are none, it fails if it could not have found
// any: a false all-clear is worse than no answer.
func (r *leaksRun) check() error {
	findings := r.last.Findings(leak.Limits{Count: (*int)(r.cmd.MaxCount), Growth: (*float64)(r.cmd.MaxGrowth)})
	for _, line := range output.Findings(findings) {
		fmt.Fprintln(r.env.stdout, line) // an error does not change the result
	}
	if len(findings) > 0 {
		return leaksFound{}
	}
	return errors.Join(r.blind()...)
}

// warn says on stderr what the last report could not judge.
func (r *leaksRun) warn() {
	for _, err := range r.blind() {
		fmt.Fprintf(r.env.stderr, "tcptrace: %v\n", err)
	}
}

// blind returns why the absence of a finding in the last report proves nothing.
func (r *leaksRun) blind() (why []error) {
	if n := r.last.UnknownAge; n > 0 {
		why = append(why, fmt.Errorf("%s in %s of unknown age: watch for longer than --older-than, as with -d %s",
			leak.Counted(n, "socket"), output.StateNames(r.last.States), leak.Span(r.last.OlderThan+1e9)))
	}
	if named := r.namedFilter(); !r.last.AnyMatch && r.probe != nil && named != nil && !r.exists(named) {
		why = append(why, errors.New("nothing that exists matches the filter: no socket, and no process of that pid or name"))
	}
	return why
}

// namedFilter returns the part of the filter that names something which should exist:
// a port may have no connections now, but a container that does not exist is a mistake.
// nil: the filter names nothing.
func (r *leaksRun) namedFilter() *tcp.Filter {
	f := &tcp.Filter{
		NetNS: r.filter.NetNS, PIDs: r.filter.PIDs, UIDs: r.filter.UIDs, Comm: r.filter.Comm,
		Cgroups: r.filter.Cgroups, Containers: r.filter.Containers,
	}
	if len(f.NetNS)+len(f.PIDs)+len(f.UIDs)+len(f.Comm)+len(f.Cgroups)+len(f.Containers) == 0 {
		return nil
	}
	return f
}

// errFound ends a walk that has found what it looked for.
var errFound = errors.New("found")

// exists reports whether a socket in any state matches, or a process of that pid or name
// exists.
func (r *leaksRun) exists(named *tcp.Filter) bool {
	for _, pid := range named.PIDs {
		if _, err := os.Stat(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10))); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	if len(named.Comm) > 0 && processNamed(named.Comm) {
		return true
	}
	var every []tcp.State
	for s := tcp.Established; s <= tcp.NewSynRecv; s++ {
		every = append(every, s)
	}
	err := r.probe.TrackedSockets(every, func(row *tcp.Event) error {
		r.where.Fill(row)
		if named.Match(row) {
			return errFound
		}
		return nil
	})
	return err != nil // where the look failed, nothing is claimed
}

// processNamed reports whether a process has one of the names.
func processNamed(names []string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well-formed
	filter := tcp.Filter{Comm: names}
	for _, file := range files {
		comm, err := os.ReadFile(file)
		e := tcp.Event{Comm: strings.TrimSuffix(string(comm), "\n"), OwnerSource: tcp.FromSnapshot}
		if err == nil && filter.Match(&e) {
			return true
		}
	}
	return false
}

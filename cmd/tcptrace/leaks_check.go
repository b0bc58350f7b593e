package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/procfs"
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
		r.env.say(err.Error())
	}
}

// blind returns why the absence of a finding in the last report proves nothing.
func (r *leaksRun) blind() (why []error) {
	if n := r.last.UnknownAge; n > 0 {
		why = append(why, fmt.Errorf("%s in %s of unknown age: watch for longer than --older-than, as with -d %s",
			leak.Counted(n, "socket"), output.StateNames(r.last.States), leak.Span(r.last.OlderThan+1e9)))
	}
	if missing := r.missing(); missing != nil {
		why = append(why, fmt.Errorf("nothing that exists matches %s", strings.Join(missing, ", ")))
	}
	return why
}

// missing returns the flags that name a thing which does not exist: a port may have no
// connection now, but a container that nobody has heard of is a mistake. Nil where
// something matched, and for a recording, which does not say what existed beside it.
func (r *leaksRun) missing() (flags []string) {
	if r.last.AnyMatch || r.kernel == nil {
		return nil
	}
	f := &r.filter
	for _, name := range []struct {
		flag   string
		asked  int
		exists func() bool
	}{
		{"--pid", len(f.PIDs), func() bool { return slices.ContainsFunc(f.PIDs, processExists) }},
		{"--comm", len(f.Comm), func() bool { return processNamed(f.Comm) || r.hasSockets(tcp.Filter{Comm: f.Comm}) }},
		{"--cgroup", len(f.Cgroups), func() bool { return cgroupExists(f.Cgroups) || r.hasSockets(tcp.Filter{Cgroups: f.Cgroups}) }},
		{"--container", len(f.Containers), func() bool { return r.hasSockets(tcp.Filter{Containers: f.Containers}) }},
		{"--netns", len(f.NetNS), func() bool { return slices.ContainsFunc(f.NetNS, r.namespaceExists) }},
	} {
		if name.asked > 0 && !name.exists() {
			flags = append(flags, name.flag)
		}
	}
	return flags
}

// errFound ends a walk that has found what it looked for.
var errFound = errors.New("found")

// hasSockets reports whether a socket in any state matches.
func (r *leaksRun) hasSockets(filter tcp.Filter) bool {
	var every []tcp.State
	for s := tcp.Established; s <= tcp.NewSynRecv; s++ {
		every = append(every, s)
	}
	err := r.kernel.TrackedSockets(every, func(row *tcp.Event) error {
		r.where.Fill(row)
		if filter.Match(row) {
			return errFound
		}
		return nil
	})
	return err != nil // where the look failed, nothing is claimed
}

func (r *leaksRun) namespaceExists(netns uint32) bool {
	_, _, err := r.kernel.PortRange(netns)
	return err == nil
}

func processExists(pid uint32) bool {
	dir, err := procfs.Open("/proc").Dir(pid)
	if err != nil { // another PID namespace: the process may exist outside
		return true
	}
	_, err = os.Stat(dir)
	return !errors.Is(err, fs.ErrNotExist)
}

func cgroupExists(paths []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		found, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", path))
		return len(found) > 0 || err != nil
	})
}

// processNamed reports whether a process has one of the names. In another PID namespace
// it may be one outside.
func processNamed(names []string) bool {
	if !procfs.Open("/proc").HasEventPIDs() {
		return true
	}
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

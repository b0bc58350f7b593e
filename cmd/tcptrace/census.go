package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// census says whether what a filter names exists. A port may have no connection now, but
// a container that nobody has heard of is a mistake.
type census struct {
	where     *enrich.Enricher
	sockets   func(emit func(*tcp.Event) error) error // all that exist
	namespace func(inode uint32) bool                 // nil: nobody knows
	unjudged  tcp.Unjudged                            // sockets that the filter left out although they may match
}

// nothing returns an error with the flags that name a thing which does not exist; nil if
// all of them may.
func (c census) nothing(f tcp.Filter) error {
	var flags []string
	for _, name := range []struct {
		flag  string
		asked int
		there func() bool
	}{
		{"--pid", len(f.PIDs), func() bool { return slices.ContainsFunc(f.PIDs, processExists) }},
		{"--uid", len(f.UIDs), func() bool { return c.mayHaveUser(f.UIDs) }},
		{"--comm", len(f.Comm), func() bool { return processNamed(f.Comm) || c.hasSockets(tcp.Filter{Comm: f.Comm}) }},
		{"--cgroup", len(f.Cgroups), func() bool { return c.hasPlace(c.where.HasCgroup, tcp.Filter{Cgroups: f.Cgroups}) }},
		{"--container", len(f.Containers), func() bool {
			return c.hasPlace(c.where.HasContainer, tcp.Filter{Containers: f.Containers, ContainerNames: f.ContainerNames})
		}},
		{"--pod", len(f.Pods), func() bool { return c.hasPlace(c.where.HasContainer, tcp.Filter{Pods: f.Pods}) }},
		{"--unit", len(f.Units), func() bool { return c.hasPlace(c.where.HasCgroup, tcp.Filter{Units: f.Units}) }},
		{"--netns", len(f.NetNS), func() bool { return c.namespace == nil || slices.ContainsFunc(f.NetNS, c.namespace) }},
	} {
		if name.asked > 0 && !name.there() {
			flags = append(flags, name.flag)
		}
	}
	if flags == nil {
		return nil
	}
	return fmt.Errorf("nothing that exists matches %s", strings.Join(flags, ", "))
}

// mayHaveUser reports whether a user is there. It takes neither a name nor a process to own a
// socket, so one whose user is not known may be theirs.
func (c census) mayHaveUser(uids []uint32) bool {
	return c.unjudged[tcp.User]+c.unjudged[tcp.Forgotten] > 0 || slices.ContainsFunc(uids, userExists) ||
		c.hasSockets(tcp.Filter{UIDs: uids})
}

// hasPlace reports whether a cgroup or container is there that the filter selects, or
// where it has gone, a socket of it.
func (c census) hasPlace(has func(func(path string) bool) bool, f tcp.Filter) bool {
	read := make(map[string]*tcp.Names) // many processes are in one container
	return c.hasSockets(f) || has(func(path string) bool {
		e := tcp.Event{Cgroup: path, ContainerID: tcp.ContainerID(path)}
		if e.ContainerID != "" && len(f.ContainerNames)+len(f.Pods) > 0 {
			if read[path] == nil {
				read[path] = c.where.NamesOf(path)
			}
			e.Names = read[path]
		}
		return f.Match(&e)
	})
}

// errFound ends a walk that has found what it looked for.
var errFound = errors.New("found")

// hasSockets reports whether a socket in any state matches.
func (c census) hasSockets(f tcp.Filter) bool {
	err := c.sockets(func(row *tcp.Event) error {
		c.where.Fill(row)
		if f.Match(row) {
			return errFound
		}
		return nil
	})
	return err != nil // where the look failed, nothing is claimed
}

// processExists takes no thread for a process: /proc has a directory for each, which it
// does not list, but an event never names a thread.
func processExists(pid uint32) bool {
	group, err := procfs.Read(procfs.Open("/proc"), pid, "status", threadGroup)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return false
	case err != nil: // another PID namespace: the process may exist outside
		return true
	}
	return group == pid
}

// threadGroup reads the process that a thread belongs to from /proc/PID/status.
func threadGroup(r io.Reader) (pid uint32, err error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if n, _ := fmt.Sscanf(lines.Text(), "Tgid: %d", &pid); n == 1 {
			return pid, nil
		}
	}
	return 0, errors.New("there is no line Tgid")
}

// userExists reports whether a user has a name or a process. In another PID namespace a
// process of the user may be outside.
func userExists(uid uint32) bool {
	if _, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil || !procfs.Open("/proc").HasEventPIDs() {
		return true
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	return slices.ContainsFunc(dirs, func(dir string) bool {
		var process unix.Stat_t
		return unix.Stat(dir, &process) == nil && process.Uid == uid
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

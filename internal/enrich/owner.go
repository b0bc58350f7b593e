package enrich

import (
	"io"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/procfs"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// ownerKey tells owners apart without a look at /proc. A pid alone is not enough,
// because the kernel gives it again. A new process with the same pid, name and
// cgroup is found by its start time at the next check.
type ownerKey struct {
	pid    uint32
	comm   string // as the event has it
	cgroup uint64
}

type owner struct {
	comm    string // as it was at the last check
	place   cgroup // likewise, of the hierarchy that names a container
	cmdline string // likewise, if it is asked for
	start   uint64 // when the process began, in ticks since the boot
	check   uint64 // event time from which it is to be read again
}

// fillOwner adds what the process says of itself: the container, where no cgroup
// path names it, and the name, where the event is a row. The kernel noted the name
// when the process last did something with the socket; execve() has changed it
// since.
func (e *Enricher) fillOwner(ev *tcp.Event) {
	wantsContainer := ev.ContainerID == "" && e.byOwner
	wantsName := ev.Kind == tcp.Socket && ev.Holder == tcp.Held
	if ev.OwnerSource == "" || !e.proc.HasEventPIDs() || !wantsContainer && !wantsName {
		return
	}
	key := ownerKey{ev.PID, ev.Comm, ev.CgroupID}
	if key != e.lastKey || ev.BootNS >= e.lastOne.check {
		e.lastKey, e.lastOne = key, e.owner(key, ev)
	}
	o := &e.lastOne
	if wantsContainer {
		ev.ContainerID, ev.Names = o.place.container, o.place.names
	}
	if wantsName && o.comm != "" {
		ev.Comm = o.comm
	}
	if wantsName && e.details {
		details(ev).Cmdline = o.cmdline
	}
}

// details returns those of an event, to fill in.
func details(ev *tcp.Event) *tcp.Details {
	if ev.Details == nil {
		ev.Details = new(tcp.Details)
	}
	return ev.Details
}

// owner reads the owner of an event, or remembers it. A process that is gone keeps
// what is known of it: its sockets may outlive it. One that no longer holds the
// socket is not read again: its pid may be another's by now.
func (e *Enricher) owner(key ownerKey, ev *tcp.Event) owner {
	o, known := e.owners[key]
	if known && ev.BootNS < o.check || ev.Holder == tcp.Gone {
		return o
	}
	o.check = ev.BootNS + retryNS
	// A process that began after the event is a stranger that got the pid.
	if stat, err := e.proc.Stat(ev.PID); err == nil && e.proc.Began(stat) <= ev.BootNS {
		if stat.Start != o.start {
			o.place, o.cmdline = cgroup{}, ""
		}
		o.start, o.comm = stat.Start, stat.Name
		// Read each time: a runtime moves a process into the container after it
		// has begun. One that just exited has no cgroup any more.
		if at, err := procfs.Read(e.proc, ev.PID, "cgroup", parseContainer); err == nil && at.container != "" {
			if at.container != o.place.container {
				o.place = at
			}
			if ev.BootNS >= o.place.expires {
				o.place.name(e.names, ev.BootNS)
			}
		}
		if e.details {
			o.cmdline = e.cmdline(ev.PID)
		}
	}
	if !known && len(e.owners) >= maxOwners {
		clear(e.owners)
	}
	e.owners[key] = o
	return o
}

// parseContainer reads /proc/PID/cgroup and returns the first cgroup in it that is in a container:
// every hierarchy that knows of the container has the same.
func parseContainer(r io.Reader) (first cgroup, err error) {
	err = procfs.EachCgroup(r, func(path string) bool {
		first = cgroup{path: path, container: tcp.ContainerID(path)}
		return first.container == ""
	})
	return first, err
}

// cmdlineLimit is how long to wait for a command line: it is in the memory of the process, where
// that may have mapped a file of a server which does not answer.
const cmdlineLimit = 200 * time.Millisecond

// cmdline returns "" for what is not known. After one that did not come in time it asks no more:
// each would cost a thread.
func (e *Enricher) cmdline(pid uint32) string {
	if e.stalled {
		return ""
	}
	done := make(chan string, 1)
	go func() {
		line, _ := procfs.Read(e.proc, pid, "cmdline", parseCmdline) // it may have exited
		done <- line
	}()
	select {
	case line := <-done:
		return line
	case <-time.After(cmdlineLimit):
		e.stalled = true
		return ""
	}
}

// Stalled reports whether command lines are missing because a process kept its own back.
func (e *Enricher) Stalled() bool { return e.stalled }

// maxCmdline is how much is kept of a command line: 16 MB with all the owners that are.
const maxCmdline = 1024

// parseCmdline reads /proc/PID/cmdline, in which each argument ends with a zero byte. A process
// may write anything there.
func parseCmdline(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxCmdline+1))
	if err != nil {
		return "", err
	}
	cut := len(text) > maxCmdline
	line := strings.ReplaceAll(strings.TrimRight(string(text[:min(len(text), maxCmdline)]), "\x00"), "\x00", " ")
	if cut {
		line += "..."
	}
	return line, nil
}

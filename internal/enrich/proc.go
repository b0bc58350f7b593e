package enrich

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// tickNS is the unit of a start time in /proc/PID/stat: USER_HZ is 100 on every
// architecture that we build for.
const tickNS = 1e9 / 100

// ownerKey tells owners apart without a look at /proc. A pid alone would not do:
// it is given again. What is left, a new process of the same name and cgroup
// with the same pid, shows by its start time at the next check.
type ownerKey struct {
	pid    uint32
	comm   string
	cgroup uint64
}

type owner struct {
	container string
	start     uint64 // when the process began, in ticks since the boot
	check     uint64 // event time from which start is to be compared again
}

// ownerContainer finds the container of a process by its cgroup v1 paths. A
// process that is gone keeps what is known of it: its sockets may outlive it.
func (e *Enricher) ownerContainer(ev *tcp.Event) string {
	key := ownerKey{ev.PID, ev.Comm, ev.CgroupID}
	o, known := e.owners[key]
	if known && ev.BootNS < o.check {
		return o.container
	}
	o.check = ev.BootNS + retryNS
	start, err := read(e, ev.PID, "stat", parseStartTime)
	// A process that began after the event is a stranger that got the pid.
	if err == nil && start*tickNS <= ev.BootNS && (!known || start != o.start) {
		o.start = start
		o.container, _ = read(e, ev.PID, "cgroup", parseContainer) // it may have just exited
	}
	if !known && len(e.owners) >= maxOwners {
		clear(e.owners)
	}
	e.owners[key] = o
	return o.container
}

// read opens a file of a process and has it parsed.
func read[T any](e *Enricher, pid uint32, file string, parse func(io.Reader) (T, error)) (v T, err error) {
	f, err := os.Open(filepath.Join(e.procRoot, strconv.FormatUint(uint64(pid), 10), file))
	if err != nil {
		return v, err
	}
	defer f.Close()
	return parse(f)
}

// parseContainer reads /proc/PID/cgroup, see cgroups(7), and returns the first
// container id in it: every hierarchy that knows of the container has the same.
func parseContainer(r io.Reader) (string, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// 4:memory:/docker/ID; the path may hold colons of its own
		if part := strings.SplitN(lines.Text(), ":", 3); len(part) == 3 {
			if id := containerID(part[2]); id != "" {
				return id, nil
			}
		}
	}
	return "", lines.Err()
}

// parseStartTime reads /proc/PID/stat, see proc_pid_stat(5), and returns field
// 22, the start of the process in ticks since the boot.
func parseStartTime(r io.Reader) (uint64, error) {
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return 0, fmt.Errorf("read process status: %w", err)
	}
	// The name, field 2, may hold spaces and parentheses: count from its end.
	_, rest := cutLast(string(text), ')')
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("parse process status %.40q: too few fields", text)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

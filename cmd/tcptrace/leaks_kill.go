package main

import (
	"bufio"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// victim is a socket that may be closed, if its group turns out to leak.
type victim struct {
	probe.Target
	group *leak.Group
	pid   uint32
	comm  string
	fd    int32
}

func (v *victim) String() string {
	pid, fd := "-", "-"
	if v.pid != 0 {
		pid = strconv.FormatUint(uint64(v.pid), 10)
	}
	if v.fd != tcp.NoFD {
		fd = strconv.Itoa(int(v.fd))
	}
	return fmt.Sprintf("pid %s (%s) fd %s %s -> %s sk:%x", pid, v.comm, fd, v.Local, v.Remote, v.Cookie)
}

// victims are the sockets of the groups that leak: those that can be closed, and how many
// cannot.
type victims struct {
	close    []victim
	halfOpen int // they have no cookie yet, by which the kernel would know them
	over     int // in CLOSE: there is no connection to close any more
}

// kill closes the sockets of the groups that leak, of a look of its own: what was
// seen before may be gone.
func (r *leaksRun) kill(now uint64) error {
	var all []victim
	report, err := r.watch.Report(now, func(g *leak.Group, row *tcp.Event) {
		all = append(all, victim{probe.TargetOf(row), g, row.PID, row.Comm, row.FD})
	})
	if err != nil {
		return err
	}
	if err := output.NewReportColumns(r.env.stdout, output.ReportOptions{Time: r.cmd.Time, Top: int(r.cmd.Top)}).Write(report); err != nil {
		return err
	}
	r.last = report
	r.warn()
	leaked := sortVictims(all)
	leaked.explain(r.env)
	switch {
	case len(leaked.close) == 0:
		return nil
	case r.cmd.DryRun:
		for i := range leaked.close {
			if err := r.env.show("would close " + leaked.close[i].String()); err != nil {
				return err
			}
		}
		return nil
	}
	if !r.cmd.Yes && !r.confirmed(len(leaked.close)) {
		return errors.New("not confirmed: nothing was closed")
	}
	return r.destroy(leaked.close)
}

func sortVictims(all []victim) (v victims) {
	for _, one := range all {
		switch {
		case one.group.Verdict != leak.Leak:
		case one.group.State == tcp.Close:
			v.over++
		case one.Cookie == 0:
			v.halfOpen++
		default:
			v.close = append(v.close, one)
		}
	}
	return v
}

// explain says why sockets are not closed.
func (v *victims) explain(e *env) {
	if v.halfOpen > 0 {
		e.say(fmt.Sprintf("not closed: %s; the kernel cannot be told which ones, for they have no cookie yet. They end by themselves when the handshake is given up.",
			leak.Counted(v.halfOpen, "half-open connection")))
	}
	if v.over > 0 {
		e.say(fmt.Sprintf("not closed: %s in CLOSE; the connection is over, and only the process can close the descriptor",
			leak.Counted(v.over, "socket")))
	}
	if len(v.close)+v.halfOpen+v.over == 0 {
		e.say("no group leaks, so nothing is closed")
	}
}

// confirmed asks the user.
func (r *leaksRun) confirmed(n int) bool {
	fmt.Fprintf(r.env.stderr, "Close %s? Their processes will see the error ECONNABORTED. Type yes: ", leak.Counted(n, "socket"))
	answer := bufio.NewScanner(r.env.stdin)
	return answer.Scan() && strings.TrimSpace(answer.Text()) == "yes"
}

func (r *leaksRun) destroy(leaked []victim) error {
	names := make(map[probe.Target]*victim, len(leaked))
	targets := make([]probe.Target, len(leaked))
	for i := range leaked {
		targets[i] = leaked[i].Target
		names[targets[i]] = &leaked[i]
	}
	closed, gone, failed := 0, 0, 0
	err := r.kernel.Destroy(targets, func(t probe.Target, err error) {
		switch {
		case err == nil:
			closed++
			_ = r.env.show("closed " + names[t].String()) // it is closed, whoever reads that
		case errors.Is(err, probe.ErrGone):
			gone++
		default:
			failed++
			r.env.say(fmt.Sprintf("cannot close %s: %v", names[t], err))
		}
	})
	r.env.say(fmt.Sprintf("%s closed, %d gone before, %d not closed", leak.Counted(closed, "socket"), gone, len(leaked)-closed-gone))
	if err == nil && failed > 0 {
		err = fmt.Errorf("%s could not be closed", leak.Counted(failed, "socket"))
	}
	return err
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// victim is a socket that may be closed, if its group turns out to leak.
type victim struct {
	probe.Target
	group *leak.LeakGroup
	pid   uint32
	comm  string
	fd    int32
}

func (v *victim) String() string {
	fd := "-"
	if v.fd != tcp.NoFD {
		fd = fmt.Sprint(v.fd)
	}
	return fmt.Sprintf("pid %s (%s) fd %s %s -> %s sk:%x", dash(v.pid), output.Visible(v.comm), fd, v.Local, v.Remote, v.Cookie)
}

// kill closes the sockets of the groups that leak, of a look of its own: what was
// seen before may be gone.
func (w *leakWatch) kill() error {
	view := w.view.(*leakView) // consistent has refused the other
	var all []victim
	view.target = func(g *leak.LeakGroup, row *tcp.Event) {
		all = append(all, victim{probe.TargetOf(row), g, row.PID, row.Comm, row.FD})
	}
	if err := w.refresh(w.probe.Now(), w.rows); err != nil {
		return err
	}
	if err := w.show(); err != nil {
		return err
	}
	leaked := all[:0]
	for _, v := range all {
		if v.group.Verdict == leak.Leak && v.Cookie != 0 {
			leaked = append(leaked, v)
		}
	}
	switch {
	case len(leaked) == 0:
		fmt.Fprintln(w.env.stderr, "tcptrace: nothing leaks, so nothing is closed")
		return nil
	case w.cmd.DryRun:
		for i := range leaked {
			fmt.Fprintf(w.env.stdout, "would close %s\n", &leaked[i])
		}
		return nil
	}
	if !w.cmd.Yes && !w.confirmed(len(leaked)) {
		return errors.New("not confirmed: nothing was closed")
	}
	return w.destroy(leaked)
}

// confirmed asks the user.
func (w *leakWatch) confirmed(n int) bool {
	fmt.Fprintf(w.env.stderr, "Close %s? Their processes will see the error ECONNABORTED. Type yes: ", counted(n, "socket"))
	answer := bufio.NewScanner(w.env.stdin)
	return answer.Scan() && strings.TrimSpace(answer.Text()) == "yes"
}

func (w *leakWatch) destroy(leaked []victim) error {
	names := make(map[probe.Target]*victim, len(leaked))
	targets := make([]probe.Target, len(leaked))
	for i := range leaked {
		targets[i] = leaked[i].Target
		names[targets[i]] = &leaked[i]
	}
	closed, gone, failed := 0, 0, 0
	err := w.probe.Destroy(targets, func(t probe.Target, err error) {
		switch {
		case err == nil:
			closed++
			fmt.Fprintf(w.env.stdout, "closed %s\n", names[t])
		case errors.Is(err, probe.ErrGone):
			gone++
		default:
			failed++
			fmt.Fprintf(w.env.stderr, "tcptrace: cannot close %s: %v\n", names[t], err)
		}
	})
	fmt.Fprintf(w.env.stderr, "tcptrace: %s closed, %d gone before, %d not closed\n", counted(closed, "socket"), gone, len(leaked)-closed-gone)
	if err == nil && failed > 0 {
		err = fmt.Errorf("%s could not be closed", counted(failed, "socket"))
	}
	return err
}

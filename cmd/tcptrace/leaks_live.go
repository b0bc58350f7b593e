package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// keyInterval is how often the live screen looks at its keys.
const keyInterval = 100 * time.Millisecond

// errInterrupted ends a watch that was to give an answer at its end and has none.
var errInterrupted = errors.New("interrupted before the end of the watch")

// live watches the kernel. Privileges are kept: port ranges and sockets to close are in
// other network namespaces, and limits are those of other users' processes.
func (w *leakWatch) live() error {
	config := w.cmd.probeConfig()
	config.Tracked, config.Stacks, config.Hooks, config.BTF, config.Without = true, w.cmd.Stacks, w.cmd.Hooks, w.cmd.BTF, w.cmd.Without
	p, err := probe.Open(config)
	if err != nil {
		return err
	}
	defer p.Close()
	w.probe = p
	if !w.cmd.quiet() {
		for _, sentence := range p.Limitations() {
			fmt.Fprintf(w.env.stderr, "tcptrace: %s\n", sentence)
		}
	}
	ctx, cancel := signal.NotifyContext(w.env.ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer cancel()
	defer context.AfterFunc(ctx, p.Stop)()
	// The rows are of no use here, Rows gives them again, but it takes this look for
	// the probe to know what existed before it.
	if err := w.env.warnSkipped(p.Seed(func(*tcp.Event) error { return nil })); err != nil {
		return err
	}
	if err := w.openScreen(); err != nil {
		return err
	}
	if w.screen != nil {
		defer w.screen.Close() // also on a panic
	}
	return w.watch(ctx)
}

// openScreen takes over the terminal, if there is one to show a live view on.
func (w *leakWatch) openScreen() (err error) {
	out, isFile := w.env.stdout.(*os.File)
	in, isFileToo := w.env.stdin.(*os.File)
	if w.cmd.quiet() || w.cmd.JSON || !isFile || !isFileToo || !terminal.IsTerminal(out) {
		return nil
	}
	w.screen, err = terminal.OpenScreen(in, out)
	return err
}

// watch refreshes until the time is up, the user leaves, or nobody reads.
func (w *leakWatch) watch(ctx context.Context) error {
	started := time.Now()
	w.view = w.newView(bootNow())
	for {
		begun := time.Now()
		if err := w.refresh(bootNow(), w.rows); err != nil {
			return err
		}
		limit := time.Duration(w.cmd.Duration)
		if w.cmd.quiet() && limit == 0 || limit != 0 && time.Since(started) >= limit {
			return w.conclude()
		}
		// A refresh that takes long is not followed at once by the next.
		next := begun.Add(max(time.Duration(w.cmd.Interval), 2*time.Since(begun)))
		if end := started.Add(limit); limit != 0 && next.After(end) {
			next = end
		}
		switch err := w.wait(ctx, next); {
		case err == io.EOF && w.cmd.quiet() && !w.cmd.Once:
			return errInterrupted
		case err == io.EOF:
			return w.conclude()
		case err != nil:
			return err
		}
	}
}

func (w *leakWatch) rows(_ uint64, emit func(*tcp.Event) error) error {
	return w.probe.TrackedSockets([]tcp.State{w.cmd.State.State()}, emit)
}

// wait hands on events until the time has come. io.EOF says that it is over.
func (w *leakWatch) wait(ctx context.Context, until time.Time) error {
	var e tcp.Event
	for {
		step := until
		if in := time.Now().Add(keyInterval); w.screen != nil && in.Before(until) {
			step = in
		}
		w.probe.SetDeadline(step)
		var err error
		for err == nil && time.Now().Before(step) {
			if err = w.probe.Read(&e); err == nil {
				w.event(&e)
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if ctx.Err() != nil || w.left() {
			return io.EOF
		}
		if !time.Now().Before(until) {
			return nil
		}
	}
}

// left reports whether the user has pressed q. On the way it draws anew for a
// terminal that has another size.
func (w *leakWatch) left() bool {
	for w.screen != nil {
		select {
		case key := <-w.screen.Keys():
			if key == 'q' || key == 'Q' {
				return true
			}
		case <-w.screen.Resized():
			if w.show() != nil {
				return true
			}
		default:
			return false
		}
	}
	return false
}

// show prints the refresh: on the screen, as JSON lines, or as a block of text.
func (w *leakWatch) show() error {
	var b strings.Builder
	switch {
	case w.cmd.JSON:
		if err := w.writeJSON(&b); err != nil {
			return err
		}
	case w.screen != nil:
		fmt.Fprintf(&b, "[q leaves] %s\n\n", w.view.title())
		width, height := w.screen.Size()
		w.view.report(&b, height)
		return w.screen.Draw(wrapped(b.String(), width))
	default:
		fmt.Fprintf(&b, "%s\n", w.view.title())
		w.view.report(&b, int(w.cmd.Top))
		if !w.cmd.quiet() {
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(w.env.stdout, b.String())
	return err
}

func (w *leakWatch) writeJSON(out io.Writer) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return w.view.objects(encoder.Encode)
}

// indent is before what is told of a group beside its figures.
const indent = "        "

// wrapped breaks the lines that are indented, the words, at the width.
func wrapped(text string, width int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		for strings.HasPrefix(line, indent) && len(line) > width+1 {
			at := strings.LastIndexByte(line[:width+1], ' ')
			if at <= len(indent) {
				break
			}
			b.WriteString(line[:at] + "\n")
			line = indent + line[at+1:]
		}
		b.WriteString(line)
	}
	return b.String()
}

func bootNow() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // cannot fail: the clock exists since 2.6.39
	}
	return uint64(t.Nano())
}

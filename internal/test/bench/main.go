// Command bench measures what a trace costs, ours and our peers', under the same
// loads in one run: what `make bench` does. It is run from the root of the
// repository, as root, and needs bin/tcptrace and bin/churn.
//
// Figures of one run can be compared with each other; those of two runs cannot: the
// machine drifts. So each run under a tracer stands between two without one, and what
// counts is the ratio.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// resultFolder holds the reports, one for a day and a kernel.
const resultFolder = "internal/test/bench/results"

// plan is how much is measured.
type plan struct {
	rounds  int
	fin     float64       // seconds of connections in a round
	storm   float64       // seconds of the storm
	pause   time.Duration // before a load: the kernel still cleans up after the last one
	crowds  []int         // how many live sockets there are in each row of the second table
	smoke   bool          // only to see that everything works
	only    string        // not empty: these tracers and the main case, under the loads alone
	command string        // what was asked for
}

func main() {
	smoke := flag.Bool("smoke", false, "one short round without the peers, nothing installed or kept: only to see that it works")
	only := flag.String("only", "", "measure tcptrace -j and the tracers with this `TEXT` in their name, under the loads alone; nothing installed or kept")
	rounds := flag.Int("rounds", 4, "how often each figure is taken")
	floor := flag.Bool("floor", false, "be the empty BPF program that is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	p := plan{rounds: *rounds, fin: 2, storm: 1, pause: 400 * time.Millisecond, crowds: []int{0, 200000, 1000000}}
	p.command = strings.Join(append([]string{"go run ./internal/test/bench"}, os.Args[1:]...), " ")
	if *smoke {
		p = plan{rounds: 1, fin: 0.2, storm: 0.2, crowds: []int{2000}, smoke: true, command: p.command}
	}
	p.only = *only
	measure := func() error { return run(ctx, p) }
	if *floor {
		measure = func() error { return attachNothing(ctx) }
	}
	if err := measure(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan) error {
	began := time.Now()
	b, err := newBench(ctx, p)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.measure(); err != nil {
		return err
	}
	report := b.report(time.Since(began))
	if _, err := io.WriteString(os.Stdout, report); err != nil {
		return err
	}
	if !p.smoke && p.only == "" {
		err = keep(b.host, report)
	}
	return errors.Join(err, b.broken())
}

// keep writes the report where a pull request can show it. The file belongs to whoever
// the folder belongs to, who may have come here by sudo.
func keep(h host, report string) error {
	name := filepath.Join(resultFolder, fmt.Sprintf("%s-%s.txt", h.date.Format(time.DateOnly), h.kernel))
	if err := os.MkdirAll(resultFolder, 0o755); err != nil {
		return fmt.Errorf("keep the report: %w", err)
	}
	if err := os.WriteFile(name, []byte(report), 0o644); err != nil {
		return fmt.Errorf("keep the report: %w", err)
	}
	info, err := os.Stat(resultFolder)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return os.Chown(name, int(owner.Uid), int(owner.Gid))
}

package main

import (
	"fmt"
	"os/exec"
	"time"
)

// crowdRow is what may depend on the number of sockets that exist.
type crowdRow struct {
	sockets       int
	cost          cost   // under fin
	kernel        values // ns per event
	rss, maps     values // MB
	first         values // seconds from the start of tcptrace to the first event
	look          values // seconds of one look at all sockets with their owners
	ss, ssHolders values // what ss takes without, and with owners
	problem       error  // why the rest is missing
}

// ssLimit is the size of the largest crowd for which `ss -tanp` does not take minutes.
const ssLimit = 200000

func (b *bench) measureCrowd(row *crowdRow) error {
	ns, err := newNamespace(b.ctx)
	if err != nil {
		return err
	}
	defer ns.close()
	end, err := ns.crowd(b.ctx, row.sockets)
	if err != nil {
		return err
	}
	defer end()
	for range min(b.plan.rounds, fewRounds) {
		if err := b.amidCrowd(row); err != nil {
			return err
		}
		for _, look := range []struct {
			took *values
			cmd  *exec.Cmd
		}{
			{&row.look, exec.CommandContext(b.ctx, tcptrace, "sockets", "-j")},
			{&row.ss, ns.command(b.ctx, "ss", "-tan")},
		} {
			if err := look.took.time(look.cmd); err != nil {
				return err
			}
		}
	}
	if row.sockets > ssLimit {
		return nil
	}
	return row.ssHolders.time(ns.command(b.ctx, "ss", "-tanp"))
}

// amidCrowd measures the main case, with its load in a namespace of its own.
func (b *bench) amidCrowd(row *crowdRow) error {
	fin, main := b.plan.loads()[0], b.rows[mainCase].tracer
	took, err := b.firstEvent(main)
	if err != nil {
		return err
	}
	base, err := b.untraced(fin)
	if err != nil {
		return err
	}
	s, err := b.traced(fin, main)
	if err != nil {
		return err
	}
	next, err := b.untraced(fin)
	if err != nil {
		return err
	}
	row.first.add(took.Seconds())
	row.cost.add(s, (base+next)/2)
	row.rss.add(float64(s.after.peak) / 1e6)
	row.maps.add(float64(s.after.mapBytes) / 1e6)
	return b.withStatistics(func() error {
		s, err := b.traced(fin, main)
		if err == nil {
			row.kernel.add(s.kernelTime())
		}
		return err
	})
}

// time adds the seconds that cmd takes with its output dropped.
func (v *values) time(cmd *exec.Cmd) error {
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w", cmd, err)
	}
	v.add(time.Since(began).Seconds())
	return nil
}

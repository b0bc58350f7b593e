package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bench is one run of everything.
type bench struct {
	ctx     context.Context // ends every process that is started
	plan    plan
	host    host
	headers string // for bcc; removed at the end
	unmount func() // tracefs, where it was not mounted before
	base    map[string]*values
	rows    []*row
	limits  []limit
	crowds  []*crowdRow
}

// The rows of the empty BPF program and of `tcptrace -j > /dev/null`.
const (
	emptyCase = 0
	mainCase  = 1
)

// row is what is known of one tracer.
type row struct {
	*tracer
	loads      map[string]*cost // by the name of the load
	kernel     values           // ns in BPF programs per event
	runs       values           // of BPF programs per event
	idle, peak values           // MB of resident memory
	first      values           // seconds from its start to the first event
	problem    error            // why the rest is missing
}

// cost is what one tracer costs under one load.
type cost struct {
	ratio        values // of the rate to the rate without a tracer
	user, cpu    values // seconds per million events
	events, lost int    // in all rounds
}

// sample is what one run of a load showed.
type sample struct {
	made
	before, after usage // of the tracer, at rest
	lost          int
}

// perMillion is a CPU time in seconds per million events of the sample.
func (s sample) perMillion(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(s.Events) }

func newBench(ctx context.Context, p plan) (*bench, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("tracing needs root: run 'make bench', or this with sudo")
	}
	for _, binary := range []string{tcptrace, churn} {
		if _, err := os.Stat(binary); err != nil {
			return nil, fmt.Errorf("%w: run 'make build bin/churn' first, in the root of the repository, and this there too", err)
		}
	}
	b := &bench{ctx: ctx, plan: p, unmount: func() {}, base: map[string]*values{}}
	all, err := tracers()
	if err != nil {
		return nil, err
	}
	if p.smoke || p.only != "" {
		all = p.choose(all)
	} else if b.unmount, err = mountTracefs(); err != nil {
		return nil, err
	} else {
		b.headers = preparePeers(ctx, all)
	}
	for _, t := range all {
		r := &row{tracer: t, loads: map[string]*cost{}, problem: t.absent}
		for _, l := range p.loads() {
			r.loads[l.name] = new(cost)
			b.base[l.name] = new(values)
		}
		b.rows = append(b.rows, r)
	}
	b.host, err = readHost(ctx)
	return b, err
}

// choose leaves out the peers, where nothing is to be installed, and what is not asked for.
// The first rows are what others are compared with.
func (p plan) choose(all []*tracer) (chosen []*tracer) {
	for i, t := range all {
		asked := p.only == "" && !t.peer || p.only != "" && strings.Contains(t.name, p.only) && t.absent == nil
		if i <= mainCase || asked {
			chosen = append(chosen, t)
		}
	}
	return chosen
}

func (b *bench) close() {
	_ = os.RemoveAll(b.headers)
	b.unmount()
}

func (b *bench) measure() error {
	for round := range b.plan.rounds {
		for _, l := range b.plan.loads() {
			b.say("round %d of %d: %s", round+1, b.plan.rounds, l.name)
			if err := b.interleave(l); err != nil {
				return err
			}
		}
	}
	if b.plan.only != "" {
		return nil
	}
	b.say("time in the kernel")
	if err := b.withStatistics(b.kernelTimes); err != nil {
		return err
	}
	b.say("time to the first event")
	if err := b.firstEvents(); err != nil {
		return err
	}
	b.say("the highest rates")
	if err := b.findLimits(); err != nil {
		b.rows[mainCase].problem = err
	}
	for _, n := range b.plan.crowds {
		b.say("%d live sockets", n)
		row := &crowdRow{sockets: n}
		b.crowds = append(b.crowds, row)
		if row.problem = b.measureCrowd(row); b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %3.0f s: %s\n", time.Since(b.host.date).Seconds(), fmt.Sprintf(format, args...))
}

// interleave runs a load under each tracer, and before and after each without one.
func (b *bench) interleave(l load) error {
	base, err := b.untraced(l)
	if err != nil {
		return err
	}
	for _, r := range b.rows {
		if r.problem != nil {
			continue
		}
		s, err := b.traced(l, r.tracer)
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		if r.problem = err; err != nil {
			continue
		}
		next, err := b.untraced(l)
		if err != nil {
			return err
		}
		r.loads[l.name].add(s, (base+next)/2)
		r.idle.add(float64(s.before.rss) / 1e6)
		r.peak.add(float64(s.after.peak) / 1e6)
		base = next
	}
	return nil
}

func (c *cost) add(s sample, base float64) {
	c.ratio.add(s.PerSecond / base)
	c.user.add(s.perMillion(s.after.user - s.before.user))
	c.cpu.add(s.perMillion(s.after.cpu() - s.before.cpu()))
	c.events += s.Events
	c.lost += s.lost
}

// untraced returns the rate of a load that nobody traces.
func (b *bench) untraced(l load) (float64, error) {
	time.Sleep(b.plan.pause)
	ns, err := newNamespace(b.ctx)
	if err != nil {
		return 0, err
	}
	defer ns.close()
	m, err := ns.churn(b.ctx, l)
	b.base[l.name].add(m.PerSecond)
	return m.PerSecond, err
}

func (b *bench) traced(l load, t *tracer) (s sample, err error) {
	time.Sleep(b.plan.pause)
	ns, err := newNamespace(b.ctx)
	if err != nil {
		return s, err
	}
	defer ns.close()
	p, err := t.start(b.ctx)
	if err != nil {
		return s, err
	}
	defer p.kill()
	if s.before, err = p.rest(); err != nil {
		return s, err
	}
	if s.made, err = ns.churn(b.ctx, l); err != nil {
		return s, err
	}
	if s.after, err = p.rest(); err != nil {
		return s, err
	}
	s.lost, err = p.stop()
	return s, err
}

// withStatistics makes the kernel measure the time of every BPF program meanwhile, which
// itself costs about 75 ns per run.
func (b *bench) withStatistics(do func() error) error {
	on, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("switch the statistics of BPF programs on: %w", err)
	}
	defer on.Close()
	return do()
}

// fewRounds are enough for what hardly differs from round to round.
const fewRounds = 3

func (b *bench) kernelTimes() error {
	fin := b.plan.loads()[0]
	for range min(b.plan.rounds, fewRounds) {
		for _, r := range b.rows {
			if r.problem != nil {
				continue
			}
			s, err := b.traced(fin, r.tracer)
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if r.problem = err; err == nil {
				r.kernel.add(s.kernelTime())
				r.runs.add(float64(s.after.programRuns-s.before.programRuns) / float64(s.Events))
			}
		}
	}
	return nil
}

// kernelTime is the ns that the tracer's BPF programs took per event, all together.
func (s sample) kernelTime() float64 {
	return float64(s.after.programTime-s.before.programTime) / float64(s.Events)
}

// limit is what the main case does when all CPUs make events.
type limit struct {
	load            string
	eventsPerSecond values
	events, lost    int
}

func (b *bench) findLimits() error {
	for _, l := range b.plan.loads() {
		found := limit{load: l.name}
		for range min(b.plan.rounds, fewRounds) {
			s, err := b.traced(l.allCPUs(), b.rows[mainCase].tracer)
			if err != nil {
				return err
			}
			events := s.PerSecond * 2
			if l.name == "fin" {
				events = s.PerSecond * 10
			}
			found.eventsPerSecond.add(events)
			found.events += s.Events
			found.lost += s.lost
		}
		b.limits = append(b.limits, found)
	}
	return nil
}

// broken says what of our own could not be measured.
func (b *bench) broken() error {
	var err error
	for _, r := range b.rows {
		if r.problem != nil && !r.peer {
			err = errors.Join(err, fmt.Errorf("%v: %w", r.tracer, r.problem))
		}
	}
	for _, c := range b.crowds {
		if c.problem != nil {
			err = errors.Join(err, fmt.Errorf("%d live sockets: %w", c.sockets, c.problem))
		}
	}
	return err
}

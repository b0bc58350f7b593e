package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// values are the results of the rounds.
type values []float64

func (v *values) add(x float64) { *v = append(*v, x) }

func (v values) median() float64 {
	sorted := slices.Sorted(slices.Values(v))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// spread is half of the range, or 0 of less than two values.
func (v values) spread() float64 {
	if len(v) < 2 {
		return 0
	}
	return (slices.Max(v) - slices.Min(v)) / 2
}

// format gives the median and the spread.
func (v values) format(digits int) string {
	if len(v) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f ±%.*f", digits, v.median(), digits, v.spread())
}

// middle gives the median alone, for what hardly differs from round to round.
func (v values) middle(digits int) string {
	if len(v) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v.median())
}

// host is what the figures were taken on.
type host struct {
	date          time.Time
	kernel, model string
	memory        int // bytes
	versions      []string
}

func readHost(ctx context.Context) (h host, err error) {
	h.date = time.Now().UTC()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return h, err
	}
	h.kernel = strings.TrimSpace(string(release))
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return h, err
	}
	if _, rest, ok := strings.Cut(string(info), "model name\t: "); ok {
		h.model, _, _ = strings.Cut(rest, "\n")
	}
	memory, err := readFields("/proc/meminfo")
	h.memory = memory["MemTotal"] << 10
	ours, _ := exec.CommandContext(ctx, tcptrace, "--version").Output()
	h.versions = append(h.versions, strings.TrimSpace(string(ours)))
	for _, name := range []string{"bpfcc-tools", "libbpf-tools", "bpftrace", "iproute2"} {
		// A package that is not installed has no version to show.
		version, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Package} ${Version}", name).Output()
		if err == nil {
			h.versions = append(h.versions, string(version))
		}
	}
	return h, err
}

func (b *bench) report(took time.Duration) string {
	var w strings.Builder
	h := b.host
	fmt.Fprintf(&w, "What a trace costs, by `%s`, %s\n\n", b.plan.command, h.date.Format(time.RFC3339))
	fmt.Fprintf(&w, "kernel    %s, %d CPUs, %s, %.0f GB\n", h.kernel, runtime.NumCPU(), h.model, float64(h.memory)/1e9)
	fmt.Fprintf(&w, "programs  %s\n", strings.Join(h.versions, ", "))
	fmt.Fprintf(&w, "took      %v, %d rounds; medians ± half of the range\n", took.Round(time.Second), b.plan.rounds)
	fmt.Fprintf(&w, "untraced  fin %s connections/s of 10 events; storm %s cycles/s of 2 events\n\n",
		b.base["fin"].format(0), b.base["storm"].format(0))
	b.writeTracers(&w)
	b.writeViews(&w)
	b.writePeers(&w)
	b.writeLimits(&w)
	b.writeCrowds(&w)
	w.WriteString(legend)
	return w.String()
}

const legend = `
fin        connections on loopback, one after the other, closed with FINs; one thread, as fast as it can
storm      listen() and shutdown() on one socket: no packets, so the most events that one thread can make
fin, storm of the first table: the rate with the tracer as a part of the rate without, before and after
kernel     ns that all BPF programs of the tracer take per event of fin, by the kernel's own statistics
runs       of BPF programs per event of fin
net        kernel, less what the statistics themselves cost per run: the whole time of the empty program
user, CPU  seconds of the tracer's user space, and of user space and kernel, per million events
lost       as the tracer itself says, of the events of all rounds
RSS        before any event, and at most after fin and storm
first      from the start of the tracer to the first event in a pipe
live       sockets there are besides, half established, half in CLOSE_WAIT, under tcptrace -j > /dev/null
maps       kernel memory of all BPF maps
sockets    one look at all sockets with owner and descriptor; ss shows owners with -p only
`

func (b *bench) writeTracers(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TRACER\tFIN\tSTORM\tKERNEL ns\tRUNS\tNET ns\tFIN user s\tFIN CPU s\tSTORM user s\tSTORM CPU s\tFIN lost\tSTORM lost\tRSS MB\tpeak MB\tFIRST s")
	var problems []string
	for _, r := range b.rows {
		if r.problem != nil {
			problems = append(problems, fmt.Sprintf("%v: cannot be measured here: %v\n", r.tracer, r.problem))
		}
		fin, storm := r.loads["fin"], r.loads["storm"]
		cells := []string{r.tracer.String(),
			fin.ratio.format(2), storm.ratio.format(2), r.kernel.format(0), r.runs.middle(1), b.net(r),
			fin.user.format(2), fin.cpu.format(2), storm.user.format(2), storm.cpu.format(2),
			share(fin.lost, fin.events), share(storm.lost, storm.events),
			r.idle.middle(0), r.peak.middle(0), r.first.format(2)}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	t.Flush()
	fmt.Fprintf(w, "%s\n", strings.Join(problems, ""))
}

// net is the time in the kernel without what measuring it takes.
func (b *bench) net(r *row) string {
	empty := b.rows[emptyCase]
	if len(r.kernel) == 0 || len(empty.kernel) == 0 || r.runs.median() == 0 {
		return "-"
	}
	return strconv.Itoa(int(r.kernel.median() - r.runs.median()*empty.kernel.median()/empty.runs.median()))
}

// writeViews says what each view takes beside the main case, whose user space prints every event.
func (b *bench) writeViews(w io.Writer) {
	ours := b.rows[mainCase]
	for _, r := range b.rows {
		if !r.view || r.problem != nil || ours.problem != nil {
			continue
		}
		fmt.Fprintf(w, "%v against %v, user s per million events: fin %s against %s, storm %s against %s\n", r.tracer, ours.tracer,
			r.loads["fin"].user.format(2), ours.loads["fin"].user.format(2),
			r.loads["storm"].user.format(2), ours.loads["storm"].user.format(2))
	}
	fmt.Fprintln(w)
}

// writePeers says by how much the main case is ahead of each peer.
func (b *bench) writePeers(w io.Writer) {
	ours := b.rows[mainCase]
	for _, r := range b.rows {
		if !r.peer || r.problem != nil || ours.problem != nil {
			continue
		}
		times := func(more, less values) string { return fmt.Sprintf("%.1f", more.median()/less.median()) }
		fmt.Fprintf(w, "%v against %v: fin rate / %s, storm rate / %s, kernel time x %s, CPU of fin x %s, CPU of storm x %s\n",
			r.tracer, ours.tracer,
			times(ours.loads["fin"].ratio, r.loads["fin"].ratio), times(ours.loads["storm"].ratio, r.loads["storm"].ratio),
			times(r.kernel, ours.kernel),
			times(r.loads["fin"].cpu, ours.loads["fin"].cpu), times(r.loads["storm"].cpu, ours.loads["storm"].cpu))
	}
	fmt.Fprintln(w)
}

func share(lost, events int) string {
	if events == 0 {
		return "-"
	}
	if lost == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%.2g %%)", lost, 100*float64(lost)/float64(events))
}

func (b *bench) writeLimits(w io.Writer) {
	for _, l := range b.limits {
		fmt.Fprintf(w, "%s on all CPUs, %v: %s events/s, lost %s\n",
			l.load, b.rows[mainCase].tracer, l.eventsPerSecond.format(0), share(l.lost, l.events))
	}
	fmt.Fprintln(w)
}

func (b *bench) writeCrowds(w io.Writer) {
	if len(b.crowds) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LIVE SOCKETS\tFIN\tKERNEL ns\tFIN user s\tFIN CPU s\tFIN lost\tRSS MB\tMAPS MB\tFIRST s\ttcptrace sockets -j s\tss -tan s\tss -tanp s")
	var problems []string
	for _, c := range b.crowds {
		if c.problem != nil {
			problems = append(problems, fmt.Sprintf("%d live sockets: cannot be measured here: %v\n", c.sockets, c.problem))
		}
		cells := []string{strconv.Itoa(c.sockets), c.cost.ratio.format(2), c.kernel.format(0), c.cost.user.format(2), c.cost.cpu.format(2),
			share(c.cost.lost, c.cost.events), c.rss.middle(0), c.maps.middle(0), c.first.format(2), c.look.format(2), c.ss.format(2), c.ssHolders.format(2)}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	t.Flush()
	fmt.Fprint(w, strings.Join(problems, ""))
}

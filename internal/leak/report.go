package leak

import (
	"fmt"
	"math"
	"slices"

	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Report is what a Watch found at one moment. It is plain data: what can be known of a
// group is in it. It is valid until the next one is made.
type Report struct {
	Time      int64  // wall clock, ns since the Unix epoch
	BootNS    uint64 // CLOCK_BOOTTIME, ns since the boot
	States    []tcp.State
	TimeWait  bool   // Destinations are reported, not Groups
	OlderThan uint64 // ns
	Watched   uint64 // ns since the watch began

	Sockets    int          // that count, those without a group included
	Leaks      int          // groups that leak
	Undecided  int          // groups that may leak
	UnknownAge int          // sockets in one of the states that nobody knows to be old enough
	Unplaced   int          // sockets that found no room in a group
	Unresolved int          // groups whose files and stacks were not looked up, for want of time
	Lost       uint64       // events, so far
	AnyMatch   bool         // an event or a socket that was looked at passed Config.Filter, so far
	Unjudged   tcp.Unjudged // sockets that may belong to what the filter asks for

	Groups       []*Group       // worst first; nil for TIME_WAIT
	Destinations []*Destination // of TIME_WAIT, those that eat most ports first
}

// sum counts what the groups hold.
func (r *Report) sum() {
	r.Sockets = r.Unplaced
	for _, g := range r.Groups {
		r.Sockets += g.Count
		switch g.Verdict {
		case Leak:
			r.Leaks++
		case Undecided:
			r.Undecided++
		}
	}
	for _, d := range r.Destinations {
		r.Sockets += d.Count
	}
}

// Facts fetches what the events do not say. It is asked at most once per group and
// refresh. A nil function means that it cannot be known, as of a recording.
type Facts struct {
	Files    func(pid uint32) (Files, error)
	Ports    func(netns uint32) (PortRange, error)
	Remember func(pid uint32) // the process lives, and its stacks will be asked for
	Frames   func(stack, pid uint32) []symbolize.Frame
}

// Of one report, so many groups have their facts looked up, and so many stacks a group
// has at most.
const (
	maxResolved = 1024
	maxShown    = 3
)

// resolver adds to the groups of one refresh what Facts knows.
type resolver struct {
	facts  *Facts
	files  map[uint32]Files // by process; a Limit of 0: not known
	growth map[uint32]float64
}

// resolve looks up the facts about the first max groups, and returns how many are left.
func resolve(groups []*Group, facts *Facts, max int) (left int) {
	r := resolver{facts, make(map[uint32]Files), make(map[uint32]float64)}
	for _, g := range groups {
		if g.takesDescriptors() && g.GrowthKnown {
			r.growth[g.PID] += g.Growth
		}
	}
	max = min(max, maxResolved, len(groups))
	for _, g := range groups[:max] {
		r.resolveFiles(g)
		r.resolveStacks(g)
	}
	return len(groups) - max
}

// takesDescriptors reports whether the sockets of the group take descriptors of one
// process. Those in an accept queue, half-open or complete, take none.
func (g *Group) takesDescriptors() bool {
	return g.PID != 0 && g.Holder != tcp.Gone && !half(g.State) && 2*g.Unaccepted <= g.Count
}

// resolveFiles also computes the time until the process runs out of descriptors, at
// the growth of all its groups that take any.
func (r *resolver) resolveFiles(g *Group) {
	if g.PID == 0 || g.Holder == tcp.Gone || r.facts.Files == nil { // the pid of one that is gone may be a stranger's
		return
	}
	files, known := r.files[g.PID]
	if !known {
		var err error
		if files, err = r.facts.Files(g.PID); err != nil {
			files = Files{} // it has exited meanwhile, or is not ours to look at
		}
		r.files[g.PID] = files
	}
	if files.Limit == 0 {
		return
	}
	g.Files, g.FilesKnown = files, true
	rate := r.growth[g.PID]
	if !g.takesDescriptors() || files.Limit == math.MaxUint64 || !g.GrowthKnown || g.Verdict != Leak || g.Growth <= 0 || rate <= 0 {
		return
	}
	free := files.Limit - min(files.Open, files.Limit)
	g.Left, g.LeftKnown = uint64(min(float64(free)/rate*60e9, math.MaxInt64)), true
}

// resolveStacks names the code that opened the sockets. Stacks that are the same in
// several processes are one.
func (r *resolver) resolveStacks(g *Group) {
	if r.facts.Frames == nil {
		return
	}
	for _, o := range g.openers {
		frames := r.facts.Frames(o.id, o.pid)
		same := slices.IndexFunc(g.Stacks, func(s Stack) bool { return slices.Equal(s.Frames, frames) })
		if same >= 0 {
			g.Stacks[same].Count += o.count
		} else {
			g.Stacks = append(g.Stacks, Stack{o.count, frames})
		}
	}
	slices.SortStableFunc(g.Stacks, func(a, b Stack) int { return b.Count - a.Count })
	g.Stacks = g.Stacks[:min(len(g.Stacks), maxShown)]
}

// Limits say what a finding is; both nil: a group that leaks.
type Limits struct {
	Count  *int     // more sockets than that
	Growth *float64 // more per minute than that; of TIME_WAIT, new ones per minute
}

// Finding is a group that is to be complained about. One of Group and Destination is nil.
type Finding struct {
	Why         string
	Group       *Group
	Destination *Destination
}

// Findings returns the groups that leak or, if there are limits, those that pass one.
func (r *Report) Findings(l Limits) (findings []Finding) {
	for _, g := range r.Groups {
		if why := l.passed(Leak, g.Verdict == Leak, g.Count, g.Growth, g.GrowthKnown); why != "" {
			findings = append(findings, Finding{Why: why, Group: g})
		}
	}
	for _, d := range r.Destinations {
		perSecond, known := d.PerSecond()
		if why := l.passed("exhaustion", d.Exhausts(), d.Count, 60*perSecond, known); why != "" {
			findings = append(findings, Finding{Why: why, Destination: d})
		}
	}
	return findings
}

func (l Limits) passed(verdict Verdict, bad bool, count int, growth float64, growthKnown bool) string {
	switch {
	case l == Limits{} && bad:
		return string(verdict)
	case l.Count != nil && count > *l.Count:
		return fmt.Sprintf("more than %s", Counted(*l.Count, "socket"))
	case l.Growth != nil && growthKnown && growth > *l.Growth:
		return fmt.Sprintf("growth above %g a minute", *l.Growth)
	}
	return ""
}

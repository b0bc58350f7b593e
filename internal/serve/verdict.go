package serve

import (
	"fmt"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// look is what the last look at the sockets says about leaks. It is plain data.
type look struct {
	at        uint64 // CLOCK_BOOTTIME in ns; 0: there was none yet
	failed    error
	states    []tcp.State
	watched   uint64 // ns
	olderThan uint64 // ns: what is in its state for less does not count
	// quiet is since when no look has found a leak, or has failed: CLOCK_BOOTTIME in ns.
	quiet                                  uint64
	leaks, undecided, unknownAge, unplaced int
	worst                                  finding // applies if leaks is not 0
	skipped                                string  // of what existed at the start; empty: nothing
}

// finding is a group that leaks. Its texts are fit to be shown.
type finding struct {
	service, process, remote string
	state                    tcp.State
	sockets                  int
	oldest                   uint64 // ns
	atLeast                  bool
	growth                   float64 // per minute
	growthKnown              bool
	left                     uint64 // ns until its process has no descriptor left
	leftKnown                bool
	diagnosis                string
}

// next is the look after l; r is nil if it failed.
func (l *look) next(now uint64, r *leak.Report, failed error, m *meter) look {
	n := look{at: now, failed: failed, quiet: l.quiet}
	if r == nil || l.at == 0 || r.Leaks > 0 {
		n.quiet = now
	}
	if r == nil {
		return n
	}
	n.states, n.watched, n.olderThan = r.States, r.Watched, r.OlderThan
	n.leaks, n.undecided, n.unknownAge, n.unplaced = r.Leaks, r.Undecided, r.UnknownAge, r.Unplaced
	if r.Leaks > 0 {
		n.worst = findingOf(r.Groups[0], m) // leaks come first
	}
	return n
}

func findingOf(g *leak.Group, m *meter) finding {
	f := finding{
		service: m.nameOf(serviceOf(&tcp.Event{Cgroup: g.Cgroup, ContainerID: g.Container})), process: label(g.Comm),
		state: g.State, sockets: g.Count, oldest: g.Oldest, atLeast: g.AtLeast, growth: g.Growth, growthKnown: g.GrowthKnown,
		left: g.Left, leftKnown: g.LeftKnown, diagnosis: g.Diagnosis,
	}
	if g.PID != 0 {
		f.process = strings.TrimSpace(fmt.Sprintf("%s (process %d)", f.process, g.PID))
	}
	if g.Remote.IsValid() {
		f.remote = g.Remote.Addr().String()
		if g.Remote.Port() != 0 {
			f.remote = g.Remote.String()
		}
	}
	return f
}

// The verdicts.
const (
	verdictLeak    = "leak"
	verdictNone    = "none"    // no leak was seen, and one would have been
	verdictUnknown = "unknown" // no leak was seen, but it could have been missed
)

// verdict answers whether something leaks, in a sentence, and says what is behind that.
type verdict struct {
	Verdict  string   `json:"verdict"`
	Sentence string   `json:"sentence"`
	Details  []string `json:"details"`
	Service  string   `json:"service,omitempty"` // the worst
}

// verdict judges by the last look. A leak that was found is one, whatever was missed. Without
// one, whatever could have been missed makes it unknown: a false all-clear is worse than no answer.
func (s *snapshot) verdict() verdict {
	blind := s.blind()
	switch l := &s.look; {
	case l.leaks > 0:
		v := verdict{Verdict: verdictLeak, Sentence: l.worst.sentence(), Details: append(l.worst.details(), capitals(blind)...), Service: l.worst.service}
		if l.leaks > 1 {
			v.Details = append(v.Details, leak.Counted(l.leaks-1, "more group")+" of sockets "+verb(l.leaks-1, "leaks", "leak")+".")
		}
		return v
	case len(blind) > 0:
		return verdict{Verdict: verdictUnknown, Sentence: "Not known whether sockets leak: " + blind[0], Details: capitals(blind[1:])}
	default:
		return verdict{
			Verdict:  verdictNone,
			Sentence: fmt.Sprintf("No leak seen since %s.", s.wall(l.quiet)),
			Details: []string{fmt.Sprintf("Last look at the sockets in %s: %s. What is there for less than %s does not count yet.",
				output.StateNames(l.states), s.wall(l.at), leak.Span(l.olderThan))},
		}
	}
}

func verb(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// blind says why the absence of a leak proves nothing, in sentences.
func (s *snapshot) blind() (why []string) {
	l := &s.look
	if l.at == 0 {
		return []string{"nobody has looked yet."}
	}
	if l.failed != nil {
		why = append(why, "the last look failed: "+visible(l.failed.Error())+".")
	}
	if l.failed == nil && l.watched < leak.MinWatch {
		why = append(why, fmt.Sprintf("it is too early to tell: they have been watched for %s.", leak.Span(l.watched)))
	}
	if lost := s.overlooked(); lost > 0 {
		why = append(why, fmt.Sprintf("%s %s lost since the start, and what was not seen may leak.", leak.Counted(int(lost), "event"), verb(int(lost), "was", "were")))
	}
	if l.skipped != "" {
		why = append(why, "at the start, "+visible(l.skipped)+".")
	}
	for _, missed := range []struct {
		n        int
		one, why string
	}{
		{l.undecided, "group", "may leak, it is too early to tell."},
		{l.unknownAge, "socket", "of unknown age."},
		{l.unplaced, "socket", "without a group, for lack of room."},
	} {
		if missed.n > 0 {
			why = append(why, leak.Counted(missed.n, missed.one)+" "+missed.why)
		}
	}
	return why
}

// overlooked is how many sockets a look may miss. It reads the kernel's table, so an event that the
// ring had no room for hides none; one that never got into the table is hidden for as long as it lives.
func (s *snapshot) overlooked() (n uint64) {
	for _, one := range s.lost {
		if one.what != tcp.WhereRing {
			n += one.count
		}
	}
	return n
}

// capitals has each sentence begin with a capital.
func capitals(sentences []string) []string {
	all := make([]string, len(sentences))
	for i, s := range sentences {
		all[i] = strings.ToUpper(s[:1]) + s[1:]
	}
	return all
}

func total(all []counted) (n uint64) {
	for _, one := range all {
		n += one.count
	}
	return n
}

func (f *finding) sentence() string {
	return fmt.Sprintf("%s leaks: %s in %s, the oldest for %s.", f.who(), leak.Counted(f.sockets, "socket"), f.state, f.age())
}

// who is the service as the beginning of a sentence.
func (f *finding) who() string {
	switch {
	case f.service == unknownService:
		return "A service that is not known"
	case f.service == otherService:
		return "One of the services in " + otherService
	case strings.HasPrefix(f.service, "/"):
		return "Cgroup " + f.service
	}
	return f.service
}

func (f *finding) age() string {
	if f.atLeast {
		return "at least " + leak.Span(f.oldest)
	}
	return leak.Span(f.oldest)
}

func (f *finding) details() []string {
	var who []string
	if f.process != "" {
		who = append(who, "of "+f.process)
	}
	if f.remote != "" {
		who = append(who, "to "+f.remote)
	}
	if f.growthKnown {
		who = append(who, fmt.Sprintf("%+.1f a minute", f.growth))
	}
	if f.leftKnown {
		who = append(who, "no descriptor is left in "+leak.Span(f.left))
	}
	details := []string{f.diagnosis}
	if len(who) > 0 {
		details = append(capitals([]string{strings.Join(who, ", ") + "."}), details...)
	}
	return details
}

// wall is a time of CLOCK_BOOTTIME as a time of day.
func (s *snapshot) wall(boot uint64) string {
	at := s.host.Time - int64(s.host.BootNS) + int64(boot)
	return time.Unix(0, at).UTC().Format("2006-01-02 15:04:05 UTC")
}

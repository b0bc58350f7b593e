package probe_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// A table says what the tracer shall report of one socket, one line for each
// transition, in order:
//
//	step  OLD>NEW  reason  [errno=NAME] [by=SOURCE[:PROCESS]] [since=STEP [age=exact]]
//
// reason may be - for none, * for any. The transition happened within the step, so its
// duration lies between the times of two steps. by= holds for the lines that
// follow, too; PROCESS is one of netns.procs, the test itself if absent.
type row struct {
	text     string
	step     string
	old, new tcp.State
	reason   tcp.Reason
	errno    string
	source   tcp.OwnerSource
	process  string
	age      tcp.DurationKind
	since    string // older than the trace: the step in which old began
	late     bool   // told only when the next state ends, see tellsLate
}

// tellsLate: before 6.11 nothing that can be traced tells when a mini-socket
// moves from FIN_WAIT2 to TIME_WAIT. Its timer does when it ends, to a tick.
func tellsLate(r row) bool {
	return r.old == tcp.FinWait2 && r.new == tcp.TimeWait && kernelBefore(6, 11)
}

// begunLate: the beginning of the state that this line ends was reported late.
func (s *sock) begunLate(line int) bool { return line > 0 && s.want[line-1].late }

// tick is the one of the slowest kernel clock, HZ=100.
const tick = uint64(10 * time.Millisecond)

// wants adds lines to the table of s.
func (s *sock) wants(table string) {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 0 {
			s.want = append(s.want, s.parse(f))
		}
	}
}

func (s *sock) parse(f []string) row {
	r := row{text: strings.Join(f, " "), step: f[0], reason: tcp.Reason(strings.Trim(f[2], "-")), age: tcp.Exact}
	before, after, _ := strings.Cut(f[1], ">")
	r.old, r.new = must(tcp.ParseState(before)), must(tcp.ParseState(after))
	if len(s.want) > 0 {
		last := s.want[len(s.want)-1]
		r.source, r.process = last.source, last.process
	} else {
		r.source = map[tcp.Role]tcp.OwnerSource{
			tcp.Client: tcp.FromConnect, tcp.Listener: tcp.FromListen, tcp.Server: tcp.FromInherited}[s.role]
	}
	if r.old == tcp.Close || r.old == tcp.Listen && r.new == tcp.SynRecv {
		r.age = "" // the first transition of a new socket
	}
	r.late = tellsLate(r)
	for _, option := range f[3:] {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "errno":
			r.errno = value
		case "since":
			r.age, r.since = tcp.AtLeast, value
		case "age":
			r.age = tcp.DurationKind(value)
		case "by":
			source, process, _ := strings.Cut(value, ":")
			r.source, r.process = tcp.OwnerSource(source), process
		default:
			fail("table line %q: unknown option %q", r.text, option)
		}
	}
	return r
}

// endPort is the port of the socket that markEnd opens and closes: once the
// tracer has reported it, nothing that happened before can still be on its way.
const endPort = 9

// markEnd waits for the events that are wanted, then for those of the mark, so
// that an event too many is seen as surely as one that is missing.
func (n *netns) markEnd() {
	for _, s := range n.socks {
		s.learnCookie()
	}
	n.awaitWanted()
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	check(unix.Bind(fd, &unix.SockaddrInet4{Port: endPort, Addr: [4]byte{127, 0, 0, 1}}), "bind the end mark")
	check(unix.Listen(fd, 1), "listen for the end mark")
	check(unix.Close(fd), "close the end mark")
	eventually(patience, "the tracer reports the listener that marks the end", func() bool {
		n.events = n.walk.reported(n.inode)
		return len(n.events) > 0 && isEndMark(&n.events[len(n.events)-1], tcp.Close)
	})
	n.events = slices.DeleteFunc(n.events, func(e tcp.Event) bool { return isEndMark(&e, e.New) })
}

func isEndMark(e *tcp.Event, state tcp.State) bool {
	return e.Local.Port() == endPort && e.New == state
}

// awaitWanted waits until as many events came as are wanted, but fails nothing:
// verify shows better what is missing.
func (n *netns) awaitWanted() {
	wanted := 0
	for _, s := range n.socks {
		wanted += s.due()
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n.events = n.walk.reported(n.inode); len(n.events) >= wanted {
			return
		}
	}
}

// due is how many of the lines must be told by now.
func (s *sock) due() int {
	if n := len(s.want); n == 0 || !s.want[n-1].late {
		return n
	}
	return len(s.want) - 1
}

func (w *walk) reported(netns uint32) []tcp.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events[netns])
}

// verify holds what was reported against the tables.
func (n *netns) verify() error {
	if n.dies {
		n.awaitWanted()
		n.steps["exit"] = span{n.steps["exit"].from, bootNS()}
	}
	var problems []string
	for i := range n.events {
		if s := n.sockOf(&n.events[i]); s != nil {
			s.got = append(s.got, n.events[i])
		} else {
			problems = append(problems, "  + of no socket of the scenario: "+describe(&n.events[i]))
		}
	}
	for _, s := range n.socks {
		problems = append(problems, s.problems()...)
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("the capture differs:\n%s", strings.Join(problems, "\n"))
}

// sockOf finds the socket by its cookie, or where there is none by its ends: of
// two that have the same, the first that still waits for such a line.
func (n *netns) sockOf(e *tcp.Event) *sock {
	byCookie := func(s *sock) bool { return e.Cookie != 0 && s.cookie == e.Cookie }
	byEnds := func(s *sock) bool {
		return (e.Cookie == 0 || s.cookie == 0) && s.hasEnds(e) && len(s.got) < len(s.want)
	}
	waiting := func(s *sock) bool {
		return byEnds(s) && slices.ContainsFunc(s.want[len(s.got):], func(r row) bool { return r.old == e.Old && r.new == e.New })
	}
	for _, matches := range []func(*sock) bool{byCookie, waiting, byEnds} {
		if i := slices.IndexFunc(n.socks, matches); i >= 0 {
			s := n.socks[i]
			s.cookie = max(s.cookie, e.Cookie)
			return s
		}
	}
	return nil
}

func (s *sock) hasEnds(e *tcp.Event) bool {
	if s.device != 0 && e.Device != s.device {
		return false
	}
	if s.role == tcp.Listener {
		return e.Local == s.local && e.Remote.Port() == 0
	}
	local := s.local
	if e.New == tcp.SynSent && !s.bound {
		local = netip.AddrPortFrom(local.Addr(), 0) // connect() chooses the port later
	}
	return e.Local == local && e.Remote == s.remote
}

// problems lists the whole table of s, each line with what differs; nothing if
// nothing does.
func (s *sock) problems() []string {
	lines := []string{fmt.Sprintf("%s %v > %v, cookie %x:", s.name, s.local, s.remote, s.cookie)}
	bad, next := false, 0
	missing := func(upTo int) {
		for ; next < upTo; next++ {
			bad, lines = true, append(lines, "  - "+s.want[next].text+": missing")
		}
	}
	for i := range s.got {
		e := &s.got[i]
		found := slices.IndexFunc(s.want[next:], func(r row) bool { return r.old == e.Old && r.new == e.New })
		if found < 0 {
			bad, lines = true, append(lines, "  + "+describe(e))
			continue
		}
		missing(next + found)
		lines = append(lines, "    "+s.want[next].text)
		if diff := s.differences(e, next); len(diff) > 0 {
			bad, lines = true, append(lines, "      got "+describe(e), "      but "+strings.Join(diff, "; "))
		}
		next++
	}
	if missing(max(next, s.due())); !bad {
		return nil
	}
	return lines
}

// differences holds one event against the line of the table that it is for.
func (s *sock) differences(e *tcp.Event, line int) (diff []string) {
	want := s.want[line]
	differ := func(what string, got, want any) {
		if got != want {
			diff = append(diff, fmt.Sprintf("%s is %v, want %v", what, got, want))
		}
	}
	if want.reason != "*" {
		differ("reason", e.Reason, want.reason)
	}
	if holder, known := s.holderAt(line); known {
		differ("holder", e.Holder, holder)
	}
	differ("role", e.Role, s.role)
	differ("errno", errnoName(e.Errno), want.errno)
	differ("mptcp", e.MPTCP, s.mptcp)
	differ("netns", e.NetNS, s.n.inode)
	differ("right ends", s.hasEnds(e), true)
	if e.DurationKind != tcp.AtLeast || !s.begunLate(line) {
		differ("kind of duration", e.DurationKind, want.age)
	}
	if want.source != "" {
		differ("uid", e.UID, uint32(os.Getuid()))
	}
	if e.Cookie != 0 || s.needsCookie(e) {
		differ("cookie", e.Cookie, s.cookie)
	}
	diff = append(diff, s.ownerDiffers(e, want)...)
	return append(diff, s.timesDiffer(e, line)...)
}

// holderAt is what a line must say of the owner's descriptor: whoever calls holds one, and
// after close() nobody does.
func (s *sock) holderAt(line int) (tcp.Holder, bool) {
	if s.mptcp || s.want[line].source == "" {
		return "", false
	}
	for _, r := range s.want[:line+1] {
		if r.reason == tcp.LocalClose {
			return tcp.Gone, true
		}
	}
	switch s.want[line].reason {
	case tcp.Connect, tcp.ListenCall:
		return tcp.Held, true
	case tcp.LocalShutdown:
		return tcp.Held, s.want[line].source != tcp.FromInherited
	}
	return "", false
}

// needsCookie: a half-open connection has none, and before 5.12 a program has
// no way to make one.
func (s *sock) needsCookie(e *tcp.Event) bool {
	halfOpen := e.Old == tcp.Listen || e.Old == tcp.SynRecv && s.role == tcp.Server
	return !halfOpen && !kernelBefore(5, 12)
}

// ownerDiffers lets a kernel with trampolines know the accepting process, where
// others have only the listener's until it reads or closes. MPTCP closes a subflow
// in the process that calls close(), or in its worker (mptcp_close_ssk): both are right.
func (s *sock) ownerDiffers(e *tcp.Event, want row) (diff []string) {
	byAccept := s.accepted && e.OwnerSource == tcp.FromAccept && s.role == tcp.Server
	byClose := s.mptcp && e.OwnerSource == tcp.FromClose && s.closedIn(want.step)
	if e.OwnerSource != want.source && !byAccept && !byClose {
		diff = append(diff, fmt.Sprintf("owner_source is %q, want %q", e.OwnerSource, want.source))
	}
	process := want.process
	if byAccept && s.acceptedBy != "" {
		process = s.acceptedBy
	}
	if who, got := s.n.procs[process], (owner{e.PID, e.Comm}); want.source != "" && got != who {
		diff = append(diff, fmt.Sprintf("owner is %+v, want %+v", got, who))
	}
	return diff
}

// closedIn reports whether the socket is closed in a step.
func (s *sock) closedIn(step string) bool {
	return slices.ContainsFunc(s.want, func(r row) bool { return r.step == step && r.reason == tcp.LocalClose })
}

// timesDiffer holds the time of an event and its duration against the steps.
func (s *sock) timesDiffer(e *tcp.Event, line int) (diff []string) {
	want := s.want[line]
	at := s.n.steps[want.step]
	slack := uint64(0)
	if want.late || s.begunLate(line) {
		slack = tick
	}
	if !within(e.BootNS, at, slack) {
		diff = append(diff, fmt.Sprintf("it came %v after the step began, which took %v",
			time.Duration(e.BootNS-at.from), time.Duration(at.to-at.from)))
	}
	if offset := time.Now().UnixNano() - int64(bootNS()); abs(e.Time-int64(e.BootNS)-offset) > int64(time.Second) {
		diff = append(diff, "time and boot_ns are not the same moment")
	}
	if want.age == "" {
		return diff
	}
	since := s.since(line)
	lasted := span{at.from - min(at.from, since.to), at.to - since.from}
	if !within(e.Duration, lasted, slack+lasted.to/100) {
		diff = append(diff, fmt.Sprintf("duration is %v, want %v to %v",
			time.Duration(e.Duration), time.Duration(lasted.from), time.Duration(lasted.to)))
	}
	return diff
}

// within allows the 1 ms that the project promises; durations have 1 % more.
func within(v uint64, s span, slack uint64) bool {
	slack += uint64(time.Millisecond)
	return v+slack >= s.from && v <= s.to+slack
}

// since is when the state that a line ends began; where only a lower bound of
// its age can be known, at the latest when the trace did.
func (s *sock) since(line int) span {
	want := s.want[line]
	if want.since == "" {
		return s.n.steps[s.want[line-1].step]
	}
	began := s.n.steps[want.since]
	if want.age == tcp.AtLeast {
		began.to = s.n.walk.opened.to
	}
	return began
}

func abs(n int64) int64 { return max(n, -n) }

func errnoName(errno uint32) string {
	if errno == 0 {
		return ""
	}
	return unix.ErrnoName(unix.Errno(errno))
}

func describe(e *tcp.Event) string {
	return fmt.Sprintf("%v>%v %s errno=%s by=%s:%d:%q role=%s %v %s, %v > %v cookie %x",
		e.Old, e.New, e.Reason, errnoName(e.Errno), e.OwnerSource, e.PID, e.Comm, e.Role,
		time.Duration(e.Duration), e.DurationKind, e.Local, e.Remote, e.Cookie)
}

// kernelBefore is for what the kernel itself cannot do yet.
func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	check(unix.Uname(&u), "uname")
	var gotMajor, gotMinor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &gotMajor, &gotMinor)
	check(err, "read the kernel's version")
	return gotMajor < major || gotMajor == major && gotMinor < minor
}

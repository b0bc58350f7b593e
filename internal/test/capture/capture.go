// Package capture makes events out of text, for the tests of consumers.
package capture

import (
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Start is the time 0 of a capture: of the wall clock, and of CLOCK_BOOTTIME in ns.
const (
	Start  = 1795350000e9
	BootNS = 86400e9
)

// Events reads events, one a line:
//
//	TIME SOCKET [OLD]>NEW LOCAL REMOTE [REASON] [FIELD=VALUE ...]
//
// TIME counts from Start, as time.ParseDuration has it. SOCKET is a name of which the cookie
// is made, but for LISTEN>SYN_RECV, which has none. Without OLD it is a row. A transition
// has the exact duration since the line before of that socket, unless it has a field
// exact=, at_least= or unknown=. "TIME lost N" is a loss.
func Events(t testing.TB, text string) (events []tcp.Event) {
	t.Helper()
	last := map[string]uint64{} // BootNS, by socket
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		p := parser{t: t, line: line}
		events = append(events, p.event(last))
	}
	return events
}

type parser struct {
	t    testing.TB
	line string
	e    tcp.Event
}

func (p *parser) event(last map[string]uint64) tcp.Event {
	p.t.Helper()
	f := strings.Fields(p.line)
	at := p.duration(f[0])
	p.e = tcp.Event{Time: Start + int64(at), BootNS: BootNS + at, NetNS: 4026531840, UID: tcp.NoUID, FD: tcp.NoFD}
	if f[1] == "lost" {
		p.e.Kind, p.e.Lost, p.e.Where = tcp.Lost, uint64(p.number(f[2])), "ring"
		return p.e
	}
	old, now, _ := strings.Cut(f[2], ">")
	p.e.New = p.state(now)
	if old == "" {
		p.e.Kind = tcp.Socket
	} else {
		p.e.Old = p.state(old)
	}
	if p.e.Old != tcp.Listen || p.e.New != tcp.SynRecv {
		name := fnv.New32()
		name.Write([]byte(f[1]))
		p.e.Cookie = uint64(name.Sum32())
	}
	p.e.Local, p.e.Remote = netip.MustParseAddrPort(f[3]), netip.MustParseAddrPort(f[4])
	if since, known := last[f[1]]; known && p.e.Kind == tcp.Transition && p.e.Old != tcp.Close && (p.e.Old != tcp.Listen || p.e.New == tcp.Close) {
		p.e.Duration, p.e.DurationKind = p.e.BootNS-since, tcp.Exact
	}
	last[f[1]] = p.e.BootNS
	for _, field := range f[5:] {
		p.set(field)
	}
	return p.e
}

func (p *parser) set(field string) {
	p.t.Helper()
	key, value, given := strings.Cut(field, "=")
	if !given {
		p.e.Reason = tcp.Reason(field)
		return
	}
	switch key {
	case "exact", "at_least":
		p.e.Duration, p.e.DurationKind = p.duration(value), tcp.DurationKind(key)
	case "unknown":
		p.e.Duration, p.e.DurationKind = 0, tcp.Unknown
	case "role":
		p.e.Role = tcp.Role(value)
	case "pid":
		pid, comm, _ := strings.Cut(value, "/")
		p.e.PID, p.e.Comm, p.e.OwnerSource = uint32(p.number(pid)), comm, tcp.FromUse
	case "cgroup":
		p.e.Cgroup, p.e.ContainerID = value, tcp.ContainerID(value)
	case "netns":
		p.e.NetNS = uint32(p.number(value))
	case "errno":
		p.e.Errno = uint32(p.number(value))
	case "bytes": // sent/received/retransmits/srtt_us
		n := strings.Split(value, "/")
		p.e.HasCounters = true
		p.e.BytesSent, p.e.BytesReceived = uint64(p.number(n[0])), uint64(p.number(n[1]))
		p.e.Retransmits, p.e.SRTT = uint32(p.number(n[2])), uint32(p.number(n[3]))
	default:
		p.t.Fatalf("%s: unknown field %s", p.line, key)
	}
}

func (p *parser) duration(s string) uint64 {
	p.t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatalf("%s: %v", p.line, err)
	}
	return uint64(d)
}

func (p *parser) number(s string) int {
	p.t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		p.t.Fatalf("%s: %v", p.line, err)
	}
	return n
}

func (p *parser) state(name string) tcp.State {
	p.t.Helper()
	s, err := tcp.ParseState(name)
	if err != nil {
		p.t.Fatalf("%s: %v", p.line, err)
	}
	return s
}

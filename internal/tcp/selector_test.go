package tcp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// capture reads events, one a line:
//
//	COOKIE OLD>NEW LOCAL REMOTE [pid=N/SOURCE] [comm=NAME] [for=NS] [...]
//
// COOKIE is - for a half-open connection; OLD is empty for a Socket row; a line
// "lost" is a Lost event. Event.Time is the number of the line.
func capture(t testing.TB, lines []string) []Event {
	t.Helper()
	var events []Event
	for i, line := range lines {
		ev := Event{Time: int64(i), UID: NoUID, FD: NoFD}
		if line == "lost" {
			ev.Kind = Lost
			events = append(events, ev)
			continue
		}
		f := strings.Fields(line)
		ev.Cookie, _ = strconv.ParseUint(f[0], 16, 64)
		old, now, _ := strings.Cut(f[1], ">")
		ev.New = state(t, now)
		if old == "" {
			ev.Kind = Socket
		} else {
			ev.Old = state(t, old)
		}
		ev.Local, ev.Remote = netip.MustParseAddrPort(f[2]), netip.MustParseAddrPort(f[3])
		for _, more := range f[4:] {
			set(t, &ev, more)
		}
		events = append(events, ev)
	}
	return events
}

func set(t testing.TB, ev *Event, field string) {
	t.Helper()
	key, value, _ := strings.Cut(field, "=")
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatalf("%s: %v", field, err)
		}
		return uint32(n)
	}
	switch key {
	case "pid":
		pid, source, _ := strings.Cut(value, "/")
		ev.PID, ev.OwnerSource = number(pid), OwnerSource(source)
	case "comm":
		ev.Comm = value
	case "uid":
		ev.UID = number(value)
	case "for":
		ev.Duration, ev.DurationKind = uint64(number(value)), Exact
	case "unknown":
		ev.Duration, ev.DurationKind = uint64(number(value)), Unknown
	case "dev":
		ev.Device = number(value)
	case "boot":
		ev.BootNS = uint64(number(value))
	case "netns":
		ev.NetNS = number(value)
	case "cgroup":
		ev.Cgroup = value
	case "container":
		ev.ContainerID = value
	default:
		t.Fatalf("unknown field %q", field)
	}
}

func state(t testing.TB, name string) State {
	t.Helper()
	s, err := ParseState(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// show returns the lines that a Selector lets pass, in the order they come out.
func show(t testing.TB, s *Selector, in []string) string {
	t.Helper()
	var out strings.Builder
	for _, ev := range capture(t, in) {
		err := s.Select(&ev, func(ev *Event) error {
			out.WriteString(in[ev.Time] + "\n")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// Two connections at once: a client's to port 443, where the first has no local
// port yet, and one that listener 9 accepts.
const twoSockets = `
	a CLOSE>SYN_SENT         10.0.0.1:0     10.0.0.2:443 pid=5/connect comm=curl
	- LISTEN>SYN_RECV        10.0.0.1:80    10.0.0.3:999 pid=7/inherited comm=nginx
	a SYN_SENT>ESTABLISHED   10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=30
	b SYN_RECV>ESTABLISHED   10.0.0.1:80    10.0.0.3:999 pid=7/inherited comm=nginx for=20
	b ESTABLISHED>CLOSE_WAIT 10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=100
	a ESTABLISHED>FIN_WAIT1  10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=50
	lost
	a FIN_WAIT1>CLOSE        10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=1
	b CLOSE_WAIT>LAST_ACK    10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=900
	b LAST_ACK>CLOSE         10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=2`

const theClient = `
	a CLOSE>SYN_SENT         10.0.0.1:0     10.0.0.2:443 pid=5/connect comm=curl
	a SYN_SENT>ESTABLISHED   10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=30
	a ESTABLISHED>FIN_WAIT1  10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=50
	lost
	a FIN_WAIT1>CLOSE        10.0.0.1:4000  10.0.0.2:443 pid=5/connect comm=curl for=1`

const theServer = `
	- LISTEN>SYN_RECV        10.0.0.1:80    10.0.0.3:999 pid=7/inherited comm=nginx
	b SYN_RECV>ESTABLISHED   10.0.0.1:80    10.0.0.3:999 pid=7/inherited comm=nginx for=20
	b ESTABLISHED>CLOSE_WAIT 10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=100
	lost
	b CLOSE_WAIT>LAST_ACK    10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=900
	b LAST_ACK>CLOSE         10.0.0.1:80    10.0.0.3:999 pid=8/accept comm=nginx for=2`

func TestSelectorShowsWholeSockets(t *testing.T) {
	tests := []struct {
		name   string
		filter Filter
		want   string
	}{
		{"everything", Filter{}, twoSockets},
		{"remote port", Filter{RemotePorts: Port(443)}, theClient},
		{"remote address", Filter{Remote: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/31")}}, twoSockets},
		{"local port, 0 at first", Filter{LocalPorts: Ports{Only: []PortRange{{1, 1}, {4000, 4000}}}}, theClient},
		{"local port of a server", Filter{LocalPorts: Port(80)}, theServer},
		{"all local ports but one", Filter{LocalPorts: Ports{Except: []PortRange{{80, 80}}}}, theClient},
		{"a range less a port", Filter{RemotePorts: Ports{Only: []PortRange{{1, 1023}}, Except: []PortRange{{999, 999}}}}, theClient},
		{"either port is the remote one", Filter{EitherPort: Port(443)}, theClient},
		{"either port is the local one, 0 at first", Filter{EitherPort: Port(4000)}, theClient},
		{"either port, not one", Filter{EitherPort: Ports{Only: []PortRange{{80, 443}}, Except: []PortRange{{4000, 4000}}}}, theServer},
		{"neither port", Filter{EitherPort: Ports{Except: []PortRange{{443, 443}, {80, 80}}}}, "lost"},
		{"a cookie that the half-open connection has not yet", Filter{Cookies: []uint64{0xb}}, theServer},
		{"a condition that holds late", Filter{Where: func(e *Event) bool { return e.New == LastAck }}, theServer},
		{"a condition and a port", Filter{Where: func(e *Event) bool { return e.New == LastAck }, LocalPorts: Port(4000)}, "lost"},
		{"a state reached late", Filter{States: []State{FinWait1}}, theClient},
		{"a state of one event only", Filter{States: []State{SynRecv}}, theServer},
		{"the first state, no cookie yet", Filter{States: []State{Listen}}, theServer},
		{"an owner known after accept", Filter{PIDs: []uint32{8}}, theServer},
		{"an inherited owner that is corrected", Filter{PIDs: []uint32{7}}, theServer},
		{"either owner", Filter{PIDs: []uint32{5, 8}}, twoSockets},
		{"name", Filter{Comm: []string{"curl"}}, theClient},
		{"glob", Filter{Comm: []string{"ng*"}}, theServer},
		{"a duration reached late", Filter{MinDuration: 900}, theServer},
		{"a duration in a state", Filter{MinDuration: 50, States: []State{CloseWait}}, theServer},
		{"a duration in another state", Filter{MinDuration: 901, States: []State{CloseWait}}, "lost"},
		{"port and state", Filter{LocalPorts: Port(80), States: []State{SynSent}}, "lost"},
		{"port and state, together late", Filter{LocalPorts: Port(4000), States: []State{SynSent}}, theClient},
		{"IPv4", Filter{Family: 4}, twoSockets},
		{"IPv6", Filter{Family: 6}, "lost"},
		{"namespace", Filter{NetNS: []uint32{1}}, "lost"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := strings.Split(strings.TrimSpace(show(t, NewSelector(test.filter), lines(twoSockets))), "\n")
			// Held events come out behind later ones of others: what has to hold is
			// the order per socket, and that a hold comes before what follows it.
			if want := lines(test.want); perSocket(got) != perSocket(want) {
				t.Errorf("got\n%s\nwant\n%s", perSocket(got), perSocket(want))
			}
		})
	}
}

// perSocket puts the lines of client, server and neither one behind the other.
func perSocket(lines []string) string {
	var client, server, rest strings.Builder
	for _, line := range lines {
		switch line[0] {
		case 'a':
			client.WriteString(line + "\n")
		case 'b', '-':
			server.WriteString(line + "\n")
		default:
			rest.WriteString(line + "\n")
		}
	}
	return client.String() + server.String() + rest.String()
}

func TestSelector(t *testing.T) {
	tests := []struct {
		name     string
		filter   Filter
		in, want string
	}{
		{
			"the hold comes out when the socket matches", Filter{LocalPorts: Port(4000)}, `
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			c CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			c SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4001 10.0.0.2:443`, `
			c CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			c SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443`,
		}, {
			"what follows CLOSE is judged afresh", Filter{RemotePorts: Port(443), LocalPorts: Port(4000)}, `
			a CLOSE>SYN_SENT       10.0.0.1:4000 10.0.0.2:443
			a SYN_SENT>CLOSE       10.0.0.1:4000 10.0.0.2:443
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443
			a ESTABLISHED>CLOSE    10.0.0.1:0    10.0.0.2:443
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:80`, `
			a CLOSE>SYN_SENT       10.0.0.1:4000 10.0.0.2:443
			a SYN_SENT>CLOSE       10.0.0.1:4000 10.0.0.2:443
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443
			a ESTABLISHED>CLOSE    10.0.0.1:0    10.0.0.2:443`,
		}, {
			"a half-open connection does not belong to its listener", Filter{PIDs: []uint32{8}}, `
			9 CLOSE>LISTEN           0.0.0.0:80  0.0.0.0:0    pid=7/listen
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:998 pid=7/inherited
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:999 pid=7/inherited
			- SYN_RECV>CLOSE         10.0.0.1:80 10.0.0.3:998 pid=7/inherited
			b SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:999 pid=7/inherited
			b ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999 pid=8/use
			9 LISTEN>CLOSE           0.0.0.0:80  0.0.0.0:0    pid=7/listen`, `
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:999 pid=7/inherited
			b SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:999 pid=7/inherited
			b ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999 pid=8/use`,
		}, {
			"half-open in two namespaces", Filter{States: []State{Established}}, `
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 netns=1
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 netns=2
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 netns=2
			- SYN_RECV>CLOSE       10.0.0.1:80 10.0.0.3:999 netns=1`, `
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 netns=2
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 netns=2`,
		}, {
			"the end of a half-open connection was lost, its addresses are used again", Filter{PIDs: []uint32{8}}, `
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 for=1
			lost
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 for=2
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 pid=8/accept`, `
			lost
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999 for=2
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 pid=8/accept`,
		}, {
			"a socket that connects again in its own TIME_WAIT", Filter{States: []State{SynSent}}, `
			a ESTABLISHED>FIN_WAIT1  10.0.0.1:4000 10.0.0.2:443
			a FIN_WAIT2>TIME_WAIT    10.0.0.1:4000 10.0.0.2:443
			a CLOSE>SYN_SENT         10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED   10.0.0.1:4001 10.0.0.2:443
			a TIME_WAIT>CLOSE        10.0.0.1:4000 10.0.0.2:443
			a ESTABLISHED>FIN_WAIT1  10.0.0.1:4001 10.0.0.2:443
			a FIN_WAIT2>TIME_WAIT    10.0.0.1:4001 10.0.0.2:443
			a TIME_WAIT>CLOSE        10.0.0.1:4001 10.0.0.2:443`, `
			a CLOSE>SYN_SENT         10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED   10.0.0.1:4001 10.0.0.2:443
			a ESTABLISHED>FIN_WAIT1  10.0.0.1:4001 10.0.0.2:443
			a FIN_WAIT2>TIME_WAIT    10.0.0.1:4001 10.0.0.2:443
			a TIME_WAIT>CLOSE        10.0.0.1:4001 10.0.0.2:443`,
		}, {
			"a TIME_WAIT is judged with the connection that it ends", Filter{LocalPorts: Port(4000)}, `
			a ESTABLISHED>FIN_WAIT1  10.0.0.1:4000 10.0.0.2:443
			a FIN_WAIT2>TIME_WAIT    10.0.0.1:4000 10.0.0.2:443
			a CLOSE>SYN_SENT         10.0.0.1:0    10.0.0.2:443
			a TIME_WAIT>CLOSE        10.0.0.1:4000 10.0.0.2:443
			a SYN_SENT>ESTABLISHED   10.0.0.1:4001 10.0.0.2:443`, `
			a ESTABLISHED>FIN_WAIT1  10.0.0.1:4000 10.0.0.2:443
			a FIN_WAIT2>TIME_WAIT    10.0.0.1:4000 10.0.0.2:443
			a TIME_WAIT>CLOSE        10.0.0.1:4000 10.0.0.2:443`,
		}, {
			"half-open on two devices", Filter{PIDs: []uint32{8}}, `
			- LISTEN>SYN_RECV      [fe80::1]:80 [fe80::2]:999 dev=2
			- LISTEN>SYN_RECV      [fe80::1]:80 [fe80::2]:999 dev=3
			b SYN_RECV>ESTABLISHED [fe80::1]:80 [fe80::2]:999 dev=2 pid=8/use
			c SYN_RECV>ESTABLISHED [fe80::1]:80 [fe80::2]:999 dev=3`, `
			- LISTEN>SYN_RECV      [fe80::1]:80 [fe80::2]:999 dev=2
			b SYN_RECV>ESTABLISHED [fe80::1]:80 [fe80::2]:999 dev=2 pid=8/use`,
		}, {
			"a descriptor whose connection is over", Filter{States: []State{Close}, PIDs: []uint32{8}}, `
			a >CLOSE           10.0.0.1:4000 10.0.0.2:443 pid=8/snapshot
			a CLOSE>SYN_SENT   10.0.0.1:0    10.0.0.2:443 pid=9/connect
			b >CLOSE           10.0.0.1:4001 10.0.0.2:443
			b >CLOSE           10.0.0.1:4001 10.0.0.2:443 pid=8/snapshot`, `
			a >CLOSE           10.0.0.1:4000 10.0.0.2:443 pid=8/snapshot
			b >CLOSE           10.0.0.1:4001 10.0.0.2:443
			b >CLOSE           10.0.0.1:4001 10.0.0.2:443 pid=8/snapshot`,
		}, {
			"the CLOSE of a socket was lost, it connects again", Filter{LocalPorts: Port(4000)}, `
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443
			lost
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4001 10.0.0.2:443`, `
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443
			lost`,
		}, {
			"a socket that existed before", Filter{States: []State{CloseWait}}, `
			a >ESTABLISHED           10.0.0.1:80 10.0.0.3:999
			b >CLOSE_WAIT            10.0.0.1:80 10.0.0.3:998
			a ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999
			b CLOSE_WAIT>LAST_ACK    10.0.0.1:80 10.0.0.3:998`, `
			b >CLOSE_WAIT            10.0.0.1:80 10.0.0.3:998
			a >ESTABLISHED           10.0.0.1:80 10.0.0.3:999
			a ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999
			b CLOSE_WAIT>LAST_ACK    10.0.0.1:80 10.0.0.3:998`,
		}, {
			"the age of a row counts for the state it is in", Filter{States: []State{CloseWait}, MinDuration: 10}, `
			a >CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999 for=9
			b >CLOSE_WAIT 10.0.0.1:80 10.0.0.3:998 for=10
			c >CLOSE_WAIT 10.0.0.1:80 10.0.0.3:997 unknown=10`, `
			b >CLOSE_WAIT 10.0.0.1:80 10.0.0.3:998 for=10`,
		}, {
			"no owner is not pid 0", Filter{PIDs: []uint32{0}}, `
			a >ESTABLISHED 10.0.0.1:80 10.0.0.3:999`, ``,
		}, {
			"user", Filter{UIDs: []uint32{33}}, `
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 uid=33
			c CLOSE>SYN_SENT       10.0.0.1:0  10.0.0.2:443 uid=0`, `
			- LISTEN>SYN_RECV      10.0.0.1:80 10.0.0.3:999
			b SYN_RECV>ESTABLISHED 10.0.0.1:80 10.0.0.3:999 uid=33`,
		}, {
			"cgroup and all below", Filter{Cgroups: []string{"/system.slice/"}}, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/system.slice
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/system.slice/nginx.service/sub
			c >LISTEN 0.0.0.0:3 0.0.0.0:0 cgroup=/system.slices
			d >LISTEN 0.0.0.0:4 0.0.0.0:0 cgroup=/
			e >LISTEN 0.0.0.0:5 0.0.0.0:0`, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/system.slice
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/system.slice/nginx.service/sub`,
		}, {
			"a glob of cgroups", Filter{Cgroups: []string{"/*/docker-*"}}, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/system.slice/docker-12.scope/init.scope
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/system.slice
			c >LISTEN 0.0.0.0:3 0.0.0.0:0 cgroup=/docker-12.scope`, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/system.slice/docker-12.scope/init.scope`,
		}, {
			"the root cgroup holds all that have one", Filter{Cgroups: []string{"/"}}, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/system.slice
			c >LISTEN 0.0.0.0:3 0.0.0.0:0`, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/system.slice`,
		}, {
			"systemd's escapes are not globs", Filter{Cgroups: []string{`/a\x2db`}}, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/a\x2db/c
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/ax2db`, `
			a >LISTEN 0.0.0.0:1 0.0.0.0:0 cgroup=/a\x2db/c
			b >LISTEN 0.0.0.0:2 0.0.0.0:0 cgroup=/ax2db`,
		}, {
			"the beginning of a container id", Filter{Containers: []string{"4f7"}}, `
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443 container=4f797c
			b >ESTABLISHED         10.0.0.1:4001 10.0.0.2:443 container=94f7`, `
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443 container=4f797c`,
		}, {
			"a local address not bound yet", Filter{Local: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}, `
			a CLOSE>SYN_SENT       [::]:0      [fd00::2]:443
			a SYN_SENT>ESTABLISHED [fd00::1]:1 [fd00::2]:443
			b CLOSE>SYN_SENT       [::1]:0     [::1]:443`, `
			a CLOSE>SYN_SENT       [::]:0      [fd00::2]:443
			a SYN_SENT>ESTABLISHED [fd00::1]:1 [fd00::2]:443`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := NewSelector(test.filter)
			got := strings.TrimSpace(show(t, s, lines(test.in)))
			if want := strings.Join(lines(test.want), "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if s.Dropped() != 0 {
				t.Errorf("dropped %d sockets", s.Dropped())
			}
		})
	}
}

// A line "tick N" lets the time come to N ns.
func TestSelectorTick(t *testing.T) {
	synSent := Filter{States: []State{SynSent}, MinDuration: 100}
	tests := []struct {
		name     string
		filter   Filter
		in, want string
	}{
		{"a connect() that hangs is shown when it qualifies, and to its end", synSent, `
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443 boot=50
			tick 149
			tick 150
			tick 151
			a SYN_SENT>CLOSE       10.0.0.1:4000 10.0.0.2:443 boot=900 for=850`, `
			tick 149
			tick 150
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443 boot=50
			tick 151
			a SYN_SENT>CLOSE       10.0.0.1:4000 10.0.0.2:443 boot=900 for=850`},
		{"what comes in time is not shown", synSent, `
			a CLOSE>SYN_SENT       10.0.0.1:0    10.0.0.2:443 boot=50
			a SYN_SENT>ESTABLISHED 10.0.0.1:4000 10.0.0.2:443 boot=60 for=10
			tick 500`, `
			tick 500`},
		{"all of the socket comes out, those that waited longest first", Filter{MinDuration: 100}, `
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:999 boot=50
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:998 boot=55
			b SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:998 boot=60 for=5
			c SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:999 boot=70 for=20
			c ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999 boot=80 for=10
			tick 170
			tick 180`, `
			tick 170
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:998 boot=55
			b SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:998 boot=60 for=5
			tick 180
			- LISTEN>SYN_RECV        10.0.0.1:80 10.0.0.3:999 boot=50
			c SYN_RECV>ESTABLISHED   10.0.0.1:80 10.0.0.3:999 boot=70 for=20
			c ESTABLISHED>CLOSE_WAIT 10.0.0.1:80 10.0.0.3:999 boot=80 for=10`},
		{"a row counts from when its state began, if that is known", Filter{MinDuration: 100}, `
			a >ESTABLISHED 10.0.0.1:40 10.0.0.2:443 boot=500 for=60
			b >ESTABLISHED 10.0.0.1:41 10.0.0.2:443 boot=500 unknown=60
			tick 539
			tick 540
			tick 999`, `
			tick 539
			tick 540
			a >ESTABLISHED 10.0.0.1:40 10.0.0.2:443 boot=500 for=60
			tick 999`},
		{"the other fields have to hold too", Filter{MinDuration: 100, States: []State{SynSent}, PIDs: []uint32{8}}, `
			a CLOSE>SYN_SENT 10.0.0.1:0 10.0.0.2:443 boot=50 pid=7/connect
			b CLOSE>SYN_SENT 10.0.0.1:0 10.0.0.2:443 boot=50 pid=8/connect
			tick 500`, `
			tick 500
			b CLOSE>SYN_SENT 10.0.0.1:0 10.0.0.2:443 boot=50 pid=8/connect`},
		{"without a minimum duration time changes nothing", Filter{States: []State{CloseWait}}, `
			a CLOSE>SYN_SENT 10.0.0.1:0 10.0.0.2:443 boot=50
			tick 500`, `
			tick 500`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := NewSelector(test.filter)
			in, out := lines(test.in), []string(nil)
			for i, line := range in {
				emit := func(ev *Event) error {
					out = append(out, in[ev.Time])
					return nil
				}
				var now uint64
				var err error
				if n, _ := fmt.Sscanf(line, "tick %d", &now); n == 1 {
					out = append(out, line)
					err = s.Tick(now, emit)
				} else {
					ev := capture(t, in[i:i+1])[0]
					ev.Time = int64(i)
					err = s.Select(&ev, emit)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if want := lines(test.want); !slices.Equal(out, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(out, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestSelectorForgetsWhatEnds(t *testing.T) {
	for _, f := range []Filter{{}, {PIDs: []uint32{8}}, {PIDs: []uint32{99}}, {States: []State{CloseWait}}, {LocalPorts: Port(80)}} {
		s := NewSelector(f)
		show(t, s, lines(twoSockets))
		if s.lives.Len() != 0 || s.held != 0 {
			t.Errorf("%+v: %d sockets and %d held events are left", f, s.lives.Len(), s.held)
		}
	}
}

func TestSelectorBounds(t *testing.T) {
	undecided := NewSelector(Filter{PIDs: []uint32{1}})
	matching := NewSelector(Filter{PIDs: []uint32{0}, States: []State{Established}})
	ev := Event{New: Established, OwnerSource: FromUse}
	emitted := 0
	emit := func(*Event) error { emitted++; return nil }

	for ev.Cookie = 1; ev.Cookie <= maxHeld+10; ev.Cookie++ {
		undecided.Select(&ev, emit)
	}
	if got := undecided.Dropped(); got != 10 || undecided.held != maxHeld || emitted != 0 {
		t.Errorf("dropped %d, held %d, emitted %d; want 10, %d, 0", got, undecided.held, emitted, maxHeld)
	}

	for ev.Cookie = 1; ev.Cookie <= maxChosen+10; ev.Cookie++ {
		matching.Select(&ev, emit)
	}
	if got := matching.Dropped(); got != 10 || matching.lives.Len() != maxChosen || emitted != maxChosen+10 {
		t.Errorf("dropped %d, sockets %d, emitted %d; want 10, %d, %d", got, matching.lives.Len(), emitted, maxChosen, maxChosen+10)
	}
}

// A peer can restart TIME_WAIT as often as it likes.
func TestSelectorBoundsOneSocket(t *testing.T) {
	s := NewSelector(Filter{PIDs: []uint32{1}})
	ev := Event{Cookie: 1, Old: TimeWait, New: TimeWait}
	emitted := 0
	emit := func(*Event) error { emitted++; return nil }
	for range maxHeldPer + 2 {
		s.Select(&ev, emit)
	}
	ev.PID, ev.OwnerSource = 1, FromUse
	s.Select(&ev, emit)
	if s.Dropped() != 1 || emitted != 3 {
		t.Errorf("dropped %d, emitted %d; want 1 and the 2 held since, with the match", s.Dropped(), emitted)
	}
}

func TestSelectorReturnsTheErrorOfEmit(t *testing.T) {
	full := errors.New("no space left")
	s := NewSelector(Filter{States: []State{Established}})
	for i, ev := range capture(t, lines(theClient)[:2]) {
		err := s.Select(&ev, func(*Event) error { return full })
		if want := []error{nil, full}[i]; err != want {
			t.Errorf("event %d: got %v, want %v", i, err, want)
		}
	}
}

func TestFilterValidate(t *testing.T) {
	bad := map[string]Filter{
		"address family 5": {Family: 5},
		`"[a"`:             {Comm: []string{"ok", "[a"}},
		`"/a["`:            {Cgroups: []string{"/a["}},
		`"a.slice"`:        {Cgroups: []string{"a.slice"}},
		"empty":            {Containers: []string{""}},
	}
	for want, f := range bad {
		if err := f.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error with %s", f, err, want)
		}
	}
	good := Filter{Family: 6, Comm: []string{"ng*", "[a-c]x"}, Cgroups: []string{"/", `/a\x2db`}, Containers: []string{"4f"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

// run feeds the capture without its Lost event again and again.
func run(b *testing.B, f Filter) {
	s := NewSelector(f)
	events := capture(b, lines(strings.ReplaceAll(twoSockets, "lost", "")))
	shown := 0
	emit := func(*Event) error { shown++; return nil }
	b.ReportAllocs()
	for i := range b.N {
		s.Select(&events[i%len(events)], emit)
	}
}

func BenchmarkTrackNoFilter(b *testing.B)     { run(b, Filter{}) }
func BenchmarkTrackRemotePort(b *testing.B)   { run(b, Filter{RemotePorts: Port(443)}) }
func BenchmarkTrackHeld(b *testing.B)         { run(b, Filter{States: []State{LastAck}}) }
func BenchmarkTrackNeverMatches(b *testing.B) { run(b, Filter{PIDs: []uint32{99}}) }

// BenchmarkTrackMatching is the path of a socket that is known to match.
func BenchmarkTrackMatching(b *testing.B) {
	s, ev, emit := matching(b)
	b.ReportAllocs()
	for b.Loop() {
		s.Select(&ev, emit)
	}
}

func TestSelectorDoesNotAllocate(t *testing.T) {
	s, ev, emit := matching(t)
	if n := testing.AllocsPerRun(1000, func() { s.Select(&ev, emit) }); n != 0 {
		t.Errorf("%v allocations for an event of a socket that matches", n)
	}
	s = NewSelector(Filter{})
	if n := testing.AllocsPerRun(1000, func() { s.Select(&ev, emit) }); n != 0 {
		t.Errorf("%v allocations for an event without a filter", n)
	}
	events := capture(t, lines(twoSockets))
	for _, f := range []Filter{{PIDs: []uint32{99}}, {States: []State{LastAck}}, {MinDuration: 900}, {RemotePorts: Port(443)}} {
		s, now := NewSelector(f), uint64(0)
		all := func() {
			for i := range events {
				s.Select(&events[i], emit)
				s.Tick(now, emit)
				now += 100
			}
		}
		if n := testing.AllocsPerRun(1000, all); n != 0 {
			t.Errorf("%v allocations for two connections with %+v", n, f)
		}
		if f.lasting() && (s.lives.Len() != 0 || s.lives.spare != nil) {
			t.Errorf("%+v tracks sockets", f)
		}
	}
}

func matching(t testing.TB) (*Selector, Event, func(*Event) error) {
	s := NewSelector(Filter{LocalPorts: Port(80), States: []State{Established}})
	ev := capture(t, []string{"b ESTABLISHED>FIN_WAIT1 10.0.0.1:80 10.0.0.3:999"})[0]
	emit := func(*Event) error { return nil }
	s.Select(&ev, emit)
	ev.Old, ev.New = FinWait1, FinWait1 // it can come again and again
	return s, ev, emit
}

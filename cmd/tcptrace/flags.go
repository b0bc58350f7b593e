package main

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// formatFlags say how rows are printed. Short names are those of tcpstates.
type formatFlags struct {
	JSON     bool `short:"j" help:"JSON, one object per line; -o json."`
	CSV      bool `short:"s" name:"csv" help:"CSV; -o csv."`
	Wide     bool `short:"w" help:"Wide columns, with room for IPv6 addresses and whole names."`
	Extended bool `short:"x" help:"All columns, and the kernel address of the socket."`
}

// format returns the one format that was asked for, with -o or in short, or a usageError.
func (f *formatFlags) format(asked format) (format, error) {
	for _, short := range []struct {
		given bool
		means string
	}{{f.JSON, "json"}, {f.CSV, "csv"}} {
		switch {
		case !short.given:
		case asked.name == "":
			asked = formatNamed(short.means)
		case asked.name != short.means:
			return format{}, usageError{fmt.Errorf("cannot print %s and %s at once: give one of -o, -j (json) and -s (csv)", asked.name, short.means)}
		}
	}
	if asked.name == "" {
		asked = formats[0]
	}
	return asked, nil
}

// options adds the columns that the flags ask for. JSON has every field at all times.
func (f *formatFlags) options(o output.Options) output.Options {
	o.Wide, o.Extended = f.Wide, f.Extended
	return o
}

// filterFlags select sockets by what they are and by what happens to them. The
// values of one flag are alternatives; a socket has to satisfy all flags.
type filterFlags struct {
	selectFlags `embed:""`
	State       states   `placeholder:"STATE,..." help:"Sockets that enter or leave one of these states."`
	MinDuration duration `placeholder:"TIME" help:"Sockets that stay in a state (one of --state, if given) for at least this time: 250ms, 1m."`
}

// selectFlags select sockets by what they are.
type selectFlags struct {
	IPv4      bool       `short:"4" name:"ipv4" xor:"family" help:"IPv4 only."`
	IPv6      bool       `short:"6" name:"ipv6" xor:"family" help:"IPv6 only."`
	LPort     ports      `short:"L" name:"lport" aliases:"localport" placeholder:"PORT,..." help:"Local port: 443, a range 8000-8100, all but one !22."`
	RPort     ports      `short:"D" name:"rport" aliases:"remoteport" placeholder:"PORT,..." help:"Remote port, the destination of a client."`
	Port      ports      `short:"P" placeholder:"PORT,..." help:"Either port; with ! neither."`
	LAddr     prefixes   `name:"laddr" placeholder:"ADDR,..." help:"Local address or network: 10.0.0.1, fd00::/8."`
	RAddr     prefixes   `name:"raddr" placeholder:"ADDR,..." help:"Remote address or network."`
	PID       pids       `short:"p" name:"pid" placeholder:"PID,..." help:"Process that owns the socket."`
	Comm      names      `placeholder:"NAME,..." help:"Name of that process, or a pattern such as nginx*."`
	UID       uids       `name:"uid" placeholder:"USER,..." help:"User that owns the socket, by name or id."`
	Cgroup    names      `placeholder:"PATH,..." help:"cgroup, including all below it: /system.slice."`
	Container names      `placeholder:"NAME,..." help:"Container: its name, a pattern such as web-*, its id, or the first part of that."`
	Pod       names      `placeholder:"POD,..." help:"Pod of Kubernetes: cart-7d9f, shop/cart-7d9f, or a pattern such as shop/*."`
	Unit      names      `placeholder:"UNIT,..." help:"Unit of systemd: nginx, nginx.service, or a pattern."`
	NetNS     netns      `name:"netns" placeholder:"NETNS,..." help:"Network namespace: inode, name or path."`
	Cookie    cookies    `placeholder:"COOKIE,..." help:"Single sockets, as COOKIE or ss -e names them."`
	ids       []string   // of Container, those that are the beginning of an id: see idsFirst
	Where     expression `placeholder:"EXPR" help:"What an expression over the JSON fields is true for: 'duration_ms > 500 && role == \"client\"'."`
}

// changeFlags select sockets by a change of their state, which a table of sockets does not
// show.
type changeFlags struct {
	Reason reasons `placeholder:"REASON,..." help:"Sockets of which a state ends for one of these reasons: rst_received, timeout."`
	Errno  errnos  `placeholder:"ERRNO,..." help:"Sockets of which a state ends with one of these errors: ECONNREFUSED."`
}

// followFlags select sockets by all that happens to them while they are followed.
type followFlags struct {
	filterFlags `embed:""`
	changeFlags `embed:""`
}

// filter returns what the flags select, or a usageError.
func (f *followFlags) filter() (tcp.Filter, error) {
	filter, err := f.filterFlags.filter()
	filter.Reasons, filter.Errnos = f.Reason, f.Errno
	return filter, err
}

// filter returns what the flags select, or a usageError.
func (f *filterFlags) filter() (tcp.Filter, error) {
	filter, err := f.selectFlags.filter()
	filter.States, filter.MinDuration = f.State, uint64(f.MinDuration)
	return filter, err
}

// idsFirst takes a value of --container for an id, and for no name, if a container runs here whose
// id begins with it. What was a name on the host of a recording is not to be known.
func (f *selectFlags) idsFirst(e *env) {
	for _, value := range f.Container {
		id := enrich.ContainerWithID("/proc", value)
		if id == "" {
			continue
		}
		if f.ids = append(f.ids, value); len(value) < 12 { // shorter than any tool shows an id
			e.say(fmt.Sprintf("--container %s is taken as the beginning of the id %.12s, not as a name", value, id))
		}
	}
}

func (f *selectFlags) containerNames() []string {
	return slices.DeleteFunc(slices.Clone([]string(f.Container)), func(value string) bool { return slices.Contains(f.ids, value) })
}

// filter returns what the flags select, or a usageError.
func (f *selectFlags) filter() (tcp.Filter, error) {
	filter := tcp.Filter{
		NetNS:      f.NetNS,
		LocalPorts: tcp.Ports(f.LPort), RemotePorts: tcp.Ports(f.RPort), EitherPort: tcp.Ports(f.Port),
		Local: f.LAddr, Remote: f.RAddr,
		PIDs: f.PID, UIDs: f.UID, Comm: f.Comm,
		Cgroups: f.Cgroup, Containers: f.Container, ContainerNames: f.containerNames(), Pods: f.Pod, Units: f.Unit, Cookies: f.Cookie,
	}
	if f.Where.Expression != nil {
		filter.Where = f.Where.Match
	}
	switch {
	case f.IPv4:
		filter.Family = 4
	case f.IPv6:
		filter.Family = 6
	}
	if err := filter.Validate(); err != nil {
		return filter, usageError{err}
	}
	return filter, nil
}

// probeConfig returns the part of the flags that the kernel can see to. It may
// pass more sockets than the filter, never fewer.
func (f *selectFlags) probeConfig() probe.Config {
	config := probe.Config{
		LocalPorts:  tcp.Ports(f.LPort).List(probe.MaxPorts),
		RemotePorts: tcp.Ports(f.RPort).List(probe.MaxPorts),
	}
	switch {
	case f.IPv4:
		config.Family = syscall.AF_INET
	case f.IPv6:
		config.Family = syscall.AF_INET6
	}
	if len(f.NetNS) == 1 {
		config.NetNS = f.NetNS[0]
	}
	return config
}

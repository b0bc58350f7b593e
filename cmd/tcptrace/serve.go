package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/serve"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// serveCmd is the daemon.
type serveCmd struct {
	Listen      []string `sep:"none" default:"127.0.0.1:9293" placeholder:"ADDR:PORT" group:"HTTP" help:"Where to listen, also several times; default ${default}."`
	WebConfig   string   `placeholder:"FILE" group:"HTTP" help:"TLS and basic auth: a web configuration of prometheus/exporter-toolkit."`
	MaxServices count    `default:"500" placeholder:"COUNT" group:"Metrics" help:"Services with series of their own; the rest is ~other; default ${default}."`
	Interval    duration `default:"10s" placeholder:"TIME" group:"Metrics" help:"From one look for leaks and used up ports to the next; default ${default}."`
	Stacks      bool     `group:"Leaks" help:"Name the code that opened sockets that leak, by their stacks at connect() and accept()."`

	OTLPEndpoint    string `name:"otlp-endpoint" placeholder:"URL" group:"OpenTelemetry" help:"Push metrics and records of connections and leaks to this OTLP receiver, such as http://127.0.0.1:4318; default $$OTEL_EXPORTER_OTLP_ENDPOINT."`
	OTLPTransitions ratio  `name:"otlp-transitions" placeholder:"RATIO" group:"OpenTelemetry" help:"Push the state changes too, of this share of the sockets: 0.01 is one in a hundred, with all of its changes."`

	limitFlags  `embed:"" group:"Limits"`
	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// Run serves until a signal ends it.
func (c *serveCmd) Run(e *env) error {
	folders, err := c.webFolders()
	if err != nil {
		return err
	}
	push, err := c.push()
	if err != nil {
		return err
	}
	listeners, err := c.listeners(e)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		defer l.Close() // a second time does no harm
	}
	for _, t := range push.Targets() {
		e.say("pushing to " + t.URL.String())
	}
	config := serve.Config{Listeners: listeners, Push: push}
	if config.Notifier, err = serve.NewNotifier(); err != nil {
		return err
	}
	var stacks *stackReader
	if c.Stacks {
		if stacks = e.newStackReader(); stacks != nil {
			defer stacks.Close()
		}
	}
	source, err := e.openKernelFor(c.probeConfig(stacks != nil), recordFlags{}, serving(probe.SetupNeeds(), &push))
	if err != nil {
		return err
	}
	defer source.Close()
	source.nameCode(stacks)
	return c.serve(e, source, folders, config)
}

// serving adds what it takes to answer clients, and to push.
func serving(n confine.Needs, push *serve.PushConfig) confine.Needs {
	n.Accept = true
	for _, t := range push.Targets() {
		n.Connect = append(n.Connect, t.Port())
		if t.Named() && !n.Resolve {
			n.Resolve = true
			n.Read = append(n.Read, "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
		}
	}
	return n
}

// push reads what is pushed, and where, from the flags and from the standard variables.
func (c *serveCmd) push() (p serve.PushConfig, err error) {
	source := otlp.Source{Endpoint: c.OTLPEndpoint, Getenv: os.Getenv, ReadFile: readCertificate}
	if p.Settings, err = source.Read(); err != nil {
		return p, usageError{err}
	}
	if c.OTLPTransitions > 0 && p.Logs.URL == nil {
		return p, usageError{errors.New("--otlp-transitions pushes nothing without an endpoint: give --otlp-endpoint")}
	}
	p.Transitions = float64(c.OTLPTransitions)
	p.Host, err = os.Hostname()
	return p, err
}

// readCertificate reads a file that the environment names.
func readCertificate(path string) ([]byte, error) {
	if hasRightsOfFile() {
		return nil, errors.New("a program with capabilities of its own (setcap) would read your files with them; start it as root")
	}
	f, err := confine.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return text, err
}

func (c *serveCmd) probeConfig(stacks bool) probe.Config {
	config := probe.Config{Tracked: true, Stacks: stacks, Hooks: c.Hooks, BTF: c.BTF, Without: c.Without}
	c.limit(&config)
	return config
}

// webFolders returns the folders of the web configuration, which are read as long as the daemon
// runs, by a thread that has the rights of the program's file.
func (c *serveCmd) webFolders() ([]string, error) {
	if c.WebConfig == "" {
		return nil, nil
	}
	if hasRightsOfFile() {
		return nil, usageError{errors.New("--web-config is not for a program with capabilities of its own (setcap): it would read your files with them; start it as root")}
	}
	f, err := confine.Open(c.WebConfig)
	if err != nil {
		return nil, fmt.Errorf("cannot read the web configuration: %w", err)
	}
	defer f.Close()
	folders, err := serve.WebFolders(c.WebConfig, f)
	if err == nil {
		err = serve.CheckWeb(c.WebConfig)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the web configuration: %w", err)
	}
	return folders, nil
}

// hasRightsOfFile reports whether the program's file has given this process more than its user
// has: AT_SECURE of getauxval(3).
func hasRightsOfFile() bool {
	const secure = 23
	entries, err := unix.Auxv()
	for _, entry := range entries {
		if entry[0] == secure {
			return entry[1] != 0
		}
	}
	return err != nil // not known
}

// listeners listens, before anything is traced: what is wrong with an address is said at once.
func (c *serveCmd) listeners(e *env) (all []net.Listener, err error) {
	for _, address := range c.Listen {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, usageError{fmt.Errorf("cannot listen on %q: give an address and a port, such as 127.0.0.1:9293 or :9293", address)}
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, open := range all {
				open.Close()
			}
			return nil, fmt.Errorf("cannot listen: %w", err)
		}
		all = append(all, l)
		e.say("listening on " + l.Addr().String())
		if at, is := l.Addr().(*net.TCPAddr); is && !at.IP.IsLoopback() && c.WebConfig == "" {
			e.say("whoever can reach " + l.Addr().String() + " sees every connection of this host: --web-config adds TLS and passwords")
		}
	}
	return all, nil
}

// serve runs the daemon.
func (c *serveCmd) serve(e *env, source kernel, folders []string, config serve.Config) error {
	config.WebConfig, config.Say, config.Version = c.WebConfig, e.say, version()
	config.MaxServices, config.Look = int(c.MaxServices), time.Duration(c.Interval)
	config.MaxSockets = c.followed()
	config.Offset = time.Now().UnixNano() - int64(source.Now())
	config.Facts = leakFacts(source.Probe, "/proc", source.stacks)
	ranges := startRanges{known: make(map[uint32]leak.PortRange), read: config.Facts.Ports}
	config.Facts.Ports = ranges.of

	run, skipped := source.config(), ""
	config.Skipped = func() string { return skipped }
	run.Existing = func(emit func(*tcp.Event) error) error {
		err := source.Seed(func(row *tcp.Event) error {
			ranges.note(row.NetNS)
			return emit(row)
		})
		if left, is := errors.AsType[*probe.SkippedError](err); is {
			skipped = left.Error()
		}
		ranges.readAll()
		return e.saySkipped(err)
	}
	needs := serving(needs(source.place, probe.ReadTrace), &config.Push)
	needs.Read, needs.Helper = append(needs.Read, folders...), source.stacks != nil
	run.Confine = confined(needs)
	counts, err := serve.Run(e.ctx, config, run, completeKernel{source})
	a := account{counts: counts, losses: source.Losses()}
	return e.finish(err, a.ofTrace())
}

// startRanges are the ranges of local ports of the network namespaces that exist at the start.
// To read one takes rights that are given up then.
type startRanges struct {
	known map[uint32]leak.PortRange
	read  func(netns uint32) (leak.PortRange, error)
}

// maxRanges bounds startRanges.
const maxRanges = 1024

func (r *startRanges) note(netns uint32) {
	if len(r.known) < maxRanges {
		r.known[netns] = leak.PortRange{}
	}
}

// readAll reads the ranges of the namespaces that were noted; one that cannot be read is not known.
func (r *startRanges) readAll() {
	for netns := range r.known {
		r.known[netns], _ = r.read(netns)
	}
}

func (r *startRanges) of(netns uint32) (leak.PortRange, error) { return r.known[netns], nil }

// Package serve is the daemon: it takes events without an end, and answers over HTTP what
// they come to: metrics for Prometheus, reports as JSON, and the events as they come.
//
// Capture never waits for a client. Its goroutine answers questions between events, with
// values that nobody changes (exchange), and hands events to queues that drop what does not
// fit (topic). All else is done by goroutines of clients, of which there is a limited number.
package serve

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// Config says what a daemon serves, and where.
type Config struct {
	Listeners []net.Listener // at which somebody listens; Run closes them
	WebConfig string         // a file of prometheus/exporter-toolkit; empty: neither TLS nor users
	Notifier  *Notifier
	Say       func(string) // says a line to the user
	Version   string

	MaxServices int           // that have series of their own
	MaxSockets  int           // that are followed at once
	Look        time.Duration // from one look for leaks to the next
	Facts       leak.Facts
	Push        PushConfig
	Offset      int64 // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells

	// Skipped says what could not be read of the sockets that existed at the start; empty:
	// nothing. The capture asks when it has read them; nil: it is not known to be anything.
	Skipped func() string
}

// The bounds of what clients can take.
const (
	maxConns       = 512 // connections of one listener
	maxHeader      = 16 << 10
	headerTimeout  = 3 * time.Second
	writeTimeout   = 10 * time.Second // of a whole answer; streams have one for each batch
	idleTimeout    = time.Minute
	shutdownWithin = 300 * time.Millisecond
)

// daemon is one run.
type daemon struct {
	cfg       Config
	collector *collector
	logger    *logger
	servers   []*http.Server
	self      *prometheus.Registry // metrics of this process
	pusher    *otlp.Pusher         // nil: nothing is pushed
	answers   chan struct{}        // has room for those that are made at once
	failed    chan error           // of servers
	running   sync.WaitGroup
}

// Run serves until the source ends or a signal ends the run, see pipeline.Run. SIGHUP does
// not: the files of Config.WebConfig are looked at again, and what is wrong with them is said.
// The rows of source.Existing have to be complete: what completes events does not see them.
func Run(ctx context.Context, cfg Config, run pipeline.Config, source pipeline.Source) (pipeline.Counts, error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	d := newDaemon(cfg, source)
	if err := d.startPush(); err != nil {
		return pipeline.Counts{}, err
	}
	for i, l := range cfg.Listeners {
		d.running.Go(func() { d.serve(d.servers[i], l) })
	}
	attended := make(chan struct{})
	go func() {
		defer close(attended)
		d.attend(hangups)
	}()
	run.IgnoreHangup, run.Interval = true, tickInterval
	counts, err := pipeline.Run(ctx, run, source, d.collector)
	d.end()
	<-attended
	select {
	case failed := <-d.failed:
		err = errors.Join(err, failed)
	default:
	}
	return counts, err
}

func newDaemon(cfg Config, source pipeline.Source) *daemon {
	log := &logger{out: cfg.Say}
	cfg.Say = log.say
	d := &daemon{
		cfg: cfg, logger: log, failed: make(chan error, len(cfg.Listeners)),
		answers: make(chan struct{}, maxAnswers),
		collector: newCollector(collectorConfig{
			source: source, facts: cfg.Facts, maxServices: cfg.MaxServices, maxSockets: cfg.MaxSockets,
			look: cfg.Look, offset: cfg.Offset, skipped: cfg.Skipped,
		}),
	}
	d.self = d.selfMetrics()
	handler := d.handler()
	for range cfg.Listeners { // one each: the toolkit writes to it
		d.servers = append(d.servers, &http.Server{
			Handler: handler, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout,
			WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, ErrorLog: d.logger.plain(),
		})
	}
	return d
}

// serve serves one listener. If it fails the daemon ends.
func (d *daemon) serve(s *http.Server, l net.Listener) {
	err := web.Serve(netutil.LimitListener(l, maxConns), s, &web.FlagConfig{WebConfigFile: &d.cfg.WebConfig}, d.logger.structured())
	if !errors.Is(err, http.ErrServerClosed) {
		d.failed <- err
		d.collector.source.Stop()
	}
}

// attend talks to the service manager, and takes SIGHUP.
func (d *daemon) attend(hangups <-chan os.Signal) {
	n := d.cfg.Notifier
	defer n.close()
	var alive <-chan time.Time
	if n.watchdog > 0 {
		ticker := time.NewTicker(n.watchdog / 2)
		defer ticker.Stop()
		alive = ticker.C
	}
	started := d.collector.started
	for {
		select {
		case <-started:
			started = nil
			n.tell("READY=1")
		case <-alive:
			if d.ticked(n.watchdog) {
				n.tell("WATCHDOG=1")
			}
		case <-hangups:
			d.reload()
		case <-d.collector.stop:
			n.tell("STOPPING=1")
			return
		}
	}
}

// ticked reports whether the capture was alive within a time.
func (d *daemon) ticked(within time.Duration) bool {
	last := d.collector.ticked.Load()
	return last != 0 && time.Now().UnixNano()-last < int64(within)
}

// reload looks at the files of the web configuration, which are read for each connection
// anyway: this is when somebody hears of a mistake in them.
func (d *daemon) reload() {
	d.cfg.Notifier.tell(reloading())
	switch err := CheckWeb(d.cfg.WebConfig); {
	case d.cfg.WebConfig == "":
		d.cfg.Say("SIGHUP: there is no --web-config, and nothing else to read again")
	case err != nil:
		d.cfg.Say("SIGHUP: the web configuration has a mistake, new connections fail: " + err.Error())
	default:
		d.cfg.Say("SIGHUP: the web configuration was read again")
	}
	d.cfg.Notifier.tell("READY=1")
}

// end lets the clients go: those in the middle of an answer have a short time for the rest.
func (d *daemon) end() {
	d.collector.closeOnce()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWithin)
	defer cancel()
	var closing sync.WaitGroup
	closing.Go(d.stopPush)
	for _, s := range d.servers {
		closing.Go(func() {
			if s.Shutdown(ctx) != nil {
				s.Close()
			}
		})
	}
	closing.Wait()
	for _, l := range d.cfg.Listeners {
		l.Close() // one that its server did not get to yet
	}
	d.running.Wait()
	d.logger.mute() // a connection may still be about to end
}

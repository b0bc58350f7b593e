package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	maxAnswers  = 16               // that are made and written at once
	answerLimit = 5 * time.Second  // for the capture to answer
	staleAfter  = 10 * time.Second // without a tick the daemon is not ready
	deadAfter   = 30 * time.Second // ... and not healthy
	keepAlive   = 15 * time.Second // a stream without events says that it is there
)

// The paths.
const (
	pathMetrics  = "/metrics"
	pathOverview = "/api/v1/overview"
	pathStats    = "/api/v1/stats"
	pathLeaks    = "/api/v1/leaks"
	pathSockets  = "/api/v1/sockets"
	pathTimeline = "/api/v1/timeline/{cookie}"
	pathEvents   = "/events"
)

const (
	oneObject = "application/json"
	jsonLines = "application/x-ndjson" // one object a line, as tcptrace -j writes them
)

// handler serves all paths.
func (d *daemon) handler() http.Handler {
	c, mux := d.collector, http.NewServeMux()
	d.page(mux)
	mux.Handle("GET "+pathMetrics, limited(d.answers, d.metrics()))
	mux.HandleFunc("GET /healthz", d.health(deadAfter))
	mux.HandleFunc("GET /readyz", d.health(staleAfter))
	mux.Handle("GET "+pathStats, d.asked(oneObject, &c.statsAsked))
	mux.Handle("GET "+pathLeaks, d.asked(jsonLines, &c.leaksAsked))
	mux.Handle("GET "+pathSockets, guarded(limited(d.answers, http.HandlerFunc(d.sockets))))
	mux.Handle("GET "+pathTimeline, guarded(limited(d.answers, http.HandlerFunc(d.timeline))))
	mux.Handle("GET "+pathEvents, guarded(http.HandlerFunc(d.stream)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// limited refuses what would be one answer too many at once: room has room for the others.
func limited(room chan struct{}, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
			next.ServeHTTP(w, r)
		default:
			refuse(w, http.StatusServiceUnavailable, errors.New("too many questions at once: try again"))
		}
	})
}

func refuse(w http.ResponseWriter, status int, why error) {
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, why.Error(), status)
}

// guarded refuses what a page of another site has a browser ask. Such a page can have its own
// name resolve to 127.0.0.1, and then be of the same origin as this daemon, but it cannot
// change the Host that the browser sends (DNS rebinding).
func guarded(next http.Handler) http.Handler { return guard(next, sameOrigin) }

// visited is guarded, but lets a link of another site lead here: that site cannot read what the
// browser then shows, nor put it into a frame.
func visited(next http.Handler) http.Handler {
	return guard(next, func(r *http.Request) bool {
		followed := r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
		return followed || sameOrigin(r)
	})
}

func guard(next http.Handler, allowed func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		switch {
		case (local == nil || isLoopback(local.String())) && !isLoopback(r.Host):
			refuse(w, http.StatusForbidden, errors.New("over the loopback interface the host has to be localhost, 127.0.0.1 or [::1]"))
		case !allowed(r):
			refuse(w, http.StatusForbidden, errors.New("a page of another site may not read this"))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isLoopback reports whether HOST or HOST:PORT is this host by an address that is no other's.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// sameOrigin reports whether a request is by no page, or by one from here.
func sameOrigin(r *http.Request) bool {
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "", "same-origin", "none":
	default:
		return false
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// asked serves what the capture makes when somebody asks.
func (d *daemon) asked(kind string, x *exchange[[]byte]) http.Handler {
	return guarded(limited(d.answers, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerLimit)
		defer cancel()
		body, err := x.get(ctx, d.collector.stop)
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, unanswered(err))
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(body) // an error: the client has gone
	})))
}

func unanswered(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("the capture did not answer in time: it has not begun, or is busy")
	}
	return err
}

// timeline serves the story of one socket.
func (d *daemon) timeline(w http.ResponseWriter, r *http.Request) {
	cookie, err := parseCookie(r.PathValue("cookie"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	reply := make(chan storyAnswer, 1)
	select {
	case d.collector.storiesWanted <- storyQuestion{cookie, reply}:
	default:
		refuse(w, http.StatusServiceUnavailable, errors.New("too many questions at once: try again"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerLimit)
	defer cancel()
	select {
	case a := <-reply:
		d.tell(w, cookie, a)
	case <-d.collector.stop:
		refuse(w, http.StatusServiceUnavailable, errStopping)
	case <-ctx.Done():
		refuse(w, http.StatusServiceUnavailable, unanswered(ctx.Err()))
	}
}

func (d *daemon) tell(w http.ResponseWriter, cookie uint64, a storyAnswer) {
	story, err := storyJSON(cookie, a.events, a.now)
	switch {
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	case len(story) == 0:
		refuse(w, http.StatusNotFound, fmt.Errorf("no connection is known by the cookie %x: it has ended long ago, or never was", cookie))
	default:
		w.Header().Set("Content-Type", jsonLines)
		_, _ = w.Write(story) // an error: the client has gone
	}
}

// health says whether the capture is alive.
func (d *daemon) health(within time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-d.collector.stop:
			refuse(w, http.StatusServiceUnavailable, errStopping)
			return
		default:
		}
		last := d.collector.ticked.Load()
		switch {
		case last == 0 && within == deadAfter: // alive, and at work
		case last == 0:
			refuse(w, http.StatusServiceUnavailable, errors.New("the sockets that exist are still being read"))
			return
		case !d.ticked(within):
			refuse(w, http.StatusServiceUnavailable, fmt.Errorf("the capture has not been heard of for %v", within))
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
	}
}

// metrics serves Prometheus.
func (d *daemon) metrics() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerLimit)
		defer cancel()
		s, err := d.collector.snapshots.get(ctx, d.collector.stop)
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, unanswered(err))
			return
		}
		options := promhttp.HandlerOpts{ErrorLog: d.logger, EnableOpenMetrics: true}
		promhttp.HandlerFor(prometheus.Gatherers{prometheus.GathererFunc(s.gather), d.self}, options).ServeHTTP(w, r)
	})
}

// selfMetrics are those of this process.
func (d *daemon) selfMetrics() *prometheus.Registry {
	self := prometheus.NewRegistry()
	options := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "tcptrace", Name: name, Help: help}
	}
	info := options("build_info", "The version of tcptrace; the value is 1.")
	info.ConstLabels = prometheus.Labels{"version": label(d.cfg.Version), "goversion": runtime.Version()}
	self.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(info), func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(options("event_streams", "Clients that read /events.")),
			func() float64 { return float64(d.collector.hub.count.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(options("event_streams_dropped_total", "Events that clients of /events were too slow for, by client.")),
			func() float64 { return float64(d.collector.hub.dropped.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(options("http_errors_total", "Errors of connections and answers, of which no more than one a second is logged.")),
			func() float64 { return float64(d.logger.errors.Load()) }),
	)
	return self
}

// stream serves events as they come.
func (d *daemon) stream(w http.ResponseWriter, r *http.Request) {
	var t *topic
	switch name := r.URL.Query().Get("type"); name {
	case "", topicConnection:
		t = &d.collector.conns.topic
	case topicTransition:
		t = &d.collector.events
	default:
		refuse(w, http.StatusBadRequest, fmt.Errorf("there are no events of type %q: give %s or %s", name, topicConnection, topicTransition))
		return
	}
	reader, err := t.join()
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	defer t.leave(reader)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	out := &frames{w: bufio.NewWriterSize(w, 32<<10), control: http.NewResponseController(w), name: t.name}
	idle := time.NewTicker(keepAlive)
	defer idle.Stop()
	err = out.comment("tcptrace")
	for err == nil {
		select {
		case b := <-reader.queue:
			reader.took(b)
			err = out.batch(b.lines, reader.dropped.Swap(0))
		case <-idle.C:
			err = out.comment("nothing new")
		case <-r.Context().Done():
			return
		case <-d.collector.stop:
			return
		}
	}
}

// frames writes server-sent events.
type frames struct {
	w       *bufio.Writer
	control *http.ResponseController
	name    string
}

// frameLimit is how long a client may take to read a batch.
const frameLimit = 10 * time.Second

func (f *frames) batch(lines []byte, dropped uint64) error {
	return f.flushed(func() error {
		if dropped > 0 {
			if _, err := fmt.Fprintf(f.w, "event: dropped\ndata: {\"events\":%d}\n\n", dropped); err != nil {
				return err
			}
		}
		return writeFrames(f.w, f.name, lines)
	})
}

func (f *frames) comment(text string) error {
	return f.flushed(func() error {
		_, err := fmt.Fprintf(f.w, ": %s\n\n", text)
		return err
	})
}

func (f *frames) flushed(write func() error) error {
	err := f.control.SetWriteDeadline(time.Now().Add(frameLimit))
	if err == nil {
		err = write()
	}
	if err == nil {
		err = f.w.Flush()
	}
	if err == nil {
		err = f.control.Flush()
	}
	return err
}

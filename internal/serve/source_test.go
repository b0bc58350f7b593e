package serve

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// feed is a live source without a kernel: its clock runs, and its events are those that make
// yields, then those of more.
type feed struct {
	make     func(n uint64, e *tcp.Event) bool // nil: none; false: no more
	more     chan tcp.Event
	rows     atomic.Pointer[[]tcp.Event] // that exist
	n        atomic.Uint64
	began    time.Time
	deadline uint64
	stop     chan struct{}
	stopOnce sync.Once
}

func newFeed() *feed {
	return &feed{more: make(chan tcp.Event, 1000), began: time.Now(), stop: make(chan struct{})}
}

func (f *feed) Now() uint64             { return capture.BootNS + uint64(time.Since(f.began)) }
func (f *feed) SetDeadline(boot uint64) { f.deadline = boot }
func (f *feed) More() bool              { return len(f.more) > 0 || f.make != nil }
func (f *feed) Stop()                   { f.stopOnce.Do(func() { close(f.stop) }) }

func (f *feed) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	rows := f.rows.Load()
	if rows == nil {
		return nil
	}
	for _, row := range *rows {
		for _, s := range states {
			if s != row.New {
				continue
			}
			row.BootNS = f.Now()
			if err := emit(&row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *feed) Read(e *tcp.Event) error {
	select {
	case <-f.stop:
		return io.EOF
	default:
	}
	if f.make != nil {
		if f.make(f.n.Load(), e) {
			f.n.Add(1)
			e.BootNS = f.Now()
			return nil
		}
		f.make = nil
	}
	var late <-chan time.Time
	if f.deadline != 0 {
		late = time.After(time.Duration(int64(f.deadline) - int64(f.Now())))
	}
	select {
	case *e = <-f.more:
		f.n.Add(1)
		return nil
	case <-late:
		return os.ErrDeadlineExceeded
	case <-f.stop:
		return io.EOF
	}
}

// running is a daemon that a test has started.
type running struct {
	t      *testing.T
	url    string
	client *http.Client
	said   chan string
	feed   *feed
	daemon chan result
	cancel context.CancelFunc
}

type result struct {
	counts pipeline.Counts
	err    error
}

// start starts a daemon, and waits until it is ready. change may change how.
func start(t *testing.T, f *feed, change func(*Config)) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{
		t: t, url: "http://" + l.Addr().String(), feed: f, said: make(chan string, 100), daemon: make(chan result, 1),
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}},
	}
	cfg := Config{
		Listeners: []net.Listener{l}, Notifier: new(Notifier), Version: "test", MaxServices: 10, MaxSockets: 1000, Look: 300 * time.Millisecond,
		Offset: capture.Start - capture.BootNS,
		Facts:  leak.Facts{Ports: func(uint32) (leak.PortRange, error) { return leak.PortRange{First: 40000, Last: 40009}, nil }},
		Say: func(text string) {
			select {
			case r.said <- text:
			default:
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	run := pipeline.Config{Existing: func(emit func(*tcp.Event) error) error {
		return f.Existing(tcp.States(), emit)
	}}
	go func() {
		counts, err := Run(ctx, cfg, run, f)
		r.daemon <- result{counts, err}
	}()
	t.Cleanup(func() {
		r.cancel()
		r.client.CloseIdleConnections()
	})
	if cfg.WebConfig == "" {
		eventually(t, func() bool { status, _ := r.get("/readyz"); return status == http.StatusOK })
	}
	return r
}

// end waits for the end of the daemon, within the time that every command has.
func (r *running) end() result {
	r.t.Helper()
	select {
	case got := <-r.daemon:
		return got
	case <-time.After(time.Second):
		r.t.Fatal("it has not ended within a second")
		return result{}
	}
}

func (r *running) get(path string, change ...func(*http.Request)) (status int, body string) {
	r.t.Helper()
	response := r.do(path, change...)
	if response == nil {
		return 0, ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Errorf("%s: %v", path, err)
	}
	return response.StatusCode, string(text)
}

func (r *running) do(path string, change ...func(*http.Request)) *http.Response {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range change {
		f(request)
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil
	}
	return response
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has not come about")
		}
	}
}

// events are some of two services and one that nobody knows.
func events(t testing.TB) []tcp.Event {
	const nginx, batch = "cgroup=/system.slice/nginx.service", "cgroup=/system.slice/batch.service"
	text := strings.NewReplacer("NGINX", nginx, "BATCH", batch).Replace(`
0s     a CLOSE>SYN_SENT           10.0.0.1:40001 10.0.0.2:80 connect role=client pid=7/nginx NGINX
1ms    a SYN_SENT>ESTABLISHED     10.0.0.1:40001 10.0.0.2:80 handshake_done role=client pid=7/nginx NGINX
301ms  a ESTABLISHED>FIN_WAIT1    10.0.0.1:40001 10.0.0.2:80 local_close role=client pid=7/nginx NGINX
302ms  a FIN_WAIT1>FIN_WAIT2      10.0.0.1:40001 10.0.0.2:80 fin_acked role=client pid=7/nginx NGINX
303ms  a FIN_WAIT2>TIME_WAIT      10.0.0.1:40001 10.0.0.2:80 fin_received role=client pid=7/nginx NGINX
400ms  b CLOSE>SYN_SENT           10.0.0.1:40002 10.0.0.2:80 connect role=client pid=9/batch BATCH
405ms  b SYN_SENT>ESTABLISHED     10.0.0.1:40002 10.0.0.2:80 handshake_done role=client pid=9/batch BATCH
410ms  b ESTABLISHED>CLOSE_WAIT   10.0.0.1:40002 10.0.0.2:80 fin_received role=client pid=9/batch BATCH
500ms  c >LISTEN                  0.0.0.0:22 0.0.0.0:0
600ms  lost 3
700ms  a TIME_WAIT>CLOSE          10.0.0.1:40001 10.0.0.2:80 expired role=client NGINX
`)
	return capture.Events(t, text)
}

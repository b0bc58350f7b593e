package servers

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// As many connections as this host can make, while the Collector hangs, a Prometheus scrapes, 200
// tabs show the page and clients do not read what they asked for: capture loses nothing, all who
// read are answered, and SIGTERM ends it in order.
func TestFullLoad(t *testing.T) {
	behind, at, web := newSink(t), freeAddress(t), freeAddress(t)
	collector := startCollector(t, at, behind, nil, nil)
	daemon := startDaemon(t, "north", web, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+at, "OTEL_EXPORTER_OTLP_TIMEOUT=60000")
	prom := newPrometheus(t, web, true)
	freeze(t, collector)
	for _, path := range []string{"/metrics", "/metrics", "/events", "/events?type=transition", "/events?type=connection"} {
		for range 5 {
			neverRead(t, web, path)
		}
	}
	pages := openTabs(t, "http://"+web+"/api/v1/overview", 200)

	const enough = 3e6
	began, before := time.Now(), metric(t, web, "tcptrace_transitions_total")
	churn := start(t, "", filepath.Join(*binaries, "churn"), "run", "-t", "2", "-m", "rst", "-d", "240")
	t.Cleanup(func() { kill(t, churn) }) // it runs to its end else
	var events float64
	eventually(t, "enough events", 3*time.Minute, func() error {
		if events = metric(t, web, "tcptrace_transitions_total") - before; events < enough {
			return fmt.Errorf("%v", events)
		}
		return answers("http://" + web + "/readyz")
	})
	t.Logf("%.0f events a second, %d answers for pages, %d refused", events/time.Since(began).Seconds(), pages.shown.Load(), pages.failed.Load())
	if lost := metric(t, web, "tcptrace_lost_events_total"); lost != 0 {
		t.Errorf("%v events were lost", lost)
	}
	if pages.failed.Load() != 0 || pages.shown.Load() < 200 {
		t.Error("that is not one for each")
	}
	if _, err := prom.number(`up == 1`); err != nil {
		t.Errorf("Prometheus: %v", err)
	}

	began = time.Now()
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := daemon.Wait()
	took := time.Since(began)
	said, readErr := os.ReadFile(daemon.Stdout.(*os.File).Name())
	t.Logf("it ended %v after SIGTERM, and said: %s", took.Round(time.Millisecond), said[max(0, len(said)-200):])
	if err != nil || readErr != nil || !strings.Contains(string(said), " events, 0 lost,") {
		t.Errorf("tcptrace: %v %v", err, readErr)
	}
	if took > 20*time.Second { // on a host this busy; the Collector and the clients would take a minute
		t.Error("it waited for those that hang")
	}
}

// neverRead asks, and takes no answer.
func neverRead(t *testing.T, web, path string) {
	t.Helper()
	conn, err := net.Dial("tcp", web)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
}

// tabs is what pages in browsers were answered.
type tabs struct{ shown, failed atomic.Int64 }

// openTabs asks as so many pages do, each once a second, until the test ends.
func openTabs(t *testing.T, url string, n int) *tabs {
	t.Helper()
	all := new(tabs)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	for i := range n {
		go func() {
			time.Sleep(time.Duration(i) * time.Second / time.Duration(n))
			for ; ctx.Err() == nil; time.Sleep(time.Second) {
				if err := look(ctx, client, url); err == nil {
					all.shown.Add(1)
				} else if ctx.Err() == nil {
					all.failed.Add(1)
				}
			}
		}()
	}
	return all
}

func look(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err = io.Copy(io.Discard, response.Body); err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", response.Status)
	}
	return err
}

package servers

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	pushedLogs  = `tcptrace_otlp_sent_total{signal="logs"}`
	refusedLogs = `tcptrace_otlp_rejected_total{signal="logs"}`
	failedLogs  = `tcptrace_otlp_failed_requests_total{signal="logs"}`
	droppedLogs = `tcptrace_otlp_dropped_total{signal="logs"}`
)

// A real Collector dies, is slow, says no, hangs, and comes back each time: what tcptrace has room
// for gets there, all else is counted, and capture notices nothing.
func TestCollectorFaults(t *testing.T) {
	behind, at, web := newSink(t), freeAddress(t), freeAddress(t)
	collector := startCollector(t, at, behind, nil, nil)
	daemon := startDaemon(t, "north", web, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+at, "OTEL_EXPORTER_OTLP_TIMEOUT=2000")
	arrives := func(service string, n int) {
		t.Helper()
		eventually(t, "the records of "+service, 2*time.Minute, func() error { return behind.has(service, 2*n) })
	}
	inTrouble := func(why string) {
		t.Helper()
		before := metric(t, web, failedLogs)
		eventually(t, why, time.Minute, func() error {
			if metric(t, web, failedLogs) == before {
				return fmt.Errorf("no request failed since")
			}
			return answers("http://" + web + "/healthz")
		})
	}
	runFlood(t, "tcptrace-well.service", 500)
	arrives("tcptrace-well.service", 500)
	before := residentSet(t, daemon.Process.Pid)

	kill(t, collector)
	runFlood(t, "tcptrace-dead.service", 500)
	inTrouble("the Collector is dead")
	collector = startCollector(t, at, behind, nil, nil)
	arrives("tcptrace-dead.service", 500)

	behind.delay.Store(int64(500 * time.Millisecond))
	runFlood(t, "tcptrace-slow.service", 1500)
	arrives("tcptrace-slow.service", 1500)
	behind.delay.Store(0)

	behind.status.Store(http.StatusServiceUnavailable)
	runFlood(t, "tcptrace-busy.service", 500)
	inTrouble("the Collector is busy")
	behind.status.Store(http.StatusOK)
	arrives("tcptrace-busy.service", 500)
	if dropped := metric(t, web, droppedLogs); dropped != 0 {
		t.Errorf("%v records were dropped: there was room for all", dropped)
	}

	behind.status.Store(http.StatusBadRequest)
	runFlood(t, "tcptrace-refused.service", 500)
	eventually(t, "the Collector refuses", time.Minute, func() error {
		if n := metric(t, web, refusedLogs); n < 1000 {
			return fmt.Errorf("%v of 1000", n)
		}
		return nil
	})
	behind.status.Store(http.StatusOK)
	runFlood(t, "tcptrace-taken.service", 500)
	arrives("tcptrace-taken.service", 500)

	checkFrozen(t, behind, collector, web)
	after := residentSet(t, daemon.Process.Pid)
	t.Logf("%d MB resident before the trouble, %d MB after", before>>20, after>>20)
	if after > before+32<<20 {
		t.Error("that is more than what may wait to be sent")
	}
	if lost := metric(t, web, "tcptrace_lost_events_total"); lost != 0 {
		t.Errorf("%v events were lost", lost)
	}
}

// checkFrozen has more happen than there is room for while the Collector hangs.
func checkFrozen(t *testing.T, behind *sink, collector *exec.Cmd, web string) {
	t.Helper()
	const service, n = "tcptrace-frozen.service", 20_000
	thaw := freeze(t, collector)
	runFlood(t, service, n)
	eventually(t, "the queue is full", time.Minute, func() error {
		if metric(t, web, droppedLogs) == 0 {
			return fmt.Errorf("nothing was dropped")
		}
		return answers("http://" + web + "/healthz")
	})
	thaw()
	var missing, dropped int
	eventually(t, "what was not dropped", 2*time.Minute, func() error {
		missing, dropped = 2*n-len(behind.of(service)), int(metric(t, web, droppedLogs))
		if missing > dropped {
			return fmt.Errorf("%d records are missing, and %d were dropped", missing, dropped)
		}
		return nil
	})
	t.Logf("of %d records while the Collector hung, %d did not get there; %d were dropped of all", 2*n, missing, dropped)
	if missing == 0 || dropped > missing+1000 { // others on this host have connections too
		t.Error("what was dropped is not what is missing")
	}
	runFlood(t, "tcptrace-thawed.service", 500)
	eventually(t, "records as before", time.Minute, func() error { return behind.has("tcptrace-thawed.service", 1000) })
}

// residentSet is the memory of a process, in bytes.
func residentSet(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kB, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return 0
}

// The daemon ends soon whatever the Collector does, and what is left gets there if it can.
func TestCollectorAtTheEnd(t *testing.T) {
	behind, at := newSink(t), freeAddress(t)
	collector := startCollector(t, at, behind, nil, nil)
	run := func(service string, n int) (ended time.Duration) {
		t.Helper()
		daemon := startDaemon(t, "north", freeAddress(t), "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+at, "OTEL_EXPORTER_OTLP_TIMEOUT=60000")
		runFlood(t, service, n)
		began := time.Now()
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := daemon.Wait(); err != nil {
			t.Errorf("tcptrace: %v", err)
		}
		ended = time.Since(began)
		t.Logf("%s: it ended %v after SIGTERM", service, ended.Round(time.Millisecond))
		return ended
	}
	run("tcptrace-last.service", 1000)
	if err := behind.has("tcptrace-last.service", 2000); err != nil {
		t.Errorf("the last records did not get there: %v", err)
	}
	freeze(t, collector)
	if ended := run("tcptrace-hung.service", 1000); ended > 30*time.Second {
		t.Error("it waited for a Collector that hangs")
	}
}

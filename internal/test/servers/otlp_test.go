package servers

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dripService leaks too, more slowly.
const dripService = "tcptrace-drip.service"

// victoriaLogs is a real one.
type victoriaLogs struct{ url string }

func newVictoriaLogs(t *testing.T) *victoriaLogs {
	t.Helper()
	at := freeAddress(t)
	start(t, "", filepath.Join(*serversDir, "victoria-logs"), "-storageDataPath="+t.TempDir(), "-httpListenAddr="+at)
	v := &victoriaLogs{"http://" + at}
	eventually(t, "VictoriaLogs is ready", time.Minute, func() error { return answers(v.url + "/health") })
	return v
}

// query returns the rows of an answer.
func (v *victoriaLogs) query(expr string) (rows []map[string]string, err error) {
	response, err := http.Get(v.url + "/select/logsql/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		said, err := io.ReadAll(response.Body)
		return nil, errors.Join(fmt.Errorf("%s: %s", response.Status, said), err)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		var row map[string]string
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, lines.Err()
}

// Two hosts push what they see of two leaks: north to a real Collector, which hands it on to
// VictoriaLogs and Prometheus, south to these themselves.
func TestOpenTelemetry(t *testing.T) {
	victoria, behind := newVictoriaLogs(t), newSink(t)
	prom := runPrometheus(t, "otlp: {}\nstorage: {tsdb: {out_of_order_time_window: 10m}}\n", "--web.enable-otlp-receiver")
	toLogs, toMetrics := victoria.url+"/insert/opentelemetry/v1/logs", prom.url+"/api/v1/otlp/v1/metrics"
	at := freeAddress(t)
	startCollector(t, at, behind, map[string]string{"victorialogs": toLogs}, map[string]string{"prometheus": toMetrics})
	startDaemon(t, "north", freeAddress(t), "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+at)
	startDaemon(t, "south", freeAddress(t), "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="+toLogs, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="+toMetrics,
		"OTEL_EXPORTER_OTLP_COMPRESSION=gzip")

	leaky := start(t, leakyService, filepath.Join(*binaries, "leaky"), "-rate", "8")
	start(t, dripService, filepath.Join(*binaries, "leaky"), "-rate", "1")
	load := start(t, truthService, self(t), trafficArg)
	told := readTruth(t, load.Stdout.(*os.File).Name())

	checkConnections(t, behind, told)
	checkVerdict(t, behind)
	checkPushed(t, behind)
	checkPromOTLP(t, prom, told)
	checkTopLeaks(t, victoria)

	stop(t, leaky)
	eventually(t, "the end of the leak", time.Minute, func() error {
		r, err := behind.leak(leakyService, "ended")
		if err == nil && r.severity != "INFO" {
			t.Errorf("%+v", r)
		}
		return err
	})
}

// checkConnections compares the records of the ends that the traffic served with what it says.
func checkConnections(t *testing.T, behind *sink, told truth) {
	t.Helper()
	var times []float64
	eventually(t, "records of all connections", time.Minute, func() error {
		times = nil
		for _, r := range behind.of(truthService) {
			if r.attributes["tcptrace.role"] != "server" {
				continue
			}
			ms, err := strconv.ParseFloat(r.attributes["tcptrace.established_ms"], 64)
			if err != nil || r.host != "north" {
				t.Fatalf("%+v: %v", r, err)
			}
			times = append(times, ms/1000)
		}
		if len(times) != connections {
			return fmt.Errorf("%d of %d", len(times), connections)
		}
		return nil
	})
	slices.Sort(times)
	for i, want := range told.Established {
		if math.Abs(times[i]/want-1) > 0.2 {
			t.Errorf("connection %d was ESTABLISHED for %v s, in truth %v", i, times[i], want)
		}
	}
}

// checkVerdict wants to be told who leaks, why, and in which code.
func checkVerdict(t *testing.T, behind *sink) {
	t.Helper()
	var r record
	eventually(t, "the verdict", time.Minute, func() (err error) {
		r, err = behind.leak(leakyService, "leak")
		return err
	})
	t.Logf("%+v", r)
	if r.host != "north" || r.severity != "WARN" || !strings.Contains(r.body, "leaky") || r.attributes["tcptrace.state"] != "CLOSE_WAIT" ||
		r.attributes["tcptrace.diagnosis"] == "" || !strings.Contains(r.attributes["code.stacktrace"], "main.dial") {
		t.Errorf("the verdict is %+v", r)
	}
}

// checkPushed looks at metrics as the Collector has them.
func checkPushed(t *testing.T, behind *sink) {
	t.Helper()
	eventually(t, "system.network.connection.count", time.Minute, func() error {
		m, err := behind.metric("system.network.connection.count")
		if err != nil {
			return err
		}
		for _, p := range m.Sum.DataPoints {
			leaked, err := strconv.Atoi(p.AsInt)
			if err == nil && leaked >= 10 && p.Attributes["network.connection.state"] == "close_wait" && p.Attributes["network.transport"] == "tcp" {
				return nil
			}
		}
		return fmt.Errorf("no CLOSE_WAIT: %+v", m)
	})
	m, err := behind.metric("tcptrace_state_duration_seconds")
	if err != nil || m.host != "north" || len(m.ExponentialHistogram.DataPoints) == 0 || m.ExponentialHistogram.DataPoints[0].Scale != 2 {
		t.Errorf("tcptrace_state_duration_seconds is no exponential histogram of north, of scale 2: %+v %v", m, err)
	}
}

// checkPromOTLP asks Prometheus for what was pushed: by the Collector, and by tcptrace.
func checkPromOTLP(t *testing.T, p *prometheus, told truth) {
	t.Helper()
	for _, instance := range []string{"north", "south"} {
		which := fmt.Sprintf("tcptrace_state_duration_seconds{instance=%q,service=%q,state=\"ESTABLISHED\"}", instance, truthService)
		eventually(t, "histograms of "+instance, time.Minute, func() error {
			n, err := p.number("histogram_count(" + which + ")")
			if err == nil && n != 2*connections {
				err = fmt.Errorf("%v of %v samples", n, 2*connections)
			}
			return err
		})
		for _, quantile := range []float64{0.5, 0.9, 0.99} {
			checkQuantile(t, p, instance, quantile, which, told.Established, true)
		}
	}
	eventually(t, "the leaks of both hosts", time.Minute, func() error {
		all, err := p.query("topk(10, sum by (service) (tcptrace_leak_sockets{service=~\"tcptrace-.*\"}))")
		if err != nil || len(all) != 2 || all[0].Metric["service"] != leakyService || all[1].Metric["service"] != dripService {
			return fmt.Errorf("%v %w", all, err)
		}
		hosts, err := p.number(fmt.Sprintf("count(tcptrace_leak_sockets{service=%q} > 0)", leakyService))
		if err != nil || hosts != 2 {
			return fmt.Errorf("%v hosts %w", hosts, err)
		}
		return nil
	})
}

// topLeaks is the query of the manual.
func topLeaks(t *testing.T) string {
	t.Helper()
	manual, err := os.ReadFile("../../../cmd/tcptrace/tcptrace.1")
	if err != nil {
		t.Fatal(err)
	}
	const begin = `event_name:="tcptrace.leak"`
	_, query, found := strings.Cut(string(manual), begin)
	query, _, ends := strings.Cut(query, "\n.Ed\n")
	if !found || !ends {
		t.Fatal("the manual has no query for VictoriaLogs")
	}
	return begin + query
}

// checkTopLeaks asks VictoriaLogs which services leak most, over both hosts.
func checkTopLeaks(t *testing.T, v *victoriaLogs) {
	t.Helper()
	query := topLeaks(t)
	eventually(t, "the top leaking services", 90*time.Second, func() error {
		rows, err := v.query(query)
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(row map[string]string) bool { return !strings.HasPrefix(row["tcptrace.service"], "tcptrace-") })
		if len(rows) != 2 || rows[0]["tcptrace.service"] != leakyService || rows[1]["tcptrace.service"] != dripService ||
			rows[0]["hosts"] != "2" || rows[1]["hosts"] != "2" {
			return fmt.Errorf("%v", rows)
		}
		t.Log(rows)
		return nil
	})
}

package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The services of the test.
const (
	truthService = "tcptrace-truth.service"
	leakyService = "tcptrace-leaky.service"
)

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The rules hold what their own tests say, and their syntax is right.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "tcptrace.rules.yml"}, {"test", "rules", "tcptrace.rules.test.yml"}} {
		cmd := exec.Command(filepath.Join(*serversDir, "promtool"), args...)
		cmd.Dir = packaging + "/prometheus"
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "SUCCESS") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// A real Prometheus, which scrapes native histograms, and one that scrapes classic ones, see what
// a real tcptrace saw: times in a state, a leak that comes and goes, all of the dashboard.
func TestPrometheus(t *testing.T) {
	at := freeAddress(t)
	daemon := start(t, "", filepath.Join(*binaries, "tcptrace"), "serve", "--listen", at)
	eventually(t, "tcptrace is ready", time.Minute, func() error { return answers("http://" + at + "/readyz") })
	native, classic := newPrometheus(t, at, true), newPrometheus(t, at, false)

	leaky := start(t, leakyService, filepath.Join(*binaries, "leaky"))
	leakBegan := time.Now()
	load := start(t, truthService, self(t), trafficArg)
	told := readTruth(t, load.Stdout.(*os.File).Name())
	checkQuantiles(t, native, classic, told)

	firing := fmt.Sprintf(`ALERTS{alertname="TcptraceSocketLeak",alertstate="firing",service=%q,state="CLOSE_WAIT"}`, leakyService)
	for _, p := range []*prometheus{native, classic} {
		eventually(t, "the alert of the leak", time.Until(leakBegan.Add(time.Minute)), func() error {
			_, err := p.number(firing)
			return err
		})
	}
	t.Logf("the alert fired %v after the leak began", time.Since(leakBegan).Round(time.Second))
	t.Log(native.description(t))
	checkDashboard(t, native, classic)

	stop(t, leaky)
	leakEnded := time.Now()
	for _, p := range []*prometheus{native, classic} {
		eventually(t, "the end of the alert", 3*time.Minute, func() error {
			if all, err := p.query(firing); err != nil || len(all) > 0 {
				return fmt.Errorf("%v %w", all, err)
			}
			return nil
		})
	}
	t.Logf("the alert ended %v after the leak did", time.Since(leakEnded).Round(time.Second))

	stop(t, daemon)
	eventually(t, "the alert of tcptrace being down", time.Minute, func() error {
		_, err := native.number(`ALERTS{alertname="TcptraceDown",alertstate="pending"}`)
		return err
	})
}

// description is what the alert of the leak tells a person.
func (p *prometheus) description(t *testing.T) string {
	t.Helper()
	var data struct {
		Alerts []struct{ Labels, Annotations map[string]string }
	}
	if err := p.api("alerts", &data); err != nil {
		t.Fatal(err)
	}
	for _, a := range data.Alerts {
		if a.Labels["alertname"] == "TcptraceSocketLeak" && a.Labels["service"] == leakyService {
			return a.Annotations["description"]
		}
	}
	t.Error("the alert of the leak has no description")
	return ""
}

// checkQuantiles compares with the truth, within 20 %. Classic buckets are a factor of 4 apart: no
// more than where times are spread evenly over a bucket can they be asked for that.
func checkQuantiles(t *testing.T, native, classic *prometheus, told truth) {
	t.Helper()
	const name = "tcptrace_state_duration_seconds"
	for _, c := range []struct {
		what, state, metric, count, by string
		p                              *prometheus
		truth                          []float64
		samples                        float64
		exact                          bool
	}{
		{"native", "ESTABLISHED", name, "histogram_count(%s)", "", native, told.Established, 2 * connections, true},
		{"classic", "ESTABLISHED", name + "_bucket", name + "_count", "", classic, told.Established, 2 * connections, true},
		{"native", "CLOSE_WAIT", name, "histogram_count(%s)", "", native, told.CloseWait, connections, true},
		{"classic", "CLOSE_WAIT", name + "_bucket", name + "_count", "", classic, told.CloseWait, connections, false},
	} {
		which := fmt.Sprintf("{service=%q,state=%q}", truthService, c.state)
		count := strings.ReplaceAll(c.count, "%s", name) + which
		if strings.Contains(c.count, "%s") {
			count = fmt.Sprintf(c.count, name+which)
		}
		eventually(t, c.what+" "+c.state, time.Minute, func() error {
			n, err := c.p.number(count)
			if err == nil && n != c.samples {
				err = fmt.Errorf("%v of %v samples", n, c.samples)
			}
			return err
		})
		for _, quantile := range []float64{0.5, 0.9, 0.99} {
			checkQuantile(t, c.p, c.what+" "+c.state, quantile, c.metric+which, c.truth, c.exact)
		}
	}
}

// checkQuantile compares one with the truth.
func checkQuantile(t *testing.T, p *prometheus, what string, quantile float64, metric string, told []float64, exact bool) {
	t.Helper()
	got, err := p.number(fmt.Sprintf("histogram_quantile(%v, %s)", quantile, metric))
	if err != nil {
		t.Fatal(err)
	}
	want := told[int(math.Ceil(quantile*float64(len(told))))-1]
	off := got/want - 1
	t.Logf("%-19s p%-2g %.3f s, in truth %.3f s: %+.1f %%", what, quantile*100, got, want, 100*off)
	if exact && math.Abs(off) > 0.2 {
		t.Errorf("%s: p%g is %v, in truth %v", what, 100*quantile, got, want)
	}
}

// panel is one of the dashboard.
type panel struct {
	Type, Title string
	Targets     []struct{ Expr string }
}

// checkDashboard runs the query of every panel, and those of the variables: each has data.
func checkDashboard(t *testing.T, all ...*prometheus) {
	t.Helper()
	text, err := os.ReadFile(packaging + "/grafana/tcptrace.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels     []panel
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, v := range dashboard.Templating.List {
		if v.Type == "query" {
			checkVariable(t, all[0], v.Definition)
		}
	}
	queries := 0
	for _, p := range dashboard.Panels {
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("%s asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			queries++
			for _, server := range all {
				checkQuery(t, server, p.Title, target.Expr)
			}
		}
	}
	t.Logf("%d queries of the dashboard have data", queries)
}

// asGrafana puts in what Grafana does, with All for each variable.
func asGrafana(expr string) string {
	return strings.NewReplacer("$__rate_interval", "10s", "$__range", "1m", "$instance", ".*", "$service", ".*").Replace(expr)
}

// checkQuery wants numbers. What a panel shows may need time to happen: a TIME_WAIT takes a minute.
func checkQuery(t *testing.T, p *prometheus, title, expr string) {
	t.Helper()
	expr = asGrafana(expr)
	if strings.Contains(expr, "$") {
		t.Errorf("%s: a variable that is not known: %s", title, expr)
	}
	if strings.Contains(expr, "topk") || strings.Contains(expr, "bottomk") || strings.Contains(expr, "histogram_quantile") {
		expr = "(" + expr + ") >= 0" // NaN is no data
	}
	eventually(t, fmt.Sprintf("%s: %s", title, expr), 90*time.Second, func() error {
		got, err := p.query(expr)
		if err == nil && len(got) == 0 {
			err = errors.New("no data")
		}
		return err
	})
}

// checkVariable wants what the test knows to be there.
func checkVariable(t *testing.T, p *prometheus, definition string) {
	t.Helper()
	inner, ok := strings.CutPrefix(strings.TrimSuffix(definition, ")"), "label_values(")
	at := strings.LastIndex(inner, ", ")
	if !ok || at < 0 {
		t.Fatalf("no label_values: %s", definition)
	}
	var values []string
	selector, label := asGrafana(inner[:at]), inner[at+2:]
	if err := p.api("label/"+label+"/values?match[]="+url.QueryEscape(selector), &values); err != nil {
		t.Fatal(err)
	}
	if len(values) == 0 || label == "service" && !slices.Contains(values, leakyService) {
		t.Errorf("%s: %v", definition, values)
	}
}

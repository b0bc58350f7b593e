// Package servers holds tests against real servers, which are built from this module: so our
// users' go.sum does not know them. `make test-servers` builds them and runs the tests, as root.
package servers

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	serversDir = flag.String("servers", "", "the folder of prometheus, promtool, collector and victoria-logs")
	binaries   = flag.String("bin", "", "the folder of tcptrace and leaky")
)

const packaging = "../../../packaging"

// TestMain lets the tests run this program once more.
func TestMain(m *testing.M) {
	if ran, err := runAs(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	} else if ran {
		os.Exit(0)
	}
	flag.Parse()
	if *serversDir == "" || *binaries == "" || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need real servers, and root: run 'make test-servers'")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// eventually waits until check returns nil, for a limited time.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, limit, err)
}

// start starts a program, which the end of the test ends. What it says is logged if the test fails.
func start(t *testing.T, cgroup string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	said, err := os.Create(filepath.Join(t.TempDir(), filepath.Base(name)))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cgroup != "" {
		dir := newCgroup(t, cgroup)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, cmd)
		if text, err := os.ReadFile(said.Name()); t.Failed() {
			t.Logf("%s said: %s %v", name, text[max(0, len(text)-4000):], err)
		}
		said.Close()
	})
	return cmd
}

// stop ends a program, if it has not ended.
func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if cmd.ProcessState != nil {
		return
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = cmd.Wait() // by the signal
}

// newCgroup makes a cgroup: its name is that of a service.
func newCgroup(t *testing.T, name string) *os.File {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			path := filepath.Join(f[1], name)
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			dir, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				dir.Close()
				for range 50 { // its processes are about to end
					if err = os.Remove(path); err == nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
				t.Error(err)
			})
			return dir
		}
	}
	t.Fatal("no cgroup v2 file system is mounted")
	return nil
}

// prometheus is a real one.
type prometheus struct{ url string }

// newPrometheus starts one that scrapes the target as tcptrace.scrape.yml says, with the rules as
// they are shipped. The test has no time for the intervals of production: it scrapes and evaluates
// each second.
func newPrometheus(t *testing.T, target string, native bool) *prometheus {
	t.Helper()
	dir := t.TempDir()
	scrape, err := os.ReadFile(packaging + "/prometheus/tcptrace.scrape.yml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(scrape)
	for shipped, here := range map[string]string{
		"127.0.0.1:9293":                 target,
		"scrape_interval: 15s":           "scrape_interval: 1s",
		"scrape_native_histograms: true": "scrape_native_histograms: " + strconv.FormatBool(native),
	} {
		if !strings.Contains(text, shipped) {
			t.Fatalf("tcptrace.scrape.yml does not say %s", shipped)
		}
		text = strings.ReplaceAll(text, shipped, here)
	}
	rules, err := filepath.Abs(packaging + "/prometheus/tcptrace.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "scrape.yml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return runPrometheus(t, fmt.Sprintf("global: {evaluation_interval: 1s}\nscrape_config_files: [%q]\nrule_files: [%q]\n", path, rules))
}

// runPrometheus starts one with a configuration.
func runPrometheus(t *testing.T, config string, args ...string) *prometheus {
	t.Helper()
	dir, at := t.TempDir(), freeAddress(t)
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, "", filepath.Join(*serversDir, "prometheus"), append(args, "--config.file="+path,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at)...)
	p := &prometheus{"http://" + at}
	eventually(t, "Prometheus is ready", time.Minute, func() error { return answers(p.url + "/-/ready") })
	return p
}

// answers asks for a path, and returns an error unless the answer is 200.
func answers(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// series is one of an answer.
type series struct {
	Metric map[string]string
	Value  [2]any // time and value
}

func (s *series) value() float64 {
	text, _ := s.Value[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(fmt.Sprintf("%v is no value", s.Value))
	}
	return v
}

// api asks the API of Prometheus.
func (p *prometheus) api(path string, data any) error {
	response, err := http.Get(p.url + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// query evaluates an expression now. Histograms are not values: the expression has to end in numbers.
func (p *prometheus) query(expr string) ([]series, error) {
	var data struct{ Result []series }
	err := p.api("query?query="+url.QueryEscape(expr), &data)
	return data.Result, err
}

// number evaluates an expression that has one value.
func (p *prometheus) number(expr string) (float64, error) {
	all, err := p.query(expr)
	if err != nil {
		return 0, err
	}
	if len(all) != 1 {
		return 0, fmt.Errorf("%s has %d values", expr, len(all))
	}
	return all[0].value(), nil
}

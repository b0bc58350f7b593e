package output

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

func leakReport() *leak.Report {
	stack := func(n int, function string) leak.Stack {
		return leak.Stack{Count: n, Frames: []symbolize.Frame{{Function: "connect", Module: "libc.so.6"}, {Function: function, File: "a.c", Line: 7}}}
	}
	return &leak.Report{
		Time: 1_795_000_000_000_000_042, BootNS: 98_765e9, States: []tcp.State{tcp.CloseWait, tcp.Close}, OlderThan: 10e9,
		Watched: 12e9, Sockets: 3, Leaks: 1, UnknownAge: 1, Lost: 1,
		Groups: []*leak.Group{{
			State: tcp.CloseWait, PID: 4711, Comm: "a\x1bb", UID: 1000, Container: "c1", NetNS: 4026531840, Role: tcp.Client, Holder: tcp.Held,
			Remote: netip.MustParseAddrPort("10.0.0.1:80"), Count: 2, Oldest: 61e9, AtLeast: true, Median: 60e9, Watched: 12e9,
			Growth: 1.5, GrowthKnown: true, FDs: []int32{5, 6}, Read: 2, Files: leak.Files{Open: 9, Limit: 1024}, FilesKnown: true,
			Left: 3600e9, LeftKnown: true, Verdict: leak.Leak, Cause: leak.MissingClose, Diagnosis: "It leaks.",
			Stacks: []leak.Stack{stack(1, "fetch"), stack(1, "fetch")},
		}, {State: tcp.Close, UID: tcp.NoUID, Count: 1, Oldest: 11e9, Median: 11e9, Verdict: leak.Undecided, Cause: leak.DescriptorOpen, Diagnosis: "Too early."}},
	}
}

func TestReportColumns(t *testing.T) {
	utc(t)
	var b strings.Builder
	if err := NewReportColumns(&b, ReportOptions{Time: true, Top: 9}).Write(leakReport()); err != nil {
		t.Fatal(err)
	}
	compare(t, b.String(), `11:06:40 CLOSE_WAIT and CLOSE for 10s or longer: 3 sockets, 2 groups, 1 leak; watched 12s; 1 more socket of unknown age; 1 event lost
PID     COMM            STATE      REMOTE                LPORT SOCKETS   OLDEST   MEDIAN GROWTH_PER_MIN     OPEN/MAX VERDICT   FDS
4711    a\x1bb          CLOSE_WAIT 10.0.0.1:80           -           2  >=1m01s    1m00s           +1.5       9/1024 leak      5 6
        It leaks.
        Container c1.
        At this growth its limit of 1024 open files is reached in 1h00m.
        2 opened by fetch at a.c:7
-       -               CLOSE      *                     -           1      11s      11s              -            - undecided -
        Too early.
`)
	b.Reset()
	if err := NewReportColumns(&b, ReportOptions{Top: 1}).Write(leakReport()); err != nil || !strings.Contains(b.String(), "and 1 more group with 1 socket; --top") {
		t.Errorf("%v in:\n%s", err, b.String())
	}
}

// At its limit a process cannot grow any more, so no growth says when it gets there.
func TestReportAtTheLimit(t *testing.T) {
	for files, want := range map[leak.Files]string{
		{Open: 1023, Limit: 1024}:         "is reached in 1h00m.",
		{Open: 1024, Limit: 1024}:         "has reached its limit of 1024 open files",
		{Open: 41, Limit: 40}:             "has reached its limit of 40 open files", // it was lowered
		{Open: 1 << 20, Limit: 1<<64 - 1}: "",
	} {
		r := leakReport()
		g := r.Groups[0]
		g.Files, g.LeftKnown = files, files.Open == 1023
		var b strings.Builder
		if err := NewReportColumns(&b, ReportOptions{Top: 1}).Write(r); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(b.String(), "limit of"); said != (want != "") || !strings.Contains(b.String(), want) {
			t.Errorf("%+v: want %q in:\n%s", files, want, b.String())
		}
	}
}

// What is not decided is not cleared.
func TestReportUndecided(t *testing.T) {
	r := leakReport()
	r.Leaks, r.Undecided = 0, 2
	r.States = []tcp.State{tcp.FinWait1, tcp.LastAck, tcp.Closing}
	var b strings.Builder
	if err := NewReportColumns(&b, ReportOptions{}).Write(r); err != nil {
		t.Fatal(err)
	}
	if want := "FIN_WAIT1, LAST_ACK and CLOSING for 10s or longer: 3 sockets, 2 groups, no leaks, 2 undecided; watched 12s"; !strings.HasPrefix(b.String(), want) {
		t.Errorf("got %s, want %s", b.String(), want)
	}
}

// A finding says whose the sockets are, if anybody's.
func TestFindingsOwner(t *testing.T) {
	for want, g := range map[string]*leak.Group{
		"leak: pid 7 (app) has 2 sockets in CLOSE_WAIT to *, unknown growth: It leaks.":          {PID: 7, Comm: "app"},
		"leak: processes named app have 2 sockets in CLOSE_WAIT to *, unknown growth: It leaks.": {Comm: "app"},
		"leak: 2 sockets in CLOSE_WAIT to *, unknown growth: It leaks.":                          {},
	} {
		g.Count, g.State, g.Diagnosis = 2, tcp.CloseWait, "It leaks."
		if got := Findings([]leak.Finding{{Why: "leak", Group: g}}); len(got) != 1 || got[0] != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What a report does not show is said below it.
func TestReportMissing(t *testing.T) {
	var b strings.Builder
	r := leakReport()
	r.Unplaced, r.Unresolved, r.Unjudged = 4, 1, tcp.Unjudged{tcp.Owner: 2, tcp.Forgotten: 1}
	if err := NewReportColumns(&b, ReportOptions{Top: 9}).Write(r); err != nil {
		t.Fatal(err)
	}
	_, missing, _ := strings.Cut(b.String(), "Too early.\n")
	compare(t, missing, `and 4 sockets without a group, for lack of room
1 group without open files and stacks, for lack of time
and 2 sockets left out by --pid or --comm: no process is known to own them
and 1 socket in TIME_WAIT left out by the filter: from before the trace, so without an owner or a cgroup
`)
	b.Reset()
	if err := NewReportColumns(&b, ReportOptions{Top: 1}).Write(r); err != nil || strings.Contains(b.String(), "lack of time") {
		t.Errorf("a group that is not shown is complained about, or %v:\n%s", err, b.String())
	}
}

// Columns and CSV call what they show as JSON does, but for what is for the eye alone.
func TestReportFieldNames(t *testing.T) {
	r := leakReport()
	destination := &leak.Report{TimeWait: true, Destinations: []*leak.Destination{{}}}
	for name, c := range map[string]struct {
		report *leak.Report
		object reflect.Type
		layout []string
	}{
		"leak":      {r, reflect.TypeFor[groupObject](), strings.Fields(groupLayout)},
		"time_wait": {destination, reflect.TypeFor[destinationObject](), strings.Fields(destinationLayout)},
	} {
		var written []string
		for field := range c.object.Fields() {
			tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if tag != "v" && tag != "type" {
				written = append(written, strings.ToUpper(tag))
			}
		}
		var b strings.Builder
		if err := NewReportCSV(&b, ReportOptions{Time: true}).Write(c.report); err != nil {
			t.Fatal(err)
		}
		records, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, b.String())
		}
		slices.Sort(written)
		if got := slices.Sorted(slices.Values(records[0])); !slices.Equal(got, written) {
			t.Errorf("%s: CSV has %v\nJSON has %v", name, got, written)
		}
		for _, field := range plain(c.layout) {
			if !slices.Contains(written, strings.ToUpper(field)) {
				t.Errorf("%s: the column %s is not in JSON", name, field)
			}
		}
	}
}

func TestReportJSON(t *testing.T) {
	var b strings.Builder
	if err := NewReportJSON(&b).Write(leakReport()); err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(b.String(), "\n")
	for text, want := range map[string]map[string]any{
		first: {
			"type": "leak", "time": "2026-11-18T11:06:40.000000042Z", "boot_ns": "98765000000000", "state": "CLOSE_WAIT", "holder": "held",
			"comm": "a\x1bb", "open_files": 9.0, "max_files": 1024.0, "limit_reached_s": 3600.0, "growth_per_min": 1.5, "oldest_s": 61.0,
		},
		second: {"state": "CLOSE", "cause": "descriptor_open", "sockets": 1.0},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		for name := range maps.Keys(want) {
			if got[name] != want[name] {
				t.Errorf("%s is %v, want %v", name, got[name], want[name])
			}
		}
	}
	if strings.Contains(first, "\x1b") {
		t.Error("JSON holds an escape that acts on a terminal")
	}
}

func BenchmarkReportJSON(b *testing.B) {
	r, j := leakReport(), NewReportJSON(io.Discard)
	for b.Loop() {
		if err := j.Write(r); err != nil {
			b.Fatal(err)
		}
	}
}

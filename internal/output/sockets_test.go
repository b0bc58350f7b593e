package output

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// inventory is of a proxy with workers, IPv6, half-closed connections and much in TIME_WAIT, in
// the order of the kernel.
const inventory = `
	0s listen   >LISTEN      0.0.0.0:443         0.0.0.0:0          role=listener pid=812/nginx unknown=0s
	0s listen6  >LISTEN      [::]:443            [::]:0             role=listener pid=812/nginx unknown=0s
	0s c1       >TIME_WAIT   10.0.0.1:43001      10.0.0.9:5432      at_least=3s
	0s c2       >TIME_WAIT   10.0.0.1:43002      10.0.0.9:5432      at_least=59s
	0s c3       >TIME_WAIT   10.0.0.1:43003      10.0.0.9:5432      at_least=20s
	0s s1       >TIME_WAIT   10.0.0.1:443        10.0.0.50:50000    at_least=10s
	0s slow     >CLOSE_WAIT  10.0.0.1:43010      10.0.0.9:5432      role=client pid=4711/worker:1 at_least=2m3s
	0s old      >CLOSE_WAIT  10.0.0.1:43011      10.0.0.9:5432      role=client pid=4711/worker:1 at_least=4h
	0s est      >ESTABLISHED 10.0.0.1:443        10.0.0.51:51000    role=server pid=813/nginx unknown=0s
	0s est6     >ESTABLISHED [2001:db8::1:443]:443 [2001:db8::ffff:51]:51000 role=server pid=813/nginx unknown=0s netns=4026532177
	0s syn      >SYN_SENT    10.0.0.1:43012      198.51.100.7:80    role=client pid=900/curl at_least=1500ms
`

// rows are the events of inventory with what only a row has.
func rows(t testing.TB) []tcp.Event {
	t.Helper()
	events := capture.Events(t, inventory)
	for i := range events {
		e := &events[i]
		if e.OwnerSource == "" {
			continue
		}
		e.Cgroup = "/system.slice/nginx.service"
		e.OwnerSource, e.Holder, e.FD = tcp.FromSnapshot, tcp.Held, int32(i+5)
		e.HasQueues, e.RxQueue, e.HasDrops = true, uint32(i*100), e.New == tcp.Listen
		if e.New == tcp.Listen {
			e.Details = &tcp.Details{
				Cmdline: "nginx: master process",
				Holders: []tcp.Process{{PID: 812, Comm: "nginx", FD: e.FD}, {PID: 813, Comm: "nginx", FD: e.FD}, {PID: 814, Comm: "a,\"b\x1b", FD: tcp.NoFD}},
			}
		}
	}
	events[1].Details.HoldersMore = 61
	return events
}

// socketsText is what o makes of rows; TIME_WAIT is summed up unless all is given.
func socketsText(t testing.TB, o SocketsOptions, config stats.InventoryConfig, rows []tcp.Event) string {
	t.Helper()
	var b strings.Builder
	w := NewSockets(&b, o)
	config.Show = w.Write
	list := stats.NewInventory(config)
	for i := range rows {
		list.Listeners().Note(&rows[i])
		if err := list.Add(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := list.End(capture.Start); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSocketsText(t *testing.T) {
	utc(t)
	summed := stats.InventoryConfig{SumTimeWait: true}
	golden(t, "sockets_80.txt", socketsText(t, SocketsOptions{Width: 80, Title: true}, summed, rows(t)))
	golden(t, "sockets_120.txt", socketsText(t, SocketsOptions{Width: 120}, summed, rows(t)))
	golden(t, "sockets_all.txt", socketsText(t, SocketsOptions{}, stats.InventoryConfig{}, rows(t)))
	golden(t, "sockets_extended.txt", socketsText(t, SocketsOptions{Options: Options{Extended: true}, Width: 80}, summed, rows(t)))
	golden(t, "sockets_screen.txt", socketsText(t, SocketsOptions{Width: 100, Lines: 12, Title: true}, summed, rows(t)))
}

// With 80 characters for what there is the lines fit, and what is left out is said; -w leaves
// nothing out.
func TestSocketsFit(t *testing.T) {
	var short []tcp.Event
	for _, e := range rows(t) {
		if e.Local.Addr().Is4() && e.New != tcp.TimeWait {
			short = append(short, e)
		}
	}
	for _, o := range []SocketsOptions{{Width: 80}, {Width: 100}, {Width: 120}} {
		text := socketsText(t, o, stats.InventoryConfig{}, short)
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > o.Width {
				t.Errorf("%d wide, of %d: %s", n, o.Width, line)
			}
		}
		header, _, _ := strings.Cut(text, "\n")
		if strings.Contains(header, "NETNS") == strings.Contains(text, "no room on the terminal for NETNS") {
			t.Errorf("%d: what is left out is not what is said:\n%s", o.Width, text)
		}
	}
	wide := socketsText(t, SocketsOptions{Width: 80, Options: Options{Wide: true}}, stats.InventoryConfig{}, short)
	if !strings.Contains(wide, "NETNS") || strings.Contains(wide, "no room") {
		t.Errorf("-w leaves something out:\n%s", wide)
	}
}

// More sockets than are sorted at once are all shown, under one header.
func TestSocketsInParts(t *testing.T) {
	text := socketsText(t, SocketsOptions{}, stats.InventoryConfig{Rows: 4}, rows(t))
	if n := strings.Count(text, "\n"); n != 1+len(rows(t)) || strings.Count(text, "STATE") != 1 {
		t.Errorf("%d lines:\n%s", n, text)
	}
	text = socketsText(t, SocketsOptions{Lines: 7}, stats.InventoryConfig{Rows: 6, Top: 3}, rows(t))
	if !strings.Contains(text, "and 8 more sockets\n") || strings.Count(text, "LISTEN") != 2 || !strings.Contains(text, "SYN_SENT") {
		t.Errorf("the first three:\n%s", text)
	}
}

// What a process calls itself acts on no terminal, and is one cell of CSV.
func TestSocketsHostile(t *testing.T) {
	events := rows(t)
	for i := range events {
		events[i].Comm, events[i].Cgroup = "\x1b[2J\n", "/a\nb.service"
		events[i].Names = &tcp.Names{Container: "\x1b[2J\n", Image: "\r", Pod: "\x1b", PodUID: "\a", Namespace: "a\n"}
		if d := events[i].Details; d != nil {
			d.Cmdline = "\x1b]0;owned\a --x"
		}
	}
	extended := Options{Extended: true}
	for _, text := range []string{
		socketsText(t, SocketsOptions{Options: extended}, stats.InventoryConfig{}, events),
		lines(t, asCSV(Options{Extended: true, Sockets: true}), events...), lines(t, asJSON, events...),
	} {
		if strings.ContainsAny(text, "\x1b\a\r") || strings.Count(text, "\n") > 1+len(events) {
			t.Errorf("%q", text)
		}
	}
	csv := lines(t, asCSV(Options{Extended: true, Sockets: true}), rows(t)[0])
	if want := `,nginx.service,"812/nginx:5 813/nginx:5 814/a,""b\x1b",,nginx: master process,,` + "\n"; !strings.HasSuffix(csv, want) {
		t.Errorf("got %s, want it to end with %s", csv, want)
	}
	if got, want := lines(t, asJSON, rows(t)[1]), `"unit":"nginx.service","cmdline":"nginx: master process",`+
		`"holders":[{"pid":812,"comm":"nginx","fd":6},{"pid":813,"comm":"nginx","fd":6},{"pid":814,"comm":"a,\"b\u001b"}],"holders_more":61,`; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// counted is a report by what, of rows.
func countedRows(t testing.TB, by stats.By) *stats.SocketReport {
	t.Helper()
	tally := stats.NewSocketTally(by)
	events := rows(t)
	for i := range events {
		tally.Listeners().Note(&events[i])
		tally.Add(&events[i])
	}
	return tally.Report(capture.Start, capture.BootNS)
}

func TestSocketSummary(t *testing.T) {
	utc(t)
	var text, csv, object strings.Builder
	if err := NewSocketSummary(&text, SocketsOptions{Title: true}).Write(countedRows(t, stats.ByComm)); err != nil {
		t.Fatal(err)
	}
	if err := NewSocketSummary(&text, SocketsOptions{Lines: 5}).Write(countedRows(t, stats.ByPID)); err != nil {
		t.Fatal(err)
	}
	w := NewSocketSummaryCSV(&csv)
	for range 2 {
		if err := w.Write(countedRows(t, stats.ByPID)); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "sockets_by.txt", text.String()+csv.String())
	if err := NewSocketSummaryJSON(&object).Write(countedRows(t, stats.ByLocalPort)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Type    string
		Sockets int
		States  map[string]int
		Groups  []struct {
			Name    string
			Sockets int
			States  map[string]int
		}
	}
	if err := json.Unmarshal([]byte(object.String()), &got); err != nil {
		t.Fatal(err)
	}
	if got.Type != "sockets" || got.Sockets != 11 || got.States["TIME_WAIT"] != 4 || len(got.States) != len(stats.StateOrder) {
		t.Errorf("got %s", object.String())
	}
	if len(got.Groups) != 2 || got.Groups[0].Name != "" || got.Groups[1].Name != "443" || got.Groups[1].States["TIME_WAIT"] != 1 || got.Groups[1].Sockets != 5 {
		t.Errorf("got %s", object.String())
	}
}

// 200,000 sockets are sorted and written in bounded memory and time.
func BenchmarkSockets(b *testing.B) {
	events := rows(b)
	for b.Loop() {
		list := stats.NewInventory(stats.InventoryConfig{Show: NewSockets(io.Discard, SocketsOptions{}).Write})
		for i := range 200_000 {
			e := events[i%len(events)]
			e.Duration += uint64(i)
			if err := list.Add(&e); err != nil {
				b.Fatal(err)
			}
		}
		if err := list.End(0); err != nil {
			b.Fatal(err)
		}
	}
}

package stats

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// reports are those of a look at the rows.
func reports(t *testing.T, cfg InventoryConfig, rows []tcp.Event) (all []InventoryReport) {
	t.Helper()
	cfg.Show = func(r *InventoryReport) error {
		copied := *r
		copied.Rows = nil
		for _, row := range r.Rows { // valid until Show returns
			kept := *row
			copied.Rows = append(copied.Rows, &kept)
		}
		all = append(all, copied)
		return nil
	}
	list := NewInventory(cfg)
	for i := range rows {
		list.Listeners().Note(&rows[i])
		if err := list.Add(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := list.End(1); err != nil {
		t.Fatal(err)
	}
	return all
}

func order(rows []*tcp.Event) string {
	var b strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&b, "%v %v %d\n", row.New, row.Remote, age(row)/1e9)
	}
	return b.String()
}

func TestInventorySorts(t *testing.T) {
	rows := capture.Events(t, `
		0s a >TIME_WAIT   10.0.0.1:1000 10.0.0.2:80 at_least=1s
		0s b >ESTABLISHED 10.0.0.1:1002 10.0.0.2:82 unknown=0s
		0s c >ESTABLISHED 10.0.0.1:1001 10.0.0.2:81 unknown=0s
		0s d >CLOSE_WAIT  10.0.0.1:1003 10.0.0.2:83 at_least=5s
		0s e >CLOSE_WAIT  10.0.0.1:1004 10.0.0.2:84 exact=9s
		0s f >CLOSE_WAIT  10.0.0.1:1005 10.0.0.2:85 unknown=0s
		0s g >LISTEN      0.0.0.0:80    0.0.0.0:0   unknown=0s
	`)
	const want = "LISTEN 0.0.0.0:0 0\nESTABLISHED 10.0.0.2:81 0\nESTABLISHED 10.0.0.2:82 0\n" +
		"CLOSE_WAIT 10.0.0.2:84 9\nCLOSE_WAIT 10.0.0.2:83 5\nCLOSE_WAIT 10.0.0.2:85 0\nTIME_WAIT 10.0.0.2:80 1\n"
	all := reports(t, InventoryConfig{}, rows)
	if len(all) != 1 || order(all[0].Rows) != want || all[0].More || all[0].Total.Total != 7 {
		t.Errorf("got %+v\n%s", all, order(all[0].Rows))
	}
	// In parts nothing is missing, and each is sorted.
	shown := 0
	all = reports(t, InventoryConfig{Rows: 3, SumTimeWait: true}, rows)
	for i, r := range all {
		shown += len(r.Rows)
		if r.More != (i < len(all)-1) || (r.TimeWaits != nil) != !r.More {
			t.Errorf("part %d of %d: %+v", i, len(all), r)
		}
	}
	if len(all) != 2 || shown != 6 {
		t.Errorf("%d rows in %d parts", shown, len(all))
	}
	// The first ones of all are kept, whenever they come.
	all = reports(t, InventoryConfig{Rows: 4, Top: 2}, rows)
	if len(all) != 1 || order(all[0].Rows) != want[:strings.Index(want, "ESTABLISHED 10.0.0.2:82")] || all[0].Hidden != 5 {
		t.Errorf("got %d hidden\n%s", all[0].Hidden, order(all[0].Rows))
	}
}

// Who listens is the server; else whoever talks to one that listens is a client; else the
// lower port is the service.
func TestTimeWaitGroups(t *testing.T) {
	all := reports(t, InventoryConfig{SumTimeWait: true}, capture.Events(t, `
		0s l >LISTEN    0.0.0.0:50000  0.0.0.0:0       unknown=0s
		0s l >LISTEN    0.0.0.0:443    0.0.0.0:0       unknown=0s netns=2
		0s a >TIME_WAIT 10.0.0.1:50000 10.0.0.2:40000  at_least=1s
		0s b >TIME_WAIT 10.0.0.1:50000 10.0.0.3:100    at_least=7s
		0s c >TIME_WAIT 10.0.0.2:40000 10.0.0.1:50000  at_least=2s
		0s d >TIME_WAIT 10.0.0.2:40001 10.0.0.1:50000  at_least=3s
		0s e >TIME_WAIT 10.0.0.2:40001 10.0.0.1:50000  at_least=3s netns=2
		0s f >TIME_WAIT 10.0.0.1:443   10.0.0.9:40000  unknown=0s
		0s g >TIME_WAIT 10.0.0.1:40005 10.0.0.9:5432   at_least=4s
		0s h >TIME_WAIT 10.0.0.1:40006 10.0.0.9:5432   at_least=5s
		0s i >TIME_WAIT 10.0.0.1:40007 10.0.0.9:5432   at_least=4s
	`))
	var got strings.Builder
	for _, g := range all[0].TimeWaits {
		fmt.Fprintf(&got, "%d %v %v %v %d\n", g.Count, g.Local, g.Remote, g.Server(), g.Oldest/1e9)
	}
	const want = `3 10.0.0.1:0 10.0.0.9:5432 false 5
2 10.0.0.2:0 10.0.0.1:50000 false 3
2 10.0.0.1:50000 invalid AddrPort true 7
1 10.0.0.1:443 invalid AddrPort true 0
1 10.0.0.2:40001 invalid AddrPort true 3
`
	if got.String() != want {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
}

// What finds no room is counted.
func TestTimeWaitsAreBounded(t *testing.T) {
	rows := make([]tcp.Event, maxTimeWaits+5)
	for i := range rows {
		rows[i] = tcp.Event{Kind: tcp.Socket, New: tcp.TimeWait, NetNS: uint32(i), Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80")}
	}
	all := reports(t, InventoryConfig{SumTimeWait: true}, rows)
	if len(all[0].TimeWaits) != maxTimeWaits || all[0].TimeWaitsRest != 5 {
		t.Errorf("%d groups, %d without one", len(all[0].TimeWaits), all[0].TimeWaitsRest)
	}
}

func TestSocketTally(t *testing.T) {
	rows := capture.Events(t, `
		0s l >LISTEN      0.0.0.0:80     0.0.0.0:0      role=listener pid=8/web unknown=0s cgroup=/system.slice/web.service
		0s a >ESTABLISHED 10.0.0.1:80    10.0.0.2:40000 role=server pid=8/web unknown=0s cgroup=/system.slice/web.service
		0s b >CLOSE_WAIT  10.0.0.1:40001 10.0.0.3:90    role=client pid=9/job unknown=0s
		0s c >TIME_WAIT   10.0.0.1:80    10.0.0.2:40002 at_least=1s
		0s d >TIME_WAIT   10.0.0.1:80    10.0.0.2:40003 at_least=1s netns=2
	`)
	for by, want := range map[By]string{
		ByHost:      "host 5",
		ByComm:      "2 web 2 job 1",
		ByPID:       "2 8/web 2 9/job 1",
		ByUnit:      "3 web.service 2",
		ByLocalPort: "80 3 2", // 80 of another network namespace, where nothing listens
		ByRemote:    "10.0.0.2 3 1 10.0.0.3:90 1",
		ByNetNS:     "4026531840 4 2 1",
		ByCgroup:    "3 /system.slice/web.service 2",
		ByContainer: "5",
	} {
		tally := NewSocketTally(by)
		for i := range rows {
			tally.Listeners().Note(&rows[i])
			tally.Add(&rows[i])
		}
		var got []string
		for _, g := range tally.Report(0, 0).Groups {
			name := g.Name
			if g.Comm != "" {
				name += "/" + g.Comm
			}
			got = append(got, strings.Fields(fmt.Sprintf("%s %d", name, g.Total))...)
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("by %s: got %s, want %s", by, text, want)
		}
	}
	tally := NewSocketTally(ByNetNS)
	for i := range MaxGroups + 3 {
		tally.Add(&tcp.Event{New: tcp.Close, NetNS: uint32(i + 1)})
	}
	r := tally.Report(0, 0)
	if last := r.Groups[len(r.Groups)-1]; len(r.Groups) != MaxGroups+1 || !last.Other || last.States[tcp.Close] != 3 || r.Total.Total != MaxGroups+3 {
		t.Errorf("%d groups, the last %+v", len(r.Groups), last)
	}
}

// The documentation promises this bound.
func TestInventorySize(t *testing.T) {
	if n := MaxRows * (unsafe.Sizeof(tcp.Event{}) + 2*unsafe.Sizeof(uintptr(0))); n > 100<<20 {
		t.Errorf("%d bytes", n)
	}
}

package output

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// ended is a connection of which everything is known.
func ended() *connection.Record {
	r := &connection.Record{
		Event: closed, Start: closed.Time - 5e9, StartBoot: closed.BootNS - 5e9,
		ClosedFirst: connection.Local, Outcome: tcp.Reset, TimeWaitEnd: tcp.Expired, Missing: true, Open: true,
	}
	r.Device, r.Holder, r.Unaccepted, r.Acked = 3, tcp.Gone, true, true
	r.Names = &tcp.Names{Container: "web-1", Image: "web:2", Pod: "web-7d9f", PodUID: "1-2", Namespace: "shop"}
	for i, s := range connection.States {
		r.Stays[s] = connection.Stay{NS: uint64(i) * 1_000_001, Kind: tcp.Exact}
	}
	return r
}

// small is one of which little is known.
func small() *connection.Record {
	r := &connection.Record{Event: tcp.Event{
		New: tcp.TimeWait, UID: tcp.NoUID, FD: tcp.NoFD, Local: closed.Local, Remote: closed.Remote,
		Duration: 7_000_000, DurationKind: tcp.AtLeast, BootNS: 9_000_000, Time: 1_795_000_000_000_000_042,
	}, Start: 1_794_999_999_993_000_042, StartBoot: 2_000_000}
	r.Stays[tcp.Established] = connection.Stay{Kind: tcp.Unknown}
	r.Stays[tcp.FinWait1] = connection.Stay{NS: 6_000_000, Kind: tcp.AtLeast}
	return r
}

type recordWriter interface {
	Write(*connection.Record) error
	Flush() error
}

func records(t *testing.T, open func(io.Writer) recordWriter, all ...*connection.Record) string {
	t.Helper()
	var out strings.Builder
	w := open(&out)
	for _, r := range all {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestConnectionColumns(t *testing.T) {
	utc(t)
	hostile := small()
	hostile.OwnerSource, hostile.Comm, hostile.PID = tcp.FromUse, "\x1b[2Jevil", 7
	compare(t, records(t, func(w io.Writer) recordWriter { return NewConnectionColumns(w, Options{Time: true}, 0) }, small(), hostile), `TIME     PID     COMM       ROLE     LOCAL                 REMOTE                BYTES_SENT BYTES_RECEIVED  DURATION_MS CLOSED_FIRST REASON            STATES
11:06:40 -       -          -        10.0.0.7:43210        192.0.2.80:443                 -              -      >=7.000 -            -                 ESTABLISHED ? FIN_WAIT1 >=6.000 TIME_WAIT...
11:06:40 7       \x1b[2Jevi -        10.0.0.7:43210        192.0.2.80:443                 -              -      >=7.000 -            -                 ESTABLISHED ? FIN_WAIT1 >=6.000 TIME_WAIT...
`)
}

// JSON has every field that is listed, in that order, and CSV has the same values.
func TestConnectionFields(t *testing.T) {
	text := records(t, func(w io.Writer) recordWriter { return NewConnectionJSON(w) }, ended())
	var names []string
	for decoder := json.NewDecoder(strings.NewReader(text)); ; {
		token, err := decoder.Token()
		if err == io.EOF {
			break
		}
		if name, ok := token.(string); ok {
			var value any
			if err := decoder.Decode(&value); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
	}
	listed := ConnectionFields()
	slices.Sort(listed)
	slices.Sort(names)
	if !slices.Equal(names, listed) {
		t.Errorf("JSON has %v\nlisted are %v", names, listed)
	}
	for _, r := range []*connection.Record{ended(), small()} {
		sameAsCSV(t, r)
	}
}

func sameAsCSV(t *testing.T, r *connection.Record) {
	t.Helper()
	var fields map[string]any
	decoder := json.NewDecoder(strings.NewReader(records(t, func(w io.Writer) recordWriter { return NewConnectionJSON(w) }, r)))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(records(t, func(w io.Writer) recordWriter { return NewConnectionCSV(w, Options{}) }, r))).ReadAll()
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows: %v", len(rows), err)
	}
	for i, title := range rows[0] {
		want := ""
		switch value := fields[strings.ToLower(title)].(type) {
		case string:
			want = value
		case json.Number:
			want = value.String()
		case bool:
			want = "true"
		}
		if rows[1][i] != want {
			t.Errorf("%s is %q in CSV, %q in JSON", title, rows[1][i], want)
		}
	}
}

// On a terminal no line is longer than it, where the cells fit at all, and nothing is lost.
func TestConnectionColumnsFold(t *testing.T) {
	whole := func(width int) []string {
		return strings.Fields(records(t, func(w io.Writer) recordWriter { return NewConnectionColumns(w, Options{}, width) }, ended()))
	}
	values := whole(0)[len(strings.Fields(connectionLayout)):]
	for _, width := range []int{1, 40, 76, 80, 100, 120, 160, 400} {
		folded := records(t, func(w io.Writer) recordWriter { return NewConnectionColumns(w, Options{}, width) }, ended())
		for line := range strings.Lines(folded) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > max(width, 80) {
				t.Errorf("at %d: %d characters: %s", width, n, line)
			}
		}
		_, folded, _ = strings.Cut(folded, "\n")
		var shown []string
		for _, word := range strings.Fields(folded) {
			_, value, isNamed := strings.Cut(word, "=")
			if !isNamed || strings.HasPrefix(word, ">=") {
				value = word
			}
			shown = append(shown, value)
		}
		slices.Sort(shown)
		if want := slices.Sorted(slices.Values(values)); !slices.Equal(shown, want) {
			t.Errorf("at %d: %q, want %q", width, shown, want)
		}
	}
}

func TestConnectionWritersDoNotAllocate(t *testing.T) {
	r := ended()
	for name, w := range map[string]recordWriter{
		"columns": NewConnectionColumns(io.Discard, Options{}, 0), "narrow": NewConnectionColumns(io.Discard, Options{}, 80),
		"csv": NewConnectionCSV(io.Discard, Options{}), "json": NewConnectionJSON(io.Discard),
	} {
		if n := testing.AllocsPerRun(1000, func() {
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

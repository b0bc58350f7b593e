package where

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// full knows everything that an event of this kind can.
func full(kind tcp.Kind) tcp.Event {
	return tcp.Event{
		Kind: kind, Time: 1, BootNS: 1 << 60, Cookie: 1 << 60, SkAddr: 1 << 63, NetNS: 4026531840, Device: 2, MPTCP: true,
		Unaccepted: true, Acked: true,
		Local: netip.MustParseAddrPort("10.0.0.1:443"), Remote: netip.MustParseAddrPort("10.0.0.2:51000"),
		Old: tcp.Established, New: tcp.CloseWait, Duration: 1_500_000, DurationKind: tcp.Exact,
		Reason: tcp.FinReceived, Errno: 104, Role: tcp.Server, PID: 7, Comm: "nginx", UID: 33, FD: 9,
		OwnerSource: tcp.FromAccept, Holder: tcp.Held, Cgroup: "/system.slice/a.service", ContainerID: "ab",
		Names:       &tcp.Names{Container: "c", Image: "i", Pod: "p", PodUID: "u", Namespace: "n"},
		HasCounters: true, BytesSent: 1, BytesReceived: 2, Retransmits: 3, SRTT: 4,
		HasQueues: true, RxQueue: 5, TxQueue: 6, HasDrops: true, Drops: 7,
	}
}

// The names and the values are those of JSON, whatever is added there.
func TestFieldsAreThoseOfJSON(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range []tcp.Kind{tcp.Transition, tcp.Socket} {
		e := full(kind)
		for name, value := range asJSON(t, &e) {
			if name == "v" || name == "time" { // the same in all; text that cannot be compared as time
				continue
			}
			seen[name] = true
			literal, _ := json.Marshal(value)
			x, err := Compile(fmt.Sprintf("%s == %s", name, literal))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !x.Match(&e) {
				t.Errorf("%s == %s does not hold: %v", name, literal, x.Err())
			}
		}
	}
	for _, name := range Names() {
		if !seen[name] {
			t.Errorf("%s is not a field of JSON", name)
		}
	}
}

// What JSON leaves out is empty or not a number.
func TestAbsentFields(t *testing.T) {
	e := tcp.Event{UID: tcp.NoUID, FD: tcp.NoFD, Local: netip.MustParseAddrPort("10.0.0.1:0"), Remote: netip.MustParseAddrPort("10.0.0.2:80")}
	present := asJSON(t, &e)
	for _, name := range Names() {
		if _, ok := present[name]; ok || slices.Contains([]string{"unaccepted", "acked"}, name) {
			continue
		}
		empty, err := Compile(name + ` == ""`)
		if err != nil { // a number
			for _, never := range []string{" < 1", " >= 0", " == 0", " < -1"} {
				if number, err := Compile(name + never); err != nil || number.Match(&e) {
					t.Errorf("%s%s holds, %v", name, never, err)
				}
			}
		} else if !empty.Match(&e) {
			t.Errorf("%s is not empty", name)
		}
	}
}

func asJSON(t *testing.T, e *tcp.Event) (line map[string]any) {
	t.Helper()
	var b bytes.Buffer
	w := output.NewJSON(&b)
	if err := w.Write(e); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	return line
}

func TestMatch(t *testing.T) {
	e := full(tcp.Transition)
	for text, want := range map[string]bool{
		`lport == 443 && reason == "fin_received"`:        true,
		`lport in [80, 443]`:                              true,
		`lport in [80, 81]`:                               false,
		`rport in 50000..52000`:                           true,
		`rport in 50000..50999`:                           false,
		`comm matches "^ngi" and not (laddr == raddr)`:    true,
		`duration_ms > 1.4 and duration_ms < 1.6`:         true,
		`bytes_sent + bytes_received == 3`:                true,
		`old_state == "ESTABLISHED" || state == "LISTEN"`: true,
		`cgroup startsWith "/user"`:                       false,
		`unaccepted and acked`:                            true,
	} {
		x, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := x.Match(&e); got != want || x.Err() != nil {
			t.Errorf("%s is %v, want %v (%v)", text, got, want, x.Err())
		}
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		`lprt == 443`:              `unknown name lprt, at "lprt == 443"`,
		`lport == 443 && comm > 5`: `at "> 5"`,
		`lport`:                    `expected bool`,
		`lport == `:                `at the end of`,
		``:                         `at the end of ""`,
		`comm == 'a" `:             `literal not terminated`,
		"lport == 80 &&\n foo":     `unknown name foo`,
	} {
		_, err := Compile(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// What cannot be evaluated does not match, and is not forgotten.
func TestEvaluationFails(t *testing.T) {
	x, err := Compile(`int(comm) > 5`)
	if err != nil {
		t.Fatal(err)
	}
	e := full(tcp.Transition)
	if x.Match(&e) || x.Err() == nil {
		t.Errorf("no error")
	}
	first := x.Err()
	e.Comm = "6"
	if !x.Match(&e) || x.Err() != first {
		t.Errorf("%v, want a match, and the first error kept", x.Err())
	}
	if math.IsNaN(x.fields.PID) {
		t.Error("no pid")
	}
}

func BenchmarkMatch(b *testing.B) {
	x, err := Compile(`lport == 443 && reason == "rst_received"`)
	if err != nil {
		b.Fatal(err)
	}
	e := full(tcp.Transition)
	b.ReportAllocs()
	for b.Loop() {
		x.Match(&e)
	}
}

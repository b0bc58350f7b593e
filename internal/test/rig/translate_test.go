package rig

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// line is one line of `tcptrace -j -x`; "" leaves the cookie out.
func line(cookie string, sk, lport, rport int, old, new string) string {
	id := ""
	if cookie != "" {
		id = fmt.Sprintf(`"cookie":%q,`, cookie)
	}
	return fmt.Sprintf(`{"v":1,"type":"transition",%s"skaddr":"%#x","netns":7,"family":"ipv4","laddr":"127.0.0.1","lport":%d,"raddr":"127.0.0.1","rport":%d,"old_state":%q,"new_state":%q}`,
		id, sk, lport, rport, old, new)
}

var testPorts = Ports{20000, 20063}

func translate(t *testing.T, lines ...string) (*Translation, error) {
	t.Helper()
	return Translate(strings.NewReader(strings.Join(lines, "\n")), testPorts, nil)
}

// A connection that its client closes first: the whole of what differs between the
// two views, with the client's address in use again before its TIME_WAIT begins.
func TestTranslateConnection(t *testing.T) {
	got, err := translate(t,
		line("", 0xdead, 20000, 40000, "LISTEN", "SYN_RECV"),
		line("a", 0x10, 0, 20000, "CLOSE", "SYN_SENT"),
		line("a", 0x10, 40000, 20000, "SYN_SENT", "ESTABLISHED"),
		line("b", 0x20, 20000, 40000, "SYN_RECV", "ESTABLISHED"),
		line("a", 0x10, 40000, 20000, "ESTABLISHED", "FIN_WAIT1"),
		line("a", 0x10, 40000, 20000, "FIN_WAIT1", "FIN_WAIT2"),
		line("c", 0x10, 20001, 0, "CLOSE", "LISTEN"),
		line("b", 0x20, 20000, 40000, "ESTABLISHED", "CLOSE_WAIT"),
		`{"v":1,"type":"socket","cookie":"1","lport":20000,"state":"LISTEN"}`,
		line("z", 0x99, 22, 50000, "CLOSE_WAIT", "LAST_ACK"), // a stranger
		line("b", 0x20, 20000, 40000, "CLOSE_WAIT", "LAST_ACK"),
		line("a", 0x77, 40000, 20000, "FIN_WAIT2", "TIME_WAIT"), // written with the mini-socket's address
		line("b", 0x20, 20000, 40000, "LAST_ACK", "CLOSE"),
		line("a", 0x77, 40000, 20000, "TIME_WAIT", "TIME_WAIT"),
		line("a", 0x77, 40000, 20000, "TIME_WAIT", "CLOSE"),
		line("c", 0x10, 20001, 0, "LISTEN", "CLOSE"),
		`{"v":1,"type":"lost","events":3,"where":"ring buffer"}`,
	)
	if err != nil {
		t.Fatal(err)
	}
	c := func(sk uint64, lport, rport uint16, old, new tcp.State) Edge {
		return Edge{sk, old, new, lport, rport, 0}
	}
	want := &Translation{Written: 14, Lost: 3, Mini: 2, HalfOpen: 1, Edges: []Edge{
		c(0x10, 0, 20000, tcp.Close, tcp.SynSent),
		c(0x10, 40000, 20000, tcp.SynSent, tcp.Established),
		c(0x10, 40000, 20000, tcp.Established, tcp.FinWait1),
		c(0x10, 40000, 20000, tcp.FinWait1, tcp.FinWait2),
		c(0x10, 40000, 20000, tcp.FinWait2, tcp.Close),
		c(0x20, 20000, 40000, tcp.Listen, tcp.SynRecv),
		c(0x20, 20000, 40000, tcp.SynRecv, tcp.Established),
		c(0x20, 20000, 40000, tcp.Established, tcp.CloseWait),
		c(0x20, 20000, 40000, tcp.CloseWait, tcp.LastAck),
		c(0x20, 20000, 40000, tcp.LastAck, tcp.Close),
		c(0x10, 20001, 0, tcp.Close, tcp.Listen),
		c(0x10, 20001, 0, tcp.Listen, tcp.Close),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A socket that connects again in its own TIME_WAIT has two lives at once.
func TestTranslateReconnect(t *testing.T) {
	got, err := translate(t,
		line("a", 0x10, 0, 20000, "CLOSE", "SYN_SENT"),
		line("a", 0x10, 40000, 20000, "SYN_SENT", "ESTABLISHED"),
		line("a", 0x10, 40000, 20000, "ESTABLISHED", "FIN_WAIT1"),
		line("a", 0x77, 40000, 20000, "FIN_WAIT1", "TIME_WAIT"),
		line("a", 0x10, 0, 20000, "CLOSE", "SYN_SENT"),
		line("a", 0x77, 40000, 20000, "TIME_WAIT", "CLOSE"),
		line("a", 0x10, 40001, 20000, "SYN_SENT", "CLOSE"),
	)
	if err != nil {
		t.Fatal(err)
	}
	edge := func(lport uint16, old, new tcp.State) Edge { return Edge{0x10, old, new, lport, 20000, 0} }
	want := &Translation{Written: 7, Mini: 1, Edges: []Edge{
		edge(0, tcp.Close, tcp.SynSent),
		edge(40000, tcp.SynSent, tcp.Established),
		edge(40000, tcp.Established, tcp.FinWait1),
		edge(40000, tcp.FinWait1, tcp.Close),
		edge(0, tcp.Close, tcp.SynSent),
		edge(40001, tcp.SynSent, tcp.Close),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A handshake that is given up does not exist in tracefs.
func TestTranslateHalfOpen(t *testing.T) {
	got, err := translate(t,
		line("", 0x1, 20000, 40000, "LISTEN", "SYN_RECV"),
		line("", 0x2, 20000, 40001, "LISTEN", "SYN_RECV"),
		line("", 0x1, 20000, 40000, "SYN_RECV", "CLOSE"),
	)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Translation{Written: 3, HalfOpen: 3, Pending: 1}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTranslateRefusesTheImpossible(t *testing.T) {
	born := line("a", 0x10, 0, 20000, "CLOSE", "SYN_SENT")
	for _, test := range []struct {
		name, want string
		lines      []string
	}{
		{"gap", "the socket was in SYN_SENT", []string{born, line("a", 0x10, 1, 20000, "ESTABLISHED", "FIN_WAIT1")}},
		{"no birth", "birth", []string{line("a", 0x10, 1, 20000, "TIME_WAIT", "CLOSE")}},
		{"no SYN", "no SYN", []string{line("a", 0x10, 20000, 1, "SYN_RECV", "ESTABLISHED")}},
		{"SYN twice", "cannot happen", []string{
			line("", 0x1, 20000, 1, "LISTEN", "SYN_RECV"), line("", 0x1, 20000, 1, "LISTEN", "SYN_RECV")}},
		{"end without SYN", "cannot happen", []string{line("", 0x1, 20000, 1, "SYN_RECV", "CLOSE")}},
		{"in the state again", "was in ESTABLISHED", []string{
			born, line("a", 0x10, 1, 20000, "SYN_SENT", "ESTABLISHED"), line("a", 0x10, 0, 20000, "CLOSE", "SYN_SENT")}},
		{"in use before the end", "was in TIME_WAIT", []string{
			born, line("a", 0x10, 1, 20000, "SYN_SENT", "ESTABLISHED"), line("a", 0x10, 1, 20000, "ESTABLISHED", "FIN_WAIT1"),
			line("a", 0x10, 1, 20000, "FIN_WAIT1", "TIME_WAIT"),
			line("b", 0x10, 0, 20000, "CLOSE", "SYN_SENT"), line("b", 0x10, 1, 20000, "SYN_SENT", "ESTABLISHED")}},
		{"half-open after the handshake", "cannot happen", []string{line("", 0x1, 20000, 1, "SYN_RECV", "ESTABLISHED")}},
		{"no address", "-x", []string{strings.Replace(born, `"skaddr":"0x10",`, "", 1)}},
		{"bad state", "unknown TCP state", []string{strings.Replace(born, "SYN_SENT", "SYN_SEND", 1)}},
		{"bad line", "line 2", []string{born, "{"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := translate(t, test.lines...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

// What a stranger's thread had to do with is left out, all of both ends, in whatever
// order their edges come.
func TestWithout(t *testing.T) {
	const stranger = 7
	edges := []Edge{
		{1, tcp.Close, tcp.SynSent, 0, 80, 100},
		{1, tcp.SynSent, tcp.Close, 4000, 80, stranger},
		{2, tcp.Listen, tcp.SynRecv, 80, 0, 0},
		{1, tcp.Close, tcp.Listen, 80, 0, stranger}, // the same address; in no connection
		{2, tcp.SynRecv, tcp.Close, 80, 4000, 0},
		{2, tcp.Close, tcp.SynSent, 0, 80, 100},
		{2, tcp.SynSent, tcp.Established, 4001, 80, 0},
	}
	under := Under(map[uint32]bool{stranger: true}, edges)
	if diff := cmp.Diff(map[Connection]bool{{80, 4000}: true}, under); diff != "" {
		t.Errorf("connections that the stranger touched, -want +got:\n%s", diff)
	}
	d := Compare([]Edge{edges[3], edges[5], edges[6]}, Without(under, edges))
	if err := d.Err(); err != nil {
		t.Error(err)
	}
}

func TestCompare(t *testing.T) {
	up := Edge{Sk: 1, Old: tcp.Close, New: tcp.Listen}
	down := Edge{Sk: 1, Old: tcp.Listen, New: tcp.Close}
	other := Edge{Sk: 2, Old: tcp.Close, New: tcp.Listen}
	for _, test := range []struct {
		name           string
		oracle, tracer []Edge
		want           Diff
	}{
		{"same", []Edge{up, other, down}, []Edge{other, up, down}, Diff{Sockets: 2}},
		{"one too few", []Edge{up, down, up, down}, []Edge{up, down, down}, Diff{Sockets: 1, Missing: 1}},
		{"one too many", []Edge{up, down}, []Edge{up, down, down}, Diff{Sockets: 1, Extra: 1}},
		{"another socket", []Edge{up}, []Edge{other}, Diff{Sockets: 1, Missing: 1, Extra: 1}},
		{"order", []Edge{up, down}, []Edge{down, up}, Diff{Sockets: 1, Reordered: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Compare(test.oracle, test.tracer)
			if (got.Err() == nil) != (test.name == "same") {
				t.Errorf("Err() = %v", got.Err())
			}
			got.Examples = nil
			test.want.Oracle, test.want.Tracer = len(test.oracle), len(test.tracer)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

package top

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// column is one of a table of groups, of sockets or of leaks: a number to sort by, the greatest
// first, or a text, the least first.
type column[T any] struct {
	rate, name string // how it is called where rates are shown, and where totals are
	about      string // for the help
	width      int
	most       int // it takes what is left of the line, up to this width; 0: nothing
	text       func(r *T, totals bool) string
	value      func(r *T, totals bool) float64
	order      func(r *T) string // of a text; nil: a number. Text is foreign.
}

// title is how the column is called.
func (c *column[T]) title(totals bool) string {
	if totals || c.rate == "" {
		return c.name
	}
	return c.rate
}

// groupColumns are those of groups, behind the name.
func groupColumns() []column[Row] {
	columns := []column[Row]{
		eventColumn(0, "OPEN/S", "OPENED", "handshakes that were completed"),
		eventColumn(1, "CLOSE/S", "CLOSED", "connections that both ends closed"),
		eventColumn(2, "RESET/S", "RESET", "connections that ended by an RST"),
		eventColumn(3, "FAIL/S", "FAILED", "connections that were never established, or were given up"),
		stateColumn("ESTAB", "sockets in ESTABLISHED now", tcp.Established),
		stateColumn("CLOSEW", "sockets in CLOSE_WAIT now", tcp.CloseWait),
		{
			name: "OLDEST", about: "age of the oldest CLOSE_WAIT", width: 7,
			text:  func(r *Row, _ bool) string { return oldest(r) },
			value: func(r *Row, _ bool) float64 { return float64(r.OldestCloseWait) },
		},
		{
			name: "GROW/M", about: "how many more sockets in CLOSE_WAIT a minute", width: 7,
			text:  func(r *Row, _ bool) string { return growth(r) },
			value: func(r *Row, _ bool) float64 { return r.Growth },
		},
		{
			name: "P99_MS", about: "99 % of the handshakes took no longer, since the start", width: 8,
			text:  func(r *Row, _ bool) string { return handshake(r) },
			value: func(r *Row, _ bool) float64 { return float64(r.Handshake99) },
		},
		eventColumn(4, "RETR/S", "RETRANS", "segments sent again, as known when a socket changes its state"),
	}
	for _, s := range []struct {
		name  string
		state tcp.State
	}{
		{"TIMEW", tcp.TimeWait}, {"SYN_S", tcp.SynSent}, {"SYN_R", tcp.SynRecv}, {"FINW1", tcp.FinWait1}, {"FINW2", tcp.FinWait2},
		{"CLOSING", tcp.Closing}, {"LASTACK", tcp.LastAck}, {"LISTEN", tcp.Listen},
	} {
		columns = append(columns, stateColumn(s.name, "sockets in "+s.state.String()+" now", s.state))
	}
	return columns
}

func eventColumn(i int, rate, name, about string) column[Row] {
	value := func(r *Row, totals bool) float64 {
		if totals {
			return float64(r.Events[i])
		}
		return r.Rates[i]
	}
	return column[Row]{
		rate: rate, name: name, about: about, width: 7, value: value,
		text: func(r *Row, totals bool) string {
			if totals {
				return countText(r.Events[i])
			}
			return rateText(r.Rates[i])
		},
	}
}

func stateColumn(name, about string, s tcp.State) column[Row] {
	return column[Row]{
		name: name, about: about, width: 7,
		text:  func(r *Row, _ bool) string { return countText(uint64(max(r.States[s], 0))) },
		value: func(r *Row, _ bool) float64 { return float64(r.States[s]) },
	}
}

// socketColumns are those of sockets, behind the addresses.
func socketColumns() []column[SocketRow] {
	return []column[SocketRow]{
		{
			name: "STATE", about: "of the socket; - and the reason: it is over", width: 14,
			text:  func(r *SocketRow, _ bool) string { return socketState(r) },
			value: func(r *SocketRow, _ bool) float64 { return -float64(stateRank(r)) },
		},
		{
			name: "AGE", about: "time in the state, or since the end", width: 8,
			text:  func(r *SocketRow, _ bool) string { return socketAge(r) },
			value: func(r *SocketRow, _ bool) float64 { return float64(r.Age) },
		},
		{
			name: "RTT_MS", about: "round trip time when it last changed its state", width: 8,
			text: func(r *SocketRow, _ bool) string {
				return unless(!r.HasCounters, strconv.FormatFloat(float64(r.SRTT)/1e3, 'f', 2, 64))
			},
			value: func(r *SocketRow, _ bool) float64 { return float64(r.SRTT) },
		},
		{
			name: "RETR", about: "segments sent again until then", width: 6,
			text:  func(r *SocketRow, _ bool) string { return unless(!r.HasCounters, countText(uint64(r.Retransmits))) },
			value: func(r *SocketRow, _ bool) float64 { return float64(r.Retransmits) },
		},
		{
			name: "PID", about: "of the owner", width: 8,
			text:  func(r *SocketRow, _ bool) string { return unless(r.PID == 0, strconv.Itoa(int(r.PID))) },
			value: func(r *SocketRow, _ bool) float64 { return float64(r.PID) },
		},
	}
}

// none stands where something is not known, or does not apply.
const none = "-"

func unless(unknown bool, text string) string {
	if unknown {
		return none
	}
	return text
}

func oldest(r *Row) string {
	switch {
	case r.OldestCloseWait == 0:
		return none
	case r.AtLeast:
		return ">" + leak.Span(r.OldestCloseWait)
	}
	return leak.Span(r.OldestCloseWait)
}

func growth(r *Row) string {
	return unless(!r.GrowthKnown || r.Growth == 0 && r.States[tcp.CloseWait] == 0, fmt.Sprintf("%+.1f", r.Growth))
}

func handshake(r *Row) string {
	ms := float64(r.Handshake99) / 1e6
	digits := 3
	if ms >= 100 {
		digits = 0
	}
	return unless(r.Handshakes == 0, strconv.FormatFloat(ms, 'f', digits, 64))
}

// rateText writes a rate in six characters.
func rateText(rate float64) string {
	if rate > 0 && rate < 99.95 {
		return strconv.FormatFloat(rate, 'f', 1, 64)
	}
	return countText(uint64(rate + 0.5))
}

// countText writes a count in six characters.
func countText(n uint64) string {
	switch {
	case n < 1e6:
		return strconv.FormatUint(n, 10)
	case n < 1e9:
		return strconv.FormatFloat(float64(n/1e4)/1e2, 'f', 1, 64) + "M"
	}
	return strconv.FormatUint(n/1e9, 10) + "G"
}

func socketState(r *SocketRow) string {
	if r.Over {
		return "- " + cmp.Or(string(r.Reason), "over")
	}
	return r.State.String()
}

// stateRank puts sockets that are over last.
func stateRank(r *SocketRow) int {
	if r.Over {
		return 100
	}
	return int(r.State)
}

func socketAge(r *SocketRow) string {
	text := unless(!r.AgeKind.Known(), leak.Span(r.Age))
	if r.AgeKind == tcp.AtLeast {
		return ">" + text
	}
	return text
}

package probe

import (
	"bytes"
	"strings"
	"testing"
)

const netstat = `TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows ListenDrops TCPReqQFullDoCookies TCPReqQFullDrop
TcpExt: 1494 6 5 20 1494 8
IpExt: InNoRoutes InTruncatedPkts
IpExt: 0 0
`

func TestParseNetstat(t *testing.T) {
	for text, want := range map[string]listenCounts{
		netstat: {1494, 5, 8, 7},
		// A kernel may name others before and behind them, in any order.
		"TcpExt: A ListenDrops TCPReqQFullDrop ListenOverflows B SyncookiesSent\nTcpExt: 9 3 2 1 9 4\n": {4, 1, 2, 0},
		// The counters are read one after the other.
		"TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDrop\nTcpExt: 0 6 5 0\n": {0, 6, 0, 0},
	} {
		if got, err := parseNetstat([]byte(text)); err != nil || got != want {
			t.Errorf("got %v, %v; want %v of\n%s", got, err, want, text)
		}
	}
	for _, text := range []string{
		"", "TcpExt:", "IpExt: A\nIpExt: 1\n",
		"TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 0 0\n",
		strings.Replace(netstat, " 20 1494 8", " 20", 1), strings.Replace(netstat, " 20", " -20", 1),
		strings.Replace(netstat, " 20", " 18446744073709551616", 1),
	} {
		if got, err := parseNetstat([]byte(text)); err == nil {
			t.Errorf("got %v, want an error, of\n%s", got, text)
		}
	}
}

func FuzzParseNetstat(f *testing.F) {
	f.Add([]byte(netstat))
	f.Add([]byte("TcpExt: ListenDrops\nTcpExt:\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parseNetstat(text); err == nil && bytes.Count(text, []byte("TcpExt:")) < 2 {
			t.Error("counts without a line of values")
		}
	})
}

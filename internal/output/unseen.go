package output

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// unseen says what each Event.Where of the kind Unseen counts.
var unseen = []struct{ where, packet, fate string }{
	{tcp.WhereCookie, "SYN", " answered with a SYN cookie: not shown until the handshake is complete"},
	{tcp.WhereAcceptQueue, "packet", " of handshakes dropped: an accept queue was full"},
	{tcp.WhereSYNQueue, "SYN", " dropped: a SYN queue was full"},
	{tcp.WhereListener, "packet", " of handshakes dropped by listeners for another reason"},
}

// appendUnseen takes a recording's word for where it does not know it.
func appendUnseen(b []byte, e *tcp.Event) []byte {
	packet, fate := "packet", ""
	for _, u := range unseen {
		if u.where == e.Where {
			packet, fate = u.packet, u.fate
		}
	}
	b = append(strconv.AppendUint(append(b, "# "...), e.Lost, 10), ' ')
	b = append(b, packet...)
	if e.Lost != 1 {
		b = append(b, 's')
	}
	if fate == "" {
		b = terminal.AppendVisible(append(b, " not shown: "...), e.Where, math.MaxInt)
	}
	b = append(append(b, fate...), " (network namespace "...)
	return append(strconv.AppendUint(b, uint64(e.NetNS), 10), ")\n"...)
}

// Unseen says in one sentence what is not shown of a network namespace, or of what else is
// named. packets counts them by their Event.Where.
func Unseen(name string, packets map[string]uint64) string {
	var parts []string
	for _, u := range unseen {
		if n := packets[u.where]; n > 0 {
			parts = append(parts, leak.Counted(int(n), u.packet)+u.fate)
		}
	}
	return fmt.Sprintf("%s: %s", name, strings.Join(parts, "; "))
}

package output

import (
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Unjudged says how many sockets a filter left out for want of a fact, in one sentence for
// each fact.
func Unjudged(u tcp.Unjudged) (sentences []string) {
	for _, fact := range []struct {
		tcp.Fact
		why string
	}{
		{tcp.Age, " left out by --min-duration: nobody knows for how long they have been in their state"},
		{tcp.Owner, " left out by --pid or --comm: no process is known to own them"},
		{tcp.User, " left out by --uid: their user is not known"},
		{tcp.Place, " left out by --cgroup, --unit, --container or --pod: their cgroup, or what it is called, is not known"},
		{tcp.Forgotten, " in TIME_WAIT left out by the filter: from before the trace, so without an owner or a cgroup"},
	} {
		if n := u[fact.Fact]; n > 0 {
			sentences = append(sentences, leak.Counted(n, "socket")+fact.why)
		}
	}
	return sentences
}

package probe

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The bounds: so many holders are named of a socket, and in all. Others are counted.
const (
	maxHoldersOf = 64
	maxHolders   = 1 << 18
)

// holderList knows the sockets that more than one process holds, by the address of struct
// sock. It has an entry for each of those, of which the kernel side keeps 2^20 at most.
type holderList struct {
	names  *decoder // shares the strings
	known  map[uint64]*holding
	listed int
}

// holding is the holders of a socket.
type holding struct {
	list []tcp.Process // the first is for the owner, which the row has
	more uint32
	last uint32 // the process that was added last
}

func newHolderList(names *decoder) *holderList {
	return &holderList{names: names, known: make(map[uint64]*holding)}
}

// add takes a holder that is not the owner. Those of a process come one after the other, and
// threads with files of their own later.
func (l *holderList) add(file *openFile) {
	h := l.known[file.Sk]
	if h == nil {
		h = &holding{list: make([]tcp.Process, 1, 2)}
		l.known[file.Sk] = h
	}
	if h.last == file.PID || slices.ContainsFunc(h.list[1:], func(p tcp.Process) bool { return p.PID == file.PID }) {
		return
	}
	h.last = file.PID
	if len(h.list) == maxHoldersOf || l.listed == maxHolders {
		h.more++
		return
	}
	l.listed++
	h.list = append(h.list, tcp.Process{PID: file.PID, Comm: l.names.name(&file.Comm), FD: int32(file.FD)})
}

// of returns the holders of the socket of a row, nil if there is only the owner.
func (l *holderList) of(sk uint64, row *tcp.Event) *tcp.Details {
	h := l.known[sk]
	if h == nil || row.Holder != tcp.Held {
		return nil
	}
	h.list[0] = tcp.Process{PID: row.PID, Comm: row.Comm, FD: row.FD}
	return &tcp.Details{Holders: h.list, HoldersMore: h.more}
}

package probe

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Unseen is what the listeners of a network namespace did since Seed that no hook shows.
type Unseen struct {
	NetNS   uint32
	Packets map[string]uint64 // by Event.Where, as of an event of kind tcp.Unseen
}

// unseenWhere are the counts, in the order of listenCounts.
var unseenWhere = [...]string{tcp.WhereCookie, tcp.WhereAcceptQueue, tcp.WhereSYNQueue, tcp.WhereListener}

// listenCounts are those that the kernel keeps for a network namespace.
type listenCounts [len(unseenWhere)]uint64

// How often the counters are read, and how many namespaces there may be: each takes a
// descriptor and, for a reading, some 0.1 ms.
const (
	unseenInterval = 10 * time.Second
	maxUnseen      = 1024
)

// unseen reads the counters of network namespaces again and again. It belongs to the
// goroutine that reads, but for losses and close: they come from another, which does not wait
// for one that hangs. So what they look at is written with the lock.
type unseen struct {
	lock    sync.Mutex
	spaces  map[uint32]*counters
	unknown map[uint32]bool // namespaces whose counters are not known, or only up to a time
	last    uint32          // see meet
	due     time.Time       // of the next reading
	news    []news
}

func newUnseen() *unseen {
	return &unseen{spaces: make(map[uint32]*counters), unknown: make(map[uint32]bool), due: time.Now().Add(unseenInterval)}
}

// news is what an event is still to be made of.
type news struct {
	netns   uint32
	which   int
	packets uint64
}

// counters are those of one network namespace.
type counters struct {
	path  int // O_PATH descriptor of its /proc/net/netstat
	first listenCounts
	total listenCounts // since first, as far as it was made news
}

// open begins to count in the network namespace that the thread is in. A descriptor of the
// open file would keep the namespace alive (get_proc_net), one of its path does not, and it
// needs no privileges when it is opened.
func (u *unseen) open(netns uint32) {
	c := &counters{path: -1}
	err := u.room()
	if err == nil {
		c.path, err = unix.Open("/proc/thread-self/net/netstat", unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		c.first, err = c.read()
	}
	u.lock.Lock()
	defer u.lock.Unlock()
	if err != nil {
		u.lose(netns, c)
		return
	}
	u.spaces[netns] = c
}

// room leaves half of the descriptors to all else.
func (u *unseen) room() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if uint64(len(u.spaces)) >= min(maxUnseen, limit.Cur/2) {
		return unix.EMFILE
	}
	return nil
}

// lose gives up a network namespace. The lock is held.
func (u *unseen) lose(netns uint32, c *counters) {
	if c.path >= 0 {
		unix.Close(c.path)
		c.path = -1
	}
	if len(u.unknown) < maxUnseen {
		u.unknown[netns] = true
	}
}

// meet takes the namespace of every event: one that began after Seed is not known.
func (u *unseen) meet(netns uint32) {
	if netns == u.last {
		return
	}
	u.last = netns
	if u.spaces[netns] == nil && !u.unknown[netns] && len(u.unknown) < maxUnseen {
		u.lock.Lock()
		u.unknown[netns] = true
		u.lock.Unlock()
	}
}

// readIfDue reads now and then, and never takes more than a fiftieth of the time.
func (u *unseen) readIfDue() {
	if started := time.Now(); started.After(u.due) {
		u.read()
		u.due = started.Add(max(unseenInterval, ownerShare*time.Since(started)))
	}
}

// read reads all counters and notes what is new.
func (u *unseen) read() {
	u.lock.Lock()
	defer u.lock.Unlock()
	for netns, c := range u.spaces {
		if c.path < 0 {
			continue
		}
		now, err := c.read()
		if err != nil { // the namespace is gone, with what was counted since the last reading
			u.lose(netns, c)
			continue
		}
		for i := range now {
			// What countsOf takes apart can go back by one: the kernel counts one after the other.
			if since := now[i] - c.first[i]; now[i] > c.first[i] && since > c.total[i] {
				u.news = append(u.news, news{netns, i, since - c.total[i]})
				c.total[i] = since
			}
		}
	}
}

// next fills in an event of what is new, if there is any.
func (u *unseen) next(ev *tcp.Event) bool {
	if len(u.news) == 0 {
		return false
	}
	n := u.news[0]
	u.news = u.news[1:]
	ev.Kind, ev.NetNS, ev.Lost, ev.Where = tcp.Unseen, n.netns, n.packets, unseenWhere[n.which]
	return true
}

func (u *unseen) close() {
	u.lock.Lock()
	defer u.lock.Unlock()
	for _, c := range u.spaces {
		if c.path >= 0 {
			unix.Close(c.path)
			c.path = -1
		}
	}
}

func (c *counters) read() (listenCounts, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", c.path))
	if err != nil {
		return listenCounts{}, err
	}
	return parseNetstat(text)
}

// parseNetstat reads /proc/net/netstat: pairs of lines, of names and of their values
// (netstat_seq_show of net/ipv4/proc.c).
func parseNetstat(text []byte) (listenCounts, error) {
	var names [][]byte
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		switch {
		case len(fields) == 0 || string(fields[0]) != "TcpExt:":
		case names == nil:
			names = fields
		default:
			return countsOf(names, fields)
		}
	}
	return listenCounts{}, errors.New("no TcpExt in /proc/net/netstat")
}

// countsOf takes apart what the kernel counts twice: whatever is dropped for a full queue is
// in ListenDrops as well (tcp_conn_request and tcp_v4_syn_recv_sock call tcp_listendrop).
func countsOf(names, values [][]byte) (counts listenCounts, err error) {
	value := func(name string) uint64 {
		i := slices.IndexFunc(names, func(b []byte) bool { return string(b) == name })
		if i < 0 || i >= len(values) {
			err = fmt.Errorf("no %s in /proc/net/netstat", name)
			return 0
		}
		n, wrong := strconv.ParseUint(string(values[i]), 10, 64)
		if wrong != nil {
			err = fmt.Errorf("%s in /proc/net/netstat: %w", name, wrong)
		}
		return n
	}
	cookies, overflows, full, drops := value("SyncookiesSent"), value("ListenOverflows"), value("TCPReqQFullDrop"), value("ListenDrops")
	return listenCounts{cookies, overflows, full, drops - min(drops, overflows+full)}, err
}

// Unseen hands an event of kind tcp.Unseen for what listeners did up to now, and Read has
// not reported, to emit.
func (p *Probe) Unseen(emit func(*tcp.Event) error) error {
	p.unseen.read()
	for {
		ev := p.lossEvent()
		if !p.unseen.next(&ev) {
			return nil
		}
		if err := emit(&ev); err != nil {
			return err
		}
	}
}

// losses returns what was made news, and the namespaces of which there may be more.
func (u *unseen) losses() (all []Unseen, unknown []uint32) {
	u.lock.Lock()
	defer u.lock.Unlock()
	for netns, c := range u.spaces {
		if c.total == (listenCounts{}) {
			continue
		}
		packets := make(map[string]uint64)
		for i, where := range unseenWhere {
			packets[where] = c.total[i]
		}
		all = append(all, Unseen{netns, packets})
	}
	slices.SortFunc(all, func(a, b Unseen) int { return cmp.Compare(a.NetNS, b.NetNS) })
	return all, slices.Sorted(maps.Keys(u.unknown))
}

package probe_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// netns is the namespace of one scenario: its clock, its sockets, its
// processes. All methods but verify belong to the thread that lives in it.
type netns struct {
	walk  *walk
	inode uint32
	dies  bool
	steps map[string]span
	socks []*sock
	procs map[string]owner
	mptcp bool     // the sockets made from now on are MPTCP's
	undo  []func() // on the way out, newest first

	connections int // made by connectsTo

	events []tcp.Event // as reported by the end
}

// owner is a process as the tracer shall name it.
type owner struct {
	pid  uint32
	comm string
}

// span is when something happened, in CLOCK_BOOTTIME nanoseconds: not before
// from, not after to.
type span struct{ from, to uint64 }

// self names the test's own process in the tables.
const self = ""

func (w *walk) newNetns(dies bool) *netns {
	check(unix.Unshare(unix.CLONE_NEWNET), "unshare a network namespace")
	n := &netns{walk: w, dies: dies, steps: map[string]span{}, procs: map[string]owner{}}
	ns := must(os.Open("/proc/thread-self/ns/net"))
	var st unix.Stat_t
	check(unix.Fstat(int(ns.Fd()), &st), "stat the network namespace")
	n.inode = uint32(st.Ino)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[n.inode] = nil // a dead namespace may have had the number
	if dies {
		ns.Close()
	} else {
		w.held = append(w.held, ns)
	}
	comm := must(os.ReadFile("/proc/self/comm"))
	n.procs[self] = owner{uint32(os.Getpid()), strings.TrimSuffix(string(comm), "\n")}
	n.linkUp("lo")
	return n
}

func (n *netns) linkUp(name string) {
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	req := must(unix.NewIfreq(name))
	check(unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req), "read the flags of "+name)
	req.SetUint16(req.Uint16() | unix.IFF_UP) // a VRF has IFF_NOARP, too
	check(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req), "bring "+name+" up")
}

// link makes one of a kind, which is a module in most kernels. Those of the kind veth come
// in pairs: the other ends are named veth0, veth1, ...
func (n *netns) link(kind, name string, data ...byte) {
	info := slices.Concat(attr(unix.IFLA_INFO_KIND, []byte(kind+"\x00")), attr(unix.IFLA_INFO_DATA, data))
	err := netlinkRequest(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		make([]byte, unix.SizeofIfInfomsg), attr(unix.IFLA_IFNAME, []byte(name+"\x00")), attr(unix.IFLA_LINKINFO, info))
	if err == unix.EOPNOTSUPP {
		panic(notHere("this kernel has no " + kind + " (module " + kind + ")"))
	}
	check(err, "make a link of the kind "+kind)
}

// veth makes a link, 10.9.1.1/24, that nobody else is on.
func (n *netns) veth() {
	n.link("veth", "va")
	va := uint32(must(ifIndex("va")))
	address := ifAddr(va)
	address[1] = 24
	n.netlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, unix.NLM_F_CREATE, address, attr(unix.IFA_LOCAL, []byte{10, 9, 1, 1}))
	n.linkUp("va")
	n.linkUp("veth0")
}

// sysctl sets a value of this namespace alone.
func (n *netns) sysctl(name, value string) {
	check(os.WriteFile("/proc/sys/net/"+name, []byte(value), 0), "set net/"+name)
}

func (n *netns) leave() {
	for i := len(n.undo); i > 0; i-- {
		n.undo[i-1]()
	}
	if n.dies {
		n.steps["exit"] = span{bootNS(), 0}
	}
}

func bootNS() uint64 {
	var ts unix.Timespec
	check(unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts), "read CLOCK_BOOTTIME")
	return uint64(ts.Nano())
}

// reached is a condition: this socket is in this state.
type reached struct {
	s     *sock
	state tcp.State
}

// step does something and waits for what must come of it. Each row of a table
// names the step within which its transition happened.
func (n *netns) step(name string, do func(), settled ...reached) {
	from := bootNS()
	do()
	for _, r := range settled {
		r.s.await(r.state)
	}
	n.note(name, span{from, bootNS()})
}

// watch waits for what the kernel does by itself, and times it. Its hook comes before the
// change: one look may fall between the two, so the time is from the look before that.
func (n *netns) watch(name string, s *sock, state tcp.State) {
	now := bootNS()
	from, last := now, now
	eventually(2*time.Minute, fmt.Sprintf("%s: %s is still not %v", name, s.name, state), func() bool {
		from, last, now = last, now, bootNS()
		return s.state() == state
	})
	n.note(name, span{from, bootNS()})
}

func (n *netns) note(name string, at span) {
	if _, ok := n.steps[name]; ok {
		fail("two steps are named %q", name)
	}
	n.steps[name] = at
}

// rest makes the present states last, so that durations mean something.
func (n *netns) rest() { time.Sleep(50 * time.Millisecond) }

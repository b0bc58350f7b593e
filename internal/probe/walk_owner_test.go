package probe_test

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Whose sockets they are.
var ownerScenarios = []scenario{
	{name: "child closes last after fork", run: forkedOwner},
	{name: "SCM_RIGHTS", run: passedOn},
	{name: "handed on and never read", run: handedOn},
	{name: "pre-fork server", run: preFork},
	{name: "busy stranger on the same CPU", run: busyStranger},
	{name: "thread of another name", run: namedThread},
	{name: "kill -9", run: killed},
	{name: "destroyed by a stranger", run: strangerDestroys},
	{name: "a sockmap's parser reads in softirq", run: func(n *netns) { sockmapReads(n, true) }},
	{name: "a sockmap's verdict reads in softirq", run: func(n *netns) { sockmapReads(n, false) }},
	{name: "the last reference is a stranger's read()", run: strangerDrops},
	{name: "io_uring closes", run: func(n *netns) { ringOwner(n, 0, false) }},
	{name: "io_uring reads and closes", run: func(n *netns) { ringOwner(n, 0, true) }},
	{name: "a worker of io_uring closes", run: func(n *netns) { ringOwner(n, ringAsync, false) }},
	{name: "a worker of io_uring reads and closes", run: func(n *netns) { ringOwner(n, ringAsync, true) }},
}

// The parent's close ends nothing; the child's does.
func forkedOwner(n *netns) {
	_, c, s := n.established(web)
	child := n.agent("child", c)
	n.step("parent", c.close)
	n.rest()
	n.step("child", func() { child.do("close 4") }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	c.wants(`
child  ESTABLISHED>FIN_WAIT1   local_close  by=close:child
child  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(`
child  ESTABLISHED>CLOSE_WAIT  fin_received`)
}

// The worker reads from the connection that it was handed, and so owns it.
func passedOn(n *netns) {
	_, c, s := n.established(web)
	worker := n.agent("worker", c)
	fd := worker.do("take", s)
	n.step("pass", s.close)
	c.write("request")
	n.step("read", func() { worker.do("read " + fd) })
	n.step("close", func() { c.close(); worker.do("close 4") }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", func() { worker.do("close " + fd) }, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close   by=close:worker
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received  by=use:worker
answer  CLOSE_WAIT>LAST_ACK     local_close
answer  LAST_ACK>CLOSE          fin_acked`)
}

// The worker never touches the connection that it was handed: a trace that looks for
// holders finds it by its descriptor. (The walk's own trace does not look.)
func handedOn(n *netns) {
	p, err := probe.Open(probe.Config{NetNS: n.inode, Tracked: true, OwnerRefresh: time.Millisecond})
	check(err, "begin a second trace")
	n.undo = append(n.undo, func() { check(p.Close(), "end the second trace") })
	check(p.Seed(func(*tcp.Event) error { return nil }), "seed the second trace")
	_, c, s := n.established(web)
	s.learnCookie()
	worker := n.agent("worker")
	fd := worker.do("take", s)
	n.step("hand on", s.close)
	eventually(6*patience, "the worker is not found to hold the connection", func() (found bool) {
		check(p.TrackedSockets([]tcp.State{tcp.Established}, func(e *tcp.Event) error {
			held := owner{e.PID, e.Comm} == n.procs["worker"] && strconv.Itoa(int(e.FD)) == fd
			found = found || e.Cookie == s.cookie && held && e.OwnerSource == tcp.FromSnapshot
			return nil
		}), "read the rows")
		return found
	})
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", func() { worker.do("close " + fd) }, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
close   ESTABLISHED>FIN_WAIT1   local_close
close   FIN_WAIT1>FIN_WAIT2     fin_acked
answer  FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
close   ESTABLISHED>CLOSE_WAIT  fin_received
answer  CLOSE_WAIT>LAST_ACK     local_close   by=close:worker
answer  LAST_ACK>CLOSE          fin_acked`)
}

// Two workers share the master's listener: the one that accepted is the owner.
func preFork(n *netns) {
	l := n.listener(web)
	n.agent("worker1", l)
	worker := n.agent("worker2", l)
	c := n.client(l.local)
	s := n.queued(c, l.local)
	s.accepted = true
	c.write("request")
	fd := worker.do("accept 4")
	n.step("read", func() { worker.do("read " + fd) })
	n.rest()
	n.step("close", func() { worker.do("close " + fd) }, c.in(tcp.CloseWait), s.in(tcp.FinWait2))
	s.wants(`
close  ESTABLISHED>FIN_WAIT1   local_close  by=use:worker2
close  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	c.wants(`
close  ESTABLISHED>CLOSE_WAIT  fin_received`)
}

// Softirqs and timers interrupt the stranger, who must never become an owner.
func busyStranger(n *netns) {
	n.sysctl("ipv4/tcp_fin_timeout", "1")
	const cpu = 0
	pin(cpu)
	n.agent("stranger").do("spin 0")
	l := n.listener(web)
	server := n.agent("server", l)
	c := n.client(l.local)
	s := n.queued(c, l.local)
	s.accepted, s.acceptedBy = true, "server"
	fd := server.do("accept 4")
	n.step("close", c.close, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.watch("timeout", c, tcp.Close)
	n.step("late", func() { server.do("close " + fd) }, s.in(tcp.Close))
	c.wants(`
close    ESTABLISHED>FIN_WAIT1   local_close
close    FIN_WAIT1>FIN_WAIT2     fin_acked
timeout  FIN_WAIT2>CLOSE         timeout`)
	s.wants(`
close    ESTABLISHED>CLOSE_WAIT  fin_received
late     CLOSE_WAIT>LAST_ACK     local_close   by=close:server
late     LAST_ACK>CLOSE          rst_received  errno=ECONNRESET`)
}

// The name is the process's, whatever its threads call themselves.
func namedThread(n *netns) {
	check(os.WriteFile("/proc/thread-self/comm", []byte("other-name"), 0), "name the thread")
	_, c, s := n.established(web)
	both(n, c, s)
}

// The kernel closes what a killed process held, in that process's name.
func killed(n *netns) {
	l := n.listener(web)
	victim := n.agent("victim")
	c := victim.client(n, l.local)
	s := n.served(c)
	s.accept(l)
	n.rest()
	n.step("kill", victim.kill, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	n.rest()
	n.step("answer", s.close, c.in(tcp.TimeWait), s.in(tcp.Close))
	c.wants(`
kill     ESTABLISHED>FIN_WAIT1   local_close
kill     FIN_WAIT1>FIN_WAIT2     fin_acked
answer   FIN_WAIT2>TIME_WAIT     fin_received`)
	s.wants(`
connect  LISTEN>SYN_RECV         syn_received
connect  SYN_RECV>ESTABLISHED    handshake_done
kill     ESTABLISHED>CLOSE_WAIT  fin_received
answer   CLOSE_WAIT>LAST_ACK     local_close     by=close
answer   LAST_ACK>CLOSE          fin_acked`)
}

// Who destroys a socket does not own it.
func strangerDestroys(n *netns) {
	l := n.listener(web)
	victim := n.agent("victim")
	c := victim.client(n, l.local)
	s := n.served(c)
	s.accept(l)
	n.rest()
	n.step("destroy", func() { n.destroy(c) }, s.in(tcp.Close), c.in(tcp.Close))
	c.wants(`destroy  ESTABLISHED>CLOSE  killed   errno=ECONNABORTED`)
	s.wants(`
connect  LISTEN>SYN_RECV       syn_received
connect  SYN_RECV>ESTABLISHED  handshake_done
destroy  ESTABLISHED>CLOSE     rst_received  errno=ECONNRESET`)
}

// sockmapReads: a verdict program takes what the stranger sends while that is current.
func sockmapReads(n *netns, parses bool) {
	if !parses && kernelBefore(5, 13) {
		panic(notHere("a sockmap needs a parser (until 5.13)"))
	}
	l := n.listener(web)
	stranger := n.agent("stranger")
	c := stranger.client(n, l.local)
	s := n.served(c)
	s.accept(l)
	n.rest()
	inSockmap(s, parses)
	read := 0
	eventually(patience, "the program has read what came", func() bool {
		stranger.do(fmt.Sprint("write ", c.holderFD))
		read++
		info := must(unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO))
		return read > 4 && info.Bytes_received >= 4
	})
	n.step("close", func() { stranger.do(fmt.Sprint("close ", c.holderFD)) }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	c.wants(`
close    ESTABLISHED>FIN_WAIT1   local_close
close    FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(`
connect  LISTEN>SYN_RECV         syn_received
connect  SYN_RECV>ESTABLISHED    handshake_done
close    ESTABLISHED>CLOSE_WAIT  fin_received`)
}

// inSockmap puts s in a sockmap whose verdict takes everything from it.
func inSockmap(s *sock, parses bool) {
	sockets := must(ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1}))
	s.n.undo = append(s.n.undo, func() { sockets.Close() })
	attach := func(to ebpf.AttachType, result asm.Instruction) {
		prog := must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkSKB, AttachType: to, License: "GPL",
			Instructions: asm.Instructions{result, asm.Return()}}))
		defer prog.Close()
		check(link.RawAttachProgram(link.RawAttachProgramOptions{Target: sockets.FD(), Program: prog, Attach: to}), "attach to the sockmap")
	}
	if parses {
		attach(ebpf.AttachSkSKBStreamParser, asm.LoadMem(asm.R0, asm.R1, 0, asm.Word)) // the length of the data
	}
	const drop = 0 // SK_DROP
	attach(ebpf.AttachSkSKBStreamVerdict, asm.Mov.Imm(asm.R0, drop))
	check(sockets.Put(uint32(0), uint64(s.fd)), "put the socket in the sockmap")
}

// strangerDrops: a descriptor on its way is dropped by a read() that has no room for it. So is
// the last reference by an iterator that looks at open files, and by readlink() of
// /proc/PID/fd/N: who does that never had the socket.
func strangerDrops(n *netns) {
	if kernelBefore(5, 15) {
		panic(notHere("programs do not see which system call runs (bpf_task_pt_regs, since 5.15)"))
	}
	_, c, s := n.established(web)
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	stranger := n.agent("stranger", &sock{fd: pair[1]})
	check(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(c.fd), nil, 0), "send the descriptor")
	c.close()
	n.rest()
	n.step("read", func() { stranger.do("read 4") }, s.in(tcp.CloseWait), c.in(tcp.FinWait2))
	check(unix.Close(pair[0]), "close")
	check(unix.Close(pair[1]), "close")
	c.wants(`
read  ESTABLISHED>FIN_WAIT1   local_close
read  FIN_WAIT1>FIN_WAIT2     fin_acked`)
	s.wants(`read  ESTABLISHED>CLOSE_WAIT  fin_received`)
}

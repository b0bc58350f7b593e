package probe_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// An agent is another process of a scenario: this binary again, which does what
// it is told over a socket pair, one word and its arguments at a time, and so
// can own sockets under a name and pid of its own.

// agentEnv holds the agent's name and so tells it from the test.
const agentEnv = "TCPTRACE_TEST_AGENT"

// agentFD is the agent's end of the socket pair. Inherited sockets follow.
const agentFD = 3

type agent struct {
	name    string
	pid     int
	control int
}

// agent starts one in this namespace. It inherits the given sockets, as after
// fork(), and knows them by their numbers from agentFD+1 on.
func (n *netns) agent(name string, inherited ...*sock) *agent {
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	files := []uintptr{0, 1, 2, uintptr(pair[1])}
	for _, s := range inherited {
		files = append(files, uintptr(s.fd))
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{name}, &syscall.ProcAttr{
		Env: append(os.Environ(), agentEnv+"="+name), Files: files})
	check(err, "start the process "+name)
	check(unix.Close(pair[1]), "close")
	a := &agent{name: name, pid: pid, control: pair[0]}
	n.undo = append(n.undo, func() { a.kill(); unix.Close(a.control) })
	a.do("hello") // it has its name now
	n.procs[name] = owner{uint32(pid), name}
	return a
}

// do has the agent do one thing and returns its answer. A socket that is passed
// along is sent by SCM_RIGHTS.
func (a *agent) do(command string, passed ...*sock) string {
	var rights []byte
	if len(passed) > 0 {
		rights = unix.UnixRights(passed[0].fd)
	}
	check(unix.Sendmsg(a.control, []byte(command), rights, nil, 0), "tell "+a.name)
	buf := make([]byte, 256)
	var size int
	eventually(patience, a.name+" does not answer to "+command, func() (ok bool) {
		var err error
		size, _, err = unix.Recvfrom(a.control, buf, 0)
		return err == nil
	})
	answer := string(buf[:size])
	if problem, bad := strings.CutPrefix(answer, "error: "); bad || answer == "" {
		fail("%s: %s: %s", a.name, command, problem)
	}
	return answer
}

// kill ends it as kill -9 does, and waits until its descriptors are closed.
func (a *agent) kill() {
	if a.pid == 0 {
		return
	}
	check(unix.Kill(a.pid, unix.SIGKILL), "kill "+a.name)
	_, err := unix.Wait4(a.pid, nil, 0, nil)
	check(err, "wait for "+a.name)
	a.pid = 0
}

// client makes the agent connect, in the step "connect".
func (a *agent) client(n *netns, to netip.AddrPort) *sock {
	c := n.declare("client", tcp.Client, netip.AddrPort{}, to)
	n.step("connect", func() {
		fd, local, _ := strings.Cut(a.do("connect "+to.String()), " ")
		c.local = netip.MustParseAddrPort(local)
		c.holder, c.holderFD = a.name, must(strconv.Atoi(fd))
	})
	c.wants(`
connect  CLOSE>SYN_SENT        connect         by=connect:` + a.name + `
connect  SYN_SENT>ESTABLISHED  handshake_done`)
	return c
}

// agentMain is the agent's side: it ends with the test.
func agentMain(name string) {
	check(os.WriteFile("/proc/self/comm", []byte(name), 0), "take the name "+name)
	buf, oob := make([]byte, 256), make([]byte, 64)
	for {
		size, oobSize, _, _, err := unix.Recvmsg(agentFD, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || size == 0 {
			return
		}
		passed := -1
		if messages, _ := unix.ParseSocketControlMessage(oob[:oobSize]); len(messages) > 0 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			passed = fds[0]
		}
		answer, err := agentDo(strings.Fields(string(buf[:size])), passed)
		if err != nil {
			answer = "error: " + err.Error()
		}
		unix.Write(agentFD, []byte(answer))
	}
}

// agentDo answers with the number of the descriptor it got and the address of
// the connection it made, or ok. Its sockets block: it has nothing else to do.
func agentDo(command []string, passed int) (string, error) {
	argument := func(i int) int { n, _ := strconv.Atoi(command[i]); return n }
	number := func() int { return argument(1) }
	switch command[0] {
	case "connect":
		return agentConnect(command[1])
	case "listen":
		return agentListen(command[1], command[2:])
	case "waiting":
		info, err := unix.GetsockoptTCPInfo(number(), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(info.Unacked), nil // of a listener, inet_csk's sk_ack_backlog
	case "rename":
		return "ok", os.WriteFile("/proc/self/comm", []byte(command[1]), 0)
	case "write":
		_, err := unix.Write(number(), []byte("data"))
		return "ok", err
	case "accept":
		fd, err := agentAccept(number())
		return strconv.Itoa(fd), err
	case "take":
		return strconv.Itoa(passed), nil
	case "read":
		_, err := agentRead(number())
		return "ok", err
	case "close":
		return "ok", unix.Close(number())
	case "ring":
		return agentRing(number(), argument(2), argument(3))
	case "tls":
		return "ok", setTLS(number(), tlsSend)
	case "spin":
		go spin(number())
	}
	return "ok", nil
}

func agentConnect(to string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	if err := unix.Connect(fd, sockaddr(netip.MustParseAddrPort(to))); err != nil {
		return "", err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %v", fd, addrPort(name)), nil
}

// agentListen answers like agentConnect.
func agentListen(at string, options []string) (string, error) {
	fd, local, err := listenAt(at, options...)
	return fmt.Sprintf("%d %v", fd, local), err
}

// listenAt listens with options.
func listenAt(at string, options ...string) (fd int, local netip.AddrPort, err error) {
	addr := netip.MustParseAddrPort(at)
	family, bind := unix.AF_INET, true
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	for _, option := range options {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "reuse":
			err = cmp.Or(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		case "reuseport":
			err = cmp.Or(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		case "device":
			err = cmp.Or(err, unix.BindToDevice(fd, value))
		case "v6only":
			err = cmp.Or(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
		case "unbound":
			bind = false
		}
	}
	if bind {
		err = cmp.Or(err, unix.Bind(fd, sockaddr(addr)))
	}
	if err := cmp.Or(err, unix.Listen(fd, 1024)); err != nil {
		return -1, netip.AddrPort{}, err
	}
	name, err := unix.Getsockname(fd)
	return fd, addrPort(name), err
}

// agentAccept and agentRead poll: what they inherited does not block.
func agentAccept(listener int) (fd int, err error) {
	err = agentAwait(listener)
	if err == nil {
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	return fd, err
}

func agentRead(fd int) (int, error) {
	if err := agentAwait(fd); err != nil {
		return 0, err
	}
	return unix.Read(fd, make([]byte, 256))
}

func agentAwait(fd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if err != unix.EINTR {
			return err
		}
	}
}

// spin keeps one CPU busy for good.
func spin(cpu int) {
	pin(cpu)
	for turns := 0; ; turns++ {
	}
}

// pin keeps this thread on one CPU.
func pin(cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	check(unix.SchedSetaffinity(0, &set), "stay on one CPU")
}

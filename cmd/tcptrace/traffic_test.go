package main

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/test/need"
	"github.com/tcptrace/tcptrace/internal/test/rig"
)

// traffic makes connections, and notes by its own clock when it did what.
type traffic struct {
	t        *testing.T
	listener int
	made     map[uint16]made // by the client's port
}

// made is what the client of a connection is to have as its record.
type made struct {
	connect, finish call // finish is what ended ESTABLISHED
	outcome         tcp.Outcome
	first           connection.Closer
	reason          tcp.Reason
}

// call is the time that something took, of CLOCK_BOOTTIME in ns.
type call struct{ from, to uint64 }

func (c call) has(at uint64) bool { return c.from <= at && at <= c.to }

func bootNow() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return uint64(now.Nano())
}

func timed(do func()) (c call) {
	c.from = bootNow()
	do()
	c.to = bootNow()
	return c
}

func (tr *traffic) check(err error) {
	tr.t.Helper()
	if err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *traffic) socket() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	tr.check(err)
	return fd
}

func (tr *traffic) listen(port, backlog int) int {
	fd := tr.socket()
	tr.check(unix.Bind(fd, at(port)))
	tr.check(unix.Listen(fd, backlog))
	return fd
}

func at(port int) unix.Sockaddr { return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}} }

// Ports of the traffic. Nobody listens at refusing; deaf never accepts.
const listening, refusing, deaf = 8080, 9, 9000

// pair is a connection from end to end.
func (tr *traffic) pair() (client, server int, connect call) {
	client = tr.socket()
	connect = timed(func() { tr.check(unix.Connect(client, at(listening))) })
	server, _, err := unix.Accept(tr.listener)
	tr.check(err)
	return client, server, connect
}

// port is the local port of a socket, which tells its record.
func (tr *traffic) port(fd int) uint16 {
	addr, err := unix.Getsockname(fd)
	tr.check(err)
	return uint16(addr.(*unix.SockaddrInet4).Port)
}

// finish closes one end, waits until the other one knows, and closes that too.
func (tr *traffic) finish(first, second int) call {
	c := timed(func() {
		tr.check(unix.Close(first))
		_, _ = unix.Read(second, make([]byte, 1)) // the end, or a reset
	})
	tr.check(unix.Close(second))
	return c
}

func (tr *traffic) linger(fd int) {
	tr.check(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// closes are connections that either end closes or resets.
func (tr *traffic) closes() {
	for _, c := range []struct {
		byClient, reset bool
		want            made
	}{
		{true, false, made{outcome: tcp.Closed, first: connection.Local, reason: tcp.FinReceived}},
		{false, false, made{outcome: tcp.Closed, first: connection.Remote, reason: tcp.FinAcked}},
		{true, true, made{outcome: tcp.Reset, first: connection.Local, reason: tcp.AbortedLinger}},
		{false, true, made{outcome: tcp.Reset, first: connection.Remote, reason: tcp.RSTReceived}},
	} {
		for range 3 {
			client, server, connect := tr.pair()
			first, second := client, server
			if !c.byClient {
				first, second = server, client
			}
			if c.reset {
				tr.linger(first)
			}
			port, want := tr.port(client), c.want
			want.connect, want.finish = connect, tr.finish(first, second)
			tr.made[port] = want
		}
	}
}

// leak is a connection that its server never closes, so that its client's FIN_WAIT2 times out.
func (tr *traffic) leak() (server int) {
	client, server, connect := tr.pair()
	port := tr.port(client)
	tr.check(unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_LINGER2, 1))
	finish := timed(func() { tr.check(unix.Close(client)) })
	tr.made[port] = made{connect, finish, tcp.Broken, connection.Local, tcp.Timeout}
	return server
}

// refused connects to where nobody listens.
func (tr *traffic) refused(port int) {
	client := tr.socket()
	tr.check(unix.Bind(client, at(0)))
	tr.made[tr.port(client)] = made{outcome: tcp.Failed, reason: tcp.RSTReceived}
	if err := unix.Connect(client, at(port)); err != unix.ECONNREFUSED {
		tr.t.Fatal(err)
	}
	tr.check(unix.Close(client))
}

// unanswered connects to a listener whose queue is full.
func (tr *traffic) unanswered() (held []int) {
	held = append(held, tr.listen(deaf, 0), tr.socket())
	tr.check(unix.Connect(held[1], at(deaf)))
	client := tr.socket()
	tr.check(unix.Bind(client, at(0)))
	tr.check(unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1))
	tr.made[tr.port(client)] = made{outcome: tcp.Failed, reason: tcp.SynTimeout}
	if err := unix.Connect(client, at(deaf)); err != unix.ETIMEDOUT {
		tr.t.Fatal(err)
	}
	tr.check(unix.Close(client))
	return held
}

// run makes the traffic, and returns its events.
func (tr *traffic) run() ([]tcp.Event, error) {
	tr.listener = tr.listen(listening, 16)
	oldClient, oldServer, _ := tr.pair()
	held := []int{tr.listener}
	events, err := traced(tr.t, func() {
		tr.closes()
		held = append(held, tr.leak())
		tr.finish(oldClient, oldServer)
		tr.refused(refusing)
		held = append(held, tr.unanswered()...)
		tr.refused(lastPort)
	})
	for _, fd := range held {
		tr.check(unix.Close(fd))
	}
	return events, err
}

// judgedTraffic makes the traffic again where a state changed under process 1: some kernels show
// that to no program, see rig.InitThreads.
func judgedTraffic(t *testing.T) (*traffic, []tcp.Event) {
	t.Helper()
	threads, err := rig.InitThreads()
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		witness, err := rig.Record("tcptrace-traffic", 1, threads...)
		if err != nil {
			t.Fatal(err)
		}
		tr := &traffic{t: t, made: map[uint16]made{}}
		events, err := tr.run()
		hidden, _, failed := witness.Stop()
		if failed := errors.Join(failed, witness.Remove()); failed != nil {
			t.Fatal(failed)
		}
		if len(hidden) == 0 {
			if err != nil {
				t.Fatal(err)
			}
			return tr, events
		}
		t.Logf("run again: under process 1 happened %v", hidden)
	}
	t.Fatal("something happens under process 1 in every run")
	return nil, nil
}

// One recording of mixed traffic: the views agree with it, with each other, live and recorded,
// and with the clock and the account of whoever made the traffic.
func TestTrafficAgrees(t *testing.T) {
	need.Kernel(t)
	runtime.LockOSThread() // the thread ends with the test, and its namespace too
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	raiseLoopback(t)
	tr, events := judgedTraffic(t)
	v := agree(t, events)
	liveAndRecordingAgree(t, events, tcp.Filter{})
	tr.agreeWithRecords(v.ended)
}

// agreeWithRecords compares the records of the clients with what was made.
func (tr *traffic) agreeWithRecords(records []connection.Record) {
	found := 0
	for i := range records {
		r := &records[i]
		want, known := tr.made[r.Local.Port()]
		if r.Role != tcp.Client || !known {
			continue
		}
		found++
		if r.Outcome != want.outcome || r.ClosedFirst != want.first || r.Reason != want.reason {
			tr.t.Errorf("%v > %v: %s, closed first by %q, %s; want %+v", r.Local, r.Remote, r.Outcome, r.ClosedFirst, r.Reason, want)
		}
		if want.connect == (call{}) {
			continue
		}
		closed := r.StartBoot + r.Stays[tcp.SynSent].NS + r.Stays[tcp.Established].NS
		if !want.connect.has(r.StartBoot) || !want.finish.has(closed) {
			tr.t.Errorf("%v > %v: began at %d, was established until %d; made %+v", r.Local, r.Remote, r.StartBoot, closed, want)
		}
	}
	if found != len(tr.made) {
		tr.t.Errorf("%d of the %d clients have a record", found, len(tr.made))
	}
}

// lastPort is that of the connection after which a trace has all.
const lastPort = 10

// traced returns the events of this network namespace while do runs, those that existed first.
func traced(t *testing.T, do func()) (events []tcp.Event, err error) {
	t.Helper()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		t.Fatal(err)
	}
	p, err := probe.Open(probe.Config{NetNS: uint32(ns.Ino)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Seed(func(e *tcp.Event) error { events = append(events, *e); return nil }); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		var e tcp.Event
		for {
			if err := p.Read(&e); err != nil {
				ended <- err
				return
			}
			events = append(events, e)
			if e.Remote.Port() == lastPort && e.New == tcp.Close {
				ended <- nil
				return
			}
		}
	}()
	do()
	select {
	case err = <-ended:
	case <-time.After(10 * time.Second):
		p.Stop()
		err = errors.Join(errors.New("the last connection is missing"), <-ended)
	}
	if l := p.Losses(); l.Lost+l.Untracked+l.MissedTransitions > 0 {
		err = errors.Join(err, fmt.Errorf("%+v", l))
	}
	return events, err
}

func raiseLoopback(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

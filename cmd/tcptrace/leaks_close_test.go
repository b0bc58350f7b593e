package main

import (
	"encoding/json"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLeaksClosedConnections holds descriptors of connections that the peer has reset, out of
// ESTABLISHED and out of CLOSE_WAIT, and of one that was refused: sockets that are in no table
// of the kernel.
func TestLeaksClosedConnections(t *testing.T) {
	n := newLeakNet(t)
	hold := func(halfClose bool) (fd int) {
		accepted := make(chan *net.TCPConn)
		port := n.peer(func(c net.Conn) { accepted <- c.(*net.TCPConn) })
		conn, err := net.Dial("tcp4", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		peer := <-accepted
		if halfClose {
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		peer.SetLinger(0) // close() resets
		peer.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = raw.Control(func(f uintptr) { fd = int(f) })
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	args := []string{"leaks", "--netns", n.namespace(), "--older-than", "300ms", "--once", "-j", "-p", strconv.Itoa(os.Getpid())}
	refused := holdRefused(t)
	look := func(before []int, args ...string) {
		t.Helper()
		var fds []int
		for line := range strings.Lines(n.output("tcptrace", args...)) {
			var g leakGroup
			var state struct{ State, Diagnosis string }
			if err := json.Unmarshal([]byte(line), &g); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			if err := json.Unmarshal([]byte(line), &state); err != nil {
				t.Fatal(err)
			}
			verdict := "leak"
			if slices.Equal(g.FDs, []int{refused}) {
				verdict = "undecided" // it may be kept for another connect()
			}
			if state.State != "CLOSE" || g.Cause != "descriptor_open" || g.Verdict != verdict || !strings.Contains(state.Diagnosis, "still holds the descriptor") {
				t.Errorf("got %s", line)
			}
			fds = append(fds, g.FDs...)
		}
		slices.Sort(fds)
		slices.Sort(before)
		if !slices.Equal(fds, before) {
			t.Errorf("%v: got descriptors %v, want %v", args, fds, before)
		}
	}
	held := []int{hold(false), hold(true), refused}
	// When a connection ended before the look is not known: it takes a watch.
	look(nil, args...)
	look(held, append(args, "-d", "2s")...)
	look(held, append(args, "-d", "2s", "--state", "close")...)
}

// holdRefused keeps a descriptor after connect() has failed, which forgets the peer.
func holdRefused(t *testing.T) (fd int) {
	t.Helper()
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	bound := socket() // and does not listen
	if err := unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	nobody, err := unix.Getsockname(bound)
	if err != nil {
		t.Fatal(err)
	}
	fd = socket()
	if err := unix.Connect(fd, nobody); err != unix.ECONNREFUSED {
		t.Fatalf("connect to nobody: %v", err)
	}
	return fd
}

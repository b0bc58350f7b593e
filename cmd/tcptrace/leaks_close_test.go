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
)

// TestLeaksClosedConnections holds descriptors of connections that the peer has reset,
// out of ESTABLISHED and out of CLOSE_WAIT: sockets that are in no table of the kernel.
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
			if state.State != "CLOSE" || g.Cause != "descriptor_open" || g.Verdict != "leak" || !strings.Contains(state.Diagnosis, "still holds the descriptor") {
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
	held := []int{hold(false), hold(true)}
	// When a connection ended before the look is not known: it takes a watch.
	look(nil, args...)
	look(held, append(args, "-d", "2s")...)
	look(held, append(args, "-d", "2s", "--state", "close")...)
}

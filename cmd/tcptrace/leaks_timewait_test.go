package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestLeaksTimeWait has a client open and close a hundred connections a second.
func TestLeaksTimeWait(t *testing.T) {
	n := newLeakNet(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 41999"), 0); err != nil {
		t.Fatal(err)
	}
	client, _ := n.start("busy")
	var got struct {
		LAddr, RAddr string
		Sockets      int
		Ports        int     `json:"local_ports"`
		Rate         float64 `json:"new_per_s"`
		Left         float64 `json:"exhausted_s"`
		Reused       int
		Closers      []struct{ PID, Sockets int } `json:"closed_first_by"`
	}
	out := n.output("tcptrace", "leaks", "--netns", n.namespace(), "--state", "time-wait", "--once", "-j", "-d", "5s")
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%+v", got)
	if got.LAddr != "127.0.0.1" || got.RAddr != "127.0.0.1" || got.Ports != 2000 || got.Sockets < 100 || got.Rate < 20 || got.Rate > 110 {
		t.Errorf("got %+v", got)
	}
	if len(got.Closers) != 1 || got.Closers[0].PID != client.Process.Pid {
		t.Errorf("closed first by %+v, want process %d", got.Closers, client.Process.Pid)
	}
	// Loopback reuses a TIME_WAIT after a second.
	if want := float64(got.Ports-got.Sockets) / (got.Rate - float64(got.Reused)/5); got.Left < 0.8*want || got.Left > 1.2*want {
		t.Errorf("ports run out in %.1f s, want about %.1f", got.Left, want)
	}
	// The first look knows the range too, with no event before it.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte("41000-41499"), 0); err != nil {
		t.Fatal(err)
	}
	out = n.output("timeout", "60", "tcptrace", "leaks", "--netns", n.namespace(), "--state", "time-wait", "--once", "-j")
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Ports != 1500 {
		t.Errorf("one look: %v, %d ports, want 1500, in %s", err, got.Ports, out)
	}
	err := exec.Command("tcptrace", "leaks", "--netns", n.namespace(), "--state", "time-wait", "--check", "-d", "2s").Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 2 {
		t.Errorf("--check ends with %v, want status 2", err)
	}
}

// TestLeaksOldTimeWait has a TIME_WAIT of a client from before the watch: its port range is
// looked up in the middle of a walk over the sockets, for a row, and not for an event.
func TestLeaksOldTimeWait(t *testing.T) {
	n := newLeakNet(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client.Close() // first, so it gets the TIME_WAIT
	time.Sleep(50 * time.Millisecond)
	server.Close()
	time.Sleep(50 * time.Millisecond)
	var got struct {
		RAddr   string
		Sockets int
		Ports   int `json:"local_ports"`
	}
	out := n.output("timeout", "-s", "KILL", "20", "tcptrace", "leaks", "--netns", n.namespace(), "--state", "time-wait", "--once", "-j")
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if got.RAddr != "127.0.0.1" || got.Sockets != 1 || got.Ports == 0 {
		t.Errorf("got %+v", got)
	}
}

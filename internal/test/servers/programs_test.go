package servers

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// What the tests run this program for once more.
const (
	trafficArg = "traffic" // make traffic of which the truth is known
	floodArg   = "flood"   // make many connections
	hostArg    = "host"    // run a program on a host of another name
)

// runAs runs what args ask for; false: they are those of a test.
func runAs(args []string) (ran bool, err error) {
	if len(args) < 2 {
		return false, nil
	}
	switch args[1] {
	case trafficArg:
		return true, traffic()
	case floodArg:
		return true, flood(args[2])
	case hostArg:
		return true, host(args[2], args[3:])
	}
	return false, nil
}

// self is this program.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// host becomes a program that sees the name as that of its host.
func host(name string, program []string) error {
	runtime.LockOSThread() // the name is that of a thread, and exec keeps it
	if err := syscall.Unshare(syscall.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("cannot have a host name of its own: %w", err)
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return err
	}
	path, err := exec.LookPath(program[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, program, os.Environ())
}

// flood makes connections to itself, one at a time, and ends each with a reset: so that both of
// its sockets have ended when flood has, and none is in TIME_WAIT.
func flood(times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	for range n {
		client, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			return err
		}
		server, err := listener.Accept()
		if err != nil {
			return err
		}
		err = client.(*net.TCPConn).SetLinger(0)
		err = errors.Join(err, client.Close())
		_, _ = io.Copy(io.Discard, server) // until the reset
		if err = errors.Join(err, server.Close()); err != nil {
			return err
		}
	}
	return nil
}

// runFlood makes connections, as a service, and waits until they have ended.
func runFlood(t *testing.T, service string, n int) {
	t.Helper()
	cmd := start(t, service, self(t), floodArg, strconv.Itoa(n))
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

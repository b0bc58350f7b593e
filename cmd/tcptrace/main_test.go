package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/test/need"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts call tcptrace, and something to trace, as programs:
// the test binary is both.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", noSleep)
	testscript.Main(m, map[string]func(){
		"tcptrace": main, "connect": connect, "busy": busy, "leak": leakSome, "crowd": crowd,
		"villain": villain, "forbid": forbid, stackHelper: main,
	})
}

// noSleep keeps a program from waiting for a second at its end under the race detector.
const noSleep = "atexit_sleep_ms=0"

// connect connects to itself and closes, the client first. Before it closes it
// says "connected" and waits for the end of its input.
func connect() {
	listener := must(net.Listen("tcp4", "127.0.0.1:0"))
	client := must(net.Dial("tcp4", listener.Addr().String()))
	server := must(listener.Accept())
	fmt.Println("connected")
	must(io.Copy(io.Discard, os.Stdin))
	client.Close()
	must(io.Copy(io.Discard, server))
	server.Close()
	listener.Close()
}

// crowd listens with the backlog of its first argument. When it has read a line, it begins as
// many connections as the second says, and accepts none until the end of its input.
func crowd() {
	backlog, connections := must(strconv.Atoi(os.Args[1])), must(strconv.Atoi(os.Args[2]))
	socket := func() int {
		return must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	}
	here := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 47999}
	listener := socket()
	must(0, unix.Bind(listener, here))
	must(0, unix.Listen(listener, backlog))
	fmt.Println("listening")
	must(os.Stdin.Read(make([]byte, 1)))
	for range connections {
		if err := unix.Connect(socket(), here); err != unix.EINPROGRESS {
			must(0, err)
		}
	}
	must(io.Copy(io.Discard, os.Stdin))
}

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "connect:", err)
		os.Exit(1)
	}
	return v
}

// TestScripts holds the promises of the command line that need no kernel. With
// UPDATE=1 it writes what was printed into the scripts.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		Setup:         withRecording,
		UpdateScripts: os.Getenv("UPDATE") == "1",
	})
}

// TestLive holds those that need one. It fails where it cannot run, so that
// nobody takes its silence for a success.
func TestLive(t *testing.T) {
	need.Kernel(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/live"})
}

// withRecording gives a script three recordings, and the recipes of the manual. trace.json: a connection seen from both ends,
// an old CLOSE_WAIT, a refused IPv6 connection of a hostile name, and a loss. mixed.json: what
// was recorded of clients and a server, each of which closes first, resets, or does not close;
// of connections that are refused or not answered; all TIME_WAITs to their end. ports.json: a
// server in a container, and a client that has five local ports and wants eight.
func withRecording(env *testscript.Env) error {
	env.Setenv("TZ", "UTC")
	env.Setenv("LC_ALL", "C.UTF-8")
	env.Setenv("GORACE", noSleep)
	for _, name := range []string{"trace.json", "mixed.json", "ports.json"} {
		recording, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), recording, 0o644); err != nil {
			return err
		}
	}
	return withRecipes(env)
}

func TestManPageNamesEveryFlag(t *testing.T) {
	parser, err := newParser(&env{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(false) {
		if !command.Hidden && !strings.Contains(manPage, ".Cm "+command.Name) {
			t.Errorf("the manual page does not name the command %s", command.Name)
		}
		for _, flag := range command.Flags {
			for _, name := range append(spellings(flag), flag.Aliases...) {
				if !strings.Contains(manPage, "Fl "+strings.TrimLeft(name, "-")) &&
					!strings.Contains(manPage, "Fl -"+strings.TrimLeft(name, "-")) {
					t.Errorf("the manual page does not name the flag %s of %s", name, command.Name)
				}
			}
		}
	}
}

// The manual describes every field, and no other.
func TestManPageListsFields(t *testing.T) {
	_, section, _ := strings.Cut(manPage, ".Sh FIELDS\n")
	section, _, _ = strings.Cut(section, ".Sh ")
	var listed []string
	for line := range strings.Lines(section) {
		if names, found := strings.CutPrefix(line, ".It Va "); found {
			listed = append(listed, strings.Fields(strings.ReplaceAll(names, " ,", ""))...)
		}
	}
	fields := output.Fields()
	slices.Sort(fields)
	slices.Sort(listed)
	if !slices.Equal(listed, fields) {
		t.Errorf("the manual lists %v\nthe events have %v", listed, fields)
	}
}

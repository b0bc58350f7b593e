package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// crowdOf writes a recording of clients that are all open at a time, and then reset one after
// the other: three transitions of each.
func crowdOf(clients int, w io.Writer) error {
	j := output.NewJSON(w)
	life := clientLife()
	states := []tcp.State{tcp.Close, tcp.SynSent, tcp.Established, tcp.Close}
	e := life[0]
	write := func(step, client int) error {
		e.Old, e.New = states[step], states[step+1]
		if e.DurationKind = ""; step > 0 {
			e.DurationKind = tcp.Exact
		}
		e.Reason = [...]tcp.Reason{tcp.Connect, tcp.HandshakeDone, tcp.RSTReceived}[step]
		e.Cookie = uint64(client + 1)
		e.Time, e.BootNS = e.Time+1000, e.BootNS+1000
		var addr [4]byte
		binary.BigEndian.PutUint32(addr[:], 10<<24|uint32(client>>14))
		e.Local = netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(1+client&(1<<14-1)))
		return j.Write(&e)
	}
	for client := range clients {
		for step := range 2 {
			if err := write(step, client); err != nil {
				return err
			}
		}
	}
	for client := range clients {
		if err := write(2, client); err != nil {
			return err
		}
	}
	return j.Flush()
}

// A million connections at a time are more than a view follows. It stays as small as the manual
// says, shows all that end, and says how many it did not follow from start to end.
func TestMillion(t *testing.T) {
	clients, room := 1_000_000, 0
	if testing.Short() { // under the race detector, whose memory is not ours
		clients, room = 10_000, 1000
	}
	for _, view := range []struct {
		args  string
		max   int    // followed at a time
		shown string // in a line for each client; empty: there is one report
		said  string // how many were not followed
		size  string // what the manual says of memory, in MB
	}{
		{"connections -j", maxFollowed, `"type":"connection"`, `tcptrace: (\d+) connections not followed`, `are open at a time, to (\d+) MB`},
		{"stats -j", maxFollowed, "", `"forgotten":(\d+)`, `sockets that exist at a time, to\n(\d+) MB`},
		{"stats --diagram", maxFollowed, "", `(\d+) sockets not followed`, `sockets that exist at a time, to\n(\d+) MB`},
		{"top", maxFollowed, "", `(\d+) sockets not followed`, `a time: that takes up to (\d+) MB`},
		{"timeline -j", maxStories, `"type":"timeline"`, `tcptrace: (\d+) ends of connections not followed`, `and all of them (\d+) MB`},
		{"-o trace", maxFollowed, `"name":"SYN_SENT"`, `tcptrace: (\d+) connections not drawn`, `how many these are; that takes (\d+) MB`},
	} {
		t.Run(view.args, func(t *testing.T) {
			t.Parallel()
			args, followed := strings.Fields(view.args), view.max
			if room > 0 && view.args != "-o trace" {
				args, followed = append(args, "--max-sockets", strconv.Itoa(room)), room
			}
			shown, said, megabytes := crowded(t, clients, view.shown, args...)
			if view.shown != "" && shown != clients {
				t.Errorf("%d clients are shown, want %d", shown, clients)
			}
			if got, want := numberIn(t, view.said, said), clients-followed; got != max(want, 0) {
				t.Errorf("%d were not followed, want %d: %s", got, want, said)
			}
			stated := numberIn(t, view.size, manPage)
			t.Logf("%d MB of %d", megabytes, stated)
			if megabytes > stated || stated == 0 {
				t.Errorf("it took %d MB, the manual says %d", megabytes, stated)
			}
		})
	}
}

// numberIn is what the expression finds in a text; 0: nothing.
func numberIn(t *testing.T, expression, text string) int {
	t.Helper()
	found := regexp.MustCompile(expression).FindStringSubmatch(text)
	if found == nil {
		return 0
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Error(err)
	}
	return n
}

// crowded shows a crowd, and returns how many lines have this text, what else was said, and how
// much memory the whole program took.
func crowded(t *testing.T, clients int, text string, args ...string) (lines int, said string, megabytes int) {
	t.Helper()
	cmd := exec.Command("tcptrace", append(args, "-r", "-")...)
	in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- errors.Join(crowdOf(clients, in), in.Close()) }()
	var report strings.Builder
	for scan := bufio.NewReaderSize(out, 1<<20); ; {
		line, err := scan.ReadBytes('\n')
		switch {
		case text == "":
			report.Write(line)
		case bytes.Contains(line, []byte(text)):
			lines++
		}
		if err != nil {
			break
		}
	}
	if err := errors.Join(<-written, cmd.Wait()); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return lines, report.String() + stderr.String(), int(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * 1024 / 1e6
}

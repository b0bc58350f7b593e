// oracle records what ftrace knows about TCP state changes, without BPF, and compares
// a tracer with it:
//
//	oracle record [-mb N] -o FILE                   until Ctrl-C; exit 4: the record has holes
//	oracle cmp [-ports LO-HI] RECORD TCPTRACE.json  exit 3: they differ
//
// TCPTRACE.json is what `tcptrace -j -x` wrote meanwhile. A record has one edge per
// line: the address of the socket, the old and the new state, both ports.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/test/rig"
)

var (
	errHoles  = errors.New("the oracle itself lost events: lower the rate, or give it more buffer with -mb")
	errDiffer = errors.New("the tracer and the oracle differ")
)

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "oracle:", err)
	switch {
	case errors.Is(err, errDiffer):
		os.Exit(3)
	case errors.Is(err, errHoles):
		os.Exit(4)
	}
	os.Exit(1)
}

func run(args []string) error {
	usage := errors.New("usage: oracle record [-mb N] -o FILE | oracle cmp [-ports LO-HI] RECORD TCPTRACE.json")
	if len(args) == 0 {
		return usage
	}
	flags := flag.NewFlagSet("oracle", flag.ExitOnError)
	megabytes := flags.Int("mb", 128, "record: buffer per CPU, in MiB")
	out := flags.String("o", "", "record: where to write the edges")
	ports := flags.String("ports", "0-65535", "cmp: only connections with a port in LO-HI")
	_ = flags.Parse(args[1:]) // ExitOnError
	switch {
	case args[0] == "record" && *out != "" && flags.NArg() == 0:
		return record(*out, *megabytes)
	case args[0] == "cmp" && flags.NArg() == 2:
		var p rig.Ports
		if _, err := fmt.Sscanf(*ports, "%d-%d", &p.Lo, &p.Hi); err != nil {
			return fmt.Errorf("-ports %s: want LO-HI", *ports)
		}
		return compare(flags.Arg(0), flags.Arg(1), p)
	}
	return usage
}

func record(file string, megabytes int) (err error) {
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt, syscall.SIGTERM)
	r, err := rig.Record("tcptrace-oracle", megabytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Remove()) }()
	fmt.Fprintln(os.Stderr, "recording; Ctrl-C ends it")
	<-interrupt
	edges, lost, err := r.Stop()
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	for _, e := range edges {
		fmt.Fprintf(w, "%#x %d %d %d %d\n", e.Sk, e.Old, e.New, e.Local, e.Remote)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%d events or more are missing in %s: %w", lost, file, errHoles)
	}
	return nil
}

func compare(recordFile, jsonFile string, ports rig.Ports) error {
	edges, err := readRecord(recordFile)
	if err != nil {
		return err
	}
	f, err := os.Open(jsonFile)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := rig.Translate(f, ports, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", jsonFile, err)
	}
	d := rig.Compare(rig.Diagram(edges, ports), t.Edges)
	if err := json.NewEncoder(os.Stdout).Encode(d); err != nil {
		return err
	}
	if err := d.Err(); err != nil {
		return fmt.Errorf("%w: %w", errDiffer, err)
	}
	return nil
}

func readRecord(file string) (edges []rig.Edge, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var e rig.Edge
		if _, err := fmt.Sscanf(lines.Text(), "%v %d %d %d %d", &e.Sk, &e.Old, &e.New, &e.Local, &e.Remote); err != nil {
			return nil, fmt.Errorf("%s:%d: not a line of a record: %w", file, n, err)
		}
		edges = append(edges, e)
	}
	return edges, lines.Err()
}

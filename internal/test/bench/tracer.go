package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A sink is where a tracer's output goes.
type sink string

const (
	toNull   sink = "/dev/null"
	toFile   sink = "file"
	toReader sink = "pipe" // with somebody who reads and drops it
)

// A tracer is one row of the table.
type tracer struct {
	name   string
	argv   []string
	env    []string
	sink   sink
	peer   bool // may be missing here; ours must not
	view   bool // shows what it makes of the events, which is to cost no more than to print them
	silent bool // prints no event
	absent error
}

const tcptrace = "bin/tcptrace"

// bpftraceProgram prints what tcpstates prints, without durations.
const bpftraceProgram = `tracepoint:sock:inet_sock_set_state {
	printf("%d %s %s:%d %s:%d %d -> %d\n", pid, comm, ntop(args->saddr), args->sport,
		ntop(args->daddr), args->dport, args->oldstate, args->newstate);
}`

func tracers() ([]*tracer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []*tracer{
		{name: "empty BPF program", argv: []string{self, "-floor"}, sink: toNull, silent: true},
		{name: "tcptrace -j", argv: []string{tcptrace, "-j"}, sink: toNull},
		{name: "tcptrace -j", argv: []string{tcptrace, "-j"}, sink: toFile},
		{name: "tcptrace -j", argv: []string{tcptrace, "-j"}, sink: toReader},
		{name: "tcptrace", argv: []string{tcptrace}, sink: toNull},
		{name: "tcptrace connections -j", argv: []string{tcptrace, "connections", "-j"}, sink: toNull, view: true},
		{name: "tcptrace stats -j", argv: []string{tcptrace, "stats", "-j"}, sink: toNull, view: true},
		{name: "tcptrace -j -L 443", argv: []string{tcptrace, "-j", "-L", "443"}, sink: toNull, silent: true},
		{name: "bcc tcpstates", argv: []string{"tcpstates-bpfcc"}, sink: toNull, peer: true},
		{name: "libbpf-tools tcpstates", argv: []string{"tcpstates"}, sink: toNull, peer: true},
		// Into a file because there it says what it lost.
		{name: "bpftrace printf", argv: []string{"bpftrace", "-e", bpftraceProgram}, sink: toFile, peer: true},
	}, nil
}

func (t *tracer) String() string {
	if t.sink == toReader {
		return t.name + " | reader"
	}
	return t.name + " > " + string(t.sink)
}

// process is a running tracer.
type process struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer // to be read after exited
	file   *os.File     // its output, or nil
	exited chan error
}

func (t *tracer) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, t.argv[0], t.argv[1:]...)
	cmd.Env = append(os.Environ(), t.env...)
	return cmd
}

// start starts the tracer, and returns before it is attached.
func (t *tracer) start(ctx context.Context) (*process, error) {
	p := &process{cmd: t.command(ctx), exited: make(chan error, 1)}
	p.cmd.Stderr = &p.stderr
	switch t.sink {
	case toFile:
		f, err := os.CreateTemp("", "bench-")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, err
		}
		p.file, p.cmd.Stdout = f, f
	case toReader:
		p.cmd.Stdout = new(drain)
	}
	return p, p.launch()
}

// drain drops what it is given. With io.Discard it would be read in pieces of 8 KB.
type drain struct{}

func (*drain) Write(b []byte) (int, error) { return len(b), nil }

func (p *process) launch() error {
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return nil
}

// rest returns when the process is attached and has nothing to do: it holds a BPF
// program, and used less than a fifth of a CPU for a while. Only ours could be asked in
// another way.
func (p *process) rest() (usage, error) {
	const while, limit = 250 * time.Millisecond, 90 * time.Second
	last, _ := readUsage(p.cmd.Process.Pid) // an error comes again
	for began := time.Now(); time.Since(began) < limit; {
		select {
		case err := <-p.exited:
			p.exited <- err
			return last, p.endedByItself(err)
		case <-time.After(while):
		}
		now, err := readUsage(p.cmd.Process.Pid)
		if err != nil {
			return now, err
		}
		if now.programs > 0 && now.cpu()-last.cpu() < while/5 {
			return now, nil
		}
		last = now
	}
	return last, fmt.Errorf("not at rest after %v", limit)
}

// stop ends the tracer with Ctrl-C and returns how many events it says it lost.
func (p *process) stop() (lost int, err error) {
	if p.file != nil {
		defer p.file.Close()
	}
	if err := p.interrupt(); err != nil {
		return 0, err
	}
	lost = countLost(&p.stderr)
	if p.file != nil {
		if _, err := p.file.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		lost += countLost(p.file)
	}
	return lost, nil
}

// interrupt ends the process by Ctrl-C. bcc misses the signal while it prints, so it is
// sent again.
func (p *process) interrupt() error {
	for range 30 {
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-p.exited: //nolint:errcheck // Ctrl-C is a failure to some of them
			return nil
		case <-time.After(time.Second):
		}
	}
	p.kill()
	return errors.New("it does not end on Ctrl-C")
}

// lossReport matches what each of them says: tcptrace, bcc, libbpf-tools, bpftrace.
var lossReport = regexp.MustCompile(`^tcptrace: .* (\d+) lost,|^(?:Possibly lost|lost|Lost) (\d+) (?:samples|events)`)

func countLost(said io.Reader) (lost int) {
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte("ost ")) && !bytes.Contains(lines.Bytes(), []byte(" lost,")) {
			continue // nearly all lines, and the expression is slow
		}
		if m := lossReport.FindSubmatch(lines.Bytes()); m != nil {
			n, _ := strconv.Atoi(string(m[1]) + string(m[2]))
			lost += n
		}
	}
	return lost
}

// kill is for a tracer that is no longer needed. It may have ended already.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	if p.file != nil {
		p.file.Close()
	}
}

// endedByItself is the error of a process that ended (with err, which may be nil)
// although nobody stopped it. It quotes the last line of the process's stderr.
func (p *process) endedByItself(err error) error {
	lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
	return errors.Join(fmt.Errorf("it ended by itself: %s", lines[len(lines)-1]), err)
}

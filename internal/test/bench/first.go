package main

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"time"
)

// markerPort is not in any line that a tracer prints before it sees an event of ours.
const markerPort = 29477

// firstEvents takes the time from the start of each tracer to its first event.
func (b *bench) firstEvents() error {
	for range b.plan.rounds {
		for _, r := range b.rows {
			if r.problem != nil || r.silent || r.sink != toReader && !r.peer {
				continue
			}
			took, err := b.firstEvent(r.tracer)
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if r.problem = err; err == nil {
				r.first.add(took.Seconds())
			}
		}
	}
	return nil
}

// firstEvent starts a tracer, with its output in a pipe, while something happens a
// thousand times a second, and returns when that is shown.
func (b *bench) firstEvent(t *tracer) (time.Duration, error) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel() // ends the load
	ns, err := newNamespace(b.ctx)
	if err != nil {
		return 0, err
	}
	defer ns.close()
	port := strconv.Itoa(markerPort)
	marker := ns.command(ctx, churn, "storm", "-r", "500", "-d", "120", "-p", port)
	if err := marker.Start(); err != nil {
		return 0, err
	}
	defer func() { _ = marker.Wait() }()
	defer cancel()

	p := &process{cmd: t.command(b.ctx), exited: make(chan error, 1)}
	shown := &finder{what: []byte(port), found: make(chan time.Time, 1)}
	p.cmd.Stdout, p.cmd.Stderr = shown, &p.stderr
	began := time.Now()
	if err := p.launch(); err != nil {
		return 0, err
	}
	defer p.kill()
	select {
	case at := <-shown.found:
		_, err := p.stop()
		return at.Sub(began), err
	case err := <-p.exited:
		return 0, p.endedByItself(err)
	case <-time.After(90 * time.Second):
		return 0, errors.New("no event in 90 s")
	}
}

// finder notes when what it looks for is first written to it.
type finder struct {
	what  []byte
	found chan time.Time // nil once it was found
	tail  []byte         // of what was written before
}

func (f *finder) Write(b []byte) (int, error) {
	if f.found == nil {
		return len(b), nil
	}
	f.tail = append(f.tail, b...)
	if bytes.Contains(f.tail, f.what) {
		f.found <- time.Now()
		f.found = nil
	}
	f.tail = append(f.tail[:0], f.tail[max(0, len(f.tail)-len(f.what)):]...)
	return len(b), nil
}

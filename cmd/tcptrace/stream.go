package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// source yields events: the kernel, or a recording of it.
type source interface {
	Read(*tcp.Event) error // io.EOF at the end
	More() bool            // another event waits: Read will not block
}

// writer prints events, whole lines at a time.
type writer interface {
	Write(*tcp.Event) error
	Flush() error
}

// stream moves events from a source to a writer. It is the hot path: one
// goroutine, one event that is used again and again, nothing allocated.
type stream struct {
	source   source
	enrich   *enrich.Enricher // nil for a recording: what was known, it says
	selector *tcp.Selector
	writer   writer
	emit     func(*tcp.Event) error // print, bound once: binding allocates
	existing bool                   // print the sockets that exist at the start
	limit    uint64                 // of transitions; 0: none
	span     uint64                 // ns from the first event on; 0: no end

	begun   bool
	begin   uint64 // BootNS of the first event
	events  uint64 // transitions printed
	unknown uint64 // of these, how many without a duration
	lost    uint64 // events
}

// newStream returns a stream that lacks a source.
func newStream(filter tcp.Filter, w writer) *stream {
	s := &stream{selector: tcp.NewSelector(filter), writer: w}
	s.emit = s.print
	return s
}

// errEnough ends a stream that has printed what was asked for.
var errEnough = errors.New("enough")

// run streams until the source ends. What came before an error is printed; where
// nothing did, no header is either.
func (s *stream) run() error {
	e := new(tcp.Event)
	var err error
	for err == nil {
		if err = s.source.Read(e); err == nil {
			err = s.handle(e)
		}
		if err == nil && !s.source.More() {
			err = s.writer.Flush()
		}
	}
	switch {
	case err == io.EOF || err == errEnough:
		return s.writer.Flush()
	case s.begun:
		return errors.Join(err, s.writer.Flush())
	}
	return err
}

// handle takes one event to the writer, if it is asked for.
func (s *stream) handle(e *tcp.Event) error {
	if !s.begun {
		s.begun, s.begin = true, e.BootNS
	}
	// A recording is not sorted strictly: an event may be older than the first.
	if s.span != 0 && e.BootNS > s.begin && e.BootNS-s.begin > s.span {
		return errEnough
	}
	if s.enrich != nil {
		s.enrich.Fill(e)
	}
	return s.selector.Select(e, s.emit)
}

func (s *stream) print(e *tcp.Event) error {
	if e.Kind == tcp.Socket && !s.existing {
		return nil
	}
	if err := s.writer.Write(e); err != nil {
		return err
	}
	switch e.Kind {
	case tcp.Lost:
		s.lost += e.Lost
	case tcp.Transition:
		s.events++
		if e.DurationKind == tcp.Unknown {
			s.unknown++
		}
		if s.events == s.limit {
			return errEnough
		}
	}
	return nil
}

// account says in one line what was seen and, above all, what was not.
func (s *stream) account(w io.Writer, a probe.Losses) {
	fmt.Fprintf(w, "tcptrace: %d events, %d lost, %d unknown durations", s.events, a.Lost, s.unknown)
	if a.Untracked != 0 {
		fmt.Fprintf(w, ", %d sockets not tracked (raise --max-sockets)", a.Untracked)
	}
	if a.MissedTransitions != 0 {
		fmt.Fprintf(w, ", %d state changes not seen (the kernel ran no hook for them)", a.MissedTransitions)
	}
	if a.SkippedRuns != 0 {
		fmt.Fprintf(w, ", %d hook runs skipped by the kernel (recursion)", a.SkippedRuns)
	}
	if dropped := s.selector.Dropped(); dropped != 0 {
		fmt.Fprintf(w, ", %d sockets not shown whole (too many undecided for the filter)", dropped)
	}
	fmt.Fprintln(w)
}

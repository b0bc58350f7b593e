package main

import (
	"io"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// writer prints events, whole lines at a time.
type writer interface {
	Write(*tcp.Event) error
	Flush() error
}

// stream is the consumer that prints every event.
type stream struct {
	writer   writer
	existing bool   // print the sockets that exist at the start
	limit    uint64 // of transitions; 0: none
	events   uint64 // transitions printed
}

func (s *stream) Event(e *tcp.Event) error {
	if e.Kind == tcp.Socket && !s.existing {
		return nil
	}
	if err := s.writer.Write(e); err != nil {
		return err
	}
	if e.Kind == tcp.Transition {
		if s.events++; s.events == s.limit {
			return pipeline.Enough
		}
	}
	return nil
}

func (s *stream) Idle() error       { return s.writer.Flush() }
func (s *stream) Tick(uint64) error { return nil }

func (s *stream) Close(uint64) error {
	if closer, ok := s.writer.(io.Closer); ok { // a format that has an end
		return closer.Close()
	}
	return s.writer.Flush()
}

// undrawn returns how many connections the format had no room for.
func (s *stream) undrawn() uint64 {
	if bounded, ok := s.writer.(interface{ Forgotten() uint64 }); ok {
		return bounded.Forgotten()
	}
	return 0
}

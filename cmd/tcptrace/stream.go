package main

import (
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

func (s *stream) Idle() error        { return s.writer.Flush() }
func (s *stream) Tick(uint64) error  { return nil }
func (s *stream) Close(uint64) error { return s.writer.Flush() }

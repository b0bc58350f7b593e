package top

import (
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// tape is a recording with an event at each of these times, in seconds.
type tape struct {
	pipeline.Ended
	at       []uint64
	end      error
	deadline uint64
	now      uint64
}

func (s *tape) SetDeadline(boot uint64) { s.deadline = boot }
func (s *tape) Now() uint64             { return s.now }
func (s *tape) More() bool              { return len(s.at) > 0 }

func (s *tape) Read(e *tcp.Event) error {
	switch {
	case len(s.at) == 0:
		return s.end
	case s.deadline != 0 && s.at[0]*1e9 > s.deadline:
		s.now = s.deadline
		return os.ErrDeadlineExceeded
	}
	*e = tcp.Event{BootNS: s.at[0] * 1e9}
	s.now, s.at = e.BootNS, s.at[1:]
	return nil
}

// played is when each event came, and what Read returned instead, but for what it says while it
// waits.
func played(p *Player, reads int) (at []time.Duration, errs []error) {
	began := time.Now()
	for range reads {
		var e tcp.Event
		err := p.Read(&e)
		for errors.Is(err, os.ErrDeadlineExceeded) && p.Now() != p.source.(*tape).deadline {
			err = p.Read(&e)
		}
		errs, at = append(errs, err), append(at, time.Since(began))
	}
	return at, errs
}

func TestPlayerKeepsThePace(t *testing.T) {
	for _, test := range []struct {
		faster int
		want   []time.Duration
	}{
		{0, []time.Duration{0, 2 * time.Second, 10 * time.Second}},
		{1, []time.Duration{0, 1 * time.Second, 5 * time.Second}},
		{-2, []time.Duration{0, 20 * time.Second, 100 * time.Second}},
		{-9, []time.Duration{0, 20 * time.Second, 100 * time.Second}},
		{9, []time.Duration{0, 0, 0}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := NewPlayer(&tape{at: []uint64{100, 102, 110}, end: io.EOF}, nil)
			p.Faster(test.faster)
			at, errs := played(p, 3)
			for i := range at {
				if at[i] != test.want[i] || errs[i] != nil {
					t.Errorf("%+d: event %d came after %v, want %v: %v", test.faster, i, at[i], test.want[i], errs[i])
				}
			}
		})
	}
}

// A deadline comes at its time as well, and Now speaks of what was played.
func TestPlayerDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPlayer(&tape{at: []uint64{100, 110}, end: io.EOF}, nil)
		played(p, 1)
		p.SetDeadline(104e9)
		at, errs := played(p, 1)
		if at[0] != 4*time.Second || !errors.Is(errs[0], os.ErrDeadlineExceeded) || p.Now() != 104e9 {
			t.Errorf("after %v: %v at %d", at[0], errs[0], p.Now())
		}
		p.SetDeadline(0)
		if at, errs = played(p, 1); at[0] != 6*time.Second || errs[0] != nil || p.Now() != 110e9 {
			t.Errorf("after %v: %v at %d", at[0], errs[0], p.Now())
		}
	})
}

// A request is answered at once, also of a recording that is paused, and the event that is waited
// for is not lost.
func TestPlayerIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan struct{}, 1)
		p := NewPlayer(&tape{at: []uint64{100, 110}, end: io.EOF}, asked)
		played(p, 1)
		p.Pause(true)
		began := time.Now()
		time.AfterFunc(3*time.Second, func() { asked <- struct{}{} })
		var e tcp.Event
		if err := p.Read(&e); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		p.Pause(false)
		if at, errs := played(p, 1); at[0] != 10*time.Second || errs[0] != nil || e.BootNS == 110e9 {
			t.Errorf("after %v: %v", at, errs)
		}
	})
}

// Where nothing happens for long the time goes on all the same.
func TestPlayerTimeGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPlayer(&tape{at: []uint64{100, 1000}, end: io.EOF}, nil)
		played(p, 1)
		p.Faster(1)
		for i := range 50 {
			var e tcp.Event
			if err := p.Read(&e); !errors.Is(err, os.ErrDeadlineExceeded) || p.Now() != 100e9+uint64(i+1)*2*uint64(Wake) {
				t.Fatalf("%d: %v at %d", i, err, p.Now())
			}
		}
	})
}

func TestPlayerPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPlayer(&tape{at: []uint64{100, 110}, end: io.EOF}, nil)
		played(p, 1)
		p.Pause(true)
		time.AfterFunc(time.Hour, func() { p.Pause(false) })
		at, errs := played(p, 1)
		if want := time.Hour + 10*time.Second; at[0] != want || errs[0] != nil {
			t.Errorf("after %v: %v, want %v", at[0], errs[0], want)
		}
	})
}

// At the end it waits to be looked at, until it is stopped. What is cut off says so then.
func TestPlayerHoldsTheEnd(t *testing.T) {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF} {
		synctest.Test(t, func(t *testing.T) {
			p := NewPlayer(&tape{at: []uint64{100}, end: end}, nil)
			played(p, 1)
			time.AfterFunc(time.Hour, p.Stop)
			at, errs := played(p, 1)
			if at[0] != time.Hour || errs[0] != end {
				t.Errorf("after %v: %v, want %v", at[0], errs[0], end)
			}
			if _, ended := p.State(); !ended {
				t.Error("it is not at its end")
			}
		})
	}
}

// What is damaged is said at once.
func TestPlayerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("line 3 is broken")
		p := NewPlayer(&tape{end: broken}, nil)
		if at, errs := played(p, 1); at[0] != 0 || errs[0] != broken {
			t.Errorf("after %v: %v", at[0], errs[0])
		}
	})
}

func TestPlayerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPlayer(&tape{at: []uint64{100, 1000}, end: io.EOF}, nil)
		played(p, 1)
		time.AfterFunc(time.Second, p.Stop)
		if at, errs := played(p, 1); at[0] != time.Second || errs[0] != io.EOF {
			t.Errorf("after %v: %v", at[0], errs[0])
		}
	})
}

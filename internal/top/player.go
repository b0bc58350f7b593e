package top

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// A Player is a pipeline.Source that yields the events of a recording at the pace at which they
// happened, or another one. At its end it waits for Stop: what was recorded can be looked at.
type Player struct {
	source  pipeline.Source
	asked   <-chan struct{} // a request waits for Idle
	changed chan struct{}   // speed or paused
	stopped chan struct{}
	once    sync.Once

	mu     sync.Mutex
	speed  int // index of Speeds
	paused bool
	ended  bool

	// Of the goroutine of the reader.
	event   tcp.Event // that was read, and whose time has not come, if waits
	waits   bool
	end     error // what the source ended with; nil: it has not
	now     uint64
	started bool
	pace    float64   // the speed since then
	stands  bool      // it is paused since then
	atBoot  uint64    // this time of the recording
	atClock time.Time // was then
}

// Speeds are how fast a recording can be played; 0 is as fast as it can be read.
var Speeds = []float64{0.1, 0.5, 1, 2, 5, 10, 60, 600, 0}

// normalSpeed is the index of 1.
const normalSpeed = 2

// NewPlayer returns a player of a recording. asked tells that Read is to give up early.
func NewPlayer(source pipeline.Source, asked <-chan struct{}) *Player {
	return &Player{source: source, asked: asked, speed: normalSpeed, changed: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// Faster goes so many speeds up, or down. Any goroutine may call it.
func (p *Player) Faster(by int) {
	p.mu.Lock()
	p.speed = min(max(p.speed+by, 0), len(Speeds)-1)
	p.mu.Unlock()
	signal(p.changed)
}

// Pause stops the recording, or has it go on. Any goroutine may call it.
func (p *Player) Pause(paused bool) {
	p.mu.Lock()
	p.paused = paused
	p.mu.Unlock()
	signal(p.changed)
}

// State returns the speed, and whether the recording is at its end.
func (p *Player) State() (speed float64, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Speeds[p.speed], p.ended
}

// Read yields the next event when its time has come.
func (p *Player) Read(e *tcp.Event) error {
	due := uint64(0)
	if p.waits {
		due = p.event.BootNS
	} else if p.end == nil {
		err := p.source.Read(&p.event)
		switch {
		case err == nil:
			p.waits, due = true, p.event.BootNS
		case errors.Is(err, os.ErrDeadlineExceeded):
			due = p.source.Now()
		default:
			p.finish(err)
		}
	}
	if p.end != nil {
		return p.hold()
	}
	if err := p.await(due); err != nil {
		return err
	}
	p.now = max(p.now, due)
	if !p.waits {
		return os.ErrDeadlineExceeded
	}
	*e, p.waits = p.event, false
	return nil
}

// finish notes that nothing comes any more. What is damaged is said at once.
func (p *Player) finish(err error) {
	p.end = err
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
}

// hold waits at the end.
func (p *Player) hold() error {
	p.now = max(p.now, p.source.Now())
	if p.end != io.EOF && !errors.Is(p.end, io.ErrUnexpectedEOF) {
		return p.end
	}
	select {
	case <-p.stopped:
		return p.end
	case <-p.asked:
	case <-p.changed:
	}
	return os.ErrDeadlineExceeded
}

// await waits for a time of the recording; os.ErrDeadlineExceeded says that it has not come,
// and that Now has gone on: a tick may be due although nothing happens.
func (p *Player) await(due uint64) error {
	if !p.started {
		p.started, p.now, p.atBoot, p.atClock = true, due, due, time.Now()
	}
	for {
		p.mu.Lock()
		speed, paused := Speeds[p.speed], p.paused
		p.mu.Unlock()
		p.catchUp(due)
		if speed != p.pace || paused != p.stands {
			p.pace, p.stands = speed, paused
			p.atBoot, p.atClock = p.now, time.Now()
		}
		var timer <-chan time.Time
		if !paused {
			left := time.Duration(0)
			if speed > 0 {
				left = time.Duration(float64(due-min(p.atBoot, due))/speed) - time.Since(p.atClock)
			}
			if left <= 0 {
				return p.stoppedNow()
			}
			timer = time.After(min(left, Wake))
		}
		select {
		case <-p.stopped:
			return io.EOF
		case <-p.asked:
			return os.ErrDeadlineExceeded
		case <-timer:
			if p.catchUp(due); p.now < due {
				return os.ErrDeadlineExceeded
			}
		case <-p.changed:
		}
	}
}

// catchUp has Now be what the clock says, at the pace so far.
func (p *Player) catchUp(due uint64) {
	if p.pace > 0 && !p.stands {
		p.now = max(p.now, min(due, p.atBoot+uint64(float64(time.Since(p.atClock))*p.pace)))
	}
}

func (p *Player) stoppedNow() error {
	select {
	case <-p.stopped:
		return io.EOF
	default:
		return nil
	}
}

// More reports whether Read would not wait.
func (p *Player) More() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Speeds[p.speed] == 0 && !p.paused && p.end == nil && (p.waits || p.source.More())
}

// SetDeadline is that of the recording.
func (p *Player) SetDeadline(boot uint64) { p.source.SetDeadline(boot) }

// Now is the time up to which it was played.
func (p *Player) Now() uint64 { return p.now }

// Existing are those of the recording.
func (p *Player) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	return p.source.Existing(states, emit)
}

// Stop ends the recording where it is.
func (p *Player) Stop() {
	p.once.Do(func() { close(p.stopped) })
	p.source.Stop()
}

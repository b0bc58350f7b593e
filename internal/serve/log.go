package serve

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// logger is what the libraries behind HTTP report their errors to. Strangers make them happen,
// so no more than one a second is said; all are counted.
type logger struct {
	out    func(string)
	errors atomic.Uint64

	lock       sync.Mutex
	last       time.Time
	complained time.Time
	muted      bool
}

// say says a line, one at a time.
func (l *logger) say(text string) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.write(text)
}

func (l *logger) write(text string) {
	if !l.muted {
		l.out(text)
	}
}

// mute has nothing more said.
func (l *logger) mute() {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.muted = true
}

// Enabled is true for what somebody has to know.
func (l *logger) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// complainAgain is from one complaint to the next.
const complainAgain = 10 * time.Second

// complain says what goes wrong again and again, now and then.
func (l *logger) complain(text string) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if now := time.Now(); now.Sub(l.complained) >= complainAgain {
		l.complained = now
		l.write(text)
	}
}

// Handle says a record.
func (l *logger) Handle(_ context.Context, r slog.Record) error {
	l.errors.Add(1)
	l.lock.Lock()
	defer l.lock.Unlock()
	if now := time.Now(); now.Sub(l.last) >= time.Second {
		l.last = now
		text := strings.TrimSpace(r.Message)
		r.Attrs(func(a slog.Attr) bool {
			text += " " + a.Key + "=" + a.Value.String()
			return true
		})
		l.write(text)
	}
	return nil
}

// WithAttrs and WithGroup leave out what is the same in every line.
func (l *logger) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup does as WithAttrs.
func (l *logger) WithGroup(string) slog.Handler { return l }

// Println is for promhttp.
func (l *logger) Println(v ...any) {
	_ = l.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelError, fmt.Sprint(v...), 0)) // it never fails
}

// structured and plain are what the libraries take.
func (l *logger) structured() *slog.Logger { return slog.New(l) }
func (l *logger) plain() *log.Logger       { return slog.NewLogLogger(l, slog.LevelWarn) }

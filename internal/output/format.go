package output

import (
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// formatter writes the times of an event: the columns that depend on more than the
// event, because writers differ in precision and count from a start.
type formatter struct {
	local   clock
	date    bool   // the wall clock has the date and microseconds
	start   uint64 // CLOCK_BOOTTIME in ns that seconds counts from; 0: not known yet
	digits  int    // decimals of a millisecond, 3 or 6; what is smaller is cut off
	atLeast string // put before a duration that is only a lower bound
}

func newFormatter(o Options, digits int, atLeast string) *formatter {
	f := &formatter{
		local: clock{layout: "15:04:05", zone: time.Local},
		date:  o.Date, start: o.Start, digits: digits, atLeast: atLeast,
	}
	if f.date {
		f.local.layout = "2006-01-02 15:04:05"
	}
	return f
}

// clock formats wall clock times to the second. It keeps the last second, which
// most events share: formatting it anew costs as much as three addresses.
type clock struct {
	layout string
	zone   *time.Location
	second int64
	text   []byte
}

func (c *clock) append(b []byte, t time.Time) []byte {
	if second := t.Unix(); second != c.second || c.text == nil {
		c.second = second
		c.text = t.In(c.zone).AppendFormat(c.text[:0], c.layout)
	}
	return append(b, c.text...)
}

func (f *formatter) wallClock(b []byte, e *tcp.Event) []byte {
	t := time.Unix(0, e.Time)
	b = f.local.append(b, t)
	if f.date {
		b = appendDigits(append(b, '.'), uint64(t.Nanosecond())/1000, 6)
	}
	return b
}

// seconds is negative for an event that happened just before the first that was
// read: events of different CPUs may arrive out of order.
func (f *formatter) seconds(b []byte, e *tcp.Event) []byte {
	if f.start == 0 {
		f.start = e.BootNS
	}
	since := e.BootNS - f.start
	if e.BootNS < f.start {
		b, since = append(b, '-'), f.start-e.BootNS
	}
	return appendFixed(b, since, 9, f.digits+3)
}

// markBound says that the duration that follows is a lower bound.
func (f *formatter) markBound(b []byte, e *tcp.Event) []byte {
	if e.DurationKind == tcp.AtLeast {
		return append(b, f.atLeast...)
	}
	return b
}

func (f *formatter) milliseconds(b []byte, e *tcp.Event) []byte {
	if !e.DurationKind.Known() {
		return b
	}
	b = f.markBound(b, e)
	return appendFixed(b, e.Duration, 6, f.digits)
}

// age is a duration for the eye: 1.234s, 5m06s, 3h04m, 2d03h.
func (f *formatter) age(b []byte, e *tcp.Event) []byte {
	if !e.DurationKind.Known() {
		return b
	}
	b = f.markBound(b, e)
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch s := e.Duration / 1e9; {
	case s < minute:
		return append(appendFixed(b, e.Duration, 9, 3), 's')
	case s < hour:
		return appendUnits(b, s/minute, 'm', s%minute, 's')
	case s < day:
		return appendUnits(b, s/hour, 'h', s%hour/minute, 'm')
	default:
		return appendUnits(b, s/day, 'd', s%day/hour, 'h')
	}
}

func appendUnits(b []byte, major uint64, unit byte, minor uint64, subunit byte) []byte {
	b = append(strconv.AppendUint(b, major, 10), unit)
	return append(appendDigits(b, minor, 2), subunit)
}

var pow10 = [...]uint64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

// appendFixed appends n / 10^scale with the given number of decimals, 1 to scale.
func appendFixed(b []byte, n uint64, scale, decimals int) []byte {
	b = append(strconv.AppendUint(b, n/pow10[scale], 10), '.')
	return appendDigits(b, n%pow10[scale]/pow10[scale-decimals], decimals)
}

// appendDigits appends n, which is below 10^width, with leading zeros.
func appendDigits(b []byte, n uint64, width int) []byte {
	b = append(b, "000000000"[:width]...)
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

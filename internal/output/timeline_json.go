package output

import (
	"io"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// TimelineJSON writes one object per connection, with both ends and all their states.
type TimelineJSON struct {
	buffer
	begin, each clock
	pair        bool // of two recordings
}

// NewTimelineJSON returns a writer of JSON lines to w.
func NewTimelineJSON(w io.Writer) *TimelineJSON {
	return &TimelineJSON{buffer: newBuffer(w), begin: newUTC(), each: newUTC()}
}

// Clocks writes what two recordings tell about the clocks of their hosts.
func (j *TimelineJSON) Clocks(c timeline.Clocks) error {
	j.pair = true
	b := strconv.AppendUint(append(j.lines, `{"v":`...), tcp.SchemaVersion, 10)
	b = strconv.AppendInt(append(b, `,"type":"clocks","handshakes":`...), int64(c.Handshakes), 10)
	switch {
	case c.Handshakes == 0:
	case c.Drift > 0:
		b = appendFixed(append(b, `,"drift_ms":`...), c.Drift, 6, 6)
	default:
		b = appendSigned(append(b, `,"clock_offset_ms":`...), c.Offset)
		b = appendFixed(append(b, `,"clock_error_ms":`...), c.Error, 6, 6)
	}
	return j.keep(append(b, "}\n"...))
}

// Write writes s as one line, at once.
func (j *TimelineJSON) Write(s *timeline.Story) error {
	first := s.Ends()[0]
	begin, exact := s.Begin()
	b := strconv.AppendUint(append(j.lines, `{"v":`...), tcp.SchemaVersion, 10)
	b = appendInstant(append(b, `,"type":"timeline","start":"`...), &j.begin, first.Wall(0)+begin)
	b = append(strconv.AppendInt(append(b, `","start_boot_ns":"`...), begin, 10), '"')
	b = appendFixed(append(b, `,"duration_ms":`...), uint64(s.Finish()-begin), 6, 6)
	kind := tcp.AtLeast
	if exact {
		kind = tcp.Exact
	}
	b = appendWord(append(b, `,"duration_kind":"`...), string(kind))
	v := timelineVerdict(s)
	for _, field := range [...]struct{ name, word string }{
		{`,"closed_first":"`, v.word}, {`,"outcome":"`, string(v.outcome)}, {`,"reason":"`, string(v.reason)},
	} {
		if field.word != "" {
			b = appendWord(append(b, field.name...), field.word)
		}
	}
	if v.errno != 0 {
		b = append(errnoName(append(b, `,"errno":"`...), v.errno), '"')
	}
	if s.Ambiguous {
		b = append(b, `,"ambiguous":true`...)
	}
	if s.Offset != 0 || s.Error != 0 {
		b = appendSigned(append(b, `,"boot_offset_ms":`...), s.Offset)
		b = appendFixed(append(b, `,"clock_error_ms":`...), s.Error, 6, 6)
	}
	b = append(b, `,"ends":[`...)
	for i, e := range s.Ends() {
		if i > 0 {
			b = append(b, ',')
		}
		b = j.end(b, s, e, begin)
	}
	j.lines = append(b, "]}\n"...)
	return j.Flush()
}

func (j *TimelineJSON) end(b []byte, s *timeline.Story, e *timeline.End, begin int64) []byte {
	b = appendInstant(append(b, `{"start":"`...), &j.each, e.Wall(e.Stays[0].Begin))
	b = append(b, '"')
	if j.pair {
		b = strconv.AppendInt(append(b, `,"recording":`...), int64(e.Recording)+1, 10)
	}
	b = appendSocket(b, &e.Event)
	if e.Opened != "" {
		b = appendWord(append(b, `,"opened":"`...), string(e.Opened))
	}
	for _, flag := range [...]struct {
		name string
		set  bool
	}{{`,"open":true`, e.Open}, {`,"end_lost":true`, e.Lost}, {`,"missing":true`, e.Missing}} {
		if flag.set {
			b = append(b, flag.name...)
		}
	}
	known := e.Event
	known.HasQueues, known.HasDrops = false, false
	b = append(appendMeasures(appendOwner(b, &known), &known), `,"stays":[`...)
	for i := range e.Stays {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendStay(b, &e.Stays[i], s.At(e, e.Stays[i].Begin)-begin)
	}
	return append(b, "]}"...)
}

// TimelineFields lists the names of the fields of a story in JSON that an event does not have.
func TimelineFields() []string {
	return strings.Fields("start start_boot_ns closed_first outcome ambiguous boot_offset_ms clock_error_ms clock_offset_ms " +
		"handshakes drift_ms ends recording opened open end_lost missing stays at_ms new_state")
}

// appendStay appends one state, which began at a time after the beginning of the story.
func appendStay(b []byte, stay *timeline.Stay, at int64) []byte {
	b = appendWord(append(b, `{"state":"`...), stay.State.String())
	b = append(strconv.AppendUint(append(b, `,"boot_ns":"`...), stay.Begin, 10), '"')
	b = appendSigned(append(b, `,"at_ms":`...), at)
	if stay.Kind.Known() {
		b = appendFixed(append(b, `,"duration_ms":`...), stay.End-min(stay.Begin, stay.End), 6, 6)
	}
	b = appendWord(append(b, `,"duration_kind":"`...), string(stay.Kind))
	if stay.Next != 0 {
		b = appendWord(append(b, `,"new_state":"`...), stay.Next.String())
	}
	if stay.Reason != "" {
		b = appendWord(append(b, `,"reason":"`...), string(stay.Reason))
	}
	if stay.Errno != 0 {
		b = append(errnoName(append(b, `,"errno":"`...), stay.Errno), '"')
	}
	if stay.Owner.Source != "" {
		b = strconv.AppendUint(append(b, `,"pid":`...), uint64(stay.Owner.PID), 10)
		b = appendText(append(b, `,"comm":"`...), stay.Owner.Comm)
	}
	return append(b, '}')
}

// appendSigned appends a time in ns, which may be negative, in milliseconds.
func appendSigned(b []byte, ns int64) []byte {
	if ns < 0 {
		return appendFixed(append(b, '-'), uint64(-ns), 6, 6)
	}
	return appendFixed(b, uint64(ns), 6, 6)
}

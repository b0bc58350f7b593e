package output

import (
	"io"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// JSON writes one object per line: the recording format, whose fields are
// described in the manual. Package recording reads it back.
//
// The fields stand in the code as they stand in a line, without the table that the
// other writers share: a walk over the table took twice as long.
type JSON struct {
	buffer
	utc clock
}

// NewJSON returns a writer of JSON lines to w.
func NewJSON(w io.Writer) *JSON {
	return &JSON{newBuffer(w), newUTC()}
}

// Write writes e as one line, when the buffer is full or with the next Flush. It
// keeps nothing of e.
func (j *JSON) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	b := strconv.AppendUint(append(j.lines, `{"v":`...), tcp.SchemaVersion, 10)
	b = append(append(b, `,"type":"`...), e.Kind.String()...)
	b = appendInstant(append(b, `","time":"`...), &j.utc, e.Time)
	b = append(strconv.AppendUint(append(b, `","boot_ns":"`...), e.BootNS, 10), '"')
	if !e.Kind.OfSocket() {
		b = appendLosses(b, e)
	} else {
		b = appendMeasures(appendOwner(appendChange(appendSocket(b, e), e), e), e)
	}
	return j.keep(append(b, "}\n"...))
}

// newUTC returns a clock for appendInstant.
func newUTC() clock { return clock{layout: "2006-01-02T15:04:05", zone: time.UTC} }

// appendInstant appends a wall clock time in ns as RFC 3339 has it.
func appendInstant(b []byte, utc *clock, ns int64) []byte {
	t := time.Unix(0, ns)
	b = append(utc.append(b, t), '.')
	return append(appendDigits(b, uint64(t.Nanosecond()), 9), 'Z')
}

func appendLosses(b []byte, e *tcp.Event) []byte {
	if e.Kind == tcp.Unseen {
		b = strconv.AppendUint(append(b, `,"netns":`...), uint64(e.NetNS), 10)
	}
	b = strconv.AppendUint(append(b, `,"events":`...), e.Lost, 10)
	return appendText(append(b, `,"where":"`...), e.Where)
}

func appendSocket(b []byte, e *tcp.Event) []byte {
	if e.Cookie != 0 {
		b = append(strconv.AppendUint(append(b, `,"cookie":"`...), e.Cookie, 16), '"')
	}
	if e.SkAddr != 0 {
		b = append(strconv.AppendUint(append(b, `,"skaddr":"0x`...), e.SkAddr, 16), '"')
	}
	if e.NetNS != 0 {
		b = strconv.AppendUint(append(b, `,"netns":`...), uint64(e.NetNS), 10)
	}
	if e.Device != 0 {
		b = strconv.AppendUint(append(b, `,"device":`...), uint64(e.Device), 10)
	}
	if family := e.Family(); family != "" {
		b = appendWord(append(b, `,"family":"`...), family)
	}
	b = appendWord(append(b, `,"protocol":"`...), e.Protocol())
	if e.Local.IsValid() {
		b = append(e.Local.Addr().AppendTo(append(b, `,"laddr":"`...)), '"')
	}
	b = strconv.AppendUint(append(b, `,"lport":`...), uint64(e.Local.Port()), 10)
	if e.Remote.IsValid() {
		b = append(e.Remote.Addr().AppendTo(append(b, `,"raddr":"`...)), '"')
	}
	return strconv.AppendUint(append(b, `,"rport":`...), uint64(e.Remote.Port()), 10)
}

func appendChange(b []byte, e *tcp.Event) []byte {
	if e.Kind == tcp.Transition {
		b = appendWord(append(b, `,"old_state":"`...), e.Old.String())
		b = appendWord(append(b, `,"new_state":"`...), e.New.String())
	} else {
		b = appendWord(append(b, `,"state":"`...), e.New.String())
	}
	if e.DurationKind.Known() {
		b = appendFixed(append(b, `,"duration_ms":`...), e.Duration, 6, 6)
	}
	return appendCause(b, e)
}

// appendCause appends how well the duration is known, and why the state ended.
func appendCause(b []byte, e *tcp.Event) []byte {
	if e.DurationKind != "" {
		b = appendWord(append(b, `,"duration_kind":"`...), string(e.DurationKind))
	}
	if e.Reason != "" {
		b = appendWord(append(b, `,"reason":"`...), string(e.Reason))
	}
	if e.Errno != 0 {
		b = append(errno(append(b, `,"errno":"`...), e), '"')
	}
	return b
}

func appendOwner(b []byte, e *tcp.Event) []byte {
	if e.Role != "" {
		b = appendWord(append(b, `,"role":"`...), string(e.Role))
	}
	if e.OwnerSource != "" {
		b = strconv.AppendUint(append(b, `,"pid":`...), uint64(e.PID), 10)
		b = appendText(append(b, `,"comm":"`...), e.Comm)
	}
	if e.UID != tcp.NoUID {
		b = strconv.AppendUint(append(b, `,"uid":`...), uint64(e.UID), 10)
	}
	if e.FD >= 0 {
		b = strconv.AppendUint(append(b, `,"fd":`...), uint64(e.FD), 10)
	}
	if e.OwnerSource != "" {
		b = appendWord(append(b, `,"owner_source":"`...), string(e.OwnerSource))
	}
	if e.Unaccepted {
		b = append(b, `,"unaccepted":true`...)
	}
	if e.Acked {
		b = append(b, `,"acked":true`...)
	}
	if e.Holder != "" {
		b = appendWord(append(b, `,"holder":"`...), string(e.Holder))
	}
	if e.Cgroup != "" {
		b = appendText(append(b, `,"cgroup":"`...), e.Cgroup)
	}
	if e.ContainerID != "" {
		b = appendText(append(b, `,"container_id":"`...), e.ContainerID)
	}
	b = appendNames(b, e)
	if e.Details != nil {
		b = appendDetails(b, e.Details)
	}
	return b
}

// appendNames appends what people call the place.
func appendNames(b []byte, e *tcp.Event) []byte {
	if unit := tcp.Unit(e.Cgroup); unit != "" {
		b = appendText(append(b, `,"unit":"`...), unit)
	}
	if e.Names == nil {
		return b
	}
	for _, name := range [...]struct{ key, value string }{
		{`,"container":"`, e.Names.Container}, {`,"image":"`, e.Names.Image}, {`,"pod":"`, e.Names.Pod},
		{`,"pod_uid":"`, e.Names.PodUID}, {`,"namespace":"`, e.Names.Namespace},
	} {
		if name.value != "" {
			b = appendText(append(b, name.key...), name.value)
		}
	}
	return b
}

func appendDetails(b []byte, d *tcp.Details) []byte {
	if d.Cmdline != "" {
		b = appendText(append(b, `,"cmdline":"`...), d.Cmdline)
	}
	if d.Holders == nil {
		return b
	}
	b = append(b, `,"holders":[`...)
	for i := range d.Holders {
		p := &d.Holders[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(append(b, `{"pid":`...), uint64(p.PID), 10)
		b = appendText(append(b, `,"comm":"`...), p.Comm)
		if p.FD >= 0 {
			b = strconv.AppendInt(append(b, `,"fd":`...), int64(p.FD), 10)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if d.HoldersMore > 0 {
		b = strconv.AppendUint(append(b, `,"holders_more":`...), uint64(d.HoldersMore), 10)
	}
	return b
}

func appendMeasures(b []byte, e *tcp.Event) []byte {
	if e.HasCounters {
		b = strconv.AppendUint(append(b, `,"bytes_sent":`...), e.BytesSent, 10)
		b = strconv.AppendUint(append(b, `,"bytes_received":`...), e.BytesReceived, 10)
		b = strconv.AppendUint(append(b, `,"retransmits":`...), uint64(e.Retransmits), 10)
		b = strconv.AppendUint(append(b, `,"srtt_us":`...), uint64(e.SRTT), 10)
	}
	if e.HasQueues {
		b = strconv.AppendUint(append(b, `,"rx_queue":`...), uint64(e.RxQueue), 10)
		b = strconv.AppendUint(append(b, `,"tx_queue":`...), uint64(e.TxQueue), 10)
	}
	if e.HasDrops {
		b = strconv.AppendUint(append(b, `,"drops":`...), uint64(e.Drops), 10)
	}
	return b
}

// appendWord appends a word of our own, such as a state, and the quote that ends it.
// Package recording takes no others.
func appendWord(b []byte, word string) []byte { return append(append(b, word...), '"') }

// appendText appends what may hold anything, and the quote that ends it.
func appendText(b []byte, s string) []byte { return append(appendJSON(b, s), '"') }

package output

import (
	"fmt"
	"io"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// JSON writes one object per line: the recording format, whose fields are
// described in the manual. NewReader reads it back.
type JSON struct {
	buffer
	heads  [tcp.Lost + 1]string  // by kind: v and type, which are the same for all its events
	fields [tcp.Lost + 1][]field // by kind: the others, in the order they are written
}

// field is a column with what precedes its value: `,"lport":`, or `,"comm":"`.
type field struct {
	column
	prefix string
}

// schemaVersion is the field v. It rises when the meaning of a field changes, not
// when a field is added.
const schemaVersion = 1

// What the fields type, family and protocol hold.
const (
	ipv4, ipv6           = "ipv4", "ipv6"
	protoTCP, protoMPTCP = "tcp", "mptcp"
)

var kindNames = [...]string{tcp.Transition: "transition", tcp.Socket: "socket", tcp.Lost: "lost"}

// NewJSON returns a writer of JSON lines to w.
func NewJSON(w io.Writer) *JSON {
	j := &JSON{buffer: newBuffer(w)}
	table := newPen(0, 6, "").table()
	for kind, name := range kindNames {
		j.heads[kind] = fmt.Sprintf(`{"v":%d,"type":"%s"`, schemaVersion, name)
		for _, c := range table {
			if c.key == "" || !c.on.has(tcp.Kind(kind)) {
				continue
			}
			prefix := `,"` + c.key + `":`
			if c.number == nil && !c.bare {
				prefix += `"`
			}
			j.fields[kind] = append(j.fields[kind], field{c, prefix})
		}
	}
	return j
}

// Write writes e as one line, when the buffer is full or with the next Flush. It
// keeps nothing of e.
func (j *JSON) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	b := append(j.lines, j.heads[e.Kind]...)
	for i := range j.fields[e.Kind] {
		b = j.fields[e.Kind][i].appendTo(b, e)
	}
	return j.keep(append(b, "}\n"...))
}

// appendTo appends the field with its prefix, or nothing if e has no value for it.
func (f *field) appendTo(b []byte, e *tcp.Event) []byte {
	switch {
	case f.number != nil:
		if v, ok := f.number(e); ok {
			b = strconv.AppendUint(append(b, f.prefix...), v, 10)
		}
		return b
	case f.text != nil:
		if s, ok := f.text(e); ok {
			b = append(appendJSON(append(b, f.prefix...), s), '"')
		}
		return b
	}
	start, value := len(b), len(b)+len(f.prefix)
	b = f.append(append(b, f.prefix...), e)
	if len(b) == value {
		return b[:start]
	}
	if !f.bare {
		b = append(b, '"')
	}
	return b
}

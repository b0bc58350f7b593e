package otlp

import (
	"math"
	"net/netip"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tcptrace/tcptrace/internal/connection"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The numbers of fields in opentelemetry/proto/logs/v1/logs.proto and common/v1/common.proto.
const (
	recordTime       = 1
	recordSeverity   = 2
	recordLevel      = 3
	recordBody       = 5
	recordAttributes = 6
	recordObserved   = 11
	recordEvent      = 12

	pairKey, pairValue = 1, 2

	valueString, valueBool, valueInt, valueDouble = 1, 2, 3, 4
)

// The severities that are used.
const (
	severityInfo, levelInfo = 9, "INFO"
	severityWarn, levelWarn = 13, "WARN"
)

// The names of events.
const (
	EventConnection = "tcptrace.connection"
	EventLeak       = "tcptrace.leak"
	EventTransition = "tcptrace.transition"
)

// encoder appends one LogRecord in the wire format. The types that protoc generates would have a
// hundred allocations for each record, in the goroutine that captures; this has none. It writes
// each attribute where it stays, its length first: a record has some thirty.
type encoder struct {
	b    []byte
	text []byte // what has to be made before its length is known
}

// begin appends what every record has. Both times are in ns since the Unix epoch.
func (e *encoder) begin(name string, at int64, severity uint64, level string) {
	e.b = e.b[:0]
	for _, field := range []protowire.Number{recordTime, recordObserved} {
		e.b = protowire.AppendTag(e.b, field, protowire.Fixed64Type)
		e.b = protowire.AppendFixed64(e.b, uint64(at))
	}
	e.b = protowire.AppendTag(e.b, recordSeverity, protowire.VarintType)
	e.b = protowire.AppendVarint(e.b, severity)
	e.b = appendText(e.b, recordLevel, level)
	e.b = appendText(e.b, recordEvent, name)
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

// body is the sentence for people.
func (e *encoder) body(sentence string) {
	sentence = valid(sentence)
	e.b = protowire.AppendTag(e.b, recordBody, protowire.BytesType)
	e.b = appendSize(e.b, 1+protowire.SizeBytes(len(sentence)))
	e.b = appendText(e.b, valueString, sentence)
}

// attribute appends an attribute but for its value, which takes size bytes with its tag. A key is
// shorter than 128 bytes.
func (e *encoder) attribute(key string, size int) {
	e.b = append(e.b, recordAttributes<<3|byte(protowire.BytesType))
	e.b = appendSize(e.b, 2+len(key)+1+protowire.SizeBytes(size))
	e.b = append(e.b, pairKey<<3|byte(protowire.BytesType), byte(len(key)))
	e.b = append(e.b, key...)
	e.b = append(e.b, pairValue<<3|byte(protowire.BytesType))
	e.b = appendSize(e.b, size)
}

// appendSize appends a length, most of which take one byte.
func appendSize(b []byte, n int) []byte {
	if n < 0x80 {
		return append(b, byte(n))
	}
	return protowire.AppendVarint(b, uint64(n))
}

// str appends text, unless there is none.
func (e *encoder) str(key, text string) {
	if text == "" {
		return
	}
	text = valid(text)
	e.attribute(key, 1+protowire.SizeBytes(len(text)))
	e.b = append(e.b, valueString<<3|byte(protowire.BytesType))
	e.b = append(appendSize(e.b, len(text)), text...)
}

// made appends the text that was made.
func (e *encoder) made(key string) {
	e.attribute(key, 1+protowire.SizeBytes(len(e.text)))
	e.b = append(e.b, valueString<<3|byte(protowire.BytesType))
	e.b = append(appendSize(e.b, len(e.text)), e.text...)
}

func (e *encoder) num(key string, n uint64) {
	e.attribute(key, 1+protowire.SizeVarint(n))
	e.b = protowire.AppendVarint(append(e.b, valueInt<<3|byte(protowire.VarintType)), n)
}

func (e *encoder) float(key string, x float64) {
	e.attribute(key, 1+protowire.SizeFixed64())
	e.b = protowire.AppendFixed64(append(e.b, valueDouble<<3|byte(protowire.Fixed64Type)), math.Float64bits(x))
}

func (e *encoder) yes(key string, is bool) {
	if !is {
		return
	}
	e.attribute(key, 2)
	e.b = append(e.b, valueBool<<3|byte(protowire.VarintType), 1)
}

func (e *encoder) ms(key string, ns uint64) { e.float(key, float64(ns)/1e6) }

// valid makes text from outside UTF-8, without which a receiver refuses all that came with it.
func valid(text string) string {
	if utf8.ValidString(text) {
		return text
	}
	return strings.ToValidUTF8(text, "\ufffd")
}

// address appends an end of a connection, by the names of the semantic conventions.
func (e *encoder) address(addrKey, portKey string, end netip.AddrPort) {
	if !end.IsValid() {
		return
	}
	e.text = end.Addr().AppendTo(e.text[:0])
	e.made(addrKey)
	if end.Port() != 0 {
		e.num(portKey, uint64(end.Port()))
	}
}

// socket appends what an event says of its socket: semantic conventions where they have a name,
// and else the names of the JSON fields behind "tcptrace.".
func (e *encoder) socket(event *tcp.Event, service string) {
	e.str("network.transport", "tcp")
	e.str("network.type", event.Family())
	e.address("network.local.address", "network.local.port", event.Local)
	e.address("network.peer.address", "network.peer.port", event.Remote)
	if event.OwnerSource != "" {
		e.num("process.pid", uint64(event.PID))
		e.str("tcptrace.comm", event.Comm)
	}
	if event.UID != tcp.NoUID {
		e.num("tcptrace.uid", uint64(event.UID))
	}
	e.str("tcptrace.cgroup", event.Cgroup)
	e.str("container.id", event.ContainerID)
	e.names(event.Names)
	e.str("tcptrace.service", service)
	e.str("tcptrace.role", string(event.Role))
	if event.Cookie != 0 {
		e.text = appendHex(e.text[:0], event.Cookie)
		e.made("tcptrace.cookie")
	}
	if event.NetNS != 0 {
		e.num("tcptrace.netns", uint64(event.NetNS))
	}
	e.str("tcptrace.reason", string(event.Reason))
	e.str("tcptrace.error", errnoName(event.Errno))
	if event.HasCounters {
		e.num("tcptrace.bytes_sent", event.BytesSent)
		e.num("tcptrace.bytes_received", event.BytesReceived)
		e.num("tcptrace.retransmits", uint64(event.Retransmits))
		e.ms("tcptrace.srtt_ms", uint64(event.SRTT)*1000)
	}
}

// names appends what people call the container, by the names of the semantic conventions.
func (e *encoder) names(n *tcp.Names) {
	if n == nil {
		return
	}
	e.str("container.image.name", n.Image)
	if n.PodUID == "" {
		e.str("container.name", n.Container)
		return
	}
	e.str("k8s.container.name", n.Container)
	e.str("k8s.pod.name", n.Pod)
	e.str("k8s.pod.uid", n.PodUID)
	e.str("k8s.namespace.name", n.Namespace)
}

func appendHex(b []byte, n uint64) []byte {
	const digits = "0123456789abcdef"
	shift := 60
	for shift > 0 && n>>shift == 0 {
		shift -= 4
	}
	for ; shift >= 0; shift -= 4 {
		b = append(b, digits[n>>shift&15])
	}
	return b
}

// stayKeys are the attributes of the times in the states, and of how well each is known.
var stayKeys = func() (keys [len(connection.Record{}.Stays)][2]string) {
	for _, s := range connection.States {
		name := "tcptrace." + strings.ToLower(s.String())
		keys[s] = [2]string{name + "_ms", name + "_kind"}
	}
	return keys
}()

// connection appends the record of a connection that has ended.
func (e *encoder) connection(r *connection.Record, service string) {
	e.begin(EventConnection, r.Time, severityInfo, levelInfo)
	e.socket(&r.Event, service)
	e.str("tcptrace.outcome", string(r.Outcome))
	e.str("tcptrace.closed_first", string(r.ClosedFirst))
	e.str("tcptrace.state", r.New.String())
	e.ms("tcptrace.duration_ms", r.Duration)
	e.str("tcptrace.duration_kind", string(r.DurationKind))
	for _, s := range connection.States {
		stay := &r.Stays[s]
		if stay.Kind.Known() {
			e.ms(stayKeys[s][0], stay.NS)
		}
		if stay.Kind != tcp.Exact { // empty: it was never in it
			e.str(stayKeys[s][1], string(stay.Kind))
		}
	}
	e.yes("tcptrace.missing", r.Missing)
}

// transition appends a state change.
func (e *encoder) transition(event *tcp.Event, service string) {
	e.begin(EventTransition, event.Time, severityInfo, levelInfo)
	e.socket(event, service)
	e.str("tcptrace.old", event.Old.String())
	e.str("tcptrace.new", event.New.String())
	if event.DurationKind.Known() {
		e.ms("tcptrace.duration_ms", event.Duration)
	}
	e.str("tcptrace.duration_kind", string(event.DurationKind))
}

// Verdict is a group of sockets whose verdict has changed. A value that is not known is zero or
// empty.
type Verdict struct {
	Time           int64 // ns since the Unix epoch
	Leak           bool  // else it was one
	Verdict        string
	Sentence       string // for people
	Service        string
	State          tcp.State
	PID            uint32
	Comm           string
	Container      string
	Names          tcp.Names
	Cgroup         string
	Role           tcp.Role
	Holder         tcp.Holder
	NetNS          uint32
	LocalPort      uint16
	Remote         netip.AddrPort // the port is 0 for the clients of a server
	Sockets        int
	Oldest         uint64 // ns
	AtLeast        bool
	Growth         float64 // per minute
	GrowthKnown    bool
	FilesLeft      uint64 // ns until the process has no descriptor left
	FilesLeftKnown bool
	Cause          string
	Diagnosis      string
	Stack          []string // of most of the sockets, the innermost frame first
}

// leak appends a verdict.
func (e *encoder) leak(v *Verdict) {
	if v.Leak {
		e.begin(EventLeak, v.Time, severityWarn, levelWarn)
	} else {
		e.begin(EventLeak, v.Time, severityInfo, levelInfo)
	}
	e.body(v.Sentence)
	e.str("tcptrace.verdict", v.Verdict)
	e.str("tcptrace.service", v.Service)
	e.str("tcptrace.state", v.State.String())
	e.num("tcptrace.sockets", uint64(v.Sockets))
	e.float("tcptrace.oldest_s", float64(v.Oldest)/1e9)
	e.yes("tcptrace.oldest_at_least", v.AtLeast)
	if v.GrowthKnown {
		e.float("tcptrace.growth_per_min", v.Growth)
	}
	if v.FilesLeftKnown {
		e.float("tcptrace.limit_reached_s", float64(v.FilesLeft)/1e9)
	}
	e.str("tcptrace.cause", v.Cause)
	e.str("tcptrace.diagnosis", v.Diagnosis)
	e.str("code.stacktrace", strings.Join(v.Stack, "\n"))
	e.str("network.transport", "tcp")
	if v.PID != 0 {
		e.num("process.pid", uint64(v.PID))
	}
	e.str("tcptrace.comm", v.Comm)
	e.str("container.id", v.Container)
	e.names(&v.Names)
	e.str("tcptrace.cgroup", v.Cgroup)
	e.str("tcptrace.role", string(v.Role))
	e.str("tcptrace.holder", string(v.Holder))
	if v.NetNS != 0 {
		e.num("tcptrace.netns", uint64(v.NetNS))
	}
	if v.LocalPort != 0 {
		e.num("network.local.port", uint64(v.LocalPort))
	}
	e.address("network.peer.address", "network.peer.port", v.Remote)
}

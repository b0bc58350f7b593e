// Package recording reads recordings: what `tcptrace -j` wrote. A Source is one as a
// source of events; a Reader is what it reads the lines with. A Writer writes such lines to
// files, compressed and in turns; what makes a line of an event is output.JSON.
package recording

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unique"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Reader reads a recording: JSON lines as JSON writes them. The input may
// be hostile: an event is whole and within its ranges, or an error. Fields that
// it does not know are ignored, so that newer recordings can be read.
type Reader struct {
	name string
	in   *bufio.Reader
	line int
	err  error // what ended the reading
}

// maxLine bounds a line, and with it what a Reader holds. The longest that is
// ever written has a cgroup path of 4096 bytes, each of them escaped.
const maxLine = 64 << 10

// NewReader returns a Reader of r, which its errors call name.
func NewReader(r io.Reader, name string) *Reader {
	return &Reader{name: name, in: bufio.NewReaderSize(r, maxLine)}
}

// More reports whether the next line has been read from the input already, so
// that Read will not block.
func (r *Reader) More() bool {
	buffered, _ := r.in.Peek(r.in.Buffered()) // no error: not more than there is
	return bytes.IndexByte(buffered, '\n') >= 0
}

// Read sets *e to the next event. It blocks until the input has a whole line, and
// returns io.EOF at the end. Any other error names the line and is final; *e is
// not changed then.
func (r *Reader) Read(e *tcp.Event) error {
	if r.err != nil {
		return r.err
	}
	event, err := r.next()
	if err == io.EOF {
		r.err = err
	} else if err != nil {
		r.err = fmt.Errorf("%s:%d: %w", r.name, r.line, err)
	} else {
		*e = event
	}
	return r.err
}

func (r *Reader) next() (tcp.Event, error) {
	r.line++
	line, err := r.in.ReadSlice('\n')
	if r.line == 1 {
		if err := checkEncoding(line); err != nil {
			return tcp.Event{}, err
		}
	}
	switch {
	case err == bufio.ErrBufferFull:
		return tcp.Event{}, fmt.Errorf("the line is longer than %d bytes: not a recording of tcptrace", maxLine)
	case err == io.EOF && len(line) == 0:
		return tcp.Event{}, io.EOF
	case err == io.EOF && !json.Valid(line):
		return tcp.Event{}, errCutOff
	case err != nil && err != io.EOF:
		return tcp.Event{}, fmt.Errorf("reading: %w", err)
	}
	var rec record
	if err := json.Unmarshal(line, &rec); err != nil {
		return tcp.Event{}, explain(err)
	}
	return rec.event()
}

const errCutOff = cutOffError("the last line is cut off: the recording was not finished")

// encodings are what recordings are found in that are not JSON lines any more, and the
// command that makes them so again.
var encodings = []struct{ begin, what, undo string }{
	{"\xfd7zXZ\x00", "compressed with xz", "xzcat FILE"},
	{"BZh", "compressed with bzip2", "bzcat FILE"},
	{"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 FILE"},
	{"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 FILE"},
	{"{\x00", "UTF-16 text", "iconv -f UTF-16LE -t UTF-8 FILE"},
	{"\x00{", "UTF-16 text", "iconv -f UTF-16BE -t UTF-8 FILE"},
	{"\xef\xbb\xbf", "text with a byte order mark", "tail -c +4 FILE"},
}

// checkEncoding returns an error for what begins in a way that no recording does.
func checkEncoding(line []byte) error {
	for _, e := range encodings {
		if bytes.HasPrefix(line, []byte(e.begin)) {
			return fmt.Errorf("this is %s, not a recording as tcptrace writes it: try %s | tcptrace -r -", e.what, e.undo)
		}
	}
	return nil
}

// explain puts an error of encoding/json in the words of the recording.
func explain(err error) error {
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if t.Field == "" {
			return fmt.Errorf("a line must be a JSON object, not %s", t.Value)
		}
		return fmt.Errorf("%s cannot be %.80s", t.Field, t.Value)
	}
	return fmt.Errorf("not a JSON object: %w", err)
}

// record is a line of a recording. A field that is absent is nil.
type record struct {
	V             *uint64      `json:"v"`
	Type          *string      `json:"type"`
	Time          *string      `json:"time"`
	BootNS        *string      `json:"boot_ns"`
	Cookie        *string      `json:"cookie"`
	SkAddr        *string      `json:"skaddr"`
	NetNS         *uint32      `json:"netns"`
	Device        *uint32      `json:"device"`
	Family        *string      `json:"family"`
	Protocol      *string      `json:"protocol"`
	LAddr         *string      `json:"laddr"`
	LPort         *uint16      `json:"lport"`
	RAddr         *string      `json:"raddr"`
	RPort         *uint16      `json:"rport"`
	OldState      *string      `json:"old_state"`
	NewState      *string      `json:"new_state"`
	State         *string      `json:"state"`
	DurationMS    *json.Number `json:"duration_ms"`
	DurationKind  *string      `json:"duration_kind"`
	Reason        *string      `json:"reason"`
	Errno         *string      `json:"errno"`
	Role          *string      `json:"role"`
	PID           *uint32      `json:"pid"`
	Comm          *string      `json:"comm"`
	UID           *uint32      `json:"uid"`
	FD            *uint32      `json:"fd"`
	OwnerSource   *string      `json:"owner_source"`
	Holder        *string      `json:"holder"`
	Unaccepted    *bool        `json:"unaccepted"`
	Acked         *bool        `json:"acked"`
	Cgroup        *string      `json:"cgroup"`
	ContainerID   *string      `json:"container_id"`
	Unit          *string      `json:"unit"` // a part of the cgroup
	Container     *string      `json:"container"`
	Image         *string      `json:"image"`
	Pod           *string      `json:"pod"`
	PodUID        *string      `json:"pod_uid"`
	Namespace     *string      `json:"namespace"`
	Cmdline       *string      `json:"cmdline"`
	Holders       []process    `json:"holders"`
	HoldersMore   *uint32      `json:"holders_more"`
	BytesSent     *uint64      `json:"bytes_sent"`
	BytesReceived *uint64      `json:"bytes_received"`
	Retransmits   *uint32      `json:"retransmits"`
	SRTT          *uint32      `json:"srtt_us"`
	RxQueue       *uint32      `json:"rx_queue"`
	TxQueue       *uint32      `json:"tx_queue"`
	Drops         *uint32      `json:"drops"`
	Events        *uint64      `json:"events"`
	Where         *string      `json:"where"`
}

// process is one of the holders.
type process struct {
	PID  *uint32 `json:"pid"`
	Comm *string `json:"comm"`
	FD   *uint32 `json:"fd"`
}

// What the fields of a fixed set can hold.
var (
	parseReason       = oneOf(tcp.Reasons...)
	parseDurationKind = oneOf(tcp.Exact, tcp.AtLeast, tcp.Unknown)
	parseRole         = oneOf(tcp.Client, tcp.Server, tcp.Listener)
	parseHolder       = oneOf(tcp.Held, tcp.Gone)
	parseProtocol     = oneOf(tcp.ProtoTCP, tcp.ProtoMPTCP)
	parseOwnerSource  = oneOf(
		tcp.FromConnect, tcp.FromListen, tcp.FromAccept, tcp.FromUse,
		tcp.FromSnapshot, tcp.FromClose, tcp.FromInherited,
	)
)

// fields takes the fields of a record, and keeps the first thing that is wrong
// with them.
type fields struct{ err error }

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(format, args...)
	}
}

// require returns the value of a field that must be there.
func require[T any](f *fields, name string, v *T) (value T) {
	if v == nil {
		f.fail("%s is missing", name)
		return value
	}
	return *v
}

// orElse returns the value of a field that may be absent.
func orElse[T any](v *T, absent T) T {
	if v == nil {
		return absent
	}
	return *v
}

// parse returns the value of a field that must be there, as from understands it.
func parse[T any](f *fields, name string, v *string, from func(string) (T, error)) (value T) {
	if v == nil {
		f.fail("%s is missing", name)
		return value
	}
	value, err := from(*v)
	if err != nil {
		f.fail("%s is %.80q: %w", name, *v, err)
	}
	return value
}

// parseIf is parse for a field that may be absent.
func parseIf[T any](f *fields, name string, v *string, from func(string) (T, error)) (value T) {
	if v == nil {
		return value
	}
	return parse(f, name, v, from)
}

// oneOf returns a parser of the names in set.
func oneOf[T ~string](set ...T) func(string) (T, error) {
	return func(s string) (T, error) {
		if i := slices.Index(set, T(s)); i >= 0 {
			return set[i], nil
		}
		return "", errors.New("no such value is known")
	}
}

// together reports whether the named fields are there: all of them or none.
func (f *fields) together(names string, present ...bool) bool {
	if !slices.Contains(present, false) {
		return true
	}
	if slices.Contains(present, true) {
		f.fail("of %s some are missing", names)
	}
	return false
}

// shared returns one copy of a text, however often it comes.
func shared(s string) string { return unique.Make(s).Value() }

// event returns the event that the record describes.
func (rec *record) event() (tcp.Event, error) {
	f := new(fields)
	if v := require(f, "v", rec.V); v != tcp.SchemaVersion {
		f.fail("v is %d, but this tcptrace reads version %d", v, tcp.SchemaVersion)
	}
	e := tcp.Event{UID: tcp.NoUID, FD: tcp.NoFD}
	e.Kind = parse(f, "type", rec.Type, parseKind)
	e.Time = parse(f, "time", rec.Time, parseTime)
	e.BootNS = parse(f, "boot_ns", rec.BootNS, parseBootNS)
	if f.err == nil && !e.Kind.OfSocket() {
		if e.Kind == tcp.Unseen {
			e.NetNS = require(f, "netns", rec.NetNS)
		}
		e.Lost = require(f, "events", rec.Events)
		e.Where = shared(require(f, "where", rec.Where))
		return e, f.err
	}
	f.identity(&e, rec)
	f.change(&e, rec)
	e.Errno = parseIf(f, "errno", rec.Errno, ParseErrno)
	f.owner(&e, rec)
	f.measures(&e, rec)
	return e, f.err
}

func (f *fields) identity(e *tcp.Event, rec *record) {
	e.Cookie = parseIf(f, "cookie", rec.Cookie, parseHex)
	e.SkAddr = parseIf(f, "skaddr", rec.SkAddr, func(s string) (uint64, error) {
		digits, ok := strings.CutPrefix(s, "0x")
		if !ok {
			return 0, errors.New("it must begin with 0x")
		}
		return parseHex(digits)
	})
	e.NetNS, e.Device = orElse(rec.NetNS, 0), orElse(rec.Device, 0)
	local := parse(f, "laddr", rec.LAddr, parseAddr)
	remote := parse(f, "raddr", rec.RAddr, parseAddr)
	e.Local = netip.AddrPortFrom(local, require(f, "lport", rec.LPort))
	e.Remote = netip.AddrPortFrom(remote, require(f, "rport", rec.RPort))
	named := require(f, "family", rec.Family)
	if named != e.Family() || local.Is4() != remote.Is4() {
		f.fail("family is %.80q, but the addresses are %v and %v", named, local, remote)
	}
	e.MPTCP = parse(f, "protocol", rec.Protocol, parseProtocol) == tcp.ProtoMPTCP
}

func (f *fields) change(e *tcp.Event, rec *record) {
	if e.Kind == tcp.Socket {
		e.New = parse(f, "state", rec.State, parseState)
	} else {
		e.Old = parse(f, "old_state", rec.OldState, parseState)
		e.New = parse(f, "new_state", rec.NewState, parseState)
	}
	e.DurationKind = parseIf(f, "duration_kind", rec.DurationKind, parseDurationKind)
	known := e.DurationKind.Known()
	if f.together("duration_ms and its duration_kind", rec.DurationMS != nil, known) {
		e.Duration = parse(f, "duration_ms", (*string)(rec.DurationMS), parseMilliseconds)
	}
	e.Reason = parseIf(f, "reason", rec.Reason, parseReason)
}

func (f *fields) owner(e *tcp.Event, rec *record) {
	e.Role = parseIf(f, "role", rec.Role, parseRole)
	e.OwnerSource = parseIf(f, "owner_source", rec.OwnerSource, parseOwnerSource)
	if f.together("pid, comm and owner_source", rec.PID != nil, rec.Comm != nil, e.OwnerSource != "") {
		e.PID, e.Comm = *rec.PID, shared(*rec.Comm)
	}
	e.Holder = parseIf(f, "holder", rec.Holder, parseHolder)
	e.Unaccepted, e.Acked = orElse(rec.Unaccepted, false), orElse(rec.Acked, false)
	e.UID = orElse(rec.UID, tcp.NoUID)
	e.FD = f.descriptor(rec.FD)
	e.Cgroup, e.ContainerID = shared(orElse(rec.Cgroup, "")), shared(orElse(rec.ContainerID, ""))
	e.Names = rec.names()
	e.Details = f.details(rec)
}

// names are nil where the record has none.
func (rec *record) names() *tcp.Names {
	if rec.Container == nil && rec.Image == nil && rec.Pod == nil && rec.PodUID == nil && rec.Namespace == nil {
		return nil
	}
	return &tcp.Names{
		Container: shared(orElse(rec.Container, "")), Image: shared(orElse(rec.Image, "")), Pod: shared(orElse(rec.Pod, "")),
		PodUID: shared(orElse(rec.PodUID, "")), Namespace: shared(orElse(rec.Namespace, "")),
	}
}

func (f *fields) descriptor(fd *uint32) int32 {
	switch {
	case fd == nil:
		return tcp.NoFD
	case *fd > math.MaxInt32:
		f.fail("fd is %d, which is out of range", *fd)
	}
	return int32(*fd)
}

func (f *fields) details(rec *record) *tcp.Details {
	if rec.Cmdline == nil && rec.Holders == nil && rec.HoldersMore == nil {
		return nil
	}
	d := &tcp.Details{Cmdline: shared(orElse(rec.Cmdline, "")), HoldersMore: orElse(rec.HoldersMore, 0)}
	if len(rec.Holders) == 0 && d.HoldersMore > 0 {
		f.fail("holders is missing")
	}
	for _, p := range rec.Holders {
		d.Holders = append(d.Holders, tcp.Process{
			PID: require(f, "pid of holders", p.PID), Comm: shared(require(f, "comm of holders", p.Comm)), FD: f.descriptor(p.FD),
		})
	}
	return d
}

func (f *fields) measures(e *tcp.Event, rec *record) {
	e.HasCounters = f.together("bytes_sent, bytes_received, retransmits and srtt_us",
		rec.BytesSent != nil, rec.BytesReceived != nil, rec.Retransmits != nil, rec.SRTT != nil)
	e.BytesSent, e.BytesReceived = orElse(rec.BytesSent, 0), orElse(rec.BytesReceived, 0)
	e.Retransmits, e.SRTT = orElse(rec.Retransmits, 0), orElse(rec.SRTT, 0)
	e.HasQueues = f.together("rx_queue and tx_queue", rec.RxQueue != nil, rec.TxQueue != nil)
	e.HasDrops, e.Drops = rec.Drops != nil, orElse(rec.Drops, 0)
	e.RxQueue, e.TxQueue = orElse(rec.RxQueue, 0), orElse(rec.TxQueue, 0)
}

func parseKind(s string) (tcp.Kind, error) {
	kind, err := tcp.ParseKind(s)
	if err != nil {
		return 0, errors.New("no such type is known")
	}
	return kind, nil
}

func parseTime(s string) (int64, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, errors.New("not a time of RFC 3339")
	}
	ns := t.UnixNano()
	if !time.Unix(0, ns).Equal(t) {
		return 0, errors.New("out of range")
	}
	return ns, nil
}

// parseBootNS takes what CLOCK_BOOTTIME can be: it is a signed number in the kernel
// (ktime_t). So a sum of two times, or of a time and a time.Duration, does not overflow.
func parseBootNS(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errors.New("not a decimal number of 64 bits")
	}
	if n > math.MaxInt64 {
		return 0, errors.New("not a time since the boot: it is more than 292 years")
	}
	return n, nil
}

func parseHex(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, errors.New("not a hexadecimal number of 64 bits")
	}
	return n, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, errors.New("not a plain IPv4 or IPv6 address")
	}
	return a, nil
}

// parseState takes the kernel's names alone: the spellings that people use are
// not for recordings.
func parseState(s string) (tcp.State, error) {
	state, err := tcp.ParseState(s)
	if err != nil || state.String() != s {
		return 0, errors.New("no such state is known")
	}
	return state, nil
}

// ParseErrno understands a name such as ECONNRESET, or the number of an error without one.
func ParseErrno(s string) (uint32, error) {
	for n := range uint32(256) { // the last that has a name is EHWPOISON, 133
		if s != "" && s == unix.ErrnoName(syscall.Errno(n)) {
			return n, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, errors.New("no such error is known")
	}
	return uint32(n), nil
}

// parseMilliseconds returns the nanoseconds. What has at most six decimals is
// taken exactly; filters like jq may have written it in another way.
func parseMilliseconds(s string) (uint64, error) {
	whole, decimals, _ := strings.Cut(s, ".")
	ms, err := strconv.ParseUint(whole, 10, 64)
	if len(decimals) <= 6 && err == nil {
		ns, err := strconv.ParseUint((decimals + "000000")[:6], 10, 64)
		if err == nil && ms <= (math.MaxUint64-ns)/1e6 {
			return ms*1e6 + ns, nil
		}
	}
	if ms, err := strconv.ParseFloat(s, 64); err == nil && ms >= 0 && ms <= 1e12 {
		return uint64(math.Round(ms * 1e6)), nil
	}
	return 0, errors.New("not a number of milliseconds")
}

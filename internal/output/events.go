package output

import (
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// The layouts, by name. cgroup comes last, where it can be as long as it is.
const (
	streamLayout  = "pid comm family laddr lport raddr rport old_state -> new_state duration_ms reason"
	streamMore    = "boot_ns cookie netns device protocol role owner_source holder unaccepted acked fd uid errno rx_queue tx_queue drops bytes_sent bytes_received retransmits srtt_us skaddr container_id container image pod pod_uid namespace unit cgroup"
	socketsLayout = "state rx_queue tx_queue drops local remote pid comm fd age netns"
	socketsMore   = "boot_ns cookie device protocol role owner_source holder unaccepted acked uid bytes_sent bytes_received retransmits srtt_us skaddr container_id container image pod pod_uid namespace cgroup unit holders holders_more cmdline"

	// Those of Sockets, for the eye.
	inventoryLayout = "state rx_queue tx_queue drops local remote age netns owner"
)

// Fields lists the names of the fields of an event in JSON. In upper case they are the
// titles of columns and CSV.
func Fields() []string {
	fields := []string{"v"} // of JSON alone
	for _, c := range newFormatter(Options{}, 6, "").events() {
		if _, eye := forTheEye[c.name]; !eye && c.name != "seconds" {
			fields = append(fields, c.name)
		}
	}
	return fields
}

// ofLosses are the columns of a row that is not of a socket.
var ofLosses = []string{"type", "time", "seconds", "boot_ns", "netns", "events", "where"}

// events is the table of every column there is of an event.
func (f *formatter) events() table[tcp.Event] {
	return slices.Concat(f.whenColumns(), socketColumns, f.changeColumns(), ownerColumns, detailColumns, measureColumns)
}

func (f *formatter) whenColumns() table[tcp.Event] {
	width := len(f.local.layout)
	if f.date {
		width += len(".000000")
	}
	return table[tcp.Event]{
		{name: "type", text: func(e *tcp.Event) (string, bool) { return e.Kind.String(), true }},
		{name: "time", width: width, append: f.wallClock},
		{name: "seconds", width: 12, append: f.seconds},
		{name: "boot_ns", width: 16, number: func(e *tcp.Event) (uint64, bool) { return e.BootNS, true }},
	}
}

var socketColumns = table[tcp.Event]{
	{name: "cookie", width: 16, append: cookie},
	{name: "skaddr", width: 18, append: skaddr},
	{name: "netns", width: 10, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.NetNS), e.NetNS != 0 }},
	{name: "device", width: 6, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Device), e.Device != 0 }},
	{name: "family", width: 6, text: func(e *tcp.Event) (string, bool) { return known(e.Family()) }},
	{name: "protocol", width: 8, text: func(e *tcp.Event) (string, bool) { return e.Protocol(), true }},
	{name: "laddr", width: 15, wide: 39, append: func(b []byte, e *tcp.Event) []byte { return e.Local.Addr().AppendTo(b) }},
	{name: "lport", width: 5, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Local.Port()), true }},
	{name: "raddr", width: 15, wide: 39, append: func(b []byte, e *tcp.Event) []byte { return e.Remote.Addr().AppendTo(b) }},
	{name: "rport", width: 5, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Remote.Port()), true }},
	{name: "local", width: 21, wide: 47, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Local) }},
	{name: "remote", width: 21, wide: 47, append: func(b []byte, e *tcp.Event) []byte { return endpoint(b, e.Remote) }},
}

func (f *formatter) changeColumns() table[tcp.Event] {
	newState := func(e *tcp.Event) (string, bool) { return e.New.String(), true }
	oldState := func(e *tcp.Event) (string, bool) {
		if e.Kind != tcp.Transition {
			return "", false
		}
		return e.Old.String(), true
	}
	return table[tcp.Event]{
		{name: "old_state", width: 11, text: oldState},
		{name: "->", width: 2, append: func(b []byte, _ *tcp.Event) []byte { return append(b, "->"...) }},
		{name: "new_state", width: 11, text: newState},
		{name: "state", width: 11, text: newState},
		{name: "duration_ms", width: 12, right: true, append: f.milliseconds},
		{name: "age", width: 9, append: f.age},
		{name: "duration_kind", text: func(e *tcp.Event) (string, bool) { return known(e.DurationKind) }},
		{name: "reason", width: 17, text: func(e *tcp.Event) (string, bool) { return known(e.Reason) }},
		{name: "errno", width: 12, append: errno},
	}
}

var ownerColumns = table[tcp.Event]{
	{name: "role", width: 8, text: func(e *tcp.Event) (string, bool) { return known(e.Role) }},
	{name: "pid", width: 7, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.PID), e.OwnerSource != "" }},
	{name: "comm", width: 10, wide: 16, text: func(e *tcp.Event) (string, bool) { return e.Comm, e.OwnerSource != "" }},
	{name: "uid", width: 6, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.UID), e.UID != tcp.NoUID }},
	{name: "fd", width: 4, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.FD), e.FD >= 0 }},
	{name: "owner_source", width: 12, text: func(e *tcp.Event) (string, bool) { return known(e.OwnerSource) }},
	{name: "unaccepted", width: 10, text: func(e *tcp.Event) (string, bool) { return "true", e.Unaccepted }},
	{name: "acked", width: 5, text: func(e *tcp.Event) (string, bool) { return "true", e.Acked }},
	{name: "holder", width: 6, text: func(e *tcp.Event) (string, bool) { return known(e.Holder) }},
	{name: "cgroup", text: func(e *tcp.Event) (string, bool) { return known(e.Cgroup) }},
	{name: "container_id", width: 12, text: func(e *tcp.Event) (string, bool) { return known(e.ContainerID) }},
	{name: "unit", width: 16, wide: 32, text: func(e *tcp.Event) (string, bool) { return known(tcp.Unit(e.Cgroup)) }},
	{name: "container", width: 16, wide: 32, text: func(e *tcp.Event) (string, bool) { return known(e.Named().Container) }},
	{name: "image", width: 16, wide: 48, text: func(e *tcp.Event) (string, bool) { return known(e.Named().Image) }},
	{name: "pod", width: 16, wide: 40, text: func(e *tcp.Event) (string, bool) { return known(e.Named().Pod) }},
	{name: "pod_uid", width: 36, text: func(e *tcp.Event) (string, bool) { return known(e.Named().PodUID) }},
	{name: "namespace", width: 12, text: func(e *tcp.Event) (string, bool) { return known(e.Named().Namespace) }},
	{name: "owner", append: owner, foreign: true},
}

// detailColumns are empty for all but a table of sockets.
var detailColumns = table[tcp.Event]{
	{name: "holders", append: appendHolders, foreign: true},
	{name: "holders_more", number: func(e *tcp.Event) (uint64, bool) {
		return uint64(details(e).HoldersMore), details(e).HoldersMore > 0
	}},
	{name: "cmdline", text: func(e *tcp.Event) (string, bool) { return known(details(e).Cmdline) }},
}

func details(e *tcp.Event) (d tcp.Details) {
	if e.Details != nil {
		d = *e.Details
	}
	return d
}

// owner is the process, its descriptor, and how many others hold the socket too: 812/nginx:6 +4.
func owner(b []byte, e *tcp.Event) []byte {
	if e.OwnerSource == "" {
		return b
	}
	b = appendProcess(b, &tcp.Process{PID: e.PID, Comm: e.Comm, FD: e.FD})
	if others := e.Others(); others > 0 {
		b = strconv.AppendUint(append(b, " +"...), others, 10)
	}
	return b
}

func appendProcess(b []byte, p *tcp.Process) []byte {
	b = append(strconv.AppendUint(b, uint64(p.PID), 10), '/')
	b = terminal.AppendVisible(b, p.Comm, math.MaxInt)
	if p.FD >= 0 {
		b = strconv.AppendInt(append(b, ':'), int64(p.FD), 10)
	}
	return b
}

// appendHolders appends them as owner does, parted by spaces.
func appendHolders(b []byte, e *tcp.Event) []byte {
	for i := range details(e).Holders {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendProcess(b, &e.Details.Holders[i])
	}
	return b
}

var measureColumns = table[tcp.Event]{
	{name: "bytes_sent", width: 10, right: true, number: func(e *tcp.Event) (uint64, bool) { return e.BytesSent, e.HasCounters }},
	{name: "bytes_received", width: 14, right: true, number: func(e *tcp.Event) (uint64, bool) { return e.BytesReceived, e.HasCounters }},
	{name: "retransmits", width: 11, right: true, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Retransmits), e.HasCounters }},
	{name: "srtt_us", width: 7, right: true, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.SRTT), e.HasCounters }},
	{name: "rx_queue", width: 8, right: true, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.RxQueue), e.HasQueues }},
	{name: "tx_queue", width: 8, right: true, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.TxQueue), e.HasQueues }},
	{name: "drops", width: 6, right: true, number: func(e *tcp.Event) (uint64, bool) { return uint64(e.Drops), e.HasDrops }},
	{name: "events", number: func(e *tcp.Event) (uint64, bool) { return e.Lost, !e.Kind.OfSocket() }},
	{name: "where", text: func(e *tcp.Event) (string, bool) { return e.Where, !e.Kind.OfSocket() }},
}

// known is a text that is not known when it is empty.
func known[T ~string](s T) (string, bool) { return string(s), s != "" }

func cookie(b []byte, e *tcp.Event) []byte {
	if e.Cookie == 0 {
		return b
	}
	return strconv.AppendUint(b, e.Cookie, 16)
}

func skaddr(b []byte, e *tcp.Event) []byte {
	if e.SkAddr == 0 {
		return b
	}
	return strconv.AppendUint(append(b, "0x"...), e.SkAddr, 16)
}

// endpoint prints a port that is not chosen yet, or any port, as ss does: "*".
func endpoint(b []byte, a netip.AddrPort) []byte {
	b = a.AppendTo(b)
	if a.IsValid() && a.Port() == 0 {
		b[len(b)-1] = '*'
	}
	return b
}

func errno(b []byte, e *tcp.Event) []byte {
	if e.Errno == 0 {
		return b
	}
	return errnoName(b, e.Errno)
}

func errnoName(b []byte, n uint32) []byte {
	if name := unix.ErrnoName(syscall.Errno(n)); name != "" {
		return append(b, name...)
	}
	return strconv.AppendUint(b, uint64(n), 10)
}

// names returns the names of the columns that the options ask for.
func (o Options) names() []string {
	layout, more := streamLayout, streamMore
	if o.Sockets {
		layout, more = socketsLayout, socketsMore
	}
	names := strings.Fields(layout)
	if o.Extended {
		names = append(names, strings.Fields(more)...)
	}
	if !o.Wide {
		names = slices.DeleteFunc(names, func(name string) bool { return name == "family" })
	}
	if o.Since {
		names = slices.Insert(names, 0, "seconds")
	}
	if o.Time || o.Date {
		names = slices.Insert(names, 0, "time")
	}
	return names
}

// Columns writes one aligned line per event, under a header. Hostile text is cut
// to its column; anything else that is longer shifts the rest of its line. What
// is not known is "-". Lost and unseen events are lines of their own:
//
//	# lost 17 events (ring buffer)
//	# 3 SYNs answered with a SYN cookie: not shown until the handshake is complete (network namespace 4026531833)
type Columns struct {
	buffer
	table table[tcp.Event]
}

// NewColumns returns a writer of columns to w. The header is in the buffer: Flush
// shows it before the first event.
func NewColumns(w io.Writer, o Options) *Columns {
	c := &Columns{newBuffer(w), newFormatter(o, 3, ">=").events().choose(o.names())}
	c.table.fit(o.Wide)
	c.lines = c.table.appendHeader(c.lines)
	return c
}

// Write writes e as one line, when the buffer is full or with the next Flush. It
// keeps nothing of e.
func (c *Columns) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	switch e.Kind {
	case tcp.Lost:
		return c.keep(appendLost(c.lines, e))
	case tcp.Unseen:
		return c.keep(appendUnseen(c.lines, e))
	}
	return c.keep(c.table.appendLine(c.lines, e))
}

func appendLost(b []byte, e *tcp.Event) []byte {
	b = strconv.AppendUint(append(b, "# lost "...), e.Lost, 10)
	b = append(b, " events ("...)
	if e.Lost == 1 {
		b = append(b[:len(b)-len("s (")], " ("...)
	}
	return append(terminal.AppendVisible(b, e.Where, math.MaxInt), ")\n"...)
}

// CSV writes one record per event, after a header, as RFC 4180 has it but for
// the line ends, which are \n. It begins with TYPE, transition, socket, lost or unseen,
// and ends with EVENTS and WHERE, which only the last two fill in. What is not
// known is empty. Control characters are escaped as they are by Columns, so that
// a record is always one line; nothing is cut.
type CSV struct {
	buffer
	table table[tcp.Event]
	lost  []bool // the columns of ofLosses
}

// NewCSV returns a writer of CSV to w. The header is in the buffer, as with
// NewColumns.
func NewCSV(w io.Writer, o Options) *CSV {
	names := plain(o.names())
	at := 1 + slices.Index(names, "duration_ms") // no ">=" before a number: it has a column
	names = slices.Concat([]string{"type"}, slices.Insert(names, at, "duration_kind"), []string{"events", "where"})
	c := &CSV{buffer: newBuffer(w), table: newFormatter(o, 6, "").events().choose(names)}
	for _, name := range names {
		c.lost = append(c.lost, slices.Contains(ofLosses, name))
	}
	c.lines = c.table.appendCSVHeader(c.lines)
	return c
}

// Write writes e as one record, when the buffer is full or with the next Flush.
// It keeps nothing of e.
func (c *CSV) Write(e *tcp.Event) error {
	if err := checkKind(e.Kind); err != nil {
		return err
	}
	if e.Kind.OfSocket() {
		return c.keep(c.table.appendRecord(c.lines, e))
	}
	b := c.lines
	for i := range c.table {
		if c.lost[i] {
			b = c.table[i].appendCSV(b, e)
		}
		b = append(b, ',')
	}
	return c.keep(endLine(b))
}

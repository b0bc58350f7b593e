package output

import (
	"math"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// groupObject is a group in JSON. Absent is what is not known or not the same for
// all sockets of the group.
type groupObject struct {
	V          int           `json:"v"`
	Type       string        `json:"type"`
	Time       string        `json:"time"`
	BootNS     string        `json:"boot_ns"`
	State      string        `json:"state"`
	PID        uint32        `json:"pid,omitempty"`
	Comm       Text          `json:"comm,omitempty"`
	UID        *uint32       `json:"uid,omitempty"`
	Cgroup     Text          `json:"cgroup,omitempty"`
	Container  Text          `json:"container_id,omitempty"`
	Unit       Text          `json:"unit,omitempty"`
	Name       Text          `json:"container,omitempty"`
	Image      Text          `json:"image,omitempty"`
	Pod        Text          `json:"pod,omitempty"`
	PodUID     Text          `json:"pod_uid,omitempty"`
	Namespace  Text          `json:"namespace,omitempty"`
	Role       tcp.Role      `json:"role,omitempty"`
	Holder     tcp.Holder    `json:"holder,omitempty"`
	NetNS      uint32        `json:"netns,omitempty"`
	LPort      uint16        `json:"lport,omitempty"`
	RAddr      string        `json:"raddr,omitempty"`
	RPort      uint16        `json:"rport,omitempty"`
	Sockets    int           `json:"sockets"`
	Oldest     float64       `json:"oldest_s"`
	AtLeast    bool          `json:"oldest_at_least"`
	Median     float64       `json:"median_s"`
	Watched    float64       `json:"watched_s"`
	Growth     *float64      `json:"growth_per_min,omitempty"`
	FDs        []int32       `json:"fds,omitempty"`
	Open       *uint64       `json:"open_files,omitempty"`
	Limit      *uint64       `json:"max_files,omitempty"`
	Left       *float64      `json:"limit_reached_s,omitempty"`
	Unread     uint64        `json:"unread_bytes"`
	EOFRead    int           `json:"eof_read"`
	EOFUnread  int           `json:"eof_unread"`
	Data       int           `json:"data_unread"`
	Sending    int           `json:"sending"`
	Unaccepted int           `json:"unaccepted"`
	Acked      int           `json:"acked"`
	Reset      int           `json:"reset"`
	Verdict    leak.Verdict  `json:"verdict"`
	Cause      leak.Cause    `json:"cause"`
	Diagnosis  Text          `json:"diagnosis"`
	Stacks     []stackObject `json:"stacks,omitempty"`
}

type stackObject struct {
	Sockets int           `json:"sockets"`
	Frames  []frameObject `json:"frames"`
}

type frameObject struct {
	Function Text   `json:"function,omitempty"`
	File     Text   `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Module   Text   `json:"module,omitempty"`
	Offset   string `json:"offset"`
}

func rfc3339(ns int64) string {
	return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

func newGroupObject(g *leak.Group, r *leak.Report) *groupObject {
	o := &groupObject{
		V: tcp.SchemaVersion, Type: "leak", Time: rfc3339(r.Time), BootNS: strconv.FormatUint(r.BootNS, 10), State: g.State.String(),
		PID: g.PID, Comm: Text(g.Comm), Cgroup: Text(g.Cgroup), Container: Text(g.Container), Unit: Text(tcp.Unit(g.Cgroup)),
		Name: Text(g.Names.Container), Image: Text(g.Names.Image), Pod: Text(g.Names.Pod), PodUID: Text(g.Names.PodUID), Namespace: Text(g.Names.Namespace),
		Role: g.Role, Holder: g.Holder, NetNS: g.NetNS, LPort: g.LocalPort, RPort: g.Remote.Port(),
		Sockets: g.Count, Oldest: seconds(g.Oldest), AtLeast: g.AtLeast, Median: seconds(g.Median), Watched: seconds(g.Watched),
		FDs: g.FDs, Unread: g.Unread, EOFRead: g.Read, EOFUnread: g.FinUnread, Data: g.Data, Sending: g.Sending,
		Unaccepted: g.Unaccepted, Acked: g.Acked, Reset: g.Reset,
		Verdict: g.Verdict, Cause: g.Cause, Diagnosis: Text(g.Diagnosis),
	}
	if g.UID != tcp.NoUID {
		o.UID = &g.UID
	}
	if g.Remote.IsValid() {
		o.RAddr = g.Remote.Addr().String()
	}
	if g.GrowthKnown {
		o.Growth = &g.Growth
	}
	if g.FilesKnown {
		o.Open = &g.Files.Open
		if g.Files.Limit != math.MaxUint64 {
			o.Limit = &g.Files.Limit
		}
	}
	if g.LeftKnown {
		left := seconds(g.Left)
		o.Left = &left
	}
	for _, s := range g.Stacks {
		o.Stacks = append(o.Stacks, stackObject{s.Count, frameObjects(s.Frames)})
	}
	return o
}

func frameObjects(frames []symbolize.Frame) []frameObject {
	all := make([]frameObject, len(frames))
	for i, f := range frames {
		all[i] = frameObject{Text(f.Function), Text(f.File), f.Line, Text(f.Module), "0x" + strconv.FormatUint(f.Offset, 16)}
	}
	return all
}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

// destinationObject is a destination of TIME_WAITs in JSON.
type destinationObject struct {
	V         int            `json:"v"`
	Type      string         `json:"type"`
	Time      string         `json:"time"`
	BootNS    string         `json:"boot_ns"`
	State     string         `json:"state"`
	NetNS     uint32         `json:"netns,omitempty"`
	LAddr     string         `json:"laddr"`
	LPort     uint16         `json:"lport,omitempty"`
	RAddr     string         `json:"raddr"`
	RPort     uint16         `json:"rport,omitempty"`
	Sockets   int            `json:"sockets"`
	Held      *int           `json:"ports_held,omitempty"`
	Ports     int            `json:"local_ports,omitempty"`
	Watched   float64        `json:"watched_s"`
	Rate      *float64       `json:"new_per_s,omitempty"`
	Left      *float64       `json:"exhausted_s,omitempty"`
	New       uint64         `json:"new"`
	Expired   uint64         `json:"expired"`
	Reused    uint64         `json:"reused"`
	Overflow  uint64         `json:"overflow"`
	Other     uint64         `json:"other"`
	Closers   []closerObject `json:"closed_first_by,omitempty"`
	Diagnosis string         `json:"diagnosis"`
}

type closerObject struct {
	PID     uint32 `json:"pid"`
	Comm    Text   `json:"comm"`
	Sockets uint64 `json:"sockets"`
}

func newDestinationObject(d *leak.Destination, r *leak.Report) *destinationObject {
	o := &destinationObject{
		V: tcp.SchemaVersion, Type: "time_wait", Time: rfc3339(r.Time), BootNS: strconv.FormatUint(r.BootNS, 10), State: tcp.TimeWait.String(),
		NetNS: d.NetNS, LAddr: d.Local.String(), LPort: d.LocalPort, RAddr: d.Remote.Addr().String(), RPort: d.Remote.Port(),
		Sockets: d.Count, Ports: d.Ports, Watched: seconds(d.Watched),
		New: d.New, Expired: d.Expired, Reused: d.Reused, Overflow: d.Overflow, Other: d.Other, Diagnosis: d.Diagnosis,
	}
	if d.Ports != 0 && !d.Server() {
		o.Held = &d.Held
	}
	if rate, known := d.PerSecond(); known {
		o.Rate = &rate
	}
	if left, runsOut := d.Left(); runsOut {
		s := seconds(left)
		o.Left = &s
	}
	for _, c := range d.Closers {
		o.Closers = append(o.Closers, closerObject{c.PID, Text(c.Comm), c.Count})
	}
	return o
}

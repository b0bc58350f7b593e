package main

import (
	"math"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/symbolize"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// leakObject is a group in JSON. Absent is what is not known or not the same for
// all sockets of the group.
type leakObject struct {
	V         int          `json:"v"`
	Type      string       `json:"type"`
	BootNS    string       `json:"boot_ns"`
	State     string       `json:"state"`
	PID       uint32       `json:"pid,omitempty"`
	Comm      output.Text  `json:"comm,omitempty"`
	UID       *uint32      `json:"uid,omitempty"`
	Cgroup    output.Text  `json:"cgroup,omitempty"`
	Container output.Text  `json:"container_id,omitempty"`
	Role      tcp.Role     `json:"role,omitempty"`
	NetNS     uint32       `json:"netns,omitempty"`
	LPort     uint16       `json:"lport,omitempty"`
	RAddr     string       `json:"raddr,omitempty"`
	RPort     uint16       `json:"rport,omitempty"`
	Sockets   int          `json:"sockets"`
	Oldest    float64      `json:"oldest_s"`
	AtLeast   bool         `json:"oldest_at_least"`
	Median    float64      `json:"median_s"`
	Watched   float64      `json:"watched_s"`
	Growth    *float64     `json:"growth_per_min,omitempty"`
	FDs       []int32      `json:"fds,omitempty"`
	Open      *uint64      `json:"open_files,omitempty"`
	Limit     *uint64      `json:"max_files,omitempty"`
	Left      *float64     `json:"limit_reached_s,omitempty"`
	Unread    uint64       `json:"unread_bytes"`
	EOFRead   int          `json:"eof_read"`
	EOFUnread int          `json:"eof_unread"`
	Data      int          `json:"data_unread"`
	Sending   int          `json:"sending"`
	Reset     int          `json:"reset"`
	Verdict   leak.Verdict `json:"verdict"`
	Cause     leak.Cause   `json:"cause"`
	Diagnosis output.Text  `json:"diagnosis"`
	Stacks    []leakStacks `json:"stacks,omitempty"`
}

type leakStacks struct {
	Sockets int         `json:"sockets"`
	Frames  []leakFrame `json:"frames"`
}

type leakFrame struct {
	Function output.Text `json:"function,omitempty"`
	File     output.Text `json:"file,omitempty"`
	Line     int         `json:"line,omitempty"`
	Module   output.Text `json:"module,omitempty"`
	Offset   string      `json:"offset"`
}

func (v *leakView) objects(emit func(any) error) error {
	for _, g := range v.groups {
		if err := emit(v.object(g)); err != nil {
			return err
		}
	}
	return nil
}

func (v *leakView) object(g *leak.LeakGroup) *leakObject {
	o := &leakObject{
		V: 1, Type: "leak", BootNS: strconv.FormatUint(v.now, 10), State: v.cmd.State.State().String(),
		PID: g.PID, Comm: output.Text(g.Comm), Cgroup: output.Text(g.Cgroup), Container: output.Text(g.Container),
		Role: g.Role, NetNS: g.NetNS, LPort: g.LocalPort, RPort: g.Remote.Port(),
		Sockets: g.Count, Oldest: seconds(g.Oldest), AtLeast: g.AtLeast, Median: seconds(g.Median), Watched: seconds(g.Watched),
		FDs: g.FDs, Unread: g.Unread, EOFRead: g.Read, EOFUnread: g.FinUnread, Data: g.Data, Sending: g.Sending, Reset: g.Reset,
		Verdict: g.Verdict, Cause: g.Cause, Diagnosis: output.Text(g.Diagnosis()),
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
	if files, known := v.filesOf(g.PID); known {
		o.Open = &files.Open
		if files.Limit != math.MaxUint64 {
			o.Limit = &files.Limit
		}
	}
	if left, ok := v.left(g); ok {
		s := seconds(left)
		o.Left = &s
	}
	for i, s := range g.Stacks {
		if v.stacks == nil || i == stackLines {
			break
		}
		o.Stacks = append(o.Stacks, leakStacks{s.Count, leakFrames(v.stacks.frames(s))})
	}
	return o
}

func leakFrames(frames []symbolize.Frame) []leakFrame {
	all := make([]leakFrame, len(frames))
	for i, f := range frames {
		all[i] = leakFrame{output.Text(f.Function), output.Text(f.File), f.Line, output.Text(f.Module), "0x" + strconv.FormatUint(f.Offset, 16)}
	}
	return all
}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

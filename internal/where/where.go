// Package where compiles an expression over the fields of an event, for what no flag of a
// filter says. The language is that of github.com/expr-lang/expr; the names are those of
// JSON.
package where

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"syscall"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// An Expression belongs to one goroutine. To evaluate it allocates.
type Expression struct {
	program *vm.Program
	vm      vm.VM
	fields  fields
	err     error
}

// Compile checks an expression, which must be true or false. An error says at which place
// of it the mistake is.
func Compile(text string) (*Expression, error) {
	program, err := expr.Compile(text, expr.Env(&fields{}), expr.AsBool())
	if err != nil {
		return nil, explain(text, err)
	}
	return &Expression{program: program}, nil
}

// explain puts an error of the compiler in one line.
func explain(text string, err error) error {
	at, ok := errors.AsType[*file.Error](err)
	if !ok || at.Line < 1 {
		return fmt.Errorf("%q: %w", text, err)
	}
	// Column counts the characters of that line.
	line := []rune(strings.Split(text, "\n")[at.Line-1])
	rest := strings.TrimSpace(string(line[min(at.Column, len(line)):]))
	if rest == "" {
		return fmt.Errorf("%s, at the end of %q", at.Message, text)
	}
	return fmt.Errorf("%s, at %q", at.Message, rest)
}

// Match reports whether the expression is true for an event. It is not where it cannot be
// evaluated, see Err.
func (x *Expression) Match(e *tcp.Event) bool {
	x.fields.fill(e)
	result, err := x.vm.Run(x.program, &x.fields)
	if err != nil {
		if x.err == nil {
			x.err = explain(x.program.Source().String(), err)
		}
		return false
	}
	return result == true
}

// Err returns why the expression could not be evaluated for an event, the first time that
// this happened; nil if it never did.
func (x *Expression) Err() error { return x.err }

// Names returns the names of all fields, in the order of JSON.
func Names() (names []string) {
	for field := range reflect.TypeFor[fields]().Fields() {
		names = append(names, field.Tag.Get("expr"))
	}
	return names
}

// fields are those of JSON. A text that is absent there is empty here. A number that is
// absent is not a number: no comparison with it holds, but !=. All numbers are floats for
// that; what may pass 2^53 is text, as in JSON.
type fields struct {
	Type          string  `expr:"type"`
	BootNS        string  `expr:"boot_ns"`
	Cookie        string  `expr:"cookie"`
	SkAddr        string  `expr:"skaddr"`
	NetNS         float64 `expr:"netns"`
	Device        float64 `expr:"device"`
	Family        string  `expr:"family"`
	Protocol      string  `expr:"protocol"`
	LAddr         string  `expr:"laddr"`
	LPort         float64 `expr:"lport"`
	RAddr         string  `expr:"raddr"`
	RPort         float64 `expr:"rport"`
	OldState      string  `expr:"old_state"`
	NewState      string  `expr:"new_state"`
	State         string  `expr:"state"`
	DurationMS    float64 `expr:"duration_ms"`
	DurationKind  string  `expr:"duration_kind"`
	Reason        string  `expr:"reason"`
	Errno         string  `expr:"errno"`
	Role          string  `expr:"role"`
	PID           float64 `expr:"pid"`
	Comm          string  `expr:"comm"`
	UID           float64 `expr:"uid"`
	FD            float64 `expr:"fd"`
	OwnerSource   string  `expr:"owner_source"`
	Unaccepted    bool    `expr:"unaccepted"`
	Acked         bool    `expr:"acked"`
	Holder        string  `expr:"holder"`
	Cgroup        string  `expr:"cgroup"`
	ContainerID   string  `expr:"container_id"`
	Unit          string  `expr:"unit"`
	Container     string  `expr:"container"`
	Image         string  `expr:"image"`
	Pod           string  `expr:"pod"`
	PodUID        string  `expr:"pod_uid"`
	Namespace     string  `expr:"namespace"`
	BytesSent     float64 `expr:"bytes_sent"`
	BytesReceived float64 `expr:"bytes_received"`
	Retransmits   float64 `expr:"retransmits"`
	SRTT          float64 `expr:"srtt_us"`
	RxQueue       float64 `expr:"rx_queue"`
	TxQueue       float64 `expr:"tx_queue"`
	Drops         float64 `expr:"drops"`
}

func (f *fields) fill(e *tcp.Event) {
	names := e.Named()
	*f = fields{
		Type: e.Kind.String(), BootNS: strconv.FormatUint(e.BootNS, 10),
		NetNS: number(e.NetNS, e.NetNS != 0), Device: number(e.Device, e.Device != 0),
		Family: e.Family(), Protocol: e.Protocol(),
		LPort: float64(e.Local.Port()), RPort: float64(e.Remote.Port()),
		DurationMS: number(float64(e.Duration)/1e6, e.DurationKind.Known()), DurationKind: string(e.DurationKind),
		Reason: string(e.Reason),
		Role:   string(e.Role), PID: number(e.PID, e.OwnerSource != ""), UID: number(e.UID, e.UID != tcp.NoUID),
		FD: number(e.FD, e.FD >= 0), OwnerSource: string(e.OwnerSource),
		Unaccepted: e.Unaccepted, Acked: e.Acked, Holder: string(e.Holder),
		Cgroup: e.Cgroup, ContainerID: e.ContainerID, Unit: tcp.Unit(e.Cgroup),
		Container: names.Container, Image: names.Image, Pod: names.Pod, PodUID: names.PodUID, Namespace: names.Namespace,
		BytesSent: number(e.BytesSent, e.HasCounters), BytesReceived: number(e.BytesReceived, e.HasCounters),
		Retransmits: number(e.Retransmits, e.HasCounters), SRTT: number(e.SRTT, e.HasCounters),
		RxQueue: number(e.RxQueue, e.HasQueues), TxQueue: number(e.TxQueue, e.HasQueues),
		Drops: number(e.Drops, e.HasDrops),
	}
	f.fillTexts(e)
}

// fillTexts fills in the texts that are made for the purpose.
func (f *fields) fillTexts(e *tcp.Event) {
	if e.Cookie != 0 {
		f.Cookie = strconv.FormatUint(e.Cookie, 16)
	}
	if e.SkAddr != 0 {
		f.SkAddr = "0x" + strconv.FormatUint(e.SkAddr, 16)
	}
	if e.Local.IsValid() {
		f.LAddr = e.Local.Addr().String()
	}
	if e.Remote.IsValid() {
		f.RAddr = e.Remote.Addr().String()
	}
	if e.Kind == tcp.Socket {
		f.State = e.New.String()
	} else {
		f.OldState, f.NewState = e.Old.String(), e.New.String()
	}
	if e.OwnerSource != "" {
		f.Comm = e.Comm
	}
	if e.Errno != 0 {
		f.Errno = unix.ErrnoName(syscall.Errno(e.Errno))
	}
}

// number returns n, or NaN where it does not apply.
func number[T uint64 | uint32 | int32 | float64](n T, applies bool) float64 {
	if !applies {
		return math.NaN()
	}
	return float64(n)
}

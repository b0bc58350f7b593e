package main

import (
	"context"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// attachNothing attaches a BPF program that does nothing to the tracepoint of state
// changes until ctx ends: no tracer can cost less.
func attachNothing(ctx context.Context) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "nothing",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceRawTp,
		AttachTo:     "inet_sock_set_state",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return fmt.Errorf("load the empty program: %w", err)
	}
	defer program.Close()
	attached, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return fmt.Errorf("attach the empty program: %w", err)
	}
	defer attached.Close()
	<-ctx.Done()
	return nil
}

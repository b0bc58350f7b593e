package probe

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// stackLimit is what BPF functions that call each other share (MAX_BPF_STACK), and
// frameUnit what each one's part is rounded up to (check_max_stack_depth; 16 bytes since
// 6.7 where the JIT can).
const (
	stackLimit = 512
	frameUnit  = 32
)

// An old kernel refuses what a new one takes: calls whose frames together do not fit the
// stack. The sum is the one that 6.1 gives when it refuses.
func TestStackFits(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"bpf": loadBpf, "direct": loadDirect, "trampoline": loadTrampoline, "directTrampoline": loadDirectTrampoline,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for program, p := range spec.Programs {
			functions := functionsOf(p.Instructions)
			depth, chain := functions.deepest(p.Instructions[0].Symbol())
			if depth > stackLimit {
				t.Errorf("%s: %s needs %d bytes of stack, %d at most: %s", name, program, depth, stackLimit, strings.Join(chain, " > "))
			}
		}
	}
}

// function is a BPF function: the bytes of its frame and whom it calls.
type function struct {
	frame int
	calls []string
}

type functions map[string]*function

func functionsOf(instructions asm.Instructions) functions {
	all := functions{}
	var f *function
	var copied map[asm.Register]bool // registers that hold the address of the frame
	for _, ins := range instructions {
		if name := ins.Symbol(); name != "" {
			f, copied = &function{}, map[asm.Register]bool{}
			all[name] = f
		}
		op := ins.OpCode
		switch {
		case ins.IsFunctionCall():
			f.calls = append(f.calls, ins.Reference())
		case op.Class().IsLoad() && ins.Src == asm.RFP, op.Class().IsStore() && ins.Dst == asm.RFP:
			f.frame = max(f.frame, -int(ins.Offset))
		case op.ALUOp() == asm.Mov && op.Source() == asm.RegSource:
			copied[ins.Dst] = ins.Src == asm.RFP
		case op.ALUOp() == asm.Add && op.Source() == asm.ImmSource && copied[ins.Dst]:
			f.frame = max(f.frame, -int(ins.Constant))
		}
	}
	return all
}

// deepest returns the chain of calls from a function on that needs most.
func (all functions) deepest(name string) (depth int, chain []string) {
	f := all[name]
	for _, callee := range slices.Compact(slices.Sorted(slices.Values(f.calls))) {
		if d, c := all.deepest(callee); d > depth {
			depth, chain = d, c
		}
	}
	frame := (max(f.frame, 1) + frameUnit - 1) / frameUnit * frameUnit
	return depth + frame, append([]string{name}, chain...)
}

package main

import (
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/symbolize"
)

// leakFacts returns what fetches the facts about groups from the kernel and from the
// processes below procRoot.
func leakFacts(p *probe.Probe, procRoot string, stacks bool) leak.Facts {
	facts := leak.Facts{
		Files: func(pid uint32) (leak.Files, error) {
			files, err := enrich.ReadFiles(procRoot, pid)
			return leak.Files(files), err
		},
		Ports: func(netns uint32) (leak.PortRange, error) {
			first, last, err := p.PortRange(netns)
			if err != nil {
				return leak.PortRange{}, err
			}
			reserved, err := p.ReservedPorts(netns)
			return leak.PortRange{First: first, Last: last, Reserved: reserved}, err
		},
	}
	if stacks {
		r := &stackReader{probe: p, symbols: symbolize.NewSymbolizer(procRoot), known: make(map[stackKey][]symbolize.Frame)}
		facts.Remember, facts.Frames = r.remember, r.frames
	}
	return facts
}

// maxStacks bounds the stacks whose names are kept: 4 KiB each at the most.
const maxStacks = 4096

// stackReader names the code that opened sockets.
type stackReader struct {
	probe   *probe.Probe
	symbols *symbolize.Symbolizer
	last    uint32 // the process that was remembered last
	known   map[stackKey][]symbolize.Frame
}

// stackKey is a stack of a process: the same addresses mean something else in another.
type stackKey struct{ id, pid uint32 }

// remember reads the maps of a process while it lives.
func (r *stackReader) remember(pid uint32) {
	if pid != r.last { // rows of one process come one after the other
		r.last = pid
		r.symbols.Remember(pid)
	}
}

// frames are those of a stack, innermost first; nil if the kernel has dropped it.
func (r *stackReader) frames(id, pid uint32) []symbolize.Frame {
	key := stackKey{id, pid}
	if frames, known := r.known[key]; known {
		return frames
	}
	addrs, err := r.probe.Stack(id)
	if err != nil {
		return nil
	}
	if len(r.known) == maxStacks {
		clear(r.known)
	}
	addrs = r.symbols.Complete(pid, addrs, r.probe.StackTop(id))
	r.known[key] = r.symbols.Symbolize(pid, addrs)
	return r.known[key]
}

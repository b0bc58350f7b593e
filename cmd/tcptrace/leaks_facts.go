package main

import (
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/probe"
)

// leakFacts returns what fetches the facts about groups from the kernel and from the
// processes below procRoot. stacks may be nil.
func leakFacts(p *probe.Probe, procRoot string, stacks *stackReader) leak.Facts {
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
	if stacks != nil {
		facts.Remember, facts.Frames = stacks.remember, stacks.frames
	}
	return facts
}

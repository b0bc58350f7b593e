package probe_test

import (
	"errors"
	"slices"
	"sync"

	"github.com/tcptrace/tcptrace/internal/test/rig"
)

// hidden is ftrace's record of what happens while a thread of process 1 is current. Some kernels
// run no BPF program then (rig.InitThreads), so a scenario of which a step happened there cannot
// be judged. Steps of mini-sockets and of half-open connections are not in it.
type hidden struct {
	threads []uint32

	mu       sync.Mutex
	recorder *rig.Recorder
	edges    []rig.Edge
	err      error    // of the recorder
	unjudged []string // scenarios that were run again
}

// openHidden fails where tracefs is refused, such as by lockdown=confidentiality. Then nothing
// is known to be hidden.
func openHidden() (*hidden, error) {
	threads, err := rig.InitThreads()
	h := &hidden{threads: threads}
	if err == nil {
		err = h.begin()
	}
	return h, err
}

func (h *hidden) begin() (err error) {
	h.recorder, err = rig.Record("tcptrace-walk", 1, h.threads...)
	return err
}

// has reports whether a step of a socket of the scenario happened under process 1.
func (h *hidden) has(n *netns) bool {
	if n == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.recorder != nil {
		edges, _, err := h.recorder.Stop() // what is lost is judged
		h.edges = append(h.edges, edges...)
		h.err = errors.Join(h.err, err, h.begin())
	}
	return slices.ContainsFunc(h.edges, func(e rig.Edge) bool {
		return slices.ContainsFunc(n.socks, func(s *sock) bool {
			return e.Local == s.local.Port() && e.Remote == s.remote.Port()
		})
	})
}

func (h *hidden) note(scenario string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unjudged = append(h.unjudged, scenario)
}

func (h *hidden) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.recorder == nil {
		return h.err
	}
	return errors.Join(h.err, h.recorder.Remove())
}

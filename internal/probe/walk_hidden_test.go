package probe_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

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
	return n != nil && slices.ContainsFunc(h.seen(), func(e rig.Edge) bool {
		return slices.ContainsFunc(n.socks, func(s *sock) bool {
			return e.Local == s.local.Port() && e.Remote == s.remote.Port()
		})
	})
}

// seen is what happened under process 1 so far.
func (h *hidden) seen() []rig.Edge {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.recorder != nil {
		edges, _, err := h.recorder.Stop() // what is lost is judged
		h.edges = append(h.edges, edges...)
		h.err = errors.Join(h.err, err, h.begin())
	}
	return slices.Clone(h.edges)
}

// judge runs a test on a thread of its own, and again where it failed while a state changed
// under process 1.
func judge(t *testing.T, test func()) {
	t.Helper()
	err := judgedOnce(t, test)
	for range 3 {
		if !errors.Is(err, errHidden) {
			break
		}
		t.Logf("run again: %v", err)
		err = judgedOnce(t, test)
	}
	report(t, err)
}

var errHidden = errors.New("a state changed under process 1")

// judgedOnce returns errHidden beside the failure that it may excuse.
func judgedOnce(t *testing.T, test func()) error {
	t.Helper()
	h, err := openHidden()
	if err != nil {
		t.Logf("a change that the kernel hides from BPF will count as missing: %v", err)
	}
	err = onOwnThread(test)
	if err != nil && len(h.seen()) > 0 {
		err = errors.Join(err, errHidden)
	}
	return errors.Join(err, h.close())
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

// Package probe is the boundary to the kernel: it loads and attaches the BPF
// programs, reads what exists already, and decodes their records into events of
// package tcp. It does not filter beyond what the kernel can, does not look at
// /proc for names, and does not print.
package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// pollInterval is how long a reader that has caught up looks again by itself. It
// must be longer than WAKEUP_NS in bpf/trace.h: an event that comes within that
// time of the last wakeup does not wake the reader.
const pollInterval = 20 * time.Millisecond

// idleInterval is how long an idle reader waits for a wakeup. It bounds how late an
// event can be whose program was held up between looking at the clock and
// submitting (a virtual CPU that was not scheduled).
const idleInterval = time.Second

// lossInterval is after how many events a busy reader asks for losses.
const lossInterval = 1024

// Config selects what to trace. The zero value traces everything.
type Config struct {
	RingBytes    int           // a power of two, at least a page; 0: 8 MiB
	MaxSockets   uint32        // sockets to keep track of; 0: 1,048,576, before Linux 6.1 131,072
	Family       uint16        // AF_INET or AF_INET6, as on the wire; 0: both
	LocalPorts   []uint16      // at most MaxPorts; more are left to tcp.Selector
	RemotePorts  []uint16      // likewise
	NetNS        uint32        // inode of a network namespace; 0: all
	KernelAddr   bool          // fill in Event.SkAddr
	Stacks       bool          // keep the user stack at connect() and accept(); costs every system call some 80 ns
	Tracked      bool          // TrackedSockets will be called
	OwnerRefresh time.Duration // how often owners are looked up again; 0: 1 s, negative: never
	OthersTime   time.Duration // how long the sockets in network namespaces of other users are read; 0: 5 s
	Hooks        Hooks         // how accept() is seen; empty: HooksAuto
	Without      []string      // hooks to leave out, as on a kernel that lacks them
	BTF          string        // file with the types of this kernel; empty: the kernel's own
}

// Losses says what a trace did not see.
type Losses struct {
	Lost              uint64 // events, because the ring was full
	Untracked         uint64 // sockets, because a table was full
	MissedTransitions uint64 // state changes that the kernel did not show us; at least
	SkippedRuns       uint64 // runs that the kernel skipped (recursion)

	Unseen        []Unseen // by namespace, without those where there is nothing
	UnknownUnseen []uint32 // namespaces of which this is not known: they began after Seed, have ended, or could not be read
}

// Probe is an attached trace. Read, Seed and More belong to one goroutine.
type Probe struct {
	cfg     Config
	objs    bpfObjects
	links   []io.Closer
	ring    *ringbuf.Reader
	record  ringbuf.Record
	decoder *decoder
	hooks   *hookSet

	more         bool
	quiet        bool // no event since the last look
	deadline     time.Time
	untilLoss    int // events until losses are looked at
	seen         Losses
	files        []openFile           // of the last TrackedSockets, see namespace
	namespaces   map[uint64]namespace // see namespace, by inode
	namespacesAt time.Time
	unseen       *unseen

	stop     chan struct{}
	stopOnce sync.Once
	owners   sync.WaitGroup // the goroutine of refreshOwners
	looking  sync.Mutex     // one pass over all files at a time
	lookedAt time.Time      // when the last one ended; guarded by looking
}

// Open loads the programs and attaches them; when it returns, every state change
// from now on will be read. An error says what this host lacks: *MissingCapabilities,
// *Obstacle, ErrNoTypes, ErrLockedDown, ErrTrampolines, or something in the words of the
// kernel.
func Open(cfg Config) (_ *Probe, err error) {
	p := &Probe{cfg: cfg, decoder: newDecoder(cfg.KernelAddr), unseen: newUnseen(), stop: make(chan struct{})}
	defer func() {
		if err != nil {
			p.Close()
			err = explain(err)
		}
	}()
	if p.hooks, err = loadHooks(cfg, tracePlan(cfg), &p.objs); err != nil {
		return nil, err
	}
	p.record.RawSample = make([]byte, 0, eventSize)
	if p.ring, err = ringbuf.NewReader(p.objs.Events); err != nil {
		return nil, fmt.Errorf("open the ring buffer: %w", err)
	}
	if err := p.attach(); err != nil {
		return nil, err
	}
	p.waitAtMost(pollInterval)
	return p, nil
}

func (p *Probe) attach() (err error) {
	if p.links, err = p.hooks.attach(&p.objs.bpfPrograms); err != nil {
		return err
	}
	if p.cfg.Stacks && p.hooks.has(stacksHook.name) {
		p.attachAccept()
	}
	return nil
}

// attachAccept is for stacks alone. Without it those of clients are still taken.
func (p *Probe) attachAccept() {
	for call, prog := range map[string]*ebpf.Program{"accept": p.objs.AcceptExit, "accept4": p.objs.Accept4Exit} {
		l, err := attachSyscall("sys_exit_"+call, prog)
		if err != nil {
			p.hooks.missing[stacksHook.name] = err
			continue
		}
		p.links = append(p.links, l)
	}
}

// Limitations lists what this trace does not show, because a hook is missing.
func (p *Probe) Limitations() []Limitation { return p.hooks.limitations() }

// Read waits for the next event and fills ev in. Losses come as events of kind
// Lost, at most lossInterval events late, and what listeners do unseen as events of kind
// Unseen, as a rule at most 10 s late. Past the deadline, if there is one and no
// event waits, it returns os.ErrDeadlineExceeded; it can be called again. After Stop it returns what the kernel
// has already reported, then io.EOF.
func (p *Probe) Read(ev *tcp.Event) error {
	for {
		if p.untilLoss <= 0 && p.lostSince(ev) {
			return nil
		}
		err := p.ring.ReadInto(&p.record)
		switch {
		case err == nil:
			p.untilLoss--
			p.quiet = false
			if p.more = p.record.Remaining > 0; !p.more {
				p.caughtUp()
			}
			if err = p.decoder.decode(p.record.RawSample, ev); err == nil {
				p.unseen.meet(ev.NetNS)
			}
			return err
		case errors.Is(err, os.ErrDeadlineExceeded):
			if p.lostSince(ev) {
				return nil
			}
			if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
				return os.ErrDeadlineExceeded
			}
			p.nextWait()
		case errors.Is(err, ringbuf.ErrFlushed), errors.Is(err, ringbuf.ErrClosed):
			if p.lostSince(ev) {
				_ = p.ring.Flush() // come back here for the end
				return nil
			}
			return io.EOF
		default:
			return fmt.Errorf("read the ring buffer: %w", err)
		}
	}
}

// nextWait decides how to wait after a deadline: the ring hands out what came
// without a wakeup before it reports the deadline. Only when that was nothing is
// the last wakeup so long ago that the next event will wake us.
func (p *Probe) nextWait() {
	wait := pollInterval
	if p.quiet {
		wait = idleInterval
	}
	p.quiet = true
	p.waitAtMost(wait)
}

// waitAtMost limits how long the ring waits, no longer than to the deadline.
func (p *Probe) waitAtMost(d time.Duration) {
	until := time.Now().Add(d)
	if !p.deadline.IsZero() && p.deadline.Before(until) {
		until = p.deadline
	}
	p.ring.SetDeadline(until)
}

// SetDeadline makes Read give up at t; the zero Time means never.
func (p *Probe) SetDeadline(t time.Time) {
	p.deadline = t
	p.waitAtMost(pollInterval)
}

// caughtUp prepares for a wait: events may still come without a wakeup.
func (p *Probe) caughtUp() {
	p.waitAtMost(pollInterval)
	p.decoder.wallOffset = p.decoder.clock.wallOffset() // the wall clock may have been set
	p.untilLoss = 0
}

// Now is the time since the boot in ns, by the clock that events have: in a time
// namespace, CLOCK_BOOTTIME of clock_gettime(2) is another one.
func (p *Probe) Now() uint64 { return uint64(p.decoder.clock.now()) }

// More reports whether another event waits already.
func (p *Probe) More() bool { return p.more }

// lostSince reports whether anything was lost since the last time, and says so in
// ev.
func (p *Probe) lostSince(ev *tcp.Event) bool {
	var now Losses
	o := &p.objs
	if o.Lost.Get(&now.Lost) != nil || o.Untracked.Get(&now.Untracked) != nil || o.Missed.Get(&now.MissedTransitions) != nil {
		return false
	}
	*ev = p.lossEvent()
	switch {
	case now.Lost != p.seen.Lost:
		ev.Lost, ev.Where = now.Lost-p.seen.Lost, tcp.WhereRing
		p.seen.Lost = now.Lost
	case now.Untracked != p.seen.Untracked:
		ev.Lost, ev.Where = now.Untracked-p.seen.Untracked, tcp.WhereMap
		p.seen.Untracked = now.Untracked
	case now.MissedTransitions != p.seen.MissedTransitions:
		ev.Lost, ev.Where = now.MissedTransitions-p.seen.MissedTransitions, tcp.WhereHook
		p.seen.MissedTransitions = now.MissedTransitions
	default:
		p.unseen.readIfDue()
		if p.unseen.next(ev) {
			return true
		}
		p.untilLoss = lossInterval
		return false
	}
	return true
}

// lossEvent is one of now, of kind Lost.
func (p *Probe) lossEvent() tcp.Event {
	boot := p.Now()
	return tcp.Event{Kind: tcp.Lost, BootNS: boot, Time: int64(boot) + p.decoder.wallOffset, UID: tcp.NoUID, FD: tcp.NoFD}
}

// Stop ends the trace, from any goroutine: nothing new is traced, and Read
// returns what was reported so far.
func (p *Probe) Stop() {
	p.stopOnce.Do(func() {
		close(p.stop)
		_ = p.ring.Flush()
	})
}

// Losses gives what was not seen, as far as Read and Unseen have reported it. Call it when
// Read has returned io.EOF.
func (p *Probe) Losses() Losses {
	a := p.seen
	a.Unseen, a.UnknownUnseen = p.unseen.losses()
	// Not the copies of state_change: what one misses another reports. Nor destroy_sock: in
	// a softirq only orphans are destroyed, and these are forgotten before.
	for _, prog := range []*ebpf.Program{p.objs.TimerStart, p.objs.TimerCancel, p.objs.TimerExpireExit} {
		if prog == nil { // its hook is missing
			continue
		}
		if stats, err := prog.Stats(); err == nil {
			a.SkippedRuns += stats.RecursionMisses
		}
	}
	return a
}

// Close detaches everything. Nothing stays behind in the kernel.
func (p *Probe) Close() error {
	if p.ring != nil {
		p.Stop()
	}
	p.owners.Wait()
	p.unseen.close()
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.Close())
	}
	if p.hooks != nil {
		errs = append(errs, p.hooks.trampoline.Close())
	}
	return errors.Join(append(errs, p.objs.Close())...)
}

package main

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// tracingFlags say where events come from, the live kernel or a recording, and when it ends.
type tracingFlags struct {
	Read     []string `short:"r" sep:"none" placeholder:"FILE" group:"Source and end" help:"Read a recording (JSON of tcptrace -j) instead of the kernel; - is standard input."`
	Duration duration `short:"d" placeholder:"TIME" group:"Source and end" help:"Stop after this time: 10s, 5m."`

	recordFlags `embed:"" group:"Recording"`

	limitFlags  `embed:"" group:"Limits"`
	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// limitFlags bound what a trace takes.
type limitFlags struct {
	RingSize   ringSize `default:"8M" placeholder:"SIZE" help:"Ring buffer between the kernel and tcptrace; default ${default}."`
	MaxSockets *count   `placeholder:"COUNT" help:"Sockets tracked at once; default 1048576, before Linux 6.1 an eighth of that."`
}

// limit sets the limits.
func (f *limitFlags) limit(config *probe.Config) {
	config.RingBytes = int(f.RingSize)
	if f.MaxSockets != nil {
		config.MaxSockets = uint32(*f.MaxSockets)
	}
}

// view is what a command makes of the events.
type view struct {
	// open returns the consumer for a source; offset is that of the wall clock to
	// CLOCK_BOOTTIME in ns, 0 of a recording, in which every event tells it.
	open       func(source pipeline.Source, offset int64) (pipeline.Consumer, error)
	interval   time.Duration // from tick to tick; 0: it needs none
	kernelAddr bool          // the addresses of sockets are asked for
	tracked    bool          // pipeline.Source.Existing is asked
	stacks     bool          // the code that opened sockets is named, see kernel.stacks
	// paced returns what stands between a source and the view, once it is open; nil: nothing.
	paced   func(pipeline.Source) pipeline.Source
	ended   func()          // called when the source has ended, before anything is said; nil: nothing to do
	missing func() []string // what the view itself does not show; nil: nothing
}

// selectInterval is how soon a socket is shown that stays in a state for long enough.
const selectInterval = 250 * time.Millisecond

// maxFollowed is how many sockets a view follows at once, unless --max-sockets is given.
const maxFollowed = 1 << 18

// followed is how many sockets a view follows at once.
func (f *limitFlags) followed() int {
	if f.MaxSockets != nil {
		return int(*f.MaxSockets)
	}
	return maxFollowed
}

// run takes the events of the sockets that the filter selects to a view.
func (f *tracingFlags) run(e *env, filter *followFlags, v view) error {
	if f.Read == nil {
		filter.idsFirst(e)
	}
	selected, err := filter.filter()
	if err == nil {
		err = f.recordFlags.check()
	}
	if err != nil {
		return err
	}
	sockets := selection{tcp.NewSelector(selected), filter.Where}
	if f.Read != nil {
		return f.replay(e, sockets, v)
	}
	return f.live(e, filter.probeConfig(), sockets, v)
}

// selection is what picks the sockets, and the part of it that may fail.
type selection struct {
	*tcp.Selector
	where expression
}

func (f *tracingFlags) live(e *env, config probe.Config, sockets selection, v view) error {
	f.limit(&config)
	config.KernelAddr, config.Tracked = v.kernelAddr && e.showsAddresses(), v.tracked
	config.Hooks, config.BTF, config.Without = f.Hooks, f.BTF, f.Without
	stacks, err := v.stackReader(e)
	if err != nil {
		return err
	}
	if stacks != nil {
		defer stacks.Close()
		config.Stacks = true
	}
	source, err := e.openKernel(config, f.recordFlags)
	if err != nil {
		return err
	}
	defer source.Close()
	source.nameCode(stacks)
	a, err := f.show(e, source, source.config(probe.ReadTrace), source.record, time.Now().UnixNano()-int64(source.Now()), sockets, v)
	a.losses = source.Losses()
	a.namespaces = sockets.Namespaces()
	err = e.finish(err, append(a.ofListeners(), a.ofTrace())...)
	if err == nil && stacks != nil {
		stacks.explain(e)
	}
	return err
}

// stackReader names code, if the view wants that; nil: it is not named.
func (v *view) stackReader(e *env) (*stackReader, error) {
	if !v.stacks {
		return nil, nil
	}
	if err := probe.CheckPlace(); err != nil { // or the helper would say that it cannot start
		return nil, err
	}
	return e.newStackReader(), nil
}

func (f *tracingFlags) replay(e *env, sockets selection, v view) error {
	source, err := e.openRecording(f.Read...)
	if err != nil {
		return err
	}
	defer source.Close()
	record, err := f.create()
	if err != nil {
		return err
	}
	a, err := f.show(e, source, source.config(record), record, 0, sockets, v)
	return e.finish(err, a.ofRecording())
}

// show runs the view.
func (f *tracingFlags) show(e *env, source pipeline.Source, config pipeline.Config, record *recordFiles, offset int64, sockets selection, v view) (account, error) {
	to, err := v.open(source, offset)
	if err != nil {
		return account{}, err
	}
	if v.ended != nil {
		defer v.ended() // also on a panic
	}
	if v.paced != nil {
		source = v.paced(source)
	}
	config.Selector, config.Duration, config.Output = sockets.Selector, time.Duration(f.Duration), e.stdout.File()
	config.Interval = v.interval
	if sockets.Ticks() && (v.interval == 0 || v.interval > selectInterval) {
		config.Interval = selectInterval
	}
	counts, err := record.run(e.ctx, config, source, to)
	a := account{counts: counts, dropped: sockets.Dropped(), unjudged: sockets.Unjudged(), where: sockets.where.failed()}
	if v.missing != nil {
		a.view = v.missing()
	}
	return a, err
}

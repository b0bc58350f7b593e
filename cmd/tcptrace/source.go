package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// kernel is the live kernel as a pipeline.Source, whose time is the clock.
type kernel struct {
	*probe.Probe
	env    *env
	place  *enrich.Enricher
	record *recordFiles // nil: it is not recorded
	stacks *stackReader // nil: no code is named
}

// nameCode has code that opened sockets named by stacks, which may be nil.
func (k *kernel) nameCode(stacks *stackReader) {
	k.stacks = stacks
	if stacks != nil {
		stacks.probe = k.Probe
	}
}

// Stop also ends a look into a process.
func (k kernel) Stop() {
	if k.stacks != nil {
		k.stacks.interrupt()
	}
	k.Probe.Stop()
}

// openKernel begins to trace, and says what this kernel and this place do not show. Close
// it.
func (e *env) openKernel(config probe.Config, record recordFlags) (kernel, error) {
	return e.openKernelFor(config, record, probe.SetupNeeds())
}

// openKernelFor is openKernel for a command that needs this while it begins.
func (e *env) openKernelFor(config probe.Config, record recordFlags, setup confine.Needs) (kernel, error) {
	files, err := begin(record, setup)
	if err != nil {
		return kernel{}, err
	}
	p, err := probe.Open(config)
	if err != nil {
		return kernel{}, err
	}
	for _, limitation := range p.Limitations() {
		e.say(limitation.String())
	}
	where := enrich.New("/proc", "")
	e.sayLimits(where)
	return kernel{p, e, where, files, nil}, nil
}

// begin gives up what no live command ever needs, before anything of others is looked at and
// after the files of a recording were made, for which it is too late then. Where nothing can
// be traced the error comes next, and speaks of a process as it was started.
func begin(record recordFlags, setup confine.Needs) (*recordFiles, error) {
	if err := probe.CheckPlace(); err != nil || !probe.HasPrivileges() {
		return nil, err
	}
	files, err := record.create()
	if err != nil {
		return nil, err
	}
	return files, confined(files.add(setup))()
}

// sayLimits says what is not seen from where this process runs. It comes after the first
// that works: where nothing does, that error is enough.
func (e *env) sayLimits(where *enrich.Enricher) {
	for _, sentence := range where.Limitations() {
		e.say(sentence)
	}
}

// saySkipped says what a walk over the sockets had to leave out, which is not an error.
func (e *env) saySkipped(err error) error {
	if skipped, ok := errors.AsType[*probe.SkippedError](err); ok {
		e.say(skipped.Error())
		return nil
	}
	return err
}

// config is what Run needs to know of the kernel as a source. When the sockets that exist
// were read, the command can do these tasks alone.
func (k kernel) config(keep ...probe.Task) pipeline.Config {
	needs := needs(k.place, keep...)
	needs.Helper = k.stacks != nil
	return pipeline.Config{
		Existing: func(emit func(*tcp.Event) error) error { return k.env.saySkipped(k.Seed(emit)) },
		Last:     k.Unseen,
		Confine:  confined(k.record.add(needs)),
		Enrich:   k.place.Fill,
	}
}

// showsAddresses reports whether -x may show where the kernel keeps a socket, and says so
// if not.
func (e *env) showsAddresses() bool {
	if confine.SeesAddresses() {
		return true
	}
	e.say("the addresses of sockets in the kernel are not shown: it hides them from you (sysctl kernel.kptr_restrict)")
	return false
}

// needs returns what the tasks take, and what place reads.
func needs(place *enrich.Enricher, keep ...probe.Task) confine.Needs {
	n := probe.Needs(keep...)
	n.Read = place.Reads()
	return n
}

// confined gives up what is not needed. What of it a kernel cannot take away is for doctor
// to say.
func confined(n confine.Needs) func() error {
	return func() error {
		_, err := confine.Process(n)
		return err
	}
}

func (k kernel) SetDeadline(boot uint64) {
	if boot == 0 {
		k.Probe.SetDeadline(time.Time{})
		return
	}
	left := boot - min(boot, k.Now())
	k.Probe.SetDeadline(time.Now().Add(time.Duration(min(left, uint64(maxWait)))))
}

// maxWait keeps a deadline within what time.Duration can hold. Run sets it anew then.
const maxWait = 24 * time.Hour

func (k kernel) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	return k.TrackedSockets(states, emit)
}

// completeKernel is a kernel whose rows of sockets have what is known of their owners as well,
// like its events.
type completeKernel struct{ kernel }

func (k completeKernel) Existing(states []tcp.State, emit func(*tcp.Event) error) error {
	return k.kernel.Existing(states, func(row *tcp.Event) error {
		k.place.Fill(row)
		return emit(row)
	})
}

// recorded is a recording as a pipeline.Source.
type recorded struct {
	*recording.Source
	files []*os.File // closed by Close, also while they are read
}

// Close closes the files.
func (r recorded) Close() {
	for _, f := range r.files {
		f.Close()
	}
}

// maxSilence is how many ticks of a silence are played back, see pipeline.Config.
const maxSilence = 100

// openRecording opens a file, or standard input for "-"; or several files of one recording.
// Close it.
func (e *env) openRecording(paths ...string) (recorded, error) {
	if len(paths) == 1 && paths[0] == "-" {
		return recorded{recording.Open(e.stdin, "standard input"), []*os.File{e.stdin}}, nil
	}
	var r recorded
	for _, path := range paths {
		f, err := confine.Open(path)
		if err != nil {
			r.Close()
			return recorded{}, fmt.Errorf("cannot read the recording: %w", err)
		}
		r.files = append(r.files, f)
	}
	if len(paths) == 1 {
		r.Source = recording.Open(r.files[0], paths[0])
		return r, nil
	}
	var err error
	if r.Source, err = recording.OpenSet(r.files); err != nil {
		r.Close()
		return recorded{}, fmt.Errorf("cannot read the recording: %w", err)
	}
	return r, nil
}

// config is what Run needs to know of a recording, of which nothing but the open files is
// needed.
func (r recorded) config(record *recordFiles) pipeline.Config {
	return pipeline.Config{
		Confine: confined(record.add(confine.Needs{})),
		Silence: maxSilence,
	}
}

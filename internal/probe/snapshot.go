package probe

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Seed reads the sockets that exist, in every network namespace, and hands a row
// of kind Socket for each to emit, unless an event has already shown it. Call
// it once, after Open and before Read: then there is neither a gap nor a
// duplicate between the rows and the events. From then on the probe keeps the
// owners of sockets up to date. A *SkippedError says that rows are missing.
func (p *Probe) Seed(emit func(*tcp.Event) error) error {
	started := time.Now()
	skipped, err := snapshot(&p.objs, p.decoder, p.cfg, p.unseen.open, emit)
	if err != nil {
		return err
	}
	if interval := p.cfg.OwnerRefresh; interval >= 0 {
		if interval == 0 {
			interval = time.Second
		}
		p.owners.Add(1)
		go p.refreshOwners(max(interval, ownerShare*time.Since(started)))
	}
	return skipped.asError()
}

// snapshot looks at all open files first, so that the rows know their owners. It calls enter
// in each network namespace.
func snapshot(objs *bpfObjects, d *decoder, cfg Config, enter func(inode uint32), emit func(*tcp.Event) error) (*SkippedError, error) {
	files, err := walkFiles(objs, bpfPassModePASS_SEED, d.holders)
	if err != nil {
		return nil, err
	}
	namespaces, unread, err := netNamespaces("/proc", files)
	if err != nil {
		return nil, err
	}
	_, found := namespaces[uint64(cfg.NetNS)]
	var skipped *SkippedError
	return skipped, whileFresh(objs, func() error {
		skipped, err = walkTables(objs, d, cfg, namespaces, enter, emit)
		if unread > 0 && !found {
			skipped = skipped.miss(unread)
		}
		if err != nil || objs.KnownSockets == nil {
			return err
		}
		return closedSockets(objs, d, emit)
	})
}

// whileFresh runs f, which writes rows, just after a pass over all files.
func whileFresh(objs *bpfObjects, f func() error) error {
	if objs.Files == nil {
		return f()
	}
	look := bpfLookKindLOOK_PARTIAL
	if inInitialPIDNamespace() {
		look = bpfLookKindLOOK_COMPLETE
	}
	if err := objs.Look.Set(look); err != nil {
		return err
	}
	return errors.Join(f(), objs.Look.Set(bpfLookKindLOOK_STALE))
}

// inInitialPIDNamespace: else there may be processes that the file iterator does not show us.
func inInitialPIDNamespace() bool {
	const initialPIDNamespace = 0xEFFFFFFC // PROC_PID_INIT_INO
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initialPIDNamespace
}

// othersTables is how long the sockets in network namespaces of other users are read, if nothing
// else is said: one takes 1 to 2 ms, empty or not, and a user without privileges can have
// tens of thousands.
const othersTables = 5 * time.Second

var errOthersTime = errors.New("other users have so many that to read them takes too long")

// walkTables reads the sockets of every namespace: those of root first and all, those of others
// while there is time.
func walkTables(objs *bpfObjects, d *decoder, cfg Config, namespaces map[uint64]namespace, enter func(inode uint32), emit func(*tcp.Event) error) (skipped *SkippedError, err error) {
	read := func() error { return nil } // hookTable is missing, as Limitations says
	if objs.Table != nil {
		table, err := link.AttachIter(link.IterOptions{Program: objs.Table})
		if err != nil {
			return nil, fmt.Errorf("attach the socket iterator: %w", err)
		}
		defer table.Close()
		read = func() error { return readRows(table, d, emit) }
	}
	if _, found := namespaces[uint64(cfg.NetNS)]; cfg.NetNS != 0 && !found {
		skipped = skipped.skip(fmt.Errorf("network namespace %d is not found", cfg.NetNS))
	}
	root, others := byOwner(namespaces, uint64(cfg.NetNS))
	var until time.Time
	for i, inode := range slices.Concat(root, others) {
		if i == len(root) && cfg.NetNS == 0 {
			until = time.Now().Add(cmp.Or(cfg.OthersTime, othersTables))
		}
		if isPast(until) {
			skipped = skipped.skip(errOthersTime)
			continue
		}
		err := inNamespace(inode, namespaces[inode], func() error {
			enter(uint32(inode))
			return read()
		})
		if why, ok := errors.AsType[*notEntered](err); ok {
			skipped = skipped.skip(why)
		} else if err != nil {
			return skipped, fmt.Errorf("read the sockets of network namespace %d: %w", inode, err)
		}
	}
	return skipped, nil
}

// closedSockets reads those whose connection is over and whose descriptor is still open. They
// are in no table: only the file leads to them.
func closedSockets(objs *bpfObjects, d *decoder, emit func(*tcp.Event) error) error {
	err := errors.Join(objs.RowStates.Set(uint32(1<<tcp.Close)), objs.RowsDueOnly.Set(true))
	if err != nil {
		return fmt.Errorf("prepare the walk over closed sockets: %w", err)
	}
	if err := walkMap(objs.Socks, objs.KnownSockets, d, emit); err != nil {
		return fmt.Errorf("walk over closed sockets: %w", err)
	}
	return objs.RowsDueOnly.Set(false)
}

// TrackedSockets hands a row for each socket that is in one of the states now to emit, with its
// age as far as the trace or the kernel knows it, with its queues and without counters.
// In CLOSE are those whose connection is over and whose descriptor is still open. It
// needs Config.Tracked; call it after Seed, from the goroutine that reads. It looks at
// all open files, for owners, names and descriptors as they are now, and walks over what
// the trace knows, of all namespaces at once.
func (p *Probe) TrackedSockets(states []tcp.State, emit func(*tcp.Event) error) error {
	if why := p.hooks.missing[hookTracked]; why != nil {
		return fmt.Errorf("walk over the known sockets: %s: %w", hookTracked, why)
	}
	var wanted uint32
	for _, s := range states {
		wanted |= 1 << s
	}
	p.looking.Lock()
	defer p.looking.Unlock()
	files, err := p.refreshOnce()
	if err != nil {
		return err
	}
	p.files = files
	if err := p.objs.RowStates.Set(wanted); err != nil {
		return fmt.Errorf("prepare the walk over the known sockets: %w", err)
	}
	return whileFresh(&p.objs, func() error { return p.trackedRows(wanted, emit) })
}

func (p *Probe) trackedRows(wanted uint32, emit func(*tcp.Event) error) error {
	const mini, half = 1<<tcp.TimeWait | 1<<tcp.FinWait2, 1 << tcp.SynRecv
	for _, walk := range []struct {
		states uint32 // that are found there
		table  *ebpf.Map
		rows   *ebpf.Program
	}{
		{^uint32(1 << tcp.TimeWait), p.objs.Socks, p.objs.KnownSockets},
		{mini, p.objs.Timewaits, p.objs.KnownSockets},
		{half, p.objs.Requests, p.objs.KnownRequests},
	} {
		if wanted&walk.states == 0 {
			continue
		}
		if err := walkMap(walk.table, walk.rows, p.decoder, emit); err != nil {
			return fmt.Errorf("walk over the known sockets: %w", err)
		}
	}
	return nil
}

func walkMap(table *ebpf.Map, rows *ebpf.Program, d *decoder, emit func(*tcp.Event) error) error {
	it, err := link.AttachIter(link.IterOptions{Program: rows, Map: table})
	if err != nil {
		return err
	}
	defer it.Close()
	return readRows(it, d, emit)
}

// Stack gives the code that opened a socket (tcp.Event.Stack): return addresses in
// the owner's address space, innermost first.
func (p *Probe) Stack(id uint32) ([]uint64, error) {
	var stack [stackFrames]uint64
	if id == 0 {
		return nil, nil
	}
	if err := p.objs.Stacks.Lookup(id-1, &stack); err != nil {
		return nil, fmt.Errorf("look up stack %d: %w", id, err)
	}
	n := slices.Index(stack[:], 0)
	if n < 0 {
		n = len(stack)
	}
	return stack[:n], nil
}

// iteration reads a BPF iterator to its end. The kernel gives up with EAGAIN after a
// million objects without output (bpf_seq_read, MAX_ITER_OBJECTS), and goes on where
// it was when it is asked again.
type iteration struct {
	r io.Reader
}

func (i iteration) Read(p []byte) (int, error) {
	for {
		n, err := i.r.Read(p)
		if n > 0 || !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

// readRows reads what an iterator writes, rows. One over sockets is of the network
// namespace that the thread is in.
func readRows(table *link.Iter, d *decoder, emit func(*tcp.Event) error) error {
	file, err := table.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	rows := bufio.NewReaderSize(iteration{file}, 64<<10)
	record := make([]byte, eventSize)
	var ev tcp.Event
	for {
		if _, err := io.ReadFull(rows, record); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := d.decode(record, &ev); err != nil {
			return err
		}
		if err := emit(&ev); err != nil {
			return err
		}
	}
}

// StackTop gives the first words of that user stack, for what a walk along frame
// pointers misses; nil where the kernel cannot tell (before 5.15, and with lockdown=confidentiality).
func (p *Probe) StackTop(id uint32) []uint64 {
	var top bpfStackTop
	if id == 0 || p.objs.StackTops.Lookup(id-1, &top) != nil {
		return nil
	}
	return top.Words[:]
}

// walkFiles runs the program files over every open file of every process, and
// returns those that lead to network namespaces. It adds the others to the holders, which may
// be nil: then there are none.
func walkFiles(objs *bpfObjects, mode bpfPassMode, holders *holderList) ([]openFile, error) {
	if objs.Files == nil { // hookFiles is missing, as Limitations says
		return nil, nil
	}
	if err := errors.Join(objs.PassMode.Set(mode), objs.LastNetns.Set(uint32(0))); err != nil {
		return nil, fmt.Errorf("prepare the file iterator: %w", err)
	}
	it, err := link.AttachIter(link.IterOptions{Program: objs.Files})
	if err != nil {
		return nil, fmt.Errorf("attach the file iterator: %w", err)
	}
	defer it.Close()
	file, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("look at open files: %w", err)
	}
	defer file.Close()
	return readOpenFiles(bufio.NewReader(iteration{file}), holders)
}

func readOpenFiles(r io.Reader, holders *holderList) ([]openFile, error) {
	var files []openFile
	for {
		var file openFile
		err := binary.Read(r, binary.NativeEndian, &file)
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look at open files: %w", err)
		}
		if file.Sk != 0 {
			holders.add(&file)
			continue
		}
		files = append(files, file)
	}
}

// namespace gives a way to a network namespace. It knows the open files that TrackedSockets
// saw last, and does not look again: it may be called for a row, when that look holds looking.
func (p *Probe) namespace(inode uint32) (namespace, error) {
	if time.Since(p.namespacesAt) > namespaceInterval {
		var err error
		if p.namespaces, _, err = netNamespaces("/proc", p.files); err != nil {
			return namespace{}, err
		}
		p.namespacesAt = time.Now()
	}
	ns, known := p.namespaces[uint64(inode)]
	if !known {
		return namespace{}, fmt.Errorf("network namespace %d is not found", inode)
	}
	return ns, nil
}

// namespaceInterval is how old the list of namespaces may be that namespace knows.
const namespaceInterval = 10 * time.Second

// stackFrames is how many callers are kept of a stack: STACK_FRAMES in bpf/trace.h.
const stackFrames = 32

// ownerShare bounds the cost of looking for owners: a pass over all files may take
// at most 1/ownerShare of the time between two.
const ownerShare = 50

// refreshOwners finds the holder of every socket whose owner is only inherited
// from a listener, or that was passed to another process, until the probe stops.
// What it finds is kept in the kernel. It leaves out what TrackedSockets has just done.
func (p *Probe) refreshOwners(interval time.Duration) {
	defer p.owners.Done()
	wait := interval
	for {
		select {
		case <-p.stop:
			return
		case <-time.After(wait):
		}
		p.looking.Lock()
		started := time.Now()
		if wait = p.lookedAt.Add(interval).Sub(started); wait > 0 {
			p.looking.Unlock()
			continue
		}
		_, err := p.refreshOnce()
		p.looking.Unlock()
		if err != nil {
			return // only at Close: the maps are gone
		}
		interval = max(interval, ownerShare*time.Since(started))
		wait = interval
	}
}

// refreshOnce takes a second pass only where it may find something: each one holds the files
// of others for a moment, and so may hold up the FIN of a close(). It returns the files that
// lead to network namespaces. The caller holds looking.
func (p *Probe) refreshOnce() ([]openFile, error) {
	var pass, strangers uint32
	defer func() { p.lookedAt = time.Now() }()
	if err := p.objs.Pass.Get(&pass); err != nil {
		return nil, err
	}
	if err := errors.Join(p.objs.Pass.Set(pass+1), p.objs.Strangers.Set(uint32(0))); err != nil {
		return nil, err
	}
	files, err := walkFiles(&p.objs, bpfPassModePASS_MARK, nil)
	if err != nil {
		return nil, err
	}
	if err := p.objs.Strangers.Get(&strangers); err != nil || strangers == 0 {
		return files, err
	}
	_, err = walkFiles(&p.objs, bpfPassModePASS_REPLACE, nil)
	return files, err
}

package probe

import (
	"bufio"
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
// of kind Socket for each to emit, unless an event has told of it already. Call
// it once, after Open and before Read: then there is neither a gap nor a
// duplicate between the rows and the events. From then on the probe keeps the
// owners of sockets up to date.
func (p *Probe) Seed(emit func(*tcp.Event) error) error {
	started := time.Now()
	if err := snapshot(&p.objs, p.decoder, p.cfg, emit); err != nil {
		return err
	}
	if interval := p.cfg.OwnerRefresh; interval >= 0 {
		if interval == 0 {
			interval = time.Second
		}
		p.owners.Add(1)
		go p.refreshOwners(max(interval, ownerShare*time.Since(started)))
	}
	return nil
}

// Sockets hands a row of kind Socket for each socket to emit, and traces nothing.
func Sockets(cfg Config, emit func(*tcp.Event) error) error {
	var objs bpfObjects
	_, err := loadHooks(cfg, listPlan(), &objs)
	defer objs.Close()
	if err != nil {
		return err
	}
	return snapshot(&objs, newDecoder(cfg.KernelAddr), cfg, emit)
}

// snapshot looks at all open files first, so that the rows know their owners.
func snapshot(objs *bpfObjects, d *decoder, cfg Config, emit func(*tcp.Event) error) error {
	files, err := walkFiles(objs, bpfPassModePASS_SEED)
	if err != nil {
		return err
	}
	namespaces, err := netNamespaces("/proc", files)
	if err != nil {
		return err
	}
	return walkTables(objs, d, cfg, namespaces, emit)
}

// walkTables reads the sockets of every namespace.
func walkTables(objs *bpfObjects, d *decoder, cfg Config, namespaces map[uint64]string, emit func(*tcp.Event) error) error {
	if objs.Table == nil { // hookTable is missing, as Limitations says
		return nil
	}
	table, err := link.AttachIter(link.IterOptions{Program: objs.Table})
	if err != nil {
		return fmt.Errorf("attach the socket iterator: %w", err)
	}
	defer table.Close()
	for inode, path := range namespaces {
		if cfg.NetNS != 0 && uint64(cfg.NetNS) != inode {
			continue
		}
		err := inNamespace(path, func() error { return readRows(table, d, emit) })
		if err != nil {
			return fmt.Errorf("read the sockets of network namespace %d: %w", inode, err)
		}
	}
	return nil
}

// TrackedSockets hands a row for each socket that is in one of the states now to emit, with its
// age as far as the trace or the kernel knows it, with its queues and without counters.
// It needs Config.Tracked; call it after Seed, from the goroutine that reads. It walks
// over what the trace knows, of all namespaces at once.
func (p *Probe) TrackedSockets(states []tcp.State, emit func(*tcp.Event) error) error {
	if why := p.hooks.missing[hookTracked]; why != nil {
		return fmt.Errorf("walk over the known sockets: %s: %w", hookTracked, why)
	}
	var wanted uint32
	for _, s := range states {
		wanted |= 1 << s
	}
	if err := p.objs.RowStates.Set(wanted); err != nil {
		return fmt.Errorf("prepare the walk over the known sockets: %w", err)
	}
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
// pointers misses; nil where the kernel cannot tell (before 5.15).
func (p *Probe) StackTop(id uint32) []uint64 {
	var top bpfStackTop
	if id == 0 || p.objs.StackTops.Lookup(id-1, &top) != nil {
		return nil
	}
	return top.Words[:]
}

// walkFiles runs the program files over every open file of every process, and
// returns the paths of those that are namespaces.
func walkFiles(objs *bpfObjects, mode bpfPassMode) ([]string, error) {
	if objs.Files == nil { // hookFiles is missing, as Limitations says
		return nil, nil
	}
	if err := objs.PassMode.Set(mode); err != nil {
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
	return readNamespaceFiles(bufio.NewReader(iteration{file}))
}

func readNamespaceFiles(r io.Reader) ([]string, error) {
	var paths []string
	for {
		var file uint64 // write_namespace in bpf/snapshot.h
		err := binary.Read(r, binary.NativeEndian, &file)
		if errors.Is(err, io.EOF) {
			return paths, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look at open files: %w", err)
		}
		paths = append(paths, fmt.Sprintf("/proc/%d/fd/%d", file>>32, uint32(file)))
	}
}

// namespace gives a path to a network namespace.
func (p *Probe) namespace(inode uint32) (path string, err error) {
	if time.Since(p.namespacesAt) > namespaceInterval {
		files, err := walkFiles(&p.objs, bpfPassModePASS_MARK)
		if err != nil {
			return "", err
		}
		if p.namespaces, err = netNamespaces("/proc", files); err != nil {
			return "", err
		}
		p.namespacesAt = time.Now()
	}
	path, known := p.namespaces[uint64(inode)]
	if !known {
		return "", fmt.Errorf("network namespace %d is not found", inode)
	}
	return path, nil
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
// It shares no Go state with the reader: owners live in the kernel.
func (p *Probe) refreshOwners(interval time.Duration) {
	defer p.owners.Done()
	for {
		select {
		case <-p.stop:
			return
		case <-time.After(interval):
		}
		started := time.Now()
		if p.refreshOnce() != nil {
			return // only at Close: the maps are gone
		}
		interval = max(interval, ownerShare*time.Since(started))
	}
}

func (p *Probe) refreshOnce() error {
	var pass uint32
	if err := p.objs.Pass.Get(&pass); err != nil {
		return err
	}
	if err := p.objs.Pass.Set(pass + 1); err != nil {
		return err
	}
	if _, err := walkFiles(&p.objs, bpfPassModePASS_MARK); err != nil {
		return err
	}
	_, err := walkFiles(&p.objs, bpfPassModePASS_REPLACE)
	return err
}

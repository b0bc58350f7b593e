package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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
	if _, err := load(cfg, &objs); err != nil {
		return err
	}
	defer objs.Close()
	return snapshot(&objs, newDecoder(cfg.KernelAddr), cfg, emit)
}

// snapshot looks at all open files first, so that the rows know their owners.
func snapshot(objs *bpfObjects, d *decoder, cfg Config, emit func(*tcp.Event) error) error {
	if err := walkFiles(objs, bpfPassModePASS_SEED); err != nil {
		return err
	}
	namespaces, err := netNamespaces("/proc")
	if err != nil {
		return err
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

// readRows reads the sockets of the network namespace that the thread is in.
func readRows(table *link.Iter, d *decoder, emit func(*tcp.Event) error) error {
	file, err := table.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	rows := bufio.NewReaderSize(file, 64<<10)
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

// walkFiles runs the program files over every open file of every process.
func walkFiles(objs *bpfObjects, mode bpfPassMode) error {
	lingering, err := lingeringSocket()
	if err != nil {
		return err
	}
	defer unix.Close(lingering)
	if err := objs.PassMode.Set(mode); err != nil {
		return fmt.Errorf("prepare the file iterator: %w", err)
	}
	if err := runIterator(objs.Files); err != nil {
		return fmt.Errorf("look at open files: %w", err)
	}
	return nil
}

// lingeringSocket tells the program files how many ticks a second has: the kernel
// keeps l_linger in ticks (sock_setsockopt).
func lingeringSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set SO_LINGER: %w", err)
	}
	return fd, nil
}

func runIterator(prog *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return err
	}
	defer it.Close()
	file, err := it.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(io.Discard, file)
	return err
}

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
	if err := walkFiles(&p.objs, bpfPassModePASS_MARK); err != nil {
		return err
	}
	return walkFiles(&p.objs, bpfPassModePASS_REPLACE)
}

package probe

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Table looks at the sockets that exist, once or again and again. It traces nothing. It belongs
// to one goroutine.
type Table struct {
	cfg    Config
	objs   bpfObjects
	looked bool
}

// OpenTable loads what a look takes, which takes longer than the look. Close it.
func OpenTable(cfg Config) (*Table, error) {
	t := &Table{cfg: cfg}
	if _, err := loadHooks(cfg, listPlan(), &t.objs); err != nil {
		return nil, errors.Join(explain(err), t.objs.Close())
	}
	if err := t.objs.ListHolders.Set(true); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the look at sockets: %w", err), t.objs.Close())
	}
	return t, nil
}

// Close unloads it.
func (t *Table) Close() error { return t.objs.Close() }

// Sockets hands a row of kind Socket for each socket that exists now to emit, with all
// processes that hold it. A *SkippedError says that rows are missing.
func (t *Table) Sockets(emit func(*tcp.Event) error) error {
	if t.looked {
		if err := t.forget(); err != nil {
			return fmt.Errorf("forget the last look: %w", err)
		}
	}
	t.looked = true
	d := newDecoder(t.cfg.KernelAddr)
	d.holders = newHolderList(d)
	skipped, err := snapshot(&t.objs, d, t.cfg, func(uint32) {}, emit)
	if err != nil {
		return err
	}
	return skipped.asError()
}

// forget empties what a look has filled: a socket that is known gets no row again.
func (t *Table) forget() error {
	return errors.Join(empty[infoBytes](t.objs.Socks), empty[infoBytes](t.objs.Timewaits), empty[requestBytes](t.objs.Requests))
}

// The values of these maps, which nobody looks at: to decode them takes longer than the look.
type (
	infoBytes    [unsafe.Sizeof(bpfSockInfo{})]byte
	requestBytes [unsafe.Sizeof(bpfRequest{})]byte
)

// empty deletes all entries of a hash map of sockets, into which nothing else writes.
func empty[V any](m *ebpf.Map) error {
	const batch = 4096
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint64, batch), make([]V, batch)
	for {
		_, err := m.BatchLookupAndDelete(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // that was the last of them
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Sockets takes one look, see Table.
func Sockets(cfg Config, emit func(*tcp.Event) error) error {
	t, err := OpenTable(cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Sockets(emit)
}

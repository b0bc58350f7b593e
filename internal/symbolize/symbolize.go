package symbolize

import (
	"context"
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// The bounds of a Symbolizer's memory. Beside them, a file takes an open descriptor, or two
// with a debug file, and 12 KB at most.
const (
	maxProcesses = 4096
	maxFiles     = 1024
	maxMapBytes  = 16 << 20 // of all processes together
	maxTables    = 32 << 20 // bytes of symbols
	maxLines     = 1        // file whose line tables are in memory, of maxLineBytes and 8 MiB of index at most
	maxFrames    = 8 << 20  // bytes of answers that are kept
	maxText      = 256      // bytes of a name
)

// Symbolizer names the code that addresses of user space belong to. For Go
// programs, stripped or not, it reads the tables of the Go runtime; for others the
// ELF symbols and the DWARF line tables, their own or those of a debug file that
// they name. It reads files of the processes themselves and trusts none of them.
// The strings that it returns come from these files: escape them before they reach
// a terminal. It does not name code compiled at run time, nor ELF files of 32 bits
// or of big-endian machines, and does not undo the inlining of C, C++ and Rust.
//
// It parses .gopclntab and .debug_line itself. debug/gosym does not know of inlined
// calls and wants the whole table in memory; debug/dwarf needs .debug_info, and
// allocates what a file asks for, which a hostile file makes all there is. The
// packages of the OpenTelemetry eBPF profiler are the inside of an agent: they bring
// gRPC and a cloud SDK along, and leave C lines to a server. What we need of the two
// formats is shorter than that would be to wire.
//
// It belongs to one goroutine. What it may spend is bounded, see budget.go: what would take
// longer, or more memory, is left out, and Skipped counts the files that were given up. A
// file system that does not answer keeps a thread in the kernel, which no signal ends: so
// that this thread does not keep the process from its end, a Symbolizer belongs into a
// process of its own, see Helper.
type Symbolizer struct {
	proc      procfs.Proc
	budget    budget
	processes cache[uint32, *process]
	files     cache[fileKey, *object]
	tables    cache[*table, []symbol]
	lines     cache[*object, *lineTable]
	frames    cache[frameKey, []Frame]
	skipped   Skipped
}

type frameKey struct {
	file   fileKey
	offset uint64
}

// Frame is one function call of a stack, with as much as could be found out.
type Frame struct {
	Function string // as the language writes it, without parameters; "" if unknown
	File     string // of the source, as the compiler has it; "" if unknown
	Line     int    // of the call; 0 if unknown
	Module   string // the base name of the file mapped there; "" if it is not a file
	// Offset is where the call returns to: the virtual address in Module, as
	// addr2line(1) takes it, or the offset in that file if it cannot be read, or
	// the address itself without Module.
	Offset uint64
}

// String returns the most that is known on one line: "main.fetch at client.go:42",
// "connect in libc.so.6", "libc.so.6+0x1234" or "0x7f0012345678".
func (f Frame) String() string {
	switch {
	case f.Function != "" && f.Line > 0:
		return fmt.Sprintf("%s at %s:%d", f.Function, path.Base(f.File), f.Line)
	case f.Function != "" && f.Module != "":
		return f.Function + " in " + f.Module
	case f.Function != "":
		return f.Function
	case f.Module != "":
		return fmt.Sprintf("%s+%#x", f.Module, f.Offset)
	}
	return fmt.Sprintf("%#x", f.Offset)
}

// NewSymbolizer returns a Symbolizer that reads processes below procRoot
// ("/proc"), or none where that belongs to another PID namespace. To read
// those of others takes CAP_SYS_PTRACE; with CAP_CHECKPOINT_RESTORE too, it finds
// files that were removed since they were mapped.
func NewSymbolizer(procRoot string) *Symbolizer {
	return &Symbolizer{
		proc:      procfs.Open(procRoot),
		budget:    budget{ctx: context.Background()},
		processes: newCache[uint32](maxMapBytes, func(p *process) int { return max(p.size(), maxMapBytes/maxProcesses) }, func(*process) {}),
		files:     newCache[fileKey](maxFiles, func(*object) int { return 1 }, (*object).close),
		tables:    newCache[*table](maxTables, func(s []symbol) int { return 16 * len(s) }, func([]symbol) {}),
		lines:     newCache[*object](maxLines, func(*lineTable) int { return 1 }, func(*lineTable) {}),
		frames:    newCache[frameKey](maxFrames, SizeOf, func([]Frame) {}),
	}
}

// Skipped says which files were given up so far.
func (s *Symbolizer) Skipped() Skipped { return s.skipped }

// SizeOf is how many bytes frames take in memory, about.
func SizeOf(frames []Frame) int {
	size := 100
	for _, f := range frames {
		size += 72 + len(f.Function) + len(f.File) + len(f.Module)
	}
	return size
}

// cut shortens a name that is longer than anybody would read.
func cut(name string) string {
	if len(name) <= maxText {
		return name
	}
	return strings.ToValidUTF8(name[:maxText-3], "") + "..."
}

// Remember reads which files a process has mapped and opens them, so that its
// stacks can be named when it has exited. It is to be called while the process
// lives, and again whenever it is seen: a process that is known costs nothing for
// a second, then one look whether it is still the same. A process that cannot be
// read is left out. It takes a second at most, or until the end of ctx.
func (s *Symbolizer) Remember(ctx context.Context, pid uint32) {
	end := s.budget.begin(ctx)
	s.remember(pid)
	if end() {
		s.charge(pid)
	}
}

func (s *Symbolizer) remember(pid uint32) {
	now := time.Now()
	p := s.processes.get(pid)
	if p != nil && now.Sub(p.checked) < recheck {
		return
	}
	identity, err := s.identity(pid)
	switch {
	case err != nil: // it has exited; what was known stays
	case p != nil && p.identity == identity:
		p.checked = now
	default:
		p := &process{identity: identity, checked: now, read: now}
		s.look(pid, p)
		s.processes.put(pid, p)
	}
}

// Name names the addresses of a stack, innermost first: one Frame for each address and
// one more for each Go call that the compiler inlined there. top is what complete takes; it
// may be nil. It takes a second at most, or until the end of ctx; final says that another
// try would not find more.
//
// The innermost address follows the instruction that entered the kernel. Every
// other one has to be one that a call returns to. The first that is not, as no call
// is before it or it lies in no mapping, ends the stack: the code there keeps no
// frame pointer, and what the walk found from then on are chance words. Where the
// code or the mappings cannot be read, an address is believed.
//
// The call is looked for in the byte before an address: the next instruction may
// belong to another line, or to another function if the call never returns.
//
// A process that Remember does not know is looked at now. One that it knows keeps
// its pid here, even if a stranger got it meanwhile, until Remember meets the
// stranger.
func (s *Symbolizer) Name(ctx context.Context, pid uint32, addrs, top []uint64) (frames []Frame, final bool) {
	end := s.budget.begin(ctx)
	if len(top) > 0 {
		addrs = s.complete(pid, addrs, top)
	}
	frames = s.symbolize(pid, addrs)
	if end() {
		s.charge(pid)
	}
	return frames, !s.budget.over
}

func (s *Symbolizer) symbolize(pid uint32, addrs []uint64) []Frame {
	p := s.processes.get(pid)
	if p == nil {
		s.remember(pid)
		if p = s.processes.get(pid); p == nil {
			p = new(process)
		}
	}
	frames := make([]Frame, 0, len(addrs)+8)
	for i, addr := range addrs {
		m, o := s.locateNow(pid, p, addr-1)
		if len(p.maps) > 0 && (m == nil || i > 0 && !s.isReturn(p, addr)) {
			break
		}
		frames = append(frames, s.name(m, o, addr)...)
	}
	return frames
}

// name names an address in a mapping of a file, each of which may be nil.
func (s *Symbolizer) name(m *mapping, o *object, addr uint64) []Frame {
	if m == nil || m.path == "" {
		return []Frame{{Offset: addr}}
	}
	offset := addr - m.start + m.offset
	if o == nil {
		return []Frame{{Module: path.Base(m.path), Offset: offset}}
	}
	key := frameKey{m.file, offset}
	if known := s.frames.get(key); known != nil {
		return known
	}
	found := s.lookUp(o, offset)
	for i := range found {
		found[i].Module = path.Base(m.path)
	}
	if !s.budget.over {
		s.frames.put(key, found)
	}
	return found
}

// locateNow is locate for a process that may have loaded another library since.
func (s *Symbolizer) locateNow(pid uint32, p *process, addr uint64) (*mapping, *object) {
	m, o := s.locate(p, addr)
	if m == nil || o == nil && (p.partial || m.file != (fileKey{})) {
		s.refresh(pid, p)
		m, o = s.locate(p, addr)
	}
	return m, o
}

// locate returns the mapping that holds an address and its file, each nil if it
// is not known.
func (s *Symbolizer) locate(p *process, addr uint64) (*mapping, *object) {
	m := p.find(addr)
	if m == nil {
		return nil, nil
	}
	return m, s.files.get(m.file)
}

// refresh reads the mappings of a process again. It does so once a second and if
// the process is still the same.
func (s *Symbolizer) refresh(pid uint32, p *process) {
	now := time.Now()
	if now.Sub(p.read) < recheck || p.identity == (identity{}) || p.givenUp {
		return
	}
	p.read = now
	if identity, err := s.identity(pid); err == nil && identity == p.identity {
		again := *p
		s.look(pid, &again)
		p.givenUp = again.givenUp
		if len(again.maps) > 0 {
			*p = again
			s.processes.put(pid, p) // it may be larger now
		}
	}
}

// lookUp names the call that returns to an offset of a file.
func (s *Symbolizer) lookUp(o *object, offset uint64) []Frame {
	vaddr, ok := o.vaddr(offset - 1)
	if !ok {
		return []Frame{{Offset: offset}}
	}
	frames := o.goFrames(vaddr)
	if frames == nil {
		frames = []Frame{{Function: s.symbol(o, vaddr)}}
		frames[0].File, frames[0].Line = s.line(o, vaddr)
	}
	for i := range frames {
		frames[i].Offset = vaddr + 1
	}
	return frames
}

// cache keeps the values that were used last, as many as are not larger than max together.
// Those that have to go are handed to drop.
type cache[K comparable, V any] struct {
	max, size int
	weigh     func(V) int
	drop      func(V)
	clock     uint64
	slots     map[K]*slot[V]
}

type slot[V any] struct {
	value V
	size  int
	used  uint64
}

func newCache[K comparable, V any](max int, weigh func(V) int, drop func(V)) cache[K, V] {
	return cache[K, V]{max: max, weigh: weigh, drop: drop, slots: make(map[K]*slot[V])}
}

// get returns the zero value for what is not there.
func (c *cache[K, V]) get(key K) (v V) {
	if found := c.slots[key]; found != nil {
		c.clock++
		found.used = c.clock
		return found.value
	}
	return v
}

// put adds a value, or replaces the one of the key.
func (c *cache[K, V]) put(key K, value V) {
	c.remove(key)
	size := c.weigh(value)
	for c.size+size > c.max && len(c.slots) > 0 {
		var last K
		oldest := uint64(math.MaxUint64)
		for key, candidate := range c.slots {
			if candidate.used < oldest {
				last, oldest = key, candidate.used
			}
		}
		c.remove(last)
	}
	c.clock++
	c.slots[key] = &slot[V]{value, size, c.clock}
	c.size += size
}

func (c *cache[K, V]) remove(key K) {
	if old := c.slots[key]; old != nil {
		delete(c.slots, key)
		c.size -= old.size
		c.drop(old.value)
	}
}

func (c *cache[K, V]) clear() {
	for key := range c.slots {
		c.remove(key)
	}
}

package symbolize

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"strings"
)

// goTable is the table by which a Go program, also a stripped one, knows its own
// functions: .gopclntab, as Go 1.18 and later write it; see runtime/symtab.go and
// runtime/symtabinl.go. It is read where it lies, a few hundred bytes for an
// address: debug/gosym would copy and expand it, to 40 MB for kubectl, and does
// not know of inlined calls, so that it names the wrong function for many a
// short one.
type goTable struct {
	base    int64  // where it begins in the file
	text    uint64 // the address that those in it count from
	quantum uint64 // the unit of code sizes
	inline  int64  // where the trees of inlined calls are in the file, 0: unknown

	// Where the parts begin in the file.
	names, units, files, numbers, functions int64
	count                                   int   // of functions
	header                                  int64 // the size of a function's fixed part
}

// Magic numbers of the table and, of the moduledata, the words that we need.
const (
	go118 = 0xfffffff0
	go120 = 0xfffffff1

	moduleText   = 22
	moduleGofunc = 40

	maxGoData    = 16 << 20 // to look for the moduledata in
	maxGoNumbers = 1 << 18  // of the numbers along the code of one function
	maxInlined   = 32
)

// newGoTable returns nil if the file is not a Go program that we can read.
func newGoTable(o *object, f *elf.File) *goTable {
	s := f.Section(".gopclntab")
	if s == nil {
		s = f.Section(".data.rel.ro.gopclntab") // Go 1.25 and before, position-independent
	}
	text := f.Section(".text")
	if s == nil || s.Type == elf.SHT_NOBITS || text == nil {
		return nil
	}
	t := &goTable{base: int64(s.Offset), text: text.Addr}
	c := cursor{r: o.file}
	magic := c.u32(t.base)
	t.quantum = uint64(c.u8(t.base + 6))
	if c.u8(t.base+7) != 8 || magic != go118 && magic != go120 {
		return nil
	}
	word := func(i int64) int64 { return int64(c.u64(t.base + 8 + 8*i)) }
	t.count = int(min(word(0), 1<<28))
	t.names, t.units, t.files = t.base+word(3), t.base+word(4), t.base+word(5)
	t.numbers, t.functions = t.base+word(6), t.base+word(7)
	t.header = 40
	if magic == go120 {
		t.header = 44
	}
	if c.err != nil || t.count <= 0 {
		return nil
	}
	t.readModule(o, f, s.Addr, text, magic == go120)
	return t
}

// readModule finds the moduledata, which begins with the address of the table,
// for two addresses that the table lacks: where the Go part of .text begins, if
// there is C before it, and where the inlined calls are. Without it the start of
// .text and the outer functions have to do.
func (t *goTable) readModule(o *object, f *elf.File, table uint64, text *elf.Section, inline bool) {
	for _, name := range []string{".go.module", ".noptrdata"} { // since Go 1.26, before
		s := f.Section(name)
		if s == nil || s.Type == elf.SHT_NOBITS || s.FileSize > maxGoData {
			continue
		}
		data, _ := io.ReadAll(o.section(s))
		at := bytes.Index(data, binary.LittleEndian.AppendUint64(nil, table))
		if at < 0 || len(data)-at < 8*(moduleGofunc+1) {
			continue
		}
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(data[at+8*i:]) }
		if start := word(moduleText); start >= text.Addr && start-text.Addr < text.Size {
			t.text = start
			if inline {
				t.inline, _ = o.offset(word(moduleGofunc))
			}
			return
		}
	}
}

// goFrames names the code at an address, inlined calls first; nil if it is not Go.
func (o *object) goFrames(vaddr uint64) []Frame {
	t := o.golang
	if t == nil || vaddr < t.text {
		return nil
	}
	c := &cursor{r: o.file}
	fn, entry, ok := t.find(c, vaddr-t.text)
	if !ok {
		return nil
	}
	var frames []Frame
	pc := vaddr - t.text
	for range maxInlined {
		name, call := t.inlined(c, fn, entry, pc)
		frame := Frame{Function: cut(withoutTypes(c.text(t.names + int64(name))))}
		frame.File, frame.Line = t.line(c, fn, entry, pc)
		frame.File = cut(frame.File)
		if c.err != nil {
			break
		}
		frames = append(frames, frame)
		if call == outermost {
			break
		}
		pc = entry + uint64(call)
	}
	return frames
}

// withoutTypes shortens what a generic function is made for, main.f[go.shape.int]
// to main.f[...], as a panic prints it.
func withoutTypes(name string) string {
	open, end := strings.IndexByte(name, '['), strings.LastIndexByte(name, ']')
	if open < 0 || end < open {
		return name
	}
	return name[:open] + "[...]" + name[end+1:]
}

// find returns where the function is described that holds pc, and its begin; both
// count from text, as does pc.
func (t *goTable) find(c *cursor, pc uint64) (fn int64, entry uint64, ok bool) {
	at := func(i int) uint64 { return uint64(c.u32(t.functions + 8*int64(i))) }
	low, high := 0, t.count // the entry at count is the end of the last function
	if pc >= at(high) {
		return 0, 0, false
	}
	for high-low > 1 {
		if middle := (low + high) / 2; at(middle) <= pc {
			low = middle
		} else {
			high = middle
		}
	}
	fn = t.functions + int64(c.u32(t.functions+8*int64(low)+4))
	return fn, at(low), c.err == nil && at(low) <= pc
}

// line returns the source line of the instruction at pc.
func (t *goTable) line(c *cursor, fn int64, entry, pc uint64) (string, int) {
	file := t.number(c, c.u32(fn+20), entry, pc)
	line := t.number(c, c.u32(fn+24), entry, pc)
	if file < 0 || line <= 0 {
		return "", 0
	}
	unit := int64(c.u32(fn + 32))
	return c.text(t.files + int64(c.u32(t.units+4*(unit+int64(file))))), int(line)
}

const outermost = -1

// inlined returns the name of the innermost function at pc and the place in fn
// that it is called from, or outermost if it is fn itself.
func (t *goTable) inlined(c *cursor, fn int64, entry, pc uint64) (name uint32, call int32) {
	const (
		pcdataInlTreeIndex = 2 // internal/abi/symtab.go
		funcdataInlTree    = 3
	)
	name, call = c.u32(fn+4), outermost
	pcdata := c.u32(fn + 28)
	if t.inline == 0 || pcdata <= pcdataInlTreeIndex || c.u8(fn+t.header-1) <= funcdataInlTree {
		return name, call
	}
	arrays := fn + t.header
	tree := c.u32(arrays + 4*(int64(pcdata)+funcdataInlTree))
	index := t.number(c, c.u32(arrays+4*pcdataInlTreeIndex), entry, pc)
	if index < 0 || tree == ^uint32(0) {
		return name, call
	}
	node := t.inline + int64(tree) + 16*int64(index)
	return c.u32(node + 4), max(int32(c.u32(node+8)), 0)
}

// number looks a number up that varies along the code of a function: the table
// has how much it changes and for how many bytes of code it then holds, in turn.
// It is -1 where there is none.
func (t *goTable) number(c *cursor, table uint32, entry, pc uint64) int32 {
	if table == 0 || c.err != nil {
		return -1
	}
	r := bufio.NewReaderSize(io.NewSectionReader(c.r, t.numbers+int64(table), maxGoNumbers), 256)
	value := int32(-1)
	for first := true; ; first = false {
		delta, err := binary.ReadUvarint(r)
		if err != nil || delta == 0 && !first {
			return -1
		}
		value += int32(uint32(delta)>>1) ^ -int32(delta&1) // zigzag
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return -1
		}
		if entry += size * t.quantum; pc < entry {
			return value
		}
	}
}

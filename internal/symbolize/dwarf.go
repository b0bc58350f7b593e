package symbolize

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"io"
	"path"
	"slices"
)

const (
	headBytes    = 16       // that are looked at, at least, to find out that a unit is not one
	maxLineBytes = 32 << 20 // of .debug_line and .debug_line_str together, in memory
	maxSequences = 1 << 18  // runs of code in one file, about one for each function
)

// lineTable is what .debug_line says, in DWARF 2 to 5 (section 6.2 of each). It
// is scanned once, for the addresses of its sequences; then a look-up runs one
// sequence. That needs neither .debug_info, which is ten times as large, nor
// debug/dwarf, which allocates what a file asks for: a few hostile bytes would
// take all memory, and that cannot be recovered.
type lineTable struct {
	data, strings []byte
	sequences     []sequence      // by address
	spend         func(int) error // accounts for bytes that are run through
}

// sequence is a run of code whose rows are in the order of addresses.
type sequence struct {
	low, high   uint64
	unit, start int // where its unit and its own first instruction are in data
}

// lineUnit is the header of the lines of one compile unit.
type lineUnit struct {
	version, wide       int // wide: the bytes of an offset, 8 in 64-bit DWARF
	lists, program, end int // where the directories, the instructions begin and end
	step, span          uint64
	base                int64
	firstSpecial        int
	operands            []byte // how many each standard instruction has
}

// line returns the source file and line of the instruction at an address, or zero
// values.
func (s *Symbolizer) line(o *object, vaddr uint64) (string, int) {
	if !o.dwarf && o.debug != nil {
		o = o.debug
	}
	if !o.dwarf {
		return "", 0
	}
	t := s.lines.get(o)
	if t == nil {
		s.lines.clear() // two at once would be too much
		if t = o.readLines(); s.incomplete(o.file) {
			return "", 0
		}
		s.lines.put(o, t)
	}
	name, line := t.find(vaddr)
	return cut(name), line
}

func (o *object) readLines() *lineTable {
	t := &lineTable{spend: o.file.spend}
	headers := &limited{o.file, maxHeaderBytes}
	f, err := openELF(headers)
	if err != nil {
		return t
	}
	headers.left = maxLineBytes
	left := uint64(maxLineBytes)
	section := func(name string) []byte {
		s := f.Section(name)
		if s == nil || s.Type == elf.SHT_NOBITS {
			return nil
		}
		if s.Size > left { // as it is in memory: it may be compressed in the file
			o.file.s.skip(o.file.name+" "+name, errBudget)
			return nil
		}
		left -= s.Size
		return o.contents(s)
	}
	t.data, t.strings = section(".debug_line"), section(".debug_line_str")
	t.index()
	return t
}

// contents reads a section, as much of it as there is and may be.
func (o *object) contents(s *elf.Section) []byte {
	const step = 64 << 10
	data := make([]byte, 0, s.Size)
	for r := s.Open(); len(data) < cap(data); {
		part := data[len(data):min(len(data)+step, cap(data))]
		if s.Flags&elf.SHF_COMPRESSED != 0 && o.file.spend(len(part)) != nil {
			break
		}
		n, err := io.ReadFull(r, part)
		if data = data[:len(data)+n]; err != nil {
			break
		}
	}
	return data
}

// index finds the sequences.
func (t *lineTable) index() {
	for at := 0; at < len(t.data); {
		u, ok := t.unit(at)
		if t.spend(headBytes) != nil {
			break
		}
		if ok {
			run := sequence{unit: at, start: u.program}
			first := true
			t.rows(&u, u.program, func(addr uint64, _, _ int64, next int) bool {
				if first {
					run.low, first = addr, false
				}
				if next == 0 {
					return true
				}
				// Code that the linker left out is at 0.
				if run.high = addr; run.low != 0 && run.high > run.low {
					t.sequences = append(t.sequences, run)
				}
				run.start, first = next, true
				return len(t.sequences) < maxSequences
			})
		}
		if at = u.end; u.end == 0 {
			break
		}
	}
	slices.SortFunc(t.sequences, func(a, b sequence) int { return cmp.Compare(a.low, b.low) })
	t.sequences = slices.Clip(t.sequences)
}

func (t *lineTable) find(vaddr uint64) (name string, line int) {
	next, _ := slices.BinarySearchFunc(t.sequences, vaddr, func(s sequence, vaddr uint64) int {
		if s.low <= vaddr {
			return -1
		}
		return 1
	})
	if next == 0 || vaddr >= t.sequences[next-1].high {
		return "", 0
	}
	run := t.sequences[next-1]
	u, _ := t.unit(run.unit)
	var file, at int64
	t.rows(&u, run.start, func(addr uint64, f, l int64, next int) bool {
		if addr > vaddr {
			return false
		}
		file, at = f, l
		return next == 0
	})
	if name = t.fileName(&u, uint64(file)); name == "" || at <= 0 || at > 1<<31-1 {
		return "", 0
	}
	return name, int(at)
}

// unit reads a header. Where it is not ok but end is not 0, the next one may be.
func (t *lineTable) unit(at int) (u lineUnit, ok bool) {
	b := lineBytes{data: t.data, at: at}
	size := b.uint(4)
	if u.wide = 4; size == 1<<32-1 {
		u.wide, size = 8, b.uint(8)
	}
	if b.short || size > uint64(len(t.data)-b.at) {
		return u, false
	}
	u.end = b.at + int(size)
	b.data = t.data[:u.end]
	if u.version = int(b.uint(2)); u.version < 2 || u.version > 5 {
		return u, false
	}
	if u.version == 5 {
		b.uint(2) // the sizes of an address and of a segment selector
	}
	header := b.uint(u.wide)
	u.program = b.at + int(min(header, size))
	if u.step = b.uint(1); u.version >= 4 {
		b.uint(1) // operations in an instruction: 1 except on VLIW machines
	}
	b.uint(1) // is_stmt at first
	u.base, u.span = int64(int8(b.uint(1))), b.uint(1)
	u.firstSpecial = int(b.uint(1))
	u.operands = b.skip(uint64(max(u.firstSpecial, 1) - 1))
	u.lists = b.at
	return u, !b.short && u.span > 0 && u.firstSpecial > 0 && u.program <= u.end
}

// account spends what was run through since it was called last, now and then.
func (t *lineTable) account(b *lineBytes) error {
	const step = 16 << 10
	if b.at-b.spent < step {
		return nil
	}
	n := b.at - b.spent
	b.spent = b.at
	return t.spend(n)
}

// rows runs the instructions from start on and emits each row, until emit returns
// false. The row that ends a sequence, whose address is the first behind it, has
// the place of the next sequence in next, all others 0.
func (t *lineTable) rows(u *lineUnit, start int, emit func(addr uint64, file, line int64, next int) bool) {
	b := lineBytes{data: t.data[:u.end], at: start, spent: start}
	addr, file, line := uint64(0), int64(1), int64(1)
	for more := true; more && b.at < len(b.data) && !b.short && t.account(&b) == nil; {
		op := int(b.uint(1))
		if special := uint64(op - u.firstSpecial); op >= u.firstSpecial {
			addr += special / u.span * u.step
			line += u.base + int64(special%u.span)
			more = emit(addr, file, line, 0)
			continue
		}
		switch op {
		case 0: // extended
			args := lineBytes{data: b.skip(b.uvarint())}
			switch args.uint(1) {
			case 1: // DW_LNE_end_sequence
				more = emit(addr, file, line, b.at)
				addr, file, line = 0, 1, 1
			case 2: // DW_LNE_set_address
				addr = args.uint(min(len(args.data)-1, 8))
			}
		case 1: // DW_LNS_copy
			more = emit(addr, file, line, 0)
		case 2: // DW_LNS_advance_pc
			addr += b.uvarint() * u.step
		case 3: // DW_LNS_advance_line
			line += b.varint()
		case 4: // DW_LNS_set_file
			file = int64(b.uvarint())
		case 8: // DW_LNS_const_add_pc
			addr += uint64(255-u.firstSpecial) / u.span * u.step
		case 9: // DW_LNS_fixed_advance_pc
			addr += b.uint(2)
		default: // columns, flags, and what may come
			for range u.operands[op-1] {
				b.uvarint()
			}
		}
	}
}

// fileName returns the path of a file of a unit, absolute if the compiler said
// so; DWARF before 5 leaves it relative to where the compiler ran.
func (t *lineTable) fileName(u *lineUnit, number uint64) string {
	b := lineBytes{data: t.data[:u.end], at: u.lists, spent: u.lists}
	entry := t.oldEntry
	if u.version == 5 {
		entry = t.entry
	}
	_, _ = entry(u, &b, true, 1<<63) // to get behind the directories
	name, dir := entry(u, &b, false, number)
	if name == "" || path.IsAbs(name) {
		return name
	}
	b = lineBytes{data: t.data[:u.end], at: u.lists, spent: u.lists}
	in, _ := entry(u, &b, true, dir)
	return path.Join(in, name)
}

// oldEntry walks a list of DWARF 2 to 4, which ends with an empty name and counts
// from 1, and returns the entry wanted, a file with the number of its directory.
func (t *lineTable) oldEntry(_ *lineUnit, b *lineBytes, dirs bool, want uint64) (found string, dir uint64) {
	for i := uint64(1); ; i++ {
		name, in := b.text(), uint64(0)
		if len(name) == 0 || t.account(b) != nil {
			return found, dir
		}
		if !dirs {
			in = b.uvarint()
			b.uvarint() // time of change
			b.uvarint() // size
		}
		if i == want {
			found, dir = short(name), in
		}
	}
}

// entry does so in DWARF 5, whose lists say how they are written and count from 0.
func (t *lineTable) entry(u *lineUnit, b *lineBytes, _ bool, want uint64) (found string, dir uint64) {
	const contentPath, contentDirectory = 1, 2
	columns := make([][2]uint64, b.uint(1)) // what it holds, and its form
	for i := range columns {
		columns[i] = [2]uint64{b.uvarint(), b.uvarint()}
	}
	count := b.uvarint()
	for i := uint64(0); i < count && len(columns) > 0 && !b.short && t.account(b) == nil; i++ {
		for _, column := range columns {
			text, number := t.form(u, b, column[1])
			switch {
			case i != want:
			case column[0] == contentPath:
				found = short(text)
			case column[0] == contentDirectory:
				dir = number
			}
		}
	}
	return found, dir
}

// form reads a value in one of the forms that compilers use here. Another one
// ends the unit.
func (t *lineTable) form(u *lineUnit, b *lineBytes, form uint64) (text []byte, number uint64) {
	switch form {
	case 0x08: // string
		text = b.text()
	case 0x1f: // line_strp
		if at := b.uint(u.wide); at < uint64(len(t.strings)) {
			text = t.strings[at:]
		}
	case 0x0e: // strp, in .debug_str
		b.uint(u.wide)
	case 0x0b, 0x05, 0x06, 0x07: // data1, data2, data4, data8
		number = b.uint(map[uint64]int{0x0b: 1, 0x05: 2, 0x06: 4, 0x07: 8}[form])
	case 0x0f: // udata
		number = b.uvarint()
	case 0x1e: // data16, an MD5 sum
		b.skip(16)
	case 0x09: // block
		b.skip(b.uvarint())
	default:
		b.short = true
	}
	return text, number
}

// short makes a string of text that may end with a zero byte, of at most maxName.
func short(text []byte) string {
	text, _, _ = bytes.Cut(text[:min(len(text), maxName)], []byte{0})
	return string(text)
}

// lineBytes reads the forms of DWARF. At the end of data it is short and all
// values are zero.
type lineBytes struct {
	data  []byte
	at    int
	short bool
	spent int // up to where account has spent
}

func (b *lineBytes) skip(n uint64) []byte {
	if n > uint64(len(b.data)-b.at) {
		b.short, n = true, uint64(len(b.data)-b.at)
	}
	b.at += int(n)
	return b.data[b.at-int(n) : b.at]
}

func (b *lineBytes) uint(size int) uint64 {
	var buf [8]byte
	copy(buf[:], b.skip(uint64(max(size, 0))))
	return binary.LittleEndian.Uint64(buf[:])
}

func (b *lineBytes) uvarint() (v uint64) {
	for shift := 0; ; shift += 7 {
		c := b.uint(1)
		if v |= c & 0x7f << shift; c < 0x80 {
			return v
		}
	}
}

func (b *lineBytes) varint() int64 {
	start := b.at
	v := b.uvarint()
	if bits := 7 * (b.at - start); bits < 64 && b.at > start && b.data[b.at-1]&0x40 != 0 {
		v |= ^uint64(0) << bits
	}
	return int64(v)
}

func (b *lineBytes) text() []byte {
	i := bytes.IndexByte(b.data[b.at:], 0)
	if i < 0 {
		b.short = true
		return nil
	}
	return b.skip(uint64(i) + 1)[:i]
}

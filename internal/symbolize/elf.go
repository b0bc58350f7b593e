package symbolize

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// No file makes us take more than these.
const (
	maxHeaderBytes = 128 << 10 // headers and section names; a big program has 5 KiB
	maxSymbols     = 1 << 19   // functions of one table
	maxSymbolBytes = 64 << 20  // of one table; read in pieces
	maxLoads       = 128       // pieces of a file that are mapped; usual are 4
	maxName        = 4096
	maxBuildID     = 64       // bytes; usual are 20
	maxDebugFile   = 64 << 20 // to be summed for .gnu_debuglink
)

var errTooBig = errors.New("more than any real file needs")

// object is an ELF file that code was mapped from. The zero object knows nothing.
type object struct {
	file  *file
	loads []elf.ProgHeader
	// tables hold the symbols, the most detailed first: .symtab, that of the
	// debug file, .dynsym.
	tables  []*table
	golang  *goTable // nil unless it is a Go program
	dwarf   bool     // it has line tables of its own
	debug   *object  // the file that has them otherwise, or nil
	buildID string   // in hexadecimal digits
	link    string   // the name of the debug file
	linkCRC uint32
}

// table is where a table of symbols and the names in it lie in a file.
type table struct {
	file           *file
	symbols, names *io.SectionReader
}

// symbol is a function. It stands for the addresses up to the next one if its
// size is 0, as in hand-written assembly.
type symbol struct {
	addr       uint64
	size, name uint32
}

// limited lets left bytes be read, for headers may ask for any amount.
type limited struct {
	r    io.ReaderAt
	left int
}

func (l *limited) ReadAt(p []byte, off int64) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errTooBig
	}
	return l.r.ReadAt(p, off)
}

// openELF parses the headers of a file. That debug/elf may panic on one that is
// malformed is documented.
func openELF(r io.ReaderAt) (f *elf.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("parse ELF headers: %v", p)
		}
	}()
	return elf.NewFile(r)
}

// newObject reads the headers of an ELF file. The object knows nothing of a file
// that is not ELF, or not for 64 bits in little-endian order.
func newObject(file *file) (o *object) {
	o = &object{file: file}
	f, err := openELF(&limited{file, maxHeaderBytes})
	if err != nil || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return o
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && len(o.loads) < maxLoads {
			o.loads = append(o.loads, p.ProgHeader)
		}
	}
	for _, name := range []string{".symtab", ".dynsym"} {
		if s := f.Section(name); s != nil && s.Type != elf.SHT_NOBITS && int(s.Link) < len(f.Sections) {
			o.tables = append(o.tables, &table{o.file, o.section(s), o.section(f.Sections[s.Link])})
		}
	}
	lines := f.Section(".debug_line")
	o.dwarf = lines != nil && lines.Type != elf.SHT_NOBITS
	o.golang = newGoTable(o, f)
	o.readLinks(f)
	return o
}

// section reads a section as it is in the file.
func (o *object) section(s *elf.Section) *io.SectionReader {
	return io.NewSectionReader(o.file, int64(s.Offset), int64(s.FileSize))
}

func (o *object) close() {
	if o.file != nil {
		o.file.close()
	}
	if o.debug != nil {
		o.debug.close()
	}
}

// vaddr translates an offset in the file to an address as symbols have it.
func (o *object) vaddr(offset uint64) (uint64, bool) {
	for _, p := range o.loads {
		if offset >= p.Off && offset-p.Off < p.Filesz {
			return offset - p.Off + p.Vaddr, true
		}
	}
	return 0, false
}

// offset translates the other way.
func (o *object) offset(vaddr uint64) (int64, bool) {
	for _, p := range o.loads {
		if vaddr >= p.Vaddr && vaddr-p.Vaddr < p.Filesz {
			return int64(vaddr - p.Vaddr + p.Off), true
		}
	}
	return 0, false
}

// readLinks reads by what the debug file is to be found.
func (o *object) readLinks(f *elf.File) {
	read := func(name string) []byte {
		s := f.Section(name)
		if s == nil || s.Type == elf.SHT_NOBITS || s.FileSize > maxName {
			return nil
		}
		data, _ := io.ReadAll(o.section(s))
		return data
	}
	// A note: the lengths of name and contents, a type, "GNU\0", the contents.
	note := read(".note.gnu.build-id")
	if len(note) > 16 && len(note) <= 16+maxBuildID && bytes.HasPrefix(note[12:], []byte("GNU\x00")) {
		o.buildID = fmt.Sprintf("%x", note[16:])
	}
	// The name, padding to four bytes, the sum of the file.
	if link := read(".gnu_debuglink"); len(link) > 4 {
		name, _, _ := bytes.Cut(link, []byte{0})
		o.link, o.linkCRC = string(name), binary.LittleEndian.Uint32(link[len(link)-4:])
	}
}

// findDebug opens the debug file of o where gdb looks for it, in the mount namespace of
// the process, which may not outlive it, and on the host. process is its directory in
// /proc, name the path of the file itself.
func (s *Symbolizer) findDebug(o *object, process, name string) {
	const global = "/usr/lib/debug"
	if len(o.buildID) > 2 {
		file := global + "/.build-id/" + o.buildID[:2] + "/" + o.buildID[2:] + ".debug"
		same := func(d *object) bool { return d.buildID == o.buildID }
		if s.openDebug(o, process, file, same) || s.openDebug(o, "/proc/self", file, same) {
			return
		}
	}
	if o.link == "" || strings.Contains(o.link, "/") {
		return
	}
	dir := path.Dir(name)
	for _, dir := range []string{dir, dir + "/.debug", global + dir} {
		if s.openDebug(o, process, path.Join(dir, o.link), func(d *object) bool { return d.sum() == o.linkCRC }) {
			return
		}
	}
}

// openDebug takes a file for the debug file of o if it is the same program.
func (s *Symbolizer) openDebug(o *object, process, name string, same func(*object) bool) bool {
	f, err := await(&s.budget, func() (*os.File, error) {
		found, err := procfs.FindFile(process, name)
		if err != nil {
			return nil, err
		}
		defer found.Close()
		return found.OpenRegular()
	}, func(f *os.File) { f.Close() })
	if err != nil {
		s.skip(process+": "+name, err)
		return false
	}
	d := newObject(s.file(process+": "+name, f))
	if !same(d) {
		d.close()
		return false
	}
	o.debug = d
	if len(d.tables) > 0 {
		o.tables = slices.Insert(o.tables, max(len(o.tables)-1, 0), d.tables[0])
	}
	return true
}

// sum returns the CRC of a file as .gnu_debuglink has it.
func (o *object) sum() uint32 {
	h := crc32.NewIEEE()
	_, _ = io.Copy(h, io.NewSectionReader(o.file, 0, maxDebugFile)) // what is not read makes it another sum
	return h.Sum32()
}

// symbol returns the name of the function at an address, or "".
func (s *Symbolizer) symbol(o *object, vaddr uint64) string {
	for _, t := range o.tables {
		symbols := s.tables.get(t)
		if symbols == nil {
			if symbols = t.read(); s.incomplete(t.file) {
				return ""
			}
			s.tables.put(t, symbols)
		}
		// Some linkers write the version of a symbol, as in memcpy@@GLIBC_2.14.
		if name, _, _ := strings.Cut(t.name(symbols, vaddr), "@"); name != "" {
			return cut(demangle.Filter(name, demangle.NoParams, demangle.NoTemplateParams, demangle.MaxLength(12)))
		}
	}
	return ""
}

// incomplete reports whether what was just read of a file may be cut short.
func (s *Symbolizer) incomplete(f *file) bool { return s.budget.over || f.err != nil }

// read returns the functions of a table by address, not nil.
func (t *table) read() []symbol {
	symbols := []symbol{}
	entries := bufio.NewReaderSize(io.LimitReader(t.symbols, maxSymbolBytes), 64<<10)
	for len(symbols) < maxSymbols {
		entry, err := entries.Peek(elf.Sym64Size)
		if err != nil {
			break
		}
		kind, section := elf.ST_TYPE(entry[4]), binary.LittleEndian.Uint16(entry[6:])
		if (kind == elf.STT_FUNC || kind == elf.STT_GNU_IFUNC) && section != uint16(elf.SHN_UNDEF) {
			symbols = append(symbols, symbol{
				addr: binary.LittleEndian.Uint64(entry[8:]),
				size: uint32(min(binary.LittleEndian.Uint64(entry[16:]), 1<<32-1)),
				name: binary.LittleEndian.Uint32(entry),
			})
		}
		_, _ = entries.Discard(elf.Sym64Size) // it was peeked at
	}
	_, _ = t.symbols.Seek(0, io.SeekStart) // cannot fail; it may be read again
	slices.SortStableFunc(symbols, func(a, b symbol) int { return cmp.Compare(a.addr, b.addr) })
	return slices.Clip(symbols)
}

// name returns the name of the function at an address, or "". Of several, such as
// connect and __connect, it prefers the one that programs use.
func (t *table) name(symbols []symbol, vaddr uint64) (name string) {
	next, _ := slices.BinarySearchFunc(symbols, vaddr, func(sym symbol, vaddr uint64) int {
		if sym.addr <= vaddr {
			return -1
		}
		return 1
	})
	const maxNames = 16
	for i := next - 1; i >= max(next-maxNames, 0) && symbols[i].addr == symbols[next-1].addr; i-- {
		if sym := symbols[i]; sym.size != 0 && vaddr-sym.addr >= uint64(sym.size) {
			continue
		}
		c := cursor{r: t.names}
		if n := c.text(int64(symbols[i].name)); name == "" || strings.HasPrefix(name, "__") && !strings.HasPrefix(n, "__") {
			name = n
		}
	}
	return name
}

// cursor reads numbers and strings. After an error, which it keeps, all are zero.
type cursor struct {
	r   io.ReaderAt
	err error
	buf [8]byte
}

func (c *cursor) bytes(off int64, n int) []byte {
	clear(c.buf[:])
	if c.err == nil {
		_, c.err = c.r.ReadAt(c.buf[:n], off)
	}
	return c.buf[:n]
}

func (c *cursor) u8(off int64) uint8   { return c.bytes(off, 1)[0] }
func (c *cursor) u32(off int64) uint32 { return binary.LittleEndian.Uint32(c.bytes(off, 4)) }
func (c *cursor) u64(off int64) uint64 { return binary.LittleEndian.Uint64(c.bytes(off, 8)) }

// text reads a string that ends with a zero byte. One that is longer than any
// name is an error.
func (c *cursor) text(off int64) string {
	for size := 128; c.err == nil && size <= maxName; size *= 2 {
		buf := make([]byte, size)
		n, err := c.r.ReadAt(buf, off)
		if i := bytes.IndexByte(buf[:n], 0); i >= 0 {
			return string(buf[:i])
		}
		c.err = err
	}
	if c.err == nil {
		c.err = errTooBig
	}
	return ""
}

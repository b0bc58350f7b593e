package symbolize

import (
	"bytes"
	"compress/zlib"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// withLines makes an ELF file with code at 0x1000 and this .debug_line, which is
// compressed.
func withLines(t testing.TB, lines []byte) []byte { return withSymbols(t, lines, 0) }

// withSymbols adds so many symbols.
func withSymbols(t testing.TB, lines []byte, count int) []byte {
	t.Helper()
	var packed bytes.Buffer
	order := binary.LittleEndian
	header := elf.Chdr64{Type: uint32(elf.COMPRESS_ZLIB), Size: uint64(len(lines)), Addralign: 1}
	w := zlib.NewWriter(&packed)
	if err := errors.Join(binary.Write(&packed, order, header), writeAll(w, lines), w.Close()); err != nil {
		t.Fatal(err)
	}
	const names = "\x00.text\x00.debug_line\x00.shstrtab\x00.symtab\x00"
	const code, table = 0x1000, 0x2000
	data := uint64(table + 5*64)
	symbols := make([]elf.Sym64, count)
	for i := range symbols {
		symbols[i] = elf.Sym64{Name: 1, Info: byte(elf.STT_FUNC), Shndx: 1, Value: code + uint64(i), Size: 1}
	}
	file := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Shoff: table, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: 5, Shstrndx: 3,
	}
	load := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 5, Off: code, Vaddr: code, Filesz: 0x1000, Memsz: 0x1000, Align: 0x1000}
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Addr: code, Off: code, Size: 0x1000},
		{Name: 7, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_COMPRESSED), Off: data + uint64(len(names)), Size: uint64(packed.Len())},
		{Name: 19, Type: uint32(elf.SHT_STRTAB), Off: data, Size: uint64(len(names))},
		{Name: 29, Type: uint32(elf.SHT_SYMTAB), Link: 3, Off: data + uint64(len(names)+packed.Len()), Size: uint64(24 * count), Entsize: 24},
	}
	var out bytes.Buffer
	pad := func(size int) { out.Write(make([]byte, size-out.Len())) }
	err := errors.Join(binary.Write(&out, order, file), binary.Write(&out, order, load))
	pad(table)
	err = errors.Join(err, binary.Write(&out, order, sections))
	out.WriteString(names)
	out.Write(packed.Bytes())
	if err = errors.Join(err, binary.Write(&out, order, symbols)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func writeAll(w *zlib.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

// oneSequence is a line table of size bytes. All but its header is one sequence, which says
// nothing new at each step.
func oneSequence(size int) []byte {
	lines := make([]byte, size)
	order := binary.LittleEndian
	order.PutUint32(lines, uint32(size-4))
	order.PutUint16(lines[4:], 4) // DWARF 4
	body := []byte{1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 'a', '.', 'c', 0, 0, 0, 0, 0}
	order.PutUint32(lines[6:], uint32(len(body)))
	copy(lines[10:], body)
	at := 10 + len(body)
	copy(lines[at:], append([]byte{0, 9, 2}, order.AppendUint64(nil, 0x1000)...))
	for at += 11; at < size-6; at++ {
		lines[at] = 1 // copy: another row for the same place
	}
	copy(lines[size-6:], []byte{2, 0x80, 0x20, 0, 1, 1}) // advance by 0x1000, end of the sequence
	return lines
}

// A small file can ask for much. It gets what it may have, and then is given up.
func TestInflatingFile(t *testing.T) {
	for name, test := range map[string]struct {
		size, says int  // in memory, and by its header
		want       bool // whether its lines are read
	}{
		"small":                      {1 << 20, 1 << 20, true},
		"says that it is large":      {1 << 20, 1 << 40, false},
		"as large as a table may be": {maxLineBytes, maxLineBytes, true},
		"larger":                     {127 << 20, 127 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && test.size >= maxLineBytes {
				t.Skip("it takes a minute under the race detector")
			}
			file := withLines(t, oneSequence(test.size))
			header := binary.LittleEndian.AppendUint64([]byte{byte(elf.COMPRESS_ZLIB), 0, 0, 0, 0, 0, 0, 0}, uint64(test.size))
			binary.LittleEndian.PutUint64(file[bytes.Index(file, header)+8:], uint64(test.says))
			t.Logf("%d KB, which inflate to %d MB", len(file)>>10, test.size>>20)
			s := symbolizer(t, "/nonexistent")
			s.budget.begin(t.Context())
			s.budget.until = time.Now().Add(time.Hour) // this is about memory, and not about this machine
			before := s.budget.call
			var stats [2]runtime.MemStats
			runtime.ReadMemStats(&stats[0])
			o := newObject(s.file("bomb", bytes.NewReader(file)))
			source, line := s.line(o, 0x1800)
			runtime.ReadMemStats(&stats[1])
			if (source == "a.c" && line == 1) != test.want || s.budget.over {
				t.Errorf("got %s:%d, over %v", source, line, s.budget.over)
			}
			spent, allocated := before-s.budget.call, stats[1].TotalAlloc-stats[0].TotalAlloc
			t.Logf("%d MB spent, %d MB allocated", spent>>20, allocated>>20)
			if spent > maxFileWork || allocated > maxLineBytes+8<<20 {
				t.Errorf("%d bytes were spent and %d allocated", spent, allocated)
			}
			if !test.want && (s.Skipped().Count != 1 || spent > 1<<20) {
				t.Errorf("skipped %+v after %d bytes", s.Skipped(), spent)
			}
		})
	}
}

// Whoever asks for the lines of one file again and again does not get more than all.
func TestFileIsGivenUp(t *testing.T) {
	const size = 1 << 20
	file := withLines(t, oneSequence(size))
	s := symbolizer(t, "/nonexistent")
	s.budget.begin(t.Context())
	s.budget.until = time.Now().Add(time.Hour)
	o := newObject(s.file("bomb", bytes.NewReader(file)))
	o.file.left = 8 * size // of maxFileWork; the rest took too long here
	for i := range 10 {
		s.budget.call, s.budget.left = maxCallWork, maxPeriodWork // another process asks
		s.line(o, 0x1800+uint64(i))
	}
	if !errors.Is(o.file.err, errBudget) || s.Skipped().Count != 1 || s.budget.over {
		t.Errorf("got %v, skipped %+v, over %v, want it given up", o.file.err, s.Skipped(), s.budget.over)
	}
	innocent := newObject(s.file("innocent", bytes.NewReader(withLines(t, oneSequence(1<<10)))))
	if source, line := s.line(innocent, 0x1800); source != "a.c" || line != 1 {
		t.Errorf("the next file: got %s:%d", source, line)
	}
}

// All memory is bounded, whatever the files of many processes ask for.
func TestMemoryOfManyFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes minutes under the race detector")
	}
	var peak uint64
	s := symbolizer(t, "/nonexistent")
	file := withLines(t, oneSequence(maxLineBytes))
	for i := range 5 {
		s.budget.begin(t.Context())
		s.budget.call, s.budget.left, s.budget.until = maxCallWork, maxPeriodWork, time.Now().Add(time.Hour)
		o := newObject(s.file(fmt.Sprint("bomb ", i), bytes.NewReader(file)))
		s.line(o, 0x1800)
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		peak = max(peak, stats.HeapAlloc)
	}
	t.Logf("%d MB in use", peak>>20)
	if peak > maxLineBytes+32<<20 {
		t.Errorf("%d bytes are in use", peak)
	}
}

// The end of the context ends the work on a file, and what was read by then is not taken
// for all there is.
func TestInterrupted(t *testing.T) {
	file := withLines(t, oneSequence(4<<20))
	s := symbolizer(t, "/nonexistent")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.budget.begin(ctx)
	before := s.budget.call
	o := newObject(s.file("bomb", bytes.NewReader(file)))
	source, line := s.line(o, 0x1800)
	if spent := before - s.budget.call; source != "" || line != 0 || !s.budget.over || spent > 1<<20 {
		t.Errorf("got %s:%d after %d bytes, over %v", source, line, spent, s.budget.over)
	}
	s.budget.begin(t.Context())
	s.budget.until = time.Now().Add(time.Hour)
	if source, line := s.line(o, 0x1800); source != "a.c" || line != 1 {
		t.Errorf("at the next try: got %s:%d", source, line)
	}
}

// A process that is given what a call may spend, again and again, is given up; and one
// period has a limit of its own.
func TestProcessIsGivenUp(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	s := symbolizer(t, "/proc")
	for i := range maxOverruns {
		remember(s, p.pid)
		known := s.processes.get(p.pid)
		if known.givenUp != (i == maxOverruns) {
			t.Fatalf("after %d overruns: given up %v", i, known.givenUp)
		}
		end := s.budget.begin(t.Context())
		s.budget.call = 0
		s.symbolize(p.pid, p.addrs)
		s.budget.spend(1)
		if !end() {
			t.Fatal("not an overrun")
		}
		s.charge(p.pid)
	}
	frames, final := s.Name(t.Context(), p.pid, p.addrs, nil)
	if !final || frames[0] != (Frame{Offset: p.addrs[0]}) || s.Skipped().Count != 1 {
		t.Errorf("got %v, final %v, skipped %+v", frames, final, s.Skipped())
	}
	s.budget.begin(t.Context())
	s.budget.left = 0
	if err := s.budget.spend(1); err == nil || !s.budget.over {
		t.Error("the period has no end")
	}
}

// Whatever lies where a file was mapped from, or where its debug file would be.
func TestHostilePaths(t *testing.T) {
	name := buildC(t, "-g", "-Wl,--build-id=0xabcdef0123")
	debug := filepath.Join(t.TempDir(), "debug")
	split(t, name, debug)
	p := start(t, name)
	link := "/usr/lib/debug/.build-id/ab/cdef0123.debug"
	for what, test := range map[string]struct {
		make    func(path string) error
		skipped int
	}{
		"a FIFO":       {func(path string) error { return unix.Mkfifo(path, 0o644) }, 1},
		"a directory":  {func(path string) error { return os.Mkdir(path, 0o755) }, 1},
		"a loop":       {func(path string) error { return os.Symlink(filepath.Base(path), path) }, 0},
		"a long chain": {func(path string) error { return os.Symlink(strings.Repeat("./", 1000)+"x", path) }, 0},
		"outside":      {func(path string) error { return os.Symlink(strings.Repeat("../", 40)+debug, path) }, 0},
		"an old file":  {func(path string) error { return os.WriteFile(path, []byte("\x7fELF"), 0o644) }, 0},
		"an empty one": {func(path string) error { return os.WriteFile(path, nil, 0o644) }, 0},
	} {
		c := contain(t, p)
		if err := os.MkdirAll(filepath.Dir(c.root+link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := test.make(c.root + link); err != nil {
			t.Fatal(err)
		}
		s := symbolizer(t, c.proc)
		got := symbolize(s, p.pid, p.addrs)
		if got[0].Module != "server" || got[0].Line != 0 || s.Skipped().Count != test.skipped {
			t.Errorf("%s for a debug file: got %v, skipped %+v, want %d", what, got, s.Skipped(), test.skipped)
		}
	}
}

// A path may have a newline, or say that it was deleted.
func TestPathsWithNewlines(t *testing.T) {
	built := buildC(t, "-g")
	for _, base := range []string{"new\nline", "7f00-7f01 r-xp 0 0:0 7 \n/x", "kept (deleted)", `back\slash`, `\012`, " ", "\xff\x1b[31m"} {
		name := filepath.Join(t.TempDir(), base)
		copyFile(t, built, strings.ReplaceAll(name, "/x", ""))
		name = strings.ReplaceAll(name, "/x", "")
		p := start(t, name)
		if got := text(p.symbolize(symbolizer(t, "/proc"))); len(got) == 0 || !strings.Contains(got[0], "server.c:") {
			t.Errorf("%q: got %v", base, got)
		}
	}
}

// A program on a file system that does not answer costs its patience once, and its process
// is not looked at again; others are.
func TestHungFileSystem(t *testing.T) {
	need.Kernel(t)
	at := hostile.Dir(t)
	victim := hostile.Nobody.HungFS(t, at, buildC(t, "-g", "-static"))
	s := symbolizer(t, "/proc")
	addr := []uint64{1}
	for range 3 {
		s.Name(t.Context(), uint32(victim.PID), addr, nil)
		if known := s.processes.get(uint32(victim.PID)); known == nil || !known.givenUp {
			t.Fatalf("the process is %+v, want it given up", known)
		}
	}
	if got := s.Skipped(); got.Count != 1 || !strings.HasSuffix(got.File, "fs/app") || got.Why != errStuck.Error() {
		t.Errorf("skipped %+v, want the program once", got)
	}
	p := start(t, buildC(t, "-g"))
	if got := text(p.symbolize(s)); len(got) == 0 || !strings.Contains(got[0], "server.c:") {
		t.Errorf("the next process: got %v", got)
	}
	// So many at once are left behind, and no more.
	s.budget.stuck.Store(maxStuck)
	other := start(t, buildC(t, "-g"))
	if got, final := s.Name(t.Context(), other.pid, other.addrs, nil); final || len(got) == 0 || got[0] != (Frame{Offset: other.addrs[0]}) {
		t.Errorf("with %d calls that do not return: got %v, final %v", maxStuck, got, final)
	}
	s.budget.stuck.Store(0)
	s.processes.get(other.pid).read = time.Time{}
	if got := text(other.symbolize(s)); len(got) == 0 || !strings.Contains(got[0], "server.c:") {
		t.Errorf("when they have returned: got %v", got)
	}
}

package symbolize

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/need"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// program is a running process that has told where its calls return to.
type program struct {
	name  string // of the file
	pid   uint32
	addrs []uint64
	top   []uint64 // the words at the stack pointer, in C
	truth []Frame  // what it knows of them itself, in Go
	stop  func()
}

func (p *program) symbolize(s *Symbolizer) []Frame { return symbolize(s, p.pid, p.addrs) }

func symbolize(s *Symbolizer, pid uint32, addrs []uint64) []Frame {
	frames, _ := s.Name(context.Background(), pid, addrs, nil)
	return frames
}

func remember(s *Symbolizer, pid uint32) { s.Remember(context.Background(), pid) }

func complete(s *Symbolizer, pid uint32, addrs, top []uint64) []uint64 {
	defer s.budget.begin(context.Background())()
	return s.complete(pid, addrs, top)
}

func needTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("this test needs %s to make the programs whose stacks it reads: install it with 'make deps'", name)
	}
}

func runTool(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	needTool(t, name)
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func buildGo(t testing.TB, flags ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "client")
	runTool(t, "testdata/symbols", "go", append(append([]string{"build", "-o", name}, flags...), "client.go")...)
	return name
}

func buildC(t testing.TB, flags ...string) string {
	t.Helper()
	return compile(t, "server.c", append([]string{"-fno-optimize-sibling-calls"}, flags...)...)
}

func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	runTool(t, "testdata/symbols", "gcc", append([]string{"-O1", "-fno-omit-frame-pointer", "-Wno-frame-address",
		"-o", name, source}, flags...)...)
	return name
}

func start(t testing.TB, name string) *program {
	t.Helper()
	cmd := exec.Command(name)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{name: name, pid: uint32(cmd.Process.Pid)}
	stopped := false
	p.stop = func() {
		if !stopped {
			stopped = true
			stdin.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(p.stop)
	for lines := bufio.NewScanner(stdout); lines.Scan() && lines.Text() != ""; {
		fields := strings.Split(lines.Text(), "\t")
		to, number := &p.addrs, fields[0]
		if fields[0] == "top" {
			to, number = &p.top, fields[1]
		}
		addr, err := strconv.ParseUint(strings.NewReplacer("0x", "", "(nil)", "0").Replace(number), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		*to = append(*to, addr)
		if len(fields) == 4 {
			line, _ := strconv.Atoi(fields[3])
			p.truth = append(p.truth, Frame{Function: fields[1], File: fields[2], Line: line})
		}
	}
	if len(p.addrs) < 3 {
		t.Fatalf("%s told %d addresses", name, len(p.addrs))
	}
	return p
}

func symbolizer(t testing.TB, procRoot string) *Symbolizer {
	s := NewSymbolizer(procRoot)
	t.Cleanup(func() {
		for _, file := range s.files.slots {
			file.value.close()
		}
	})
	return s
}

func text(frames []Frame) (lines []string) {
	for _, f := range frames {
		lines = append(lines, f.String())
	}
	return lines
}

// wantC is what the comments in server.c say.
func wantC(t testing.TB) (want []string) {
	t.Helper()
	source, err := os.ReadFile("testdata/symbols/server.c")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(source), "\n") {
		if _, mark, ok := strings.Cut(line, "/* in "); ok {
			want = append(want, fmt.Sprintf("%s at server.c:%d", strings.TrimSuffix(mark, " */"), i+1))
		}
	}
	return want
}

// TestSymbolizeGo compares with what the runtime of the program says. It tells an
// inlined call by an address of its own; we tell all from the innermost one.
func TestSymbolizeGo(t *testing.T) {
	const stripped, external = "-ldflags=-s -w", "-ldflags=-s -w -linkmode=external"
	for _, flags := range [][]string{
		{}, {stripped}, {external}, {"-trimpath"},
		{"-buildmode=pie"}, {"-buildmode=pie", stripped}, {"-buildmode=pie", external},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			needTool(t, "gcc") // links the external ones
			p := start(t, buildGo(t, flags...))
			s := symbolizer(t, "/proc")
			inlined := 0
			for i := 0; i < len(p.addrs); {
				frames := symbolize(s, p.pid, p.addrs[i:i+1])
				for j := range frames {
					got := frames[j]
					if got.Module != "client" || got.Offset == 0 {
						t.Errorf("%v is in %s+%#x", got, got.Module, got.Offset)
					}
					got.Module, got.Offset = "", 0
					if diff := cmp.Diff(p.truth[i+j], got); diff != "" {
						t.Errorf("%x (-want +got):\n%s", p.addrs[i], diff)
					}
				}
				inlined += len(frames) - 1
				i += len(frames)
			}
			if inlined < 2 {
				t.Errorf("%d inlined calls, want fetch and get: %v", inlined, p.truth)
			}
		})
	}
}

func TestSymbolizeC(t *testing.T) {
	want := wantC(t)
	for _, flags := range [][]string{
		{"-g"}, {"-gdwarf-4", "-no-pie"}, {"-gdwarf-3"}, {"-gdwarf-5", "-gdwarf64", "-static"}, {"-g", "-gz"}, {"-g", "-ffunction-sections"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			p := start(t, buildC(t, flags...))
			if diff := cmp.Diff(want, text(p.symbolize(symbolizer(t, "/proc")))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSymbolizeCWithoutLines(t *testing.T) {
	p := start(t, buildC(t))
	want := []string{"connect_to in server", "app::pool::fetch in server", "main in server"}
	if diff := cmp.Diff(want, text(p.symbolize(symbolizer(t, "/proc")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSymbolizeStripped(t *testing.T) {
	p := start(t, buildC(t, "-s", "-no-pie"))
	for i, got := range p.symbolize(symbolizer(t, "/proc")) {
		if want := (Frame{Module: "server", Offset: p.addrs[i]}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// TestComplete takes show() for a function without a frame pointer, as connect()
// of the C library is one: a walk would not see who called it.
func TestComplete(t *testing.T) {
	for _, flag := range []string{"-no-pie", "-pie"} {
		p := start(t, buildC(t, "-g", flag))
		s := symbolizer(t, "/proc")
		remember(s, p.pid)
		full := append([]uint64{p.addrs[0] - 1}, p.addrs...) // somewhere to be in
		for what, stack := range map[string][]uint64{
			"whole":          full,
			"one is missing": {full[0], full[2], full[3]},
		} {
			if got := complete(s, p.pid, stack, p.top); !slices.Equal(got, full) {
				t.Errorf("%s: %s: Complete(%x, %x) = %x, want %x", flag, what, stack, p.top, got, full)
			}
		}
		garbage := []uint64{full[0], p.addrs[0] + 1, p.addrs[0] + 2}
		if got := complete(s, p.pid, garbage, p.top[1:]); !slices.Equal(got, full[:2]) {
			t.Errorf("%s: without frame pointers: got %x, want %x", flag, got, full[:2])
		}
		if got := complete(s, p.pid, full[:1], []uint64{0, 1 << 63, 1<<64 - 1, p.addrs[0] + 1}); !slices.Equal(got, full[:1]) {
			t.Errorf("%s: no word is a return address, got %x", flag, got)
		}
		if got := complete(s, p.pid+1, full[:1], p.top); !slices.Equal(got, full[:1]) {
			t.Errorf("%s: no such process is known, got %x", flag, got)
		}
	}
}

// TestCompleteTailCall misses the function that main reaches by a call and a jump.
func TestCompleteTailCall(t *testing.T) {
	p := start(t, compile(t, "tail.c", "-foptimize-sibling-calls", "-fno-ipa-cp", "-fno-inline"))
	s := symbolizer(t, "/proc")
	remember(s, p.pid)
	inConnectTo, inMain, show := p.addrs[0], p.addrs[1], p.addrs[2]
	want := []uint64{inConnectTo - 1, inConnectTo, inMain}
	if got := complete(s, p.pid, []uint64{want[0], inMain}, []uint64{show, inConnectTo}); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x: %v", got, want, text(symbolize(s, p.pid, p.addrs[:2])))
	}
	alone := []uint64{want[0], inConnectTo}
	if got := complete(s, p.pid, alone, []uint64{inMain}); !slices.Equal(got, alone) {
		t.Errorf("main is not called by connect_to: got %x, want %x", got, alone)
	}
}

// TestSymbolizeEnds has stacks that go on with what is not a return address.
func TestSymbolizeEnds(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	s := symbolizer(t, "/proc")
	all := text(p.symbolize(s))
	function := p.top[1] // a pointer to show(), as main's frame has some to functions
	for what, test := range map[string]struct {
		addrs []uint64
		want  []string
	}{
		"whole":               {p.addrs, all},
		"no mapping":          {[]uint64{p.addrs[0], p.addrs[1], 1 << 20, p.addrs[2]}, all[:2]},
		"data":                {[]uint64{p.addrs[0], p.addrs[1], stackWord(t, p), p.addrs[2]}, all[:2]},
		"a function":          {[]uint64{p.addrs[0], p.addrs[1], function, p.addrs[2]}, all[:2]},
		"between two":         {[]uint64{p.addrs[0], p.addrs[1] + 1, p.addrs[2]}, all[:1]},
		"nothing is mapped":   {[]uint64{1 << 20, p.addrs[0]}, nil},
		"where it was itself": {[]uint64{p.addrs[1] + 1, p.addrs[2]}, nil},
	} {
		got := text(symbolize(s, p.pid, test.addrs))
		if what == "where it was itself" { // a system call is not a call
			test.want = []string{got[0], all[2]}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", what, got, test.want)
		}
	}
}

// stackWord returns an address that is mapped and holds no code.
func stackWord(t *testing.T, p *program) uint64 {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var start uint64
		if n, _ := fmt.Sscanf(line, "%x-", &start); n == 1 && strings.Contains(line, "[stack]") {
			return start + 64
		}
	}
	t.Fatal("it has no stack")
	return 0
}

// TestCallBefore has the calls that compilers write, each with its size.
func TestCallBefore(t *testing.T) {
	tests := map[string]int{
		"90 90 90 ff d0": 2, "90 90 41 ff d4": 2, "90 90 90 ff 10": 2,
		"90 90 ff 50 08": 3, "90 ff 14 d0 90": 0, "90 90 ff 14 d0": 3, "90 ff 54 24 08": 4,
		"ff 15 01 02 03 04": 6, "ff 90 01 02 03 04": 6, "ff 94 24 01 02 03 04": 7, "ff 14 25 01 02 03 04": 7,
		"3e ff d0 90 90": 0, "90 90 3e ff d0": 2, "90 90 90 eb fe": 0,
		"e8 ff 00 00 00": 5, "90 90 90 90 90": 0, "ff e0": 0,
	}
	if runtime.GOARCH == "arm64" {
		tests = map[string]int{"01 00 00 94": 4, "60 02 3f d6": 4, "60 02 1f d6": 0, "1f 08 3f d6": 4, "01 08 3f d7": 4, "1f 0c 3f d6": 4}
	}
	for text, want := range tests {
		code, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		code = append(make([]byte, 8), code...)
		s := symbolizer(t, "/nonexistent")
		key := fileKey{inode: 1}
		s.files.put(key, &object{file: s.file("code", bytes.NewReader(code))})
		p := &process{maps: []mapping{{start: 0x1000, end: 0x2000, file: key}}}
		s.budget.begin(context.Background())
		if got, _ := s.callBefore(p, 0x1000+uint64(len(code))); got != want {
			t.Errorf("%s: size %d, want %d", text, got, want)
		}
	}
}

// split takes the debug file out of a program, and names it in the program.
func split(t testing.TB, name, debug string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(debug), 0o755); err != nil {
		t.Fatal(err)
	}
	runTool(t, "", "objcopy", "--only-keep-debug", name, debug)
	runTool(t, "", "objcopy", "--strip-all", "--add-gnu-debuglink="+debug, name)
}

func TestSymbolizeDebugLink(t *testing.T) {
	name := buildC(t, "-g", "-Wl,--build-id=none")
	debug := filepath.Join(filepath.Dir(name), ".debug", "server.debug")
	split(t, name, debug)
	p := start(t, name)
	if diff := cmp.Diff(wantC(t), text(p.symbolize(symbolizer(t, "/proc")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	f, err := os.OpenFile(debug, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("another version"); err != nil {
		t.Fatal(err)
	}
	if got := text(p.symbolize(symbolizer(t, "/proc"))); !strings.HasPrefix(got[0], "server+0x") {
		t.Errorf("with the debug file of another version: got %q", got)
	}
}

// container makes a /proc that shows a process in a mount namespace of its own:
// its files lie below root, and map_files may not be read.
type container struct {
	proc, root string
	pid        uint32
}

func contain(t testing.TB, p *program) container {
	t.Helper()
	c := container{proc: t.TempDir(), pid: p.pid}
	dir := filepath.Join(c.proc, strconv.Itoa(int(p.pid)))
	copyFile(t, "/proc/2/stat", filepath.Join(c.proc, "2/stat")) // of the initial PID namespace
	c.root = filepath.Join(dir, "root")
	copyFile(t, p.name, filepath.Join(c.root, "app/server"))
	live := filepath.Join("/proc", strconv.Itoa(int(p.pid)))
	copyFile(t, filepath.Join(live, "stat"), filepath.Join(dir, "stat"))
	maps, err := os.ReadFile(filepath.Join(live, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	was, is := strconv.FormatUint(inode(t, p.name), 10), strconv.FormatUint(inode(t, c.root+"/app/server"), 10)
	maps = bytes.ReplaceAll(maps, []byte(" "+was+" "), []byte(" "+is+" "))
	maps = bytes.ReplaceAll(maps, []byte(p.name), []byte("/app/server"))
	if err := os.WriteFile(filepath.Join(dir, "maps"), maps, 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestSymbolizeInContainer(t *testing.T) {
	name := buildC(t, "-g", "-Wl,--build-id=0xabcdef0123")
	debug := filepath.Join(t.TempDir(), "debug")
	split(t, name, debug)
	p := start(t, name)
	check := func(what string, c container, want []string) {
		t.Helper()
		if diff := cmp.Diff(want, text(symbolize(symbolizer(t, c.proc), p.pid, p.addrs))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	withOffsets := text(p.symbolize(symbolizer(t, "/proc")))

	c := contain(t, p)
	check("no debug file", c, withOffsets)

	c = contain(t, p)
	copyFile(t, debug, c.root+"/usr/lib/debug/.build-id/ab/cdef0123.debug")
	check("a debug file by its build-id", c, wantC(t))

	c = contain(t, p)
	other := buildC(t, "-g", "-Wl,--build-id=0xabcdef0124")
	copyFile(t, other, c.root+"/usr/lib/debug/.build-id/ab/cdef0123.debug")
	check("a debug file of another program", c, withOffsets)

	c = contain(t, p)
	if err := os.Rename(c.root+"/app/server", c.root+"/app/moved"); err != nil {
		t.Fatal(err)
	}
	copyFile(t, other, c.root+"/app/server")
	replaced := symbolizer(t, c.proc)
	if got := symbolize(replaced, p.pid, p.addrs); got[0].Function != "" || got[0].Module != "server" || len(replaced.files.slots) != 0 {
		t.Errorf("the file was replaced: got %v", got)
	}

	// Links of the container lead nowhere on the host, and a pipe does not stop us.
	for what, make := range map[string]func(string) error{
		"a link": func(to string) error { return os.Symlink(p.name, to) },
		"a pipe": func(to string) error { return unix.Mkfifo(to, 0o644) },
	} {
		c = contain(t, p)
		os.Remove(c.root + "/app/server")
		if err := make(c.root + "/app/server"); err != nil {
			t.Fatal(err)
		}
		if got := symbolize(symbolizer(t, c.proc), p.pid, p.addrs); got[0].Function != "" || got[0].Module != "server" {
			t.Errorf("%s instead of the file: got %v", what, got)
		}
	}
}

func TestSymbolizeAfterTheExit(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	s := symbolizer(t, "/proc")
	remember(s, p.pid)
	p.stop()
	if err := os.Remove(p.name); err != nil {
		t.Fatal(err)
	}
	s.processes.get(p.pid).checked = time.Time{}
	remember(s, p.pid)
	if diff := cmp.Diff(wantC(t), text(p.symbolize(s))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := text(symbolize(symbolizer(t, "/proc"), p.pid, p.addrs[:1])), fmt.Sprintf("%#x", p.addrs[0]); got[0] != want {
		t.Errorf("not remembered: got %q, want %q", got, want)
	}
}

func TestSymbolizeRemovedFile(t *testing.T) {
	need.Kernel(t)
	p := start(t, buildC(t, "-g"))
	if err := os.Remove(p.name); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantC(t), text(p.symbolize(symbolizer(t, "/proc")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever is where a program was started from, what is named is what runs.
func TestSymbolizeMovedFile(t *testing.T) {
	need.Kernel(t)
	for what, make := range map[string]func(path string) error{
		"nothing":         func(string) error { return nil },
		"another program": func(path string) error { return os.WriteFile(path, []byte("\x7fELF"), 0o755) },
		"a FIFO":          func(path string) error { return unix.Mkfifo(path, 0o644) },
		"a loop":          func(path string) error { return os.Symlink(path, path) },
		"a device":        func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
	} {
		p := start(t, buildC(t, "-g"))
		if err := os.Rename(p.name, p.name+".old"); err != nil {
			t.Fatal(err)
		}
		if err := make(p.name); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantC(t), text(p.symbolize(symbolizer(t, "/proc")))); diff != "" {
			t.Errorf("%s in its place (-want +got):\n%s", what, diff)
		}
	}
}

func TestRememberTellsProgramsApart(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	c := contain(t, p)
	s := symbolizer(t, c.proc)
	again := func() *process {
		s.processes.get(p.pid).checked = time.Time{}
		remember(s, p.pid)
		return s.processes.get(p.pid)
	}
	remember(s, p.pid)
	first := s.processes.get(p.pid)
	if again() != first {
		t.Error("the same program is read twice")
	}
	stat := filepath.Join(c.proc, strconv.Itoa(int(p.pid)), "stat")
	line, err := os.ReadFile(stat)
	if err != nil {
		t.Fatal(err)
	}
	rest := string(line)[bytes.LastIndexByte(line, ')')+1:]
	fields := strings.Fields(rest)
	fields[25] = "123" // where the stack begins: a new one for each execve()
	if err := os.WriteFile(stat, []byte("1 (x) "+strings.Join(fields, " ")), 0o644); err != nil {
		t.Fatal(err)
	}
	if again() == first {
		t.Error("the program after execve() is taken for the one before")
	}
}

// TestSymbolizeLater loads code that was not there when the process was read.
func TestSymbolizeLater(t *testing.T) {
	p := start(t, buildC(t, "-g"))
	s := symbolizer(t, "/proc")
	remember(s, p.pid)
	known := s.processes.get(p.pid)
	known.maps = nil
	if got := p.symbolize(s)[0]; got != (Frame{Offset: p.addrs[0]}) {
		t.Errorf("read again at once: %v", got)
	}
	known.read = time.Time{}
	if diff := cmp.Diff(wantC(t), text(p.symbolize(s))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFrameString(t *testing.T) {
	for want, frame := range map[string]Frame{
		"main.fetch at client.go:42": {"main.fetch", "/src/client.go", 42, "client", 7},
		"connect in libc.so.6":       {"connect", "", 0, "libc.so.6", 7},
		"connect":                    {"connect", "", 0, "", 7},
		"libc.so.6+0x1234":           {"", "", 0, "libc.so.6", 0x1234},
		"0x7f00":                     {"", "", 0, "", 0x7f00},
	} {
		if got := frame.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSymbolizeNothing(t *testing.T) {
	s := symbolizer(t, "/nonexistent")
	got := symbolize(s, 7, []uint64{0, 1, 1<<64 - 1})
	if want := []string{"0x0", "0x1", "0xffffffffffffffff"}; !slices.Equal(text(got), want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCacheKeepsTheLastUsed(t *testing.T) {
	var dropped []string
	c := newCache[int](2, func(string) int { return 1 }, func(s string) { dropped = append(dropped, s) })
	c.put(1, "one")
	c.put(2, "two")
	c.get(1)
	c.put(3, "three")
	c.put(3, "drei")
	if want := []string{"two", "three"}; !slices.Equal(dropped, want) || c.get(1) != "one" || c.get(3) != "drei" || c.get(2) != "" {
		t.Errorf("dropped %q of %v, want %q", dropped, c.slots, want)
	}
}

// FuzzObject reads programs that somebody has patched: whatever they say, it must
// end, and without a panic.
func FuzzObject(f *testing.F) {
	var files [][]byte
	for _, name := range []string{buildC(f, "-gdwarf-4"), buildC(f, "-gdwarf-5", "-gz"), buildGo(f, "-ldflags=-s -w")} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		headers := uint64(0x28) // of the ELF header: where the sections are described
		f.Add(len(files), headers, []byte{}, uint64(0x1200))
		f.Add(len(files), binary.LittleEndian.Uint64(data[headers:]), bytes.Repeat([]byte{255}, 500), uint64(0x1200))
		files = append(files, data)
	}
	f.Fuzz(func(t *testing.T, file int, at uint64, patch []byte, offset uint64) {
		data := slices.Clone(files[uint(file)%uint(len(files))])
		copy(data[at%uint64(len(data)):], patch)
		s := NewSymbolizer("/nonexistent")
		s.budget.begin(t.Context())
		o := newObject(s.file("patched", bytes.NewReader(data)))
		for range 3 {
			for _, frame := range s.lookUp(o, offset) {
				_ = frame.String()
			}
			offset += 0x100
		}
	})
}

// FuzzGoTable reads hostile tables of the Go runtime: pclntab is a whole .gopclntab, at the
// beginning of a file whose code begins at 0x1000.
func FuzzGoTable(f *testing.F) {
	f.Fuzz(func(t *testing.T, pclntab []byte, inline, vaddr uint64) {
		s := NewSymbolizer("/nonexistent")
		s.budget.begin(t.Context())
		o := &object{file: s.file("pclntab", bytes.NewReader(pclntab))}
		text, table := &elf.Section{SectionHeader: elf.SectionHeader{Name: ".text", Type: elf.SHT_PROGBITS, Addr: 0x1000, Size: 1 << 20}},
			&elf.Section{SectionHeader: elf.SectionHeader{Name: ".gopclntab", Type: elf.SHT_PROGBITS, Size: uint64(len(pclntab)), FileSize: uint64(len(pclntab))}}
		if o.golang = newGoTable(o, &elf.File{Sections: []*elf.Section{text, table}}); o.golang == nil {
			return
		}
		o.golang.inline = int64(inline)
		if frames := o.goFrames(vaddr); len(frames) > maxInlined {
			t.Errorf("%d frames", len(frames))
		}
	})
}

// FuzzLines reads hostile line tables.
func FuzzLines(f *testing.F) {
	for _, flag := range []string{"-gdwarf-2", "-gdwarf-4", "-gdwarf-5"} {
		file, err := os.Open(buildC(f, flag, "-no-pie"))
		if err != nil {
			f.Fatal(err)
		}
		s := NewSymbolizer("/nonexistent")
		s.budget.begin(f.Context())
		t := newObject(s.file("lines", file)).readLines()
		file.Close()
		if len(t.sequences) == 0 {
			f.Fatalf("%s: no lines", flag)
		}
		f.Add(t.data, t.strings, t.sequences[0].low)
	}
	f.Fuzz(func(t *testing.T, data, strings []byte, vaddr uint64) {
		table := lineTable{data: data, strings: strings, spend: func(int) error { return nil }}
		table.index()
		table.find(vaddr)
		for _, run := range table.sequences {
			if name, line := table.find(run.low); len(name) > 2*maxName+1 || line < 0 || (name == "") != (line == 0) {
				t.Errorf("%q, line %d", name, line)
			}
		}
	})
}

func BenchmarkSymbolize(b *testing.B) {
	p := start(b, buildGo(b))
	s := symbolizer(b, "/proc")
	b.ReportAllocs()
	for b.Loop() {
		symbolize(s, p.pid, p.addrs)
	}
}

func BenchmarkSymbolizeNew(b *testing.B) {
	p := start(b, buildGo(b))
	s := symbolizer(b, "/proc")
	b.ReportAllocs()
	for b.Loop() {
		s.frames.clear()
		symbolize(s, p.pid, p.addrs)
	}
}

func inode(t testing.TB, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

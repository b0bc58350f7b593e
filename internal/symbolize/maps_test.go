package symbolize

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMaps(t *testing.T) {
	const text = `55d1a8c00000-55d1a8c02000 r--p 00000000 fe:00 1057                       /usr/bin/app server
55d1a8c02000-55d1a8c08000 r-xp 00002000 fe:00 1057                       /usr/bin/app server
55d1a9f31000-55d1a9f52000 rw-p 00000000 00:00 0                          [heap]
7f1c2a000000-7f1c2a021000 rwxp 00000000 00:00 0 
7f1c2a228000-7f1c2a3bd000 r-xp 00028000 fe:00 1049345                    /usr/lib/a\012b.so (deleted)
7ffd5a9f1000-7ffd5a9f3000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`
	want := []mapping{
		{start: 0x55d1a8c02000, end: 0x55d1a8c08000, offset: 0x2000, inode: 1057, path: "/usr/bin/app server"},
		{start: 0x7f1c2a000000, end: 0x7f1c2a021000},
		{start: 0x7f1c2a228000, end: 0x7f1c2a3bd000, offset: 0x28000, inode: 1049345, path: "/usr/lib/a\nb.so"},
		{start: 0x7ffd5a9f1000, end: 0x7ffd5a9f3000, path: "[vdso]"},
		{start: 0xffffffffff600000, end: 0xffffffffff601000, path: "[vsyscall]"},
	}
	got := parseMaps(strings.NewReader(text))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{}, fileKey{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	p := process{maps: got}
	for addr, want := range map[uint64]int{
		0: -1, 0x55d1a8c01fff: -1, 0x55d1a8c02000: 0, 0x55d1a8c07fff: 0, 0x55d1a8c08000: -1,
		0x7f1c2a3bcfff: 2, 0xffffffffff600000: 4, 1<<64 - 1: -1,
	} {
		var m *mapping
		if want >= 0 {
			m = &got[want]
		}
		if found := p.find(addr); found != m {
			t.Errorf("find(%#x) = %+v, want %+v", addr, found, m)
		}
	}
}

func TestParseMapsNonsense(t *testing.T) {
	for _, text := range []string{
		"", "\n\n", "a b", "0-1 r-xp", "0-1 r-xp 0 0", "0-1 --x", "z-1 r-xp 0 0 0", "0 r-xp 0 0 0", "0-1 r-xp 0 0:0 -1 /a",
		"0-10000000000000000 r-xp 0 0 0", strings.Repeat("x", 1<<17),
	} {
		if got := parseMaps(strings.NewReader(text)); got != nil {
			t.Errorf("parseMaps(%.40q) = %+v", text, got)
		}
	}
	many := strings.Repeat("0-1 r-xp 0 0:0 7 /a\n", 2*maxMappings)
	if got := len(parseMaps(strings.NewReader(many))); got != maxMappings {
		t.Errorf("%d mappings are kept, want %d", got, maxMappings)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add("55d1a8c02000-55d1a8c08000 r-xp 00002000 fe:00 1057      /usr/bin/app\n", uint64(0x55d1a8c02000))
	f.Add("0-1 r-xp 0 0:0 0\n0-ffffffffffffffff --xp 0 0:0 7 /a (deleted)", uint64(0))
	f.Fuzz(func(t *testing.T, text string, addr uint64) {
		p := process{maps: parseMaps(strings.NewReader(text))}
		if m := p.find(addr); m != nil && (addr < m.start || addr >= m.end) {
			t.Errorf("find(%#x) = %+v", addr, m)
		}
	})
}

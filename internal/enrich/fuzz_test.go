package enrich

import (
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// FuzzParseMounts reads mount points, options and devices that users chose.
func FuzzParseMounts(f *testing.F) {
	f.Fuzz(func(t *testing.T, mountinfo string) {
		m, legacy := parseMounts(strings.NewReader(mountinfo))
		if (m.at != "" || m.root != "") && !strings.Contains(mountinfo, " - cgroup2") || legacy && !strings.Contains(mountinfo, " - cgroup") {
			t.Errorf("%+v, %v", m, legacy)
		}
		if strings.HasSuffix(m.root, "/") && m.root != "/" && !strings.HasSuffix(m.root, "//") {
			t.Errorf("the root is %q", m.root)
		}
	})
}

// FuzzParseContainer reads cgroups, whose names are anybody's who may make one.
func FuzzParseContainer(f *testing.F) {
	f.Fuzz(func(t *testing.T, cgroups string) {
		found, err := parseContainer(strings.NewReader(cgroups))
		id := found.container
		if err != nil {
			return
		}
		if id != "" && !strings.Contains(strings.ReplaceAll(cgroups, `\x2d`, "-"), id) {
			t.Errorf("the id is %q", id)
		}
		if strings.ContainsAny(id, "/\n") {
			t.Errorf("the id %q is more than one name", id)
		}
		_ = tcp.ContainerID(cgroups)
	})
}

// FuzzParseFileLimit reads limits.
func FuzzParseFileLimit(f *testing.F) {
	f.Fuzz(func(t *testing.T, limits string) {
		if n, err := parseFileLimit(strings.NewReader(limits)); err == nil && !strings.Contains(limits, "Max open files") {
			t.Errorf("%d", n)
		}
	})
}

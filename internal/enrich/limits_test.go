package enrich

import (
	"math"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestParseFileLimit(t *testing.T) {
	const head = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max cpu time              unlimited            unlimited            seconds   \n"
	for text, want := range map[string]uint64{
		head + "Max open files            1024                 524288               files     \n":           1024,
		head + "Max open files            unlimited            unlimited            files     \n":           math.MaxUint64,
		head + "Max open files            18446744073709551615 18446744073709551615 files     \nMore   1 2": math.MaxUint64,
	} {
		if got, err := parseFileLimit(strings.NewReader(text)); err != nil || got != want {
			t.Errorf("parseFileLimit(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", head, head + "Max open files\n", head + "Max open files  x  y\n"} {
		if got, err := parseFileLimit(strings.NewReader(text)); err == nil {
			t.Errorf("parseFileLimit(%q) = %d, want an error", text, got)
		}
	}
}

func TestReadFiles(t *testing.T) {
	before, err := ReadFiles("/proc", uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	const more = 100
	for range more {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	after, err := ReadFiles("/proc", uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Open - before.Open; got != more {
		t.Errorf("%d files more, want %d", got, more)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || after.Limit != limit.Cur {
		t.Errorf("the limit is %d, want %d, %v", after.Limit, limit.Cur, err)
	}
	if _, err := ReadFiles(t.TempDir(), 1); err == nil {
		t.Error("a process that does not exist has files")
	}
}

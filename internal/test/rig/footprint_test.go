package rig

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// footprint is what a tracer has of the machine at some time.
type footprint struct {
	conns      int // that were made until then
	memory     int // KiB of its own that were resident at most since forgetPeak
	files      int // descriptors
	threads    int
	goroutines int            // that there have been at a time, at most
	entries    map[string]int // of the kernel's maps, by name
}

func (tr *tracer) footprint(conns int) footprint {
	tr.t.Helper()
	f := footprint{conns: conns, threads: tr.status("Threads:"), goroutines: tr.goroutines()}
	// The rest are the rings and the binary, which are as big from the first to the last.
	f.memory = tr.status("VmHWM:") - tr.status("RssFile:") - tr.status("RssShmem:")
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tr.cmd.Process.Pid))
	if err != nil {
		tr.t.Fatal(err)
	}
	f.files = len(open)
	if f.entries, err = tr.entries(); err != nil {
		tr.t.Fatal(err)
	}
	return f
}

// forgetPeak makes VmHWM the memory that is resident now, see proc_pid_clear_refs(5).
func (tr *tracer) forgetPeak() {
	tr.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", tr.cmd.Process.Pid), []byte("5"), 0); err != nil {
		tr.t.Fatal(err)
	}
}

// goroutines reads runtime.allglen out of the tracer's memory. The runtime uses the
// descriptors of ended goroutines again and frees none, so it is the largest number that
// there was at a time, and grows for ever if goroutines leak. It is in every Go program;
// nothing has to listen in the one that is measured.
func (tr *tracer) goroutines() int {
	tr.t.Helper()
	program, err := elf.Open(tr.cmd.Path)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer program.Close()
	symbols, err := program.Symbols()
	at := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "runtime.allglen" })
	if err != nil || at < 0 || program.Type != elf.ET_EXEC {
		tr.t.Fatalf("%s: runtime.allglen is not where a Go program that is not PIE has it: %v", tr.cmd.Path, err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", tr.cmd.Process.Pid))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer memory.Close()
	var word [8]byte
	if _, err := memory.ReadAt(word[:], int64(symbols[at].Value)); err != nil {
		tr.t.Fatal(err)
	}
	return int(binary.NativeEndian.Uint64(word[:]))
}

// growth says what has grown of a tracer that was looked at again and again: the most in
// the last quarter against the most in the second. In the first everything grows to its
// size. What a tracer allocates for a refresh makes its peak differ by a fifth.
func growth(samples []footprint) error {
	const few = 4
	n := len(samples)
	before, after := most(samples[n/4:n/2]), most(samples[n-n/4:])
	var grew []error
	for _, c := range []struct {
		what                 string
		before, after, slack int
	}{
		{"KiB of memory", before.memory, after.memory, max(before.memory/4, 4<<10)},
		{"descriptors", before.files, after.files, few},
		{"threads", before.threads, after.threads, few},
		{"goroutines", before.goroutines, after.goroutines, few},
	} {
		if c.after > c.before+c.slack {
			grew = append(grew, fmt.Errorf("%d %s have become %d", c.before, c.what, c.after))
		}
	}
	return errors.Join(grew...)
}

func most(samples []footprint) (m footprint) {
	for _, f := range samples {
		m.memory, m.files = max(m.memory, f.memory), max(m.files, f.files)
		m.threads, m.goroutines = max(m.threads, f.threads), max(m.goroutines, f.goroutines)
	}
	return m
}

// A leak of 100 bytes for each connection is growth, in the shortest soak too, and so is
// one of a descriptor for each namespace. The pulse of a garbage collector is not.
func TestGrowth(t *testing.T) {
	for _, test := range []struct {
		name string
		at   func(round int) footprint
		want string // "": nothing
	}{
		{"nothing", func(int) footprint { return footprint{memory: 20000, files: 40, threads: 9, goroutines: 20} }, ""},
		{"warm-up", func(i int) footprint { return footprint{memory: 20000 + 9000*min(i, 2), files: 20 + 9*min(i, 2)} }, ""},
		{"pulse", func(i int) footprint { return footprint{memory: 20000 + i%2*6000, files: 40 + i%2*9} }, ""},
		{"memory", func(i int) footprint { return footprint{memory: 20000 + i*soakRate*6*100>>10} }, "memory"},
		{"descriptors", func(i int) footprint { return footprint{files: 40 + 2*i} }, "descriptors"},
		{"threads", func(i int) footprint { return footprint{threads: 10 + 2*i} }, "threads"},
		{"goroutines", func(i int) footprint { return footprint{goroutines: 10 + 2*i} }, "goroutines"},
	} {
		var samples []footprint
		for i := range minRounds {
			samples = append(samples, test.at(i))
		}
		err := growth(samples)
		if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

// writeFootprints appends one line for each quarter of the samples, and one for the last.
func writeFootprints(w *tabwriter.Writer, name string, samples []footprint) {
	n := len(samples) - 1
	for _, at := range []int{0, n / 4, n / 2, 3 * n / 4, n} {
		f := samples[at]
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%d\t%d\t%d\t%d\t%d\t%d\n", name, f.conns, float64(f.memory)/1024, f.files,
			f.threads, f.goroutines, f.entries["socks"], f.entries["timewaits"], f.entries["requests"])
	}
}

// objects are BPF programs, maps and links, by their id.
type objects struct{ programs, maps, links []uint32 }

func (tr *tracer) bpfObjects() (o objects) {
	tr.t.Helper()
	for label, ids := range map[string]*[]uint32{"prog_id:": &o.programs, "map_id:": &o.maps, "link_id:": &o.links} {
		var err error
		if *ids, err = tr.objects(label); err != nil || len(*ids) == 0 {
			tr.t.Fatalf("%s of %s: %v, %v", label, filepath.Base(tr.cmd.Path), *ids, err)
		}
	}
	return o
}

// gone is an error as long as the kernel has one of them.
func (o objects) gone() error {
	var left []string
	for _, id := range o.programs {
		if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id)); err == nil {
			left = append(left, p.String())
			p.Close()
		}
	}
	for _, id := range o.maps {
		if m, err := ebpf.NewMapFromID(ebpf.MapID(id)); err == nil {
			left = append(left, m.String())
			m.Close()
		}
	}
	for _, id := range o.links {
		if l, err := link.NewFromID(link.ID(id)); err == nil {
			left = append(left, fmt.Sprintf("link %d", id))
			l.Close()
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("the kernel has %q", left)
	}
	return nil
}

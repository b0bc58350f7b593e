package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is what the tests of one guest printed, and how the guest ended.
type result struct {
	guest   guest
	kernel  string // as uname -r says; empty until the guest is up
	console string // the file with the kernel's log; empty if there was no guest
	broken  error  // why there are fewer results than there should be
	took    time.Duration

	way    string // how the probe hooks in, in the present run
	tests  []*test
	loose  strings.Builder // what no test said
	failed bool            // a run had another exit status than 0
	unrun  bool            // a run found none of its tests
	ended  bool            // the guest came to its end
}

// test is a test of a guest, or a subtest. The status of one that never ended is
// empty, and it counts as failed.
type test struct {
	name, way, status string
	output            strings.Builder
}

func newResult(g guest) *result { return &result{guest: g} }

// take is handed every event in order.
func (r *result) take(e event) {
	switch {
	case e.Test != "":
		t := r.test(e.Test)
		switch e.Action {
		case "pass", "fail", "skip":
			t.status = e.Action
		case "output":
			t.output.WriteString(e.Output)
		}
	case strings.HasPrefix(e.Output, "@"):
		r.note(strings.TrimSpace(e.Output))
	default:
		r.unrun = r.unrun || strings.HasPrefix(e.Output, noTests)
		r.loose.WriteString(e.Output)
	}
}

// noTests is how a test binary begins to say that -test.run matches nothing. Its exit
// status is 0 all the same.
const noTests = "testing: warning: no tests to run"

// note takes a line from init.sh.
func (r *result) note(line string) {
	key, value, _ := strings.Cut(line, " ")
	switch key {
	case "@kernel":
		r.kernel = value
	case "@way":
		r.way = value
	case "@exit":
		r.failed = r.failed || value != "0"
	case "@end":
		r.ended = true
	}
}

func (r *result) test(name string) *test {
	for _, t := range slices.Backward(r.tests) { // it is nearly always the last
		if t.name == name && t.way == r.way {
			return t
		}
	}
	t := &test{name: name, way: r.way}
	r.tests = append(r.tests, t)
	return t
}

// leaves are the tests that have no subtests.
func (r *result) leaves() (leaves []*test) {
	parents := map[string]bool{}
	for _, t := range r.tests {
		parents[path.Dir(t.name)] = true
	}
	for _, t := range r.tests {
		if !parents[t.name] {
			leaves = append(leaves, t)
		}
	}
	return leaves
}

// problem is why the run as a whole fails, if it does.
func (r *result) problem() error {
	var failed []string
	for _, t := range r.leaves() {
		if t.status != "pass" && t.status != "skip" {
			failed = append(failed, t.name+" ("+t.way+")")
		}
	}
	err := r.broken
	switch {
	case err != nil:
	case len(failed) > 0:
		err = fmt.Errorf("%d of %d tests failed: %s", len(failed), len(r.leaves()), strings.Join(failed, ", "))
	case r.unrun:
		err = errors.New("a test that init.sh names does not exist")
	case !r.ended || r.failed || len(r.tests) == 0:
		err = errors.New("the guest ended in the middle of its tests")
	default:
		return nil
	}
	return fmt.Errorf("kernel %s: %w", r.guest.name(), err)
}

// report says how the run of a guest went, with all the output of one that failed.
func (r *result) report() string {
	problem := r.problem()
	if problem == nil {
		return fmt.Sprintf("== %s: passed, %d tests on %s in %v\n", r.guest.name(), len(r.leaves()), r.kernel, r.took.Round(time.Second))
	}
	var b strings.Builder
	if log, err := os.ReadFile(r.console); err == nil {
		fmt.Fprintf(&b, "== %s: the log of the kernel\n%s\n", r.guest.name(), strings.ReplaceAll(string(log), "\r", ""))
	}
	for _, t := range r.leaves() {
		if t.status != "pass" && t.status != "skip" {
			fmt.Fprintf(&b, "== %s: %s, %s\n%s", r.guest.name(), t.name, t.way, t.output.String())
		}
	}
	fmt.Fprintf(&b, "%s\n== FAILED: %v\n", r.loose.String(), problem)
	return b.String()
}

// cell identifies a field of a guest's row.
type cell struct{ feature, way string }

// features are what tests are about that do not belong to the walk, by the beginning of
// their names. The other tests share a column.
var features = []struct{ tests, name string }{
	{"TestOverloadIsCountedExactly", "loss accounting"},
	{"TestTracerAgreesWithOracle", "interrupts (RPS)"},
	{"TestSeedIsComplete", "seeding"},
	{"TestMissed", "missed transitions"},
	{"TestLockdown", "lockdown"},
	{"TestDirectReads", "direct reads"},
	{"TestNoRoom", "full tables"},
	{"TestOthersTakeNoRoom", "full tables"},
	{"TestKernelClocks", "the kernel's clocks"},
	{"TestNamespace", "namespaces"},
	{"TestHiddenNamespace", "namespaces"},
	{"TestManyNamespaces", "namespaces"},
	{"TestDestroy", "closing"},
	{"TestStack", "stacks"},
}

// feature names what a test is about: the group of scenarios it belongs to.
func feature(test string) string {
	if group, ok := strings.CutPrefix(path.Dir(test), "TestWalk/"); ok {
		return group
	}
	for _, f := range features {
		if strings.HasPrefix(test, f.tests) {
			return f.name
		}
	}
	return "others"
}

// table shows every guest and every feature, one block for each way to hook in, and why a
// test was not run.
func table(results []*result) string {
	var b strings.Builder
	var notes []string
	for _, block := range blocks(results) {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "%s\t%s\n", strings.ToUpper(block.way), strings.Join(block.features, "\t"))
		for _, r := range results {
			fmt.Fprint(w, r.version())
			for _, f := range block.features {
				fmt.Fprintf(w, "\t%s", r.verdict(cell{f, block.way}, &notes))
			}
			fmt.Fprintln(w)
		}
		w.Flush()
		fmt.Fprintln(&b)
	}
	for i, note := range notes {
		fmt.Fprintf(&b, "[%d] %s\n", i+1, note)
	}
	return b.String()
}

// block is a part of the table.
type block struct {
	way      string
	features []string
}

func blocks(results []*result) (all []*block) {
	for _, r := range results {
		for _, t := range r.leaves() {
			i := slices.IndexFunc(all, func(b *block) bool { return b.way == t.way })
			if i < 0 {
				i, all = len(all), append(all, &block{way: t.way})
			}
			if f := feature(t.name); !slices.Contains(all[i].features, f) {
				all[i].features = append(all[i].features, f)
			}
		}
	}
	return all
}

// version is that of the kernel without what Debian adds, and the guest's variant.
func (r *result) version() string {
	if r.kernel == "" {
		return r.guest.name()
	}
	version, _, _ := strings.Cut(r.kernel, "+")
	version = strings.TrimSuffix(strings.TrimSuffix(version, "-amd64"), "-arm64")
	return join(version, r.guest.variant)
}

// verdict is a field of the table. The reasons of what was skipped go to notes.
func (r *result) verdict(c cell, notes *[]string) string {
	passed, failed := 0, 0
	var skipped strings.Builder
	for _, t := range r.leaves() {
		if (cell{feature(t.name), t.way}) != c {
			continue
		}
		switch t.status {
		case "pass":
			passed++
		case "skip":
			fmt.Fprintf(&skipped, " [%d]", noteNumber(path.Base(t.name)+": "+t.reason(), notes))
		default:
			failed++
		}
	}
	switch {
	case failed > 0:
		return fmt.Sprintf("FAIL %d of %d", failed, passed+failed)
	case passed == 0 && skipped.Len() == 0 && r.problem() == nil:
		return "-" // init.sh leaves it out on this guest
	case passed == 0 && skipped.Len() == 0:
		return "FAIL not run"
	case passed == 0:
		return "not here" + skipped.String()
	}
	return fmt.Sprintf("pass %d%s", passed, skipped.String())
}

func noteNumber(note string, notes *[]string) int {
	i := slices.Index(*notes, note)
	if i < 0 {
		i = len(*notes)
		*notes = append(*notes, note)
	}
	return i + 1
}

// reason is what a test said when it was skipped: "    file_test.go:1: reason".
func (t *test) reason() string {
	for line := range strings.Lines(t.output.String()) {
		if _, said, ok := strings.Cut(line, "_test.go:"); ok {
			_, reason, _ := strings.Cut(said, ": ")
			return strings.TrimSpace(reason)
		}
	}
	return "no reason given"
}

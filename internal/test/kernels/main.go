// Command kernels runs the project's kernel tests on Debian's stock kernels, each
// booted in an emulated machine: what `make test-kernels` does. It needs neither
// root nor KVM. It says nothing about how fast anything is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// guest is a kernel of Debian's and how it is booted.
type guest struct {
	series  string // of its version, as far as it never changes
	suite   string // of Debian
	flavour string // of the package, as in linux-image-rt-amd64; empty: the usual one
	variant string // tells apart guests of one series; empty: the usual one
	args    string // added to the kernel's command line
}

const confidential = "lsm=lockdown lockdown=confidentiality"

var guests = []guest{
	{series: "5.10", suite: "bullseye"},
	{series: "6.1", suite: "bookworm"},
	{series: "6.1", suite: "bookworm", variant: "confidentiality", args: confidential}, // refuses all our programs
	{series: "6.12", suite: "trixie"},
	{series: "6.12", suite: "trixie", variant: "rt", flavour: "rt"}, // PREEMPT_RT: softirqs run in threads
	{series: "6.12", suite: "trixie", variant: "integrity", args: "lsm=lockdown,yama lockdown=integrity"},
	{series: "6.12", suite: "trixie", variant: "confidentiality", args: confidential},
	{series: "7", suite: "sid"}, // the newest
}

// name is what -kernel takes.
func (g guest) name() string { return join(g.series, g.variant) }

// kernelName is shared by the guests that boot the same kernel.
func (g guest) kernelName() string { return join(g.suite, g.flavour) }

// join puts a hyphen between the words that are not empty.
func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), "-")
}

func main() {
	kernel := flag.String("kernel", "", "the guests to test, such as 6.1 or 6.1,6.12-rt; all if empty")
	arch := flag.String("arch", "amd64", "amd64 or arm64")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *arch, *kernel); err != nil {
		fmt.Fprintf(os.Stderr, "test-kernels: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, arch, kernel string) error {
	chosen, err := choose(kernel)
	if err != nil {
		return err
	}
	machine, ok := machines[arch]
	if !ok {
		return fmt.Errorf("no machine of architecture %q: choose amd64 or arm64", arch)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the cache folder: %w", err)
	}
	work, err := os.MkdirTemp("", "tcptrace-kernels-")
	if err != nil {
		return fmt.Errorf("make a folder for the guests: %w", err)
	}
	defer os.RemoveAll(work)
	tests, err := build(ctx, arch, work)
	if err != nil {
		return err
	}
	lab := &lab{out: out, arch: arch, machine: machine, tests: tests, work: work,
		cache: filepath.Join(cache, "tcptrace", "kernels", arch)}
	results := lab.testAll(ctx, chosen)
	fmt.Fprint(out, table(results))
	for _, r := range results {
		err = errors.Join(err, r.problem())
	}
	return err
}

// choose takes 7.2 for 7: only the series of a release never changes.
// choose returns the guests of a comma list, all if it is empty.
func choose(list string) (chosen []guest, err error) {
	if list == "" {
		return guests, nil
	}
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(guests, func(g guest) bool { return g.is(name) })
		if i < 0 {
			return nil, fmt.Errorf("unknown guest %q: choose from %s", name, strings.Join(names(), ", "))
		}
		chosen = append(chosen, guests[i])
	}
	return chosen, nil
}

// is reports whether a guest goes by this name; a version names the plain guest of its series.
func (g guest) is(name string) bool {
	return name == g.name() || g.variant == "" && strings.HasPrefix(name, g.series+".")
}

func names() (all []string) {
	for _, g := range guests {
		all = append(all, g.name())
	}
	return all
}

// lab is where guests are run.
type lab struct {
	mu      sync.Mutex // of out: what is said of a guest stays together
	out     io.Writer
	arch    string
	machine machine
	tests   []file // what every guest holds
	work    string // gone after the run
	cache   string // kernels; kept

	fetching sync.Mutex // guests of one kernel fetch it once
}

// guestsAtOnce is two: each keeps one CPU busy and waits for timers half its time.
const guestsAtOnce = 2

// testAll returns the results in the order of the guests.
func (l *lab) testAll(ctx context.Context, chosen []guest) []*result {
	results := make([]*result, len(chosen))
	turns := make(chan struct{}, guestsAtOnce)
	var running sync.WaitGroup
	for i, g := range chosen {
		running.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			results[i] = l.test(ctx, g)
			l.say(results[i].report())
		})
	}
	running.Wait()
	return results
}

// fetchLimit is for the packages of one kernel, 150 MB at most.
const fetchLimit = 15 * time.Minute

func (l *lab) test(ctx context.Context, g guest) *result {
	res := newResult(g)
	kernel, err := l.kernelOf(ctx, g)
	if err != nil {
		res.broken = fmt.Errorf("fetch the kernel %s of %s: %w", g.series, g.suite, err)
		return res
	}
	l.say(fmt.Sprintf("== %s: booting (%s)\n", g.name(), kernel.folder))
	began := time.Now()
	res.broken = l.boot(ctx, kernel, res)
	res.took = time.Since(began)
	return res
}

func (l *lab) kernelOf(ctx context.Context, g guest) (*kernel, error) {
	l.fetching.Lock()
	defer l.fetching.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	return fetch(ctx, g, l.arch, filepath.Join(l.cache, g.kernelName()))
}

func (l *lab) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprint(l.out, text)
}

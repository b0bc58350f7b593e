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
	"strings"
	"sync"
	"time"
)

// release is a Debian release and the kernel that it is tested for.
type release struct {
	series string // its version, as far as it never changes
	suite  string
}

var releases = []release{
	{"5.10", "bullseye"},
	{"6.1", "bookworm"},
	{"6.12", "trixie"},
	{"7", "sid"}, // the newest there is
}

func main() {
	kernel := flag.String("kernel", "", "the one to test: 5.10, 6.1, 6.12 or 7; all if empty")
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
		if r.first != nil {
			fmt.Fprintf(out, "%s was tested twice; at first: %v\n", r.version(), r.first.problem())
		}
		err = errors.Join(err, r.problem())
	}
	return err
}

func choose(kernel string) ([]release, error) {
	if kernel == "" {
		return releases, nil
	}
	var known []string
	for _, r := range releases {
		if kernel == r.series || strings.HasPrefix(kernel, r.series+".") {
			return []release{r}, nil
		}
		known = append(known, r.series)
	}
	return nil, fmt.Errorf("no kernel %q here: choose one of %s", kernel, strings.Join(known, ", "))
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
}

// guestsAtOnce is two: each keeps one CPU busy and waits for timers half its time.
const guestsAtOnce = 2

// testAll returns the results in the order of the releases.
func (l *lab) testAll(ctx context.Context, chosen []release) []*result {
	results := make([]*result, len(chosen))
	turns := make(chan struct{}, guestsAtOnce)
	var guests sync.WaitGroup
	for i, r := range chosen {
		guests.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			results[i] = l.testTwice(ctx, r)
		})
	}
	guests.Wait()
	return results
}

// testTwice gives a kernel that failed a second chance: where the host stalls an
// emulated machine, a test's own clock is off. What fails for a reason fails again;
// what does not is named below the table.
func (l *lab) testTwice(ctx context.Context, r release) *result {
	first := l.test(ctx, r)
	l.say(first.report())
	if first.problem() == nil || ctx.Err() != nil {
		return first
	}
	second := l.test(ctx, r)
	second.first = first
	l.say(second.report())
	return second
}

// fetchLimit is for the packages of one release, 150 MB at most.
const fetchLimit = 15 * time.Minute

func (l *lab) test(ctx context.Context, r release) *result {
	res := newResult(r)
	limited, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	kernel, err := fetch(limited, r, l.arch, filepath.Join(l.cache, r.suite))
	if err != nil {
		res.broken = fmt.Errorf("fetch the kernel %s of %s: %w", r.series, r.suite, err)
		return res
	}
	l.say(fmt.Sprintf("== %s: booting (%s)\n", r.series, kernel.folder))
	began := time.Now()
	res.broken = l.boot(ctx, kernel, res)
	res.took = time.Since(began)
	return res
}

func (l *lab) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprint(l.out, text)
}

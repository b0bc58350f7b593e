package probe

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootClock is CLOCK_BOOTTIME as BPF programs read it (bpf_ktime_get_boot_ns). In a
// time namespace, clock_gettime(2) adds an offset to it, and the kernel does not.
type bootClock struct {
	shift int64 // ns that clock_gettime(2) adds
}

// newBootClock reads the offset of our time namespace, which does not change once a
// process is in it (timens_offsets is frozen then). It is 0 before Linux 5.6, which has
// no time namespaces.
func newBootClock() bootClock {
	const initial = "time:[4026531834]" // PROC_TIME_INIT_INO in include/linux/proc_ns.h
	if ns, err := os.Readlink("/proc/self/ns/time"); err != nil || ns == initial {
		return bootClock{}
	}
	f, err := os.Open("/proc/self/timens_offsets")
	if err != nil {
		return bootClock{}
	}
	defer f.Close()
	return bootClock{parseBootShift(f)}
}

// parseBootShift reads the offset of CLOCK_BOOTTIME in ns, see time_namespaces(7).
func parseBootShift(r io.Reader) int64 {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), "boottime")
		var seconds, nanoseconds int64
		if n, _ := fmt.Sscan(rest, &seconds, &nanoseconds); found && n == 2 {
			return seconds*int64(time.Second) + nanoseconds
		}
	}
	return 0
}

// now is the time since the boot in ns.
func (c bootClock) now() int64 { return read(unix.CLOCK_BOOTTIME) - c.shift }

// wallOffset is what to add to the time since the boot to get the wall clock, in ns.
func (c bootClock) wallOffset() int64 { return read(unix.CLOCK_REALTIME) - c.now() }

func read(id int32) int64 {
	var t unix.Timespec
	if unix.ClockGettime(id, &t) != nil {
		return 0 // cannot fail: both clocks exist since 2.6.39
	}
	return t.Nano()
}

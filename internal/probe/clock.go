package probe

import "golang.org/x/sys/unix"

func clock(id int32) int64 {
	var t unix.Timespec
	if unix.ClockGettime(id, &t) != nil {
		return 0 // cannot fail: both clocks exist since 2.6.39
	}
	return t.Nano()
}

func bootNow() uint64 { return uint64(clock(unix.CLOCK_BOOTTIME)) }

// wallOffset is what to add to CLOCK_BOOTTIME to get the wall clock, in ns.
func wallOffset() int64 {
	return clock(unix.CLOCK_REALTIME) - clock(unix.CLOCK_BOOTTIME)
}

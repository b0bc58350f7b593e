package pipeline

import (
	"context"

	"golang.org/x/sys/unix"
)

// abandoned blocks until nobody reads fd any more; false says that it cannot tell, or that
// ctx has ended. The next write would tell as well, but on a quiet host that can be hours
// away.
func abandoned(ctx context.Context, fd int) bool {
	const second = 1000 // ms; the goroutine is to end some time after ctx
	for ctx.Err() == nil {
		revents, err := poll(fd, 0, second) // POLLERR and POLLHUP need not be asked for
		if err != nil {
			return false
		}
		if revents != 0 {
			return revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	}
	return false
}

// Writable reports whether a write to fd would not hang.
func Writable(fd int) bool {
	revents, err := poll(fd, unix.POLLOUT, 0)
	return err == nil && revents != 0
}

// poll asks fd once for events, for a time in ms.
func poll(fd int, events int16, timeout int) (revents int16, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds, timeout)
		if err != unix.EINTR {
			return fds[0].Revents, err
		}
	}
}

package serve

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier tells the service manager how the daemon is, see sd_notify(3). The zero Notifier has
// nobody to tell.
type Notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration // within which the manager wants to hear again; 0: it does not
}

// notifyLimit is how long a message may take: the manager may be stopped.
const notifyLimit = 100 * time.Millisecond

// NewNotifier connects to the manager that the environment names, if any. It comes before
// anything is given up.
func NewNotifier() (*Notifier, error) {
	n := new(Notifier)
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return n, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("connect to the service manager ($NOTIFY_SOCKET): %w", err)
	}
	n.conn = conn
	pid := os.Getenv("WATCHDOG_PID")
	if us, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 62); err == nil && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.watchdog = time.Duration(min(us, uint64(24*time.Hour/time.Microsecond))) * time.Microsecond
	}
	return n, nil
}

// tell sends a message. If that fails there is nobody to say so to.
func (n *Notifier) tell(state string) {
	if n.conn == nil {
		return
	}
	_ = n.conn.SetWriteDeadline(time.Now().Add(notifyLimit))
	_, _ = n.conn.Write([]byte(state))
}

// reloading is what a manager wants to hear first when the daemon reloads (Type=notify-reload).
func reloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // every kernel has it
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000)
}

func (n *Notifier) close() {
	if n.conn != nil {
		n.conn.Close()
	}
}

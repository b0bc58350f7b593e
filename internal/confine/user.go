package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// AsUser runs f with the rights to files of the user who started this program, and with
// none that the program's own file adds to them: capabilities (setcap) or another user
// (setuid). f runs on the calling goroutine; other goroutines keep what they have. Whatever
// path the user names is opened in f. A root user has all rights anyway.
func AsUser(f func() error) error {
	if os.Getuid() == 0 {
		return f()
	}
	runtime.LockOSThread()
	raise, err := lowerRights()
	if err == nil {
		err = f()
	}
	if back := raise(); back != nil {
		return errors.Join(err, back) // and the thread stays locked: nobody else gets it
	}
	runtime.UnlockOSThread()
	return err
}

// lowerRights does it for this thread; raise undoes it, also after an error.
func lowerRights() (raise func() error, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		return func() error { return nil }, fmt.Errorf("read own capabilities: %w", err)
	}
	raise = func() error {
		err := errors.Join(setFileOwner(os.Geteuid(), os.Getegid()), unix.Capset(&head, &have[0]))
		if err != nil {
			return fmt.Errorf("take back own capabilities: %w", err)
		}
		return nil
	}
	lowered := have
	lowered[0].Effective, lowered[1].Effective = 0, 0
	err = errors.Join(setFileOwner(os.Getuid(), os.Getgid()), unix.Capset(&head, &lowered[0]))
	if err != nil {
		return raise, fmt.Errorf("put down own capabilities: %w", err)
	}
	return raise, nil
}

// setFileOwner sets by whose permissions this thread opens files. The calls do not say
// whether they worked, only what was set before; of -1, that is all that they do.
func setFileOwner(uid, gid int) error {
	_, _ = unix.SetfsgidRetGid(gid)
	_, _ = unix.SetfsuidRetUid(uid)
	nowGID, _ := unix.SetfsgidRetGid(-1)
	nowUID, _ := unix.SetfsuidRetUid(-1)
	if nowUID != uid || nowGID != gid {
		return fmt.Errorf("open files as user %d and group %d: the kernel refuses it", uid, gid)
	}
	return nil
}

// Open opens a file for reading as AsUser does.
func Open(path string) (f *os.File, err error) {
	err = AsUser(func() error {
		f, err = os.Open(path)
		return err
	})
	return f, err
}

// Create opens a regular file for writing as AsUser does: a new one, with mode 0644 less the
// umask, or one that exists, which is emptied. It follows no symbolic link and refuses what is
// not a file: a device, or a FIFO, which would have to wait for a reader.
func Create(path string) (f *os.File, err error) {
	err = AsUser(func() error {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		return err
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("open %s: a symbolic link is not followed: name the file itself", path)
	case errors.Is(err, unix.ENXIO): // a FIFO without a reader, or a socket
		return nil, notRegular(path)
	case err != nil:
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// CreateNew opens a regular file for writing as AsUser does: a new one, with mode 0600 less
// the umask, or an empty one that is the user's own. Any other is refused, so that nothing is
// overwritten, neither through a symbolic nor through a hard link, and nobody else holds the
// file. A file that is there was made before, perhaps with a mode for those who are to read it.
func CreateNew(path string) (f *os.File, err error) {
	err = AsUser(func() error {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, unix.EEXIST) {
			f, err = openEmpty(path)
		}
		return err
	})
	return f, err
}

// openEmpty opens a file that exists. Who made it between two looks at it gains nothing: it
// is judged when it is open.
func openEmpty(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EISDIR):
		return nil, notRegular(path)
	case err != nil:
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = notRegular(path)
	case st.Size != 0:
		err = fmt.Errorf("open %s: the file exists and is not empty: it is not overwritten", path)
	case st.Uid != uint32(os.Getuid()), st.Nlink > 1:
		err = fmt.Errorf("open %s: the file exists and is not yours alone: remove it or give another name", path)
	default:
		return f, nil
	}
	return nil, errors.Join(err, f.Close())
}

func notRegular(path string) error { return fmt.Errorf("open %s: not a regular file", path) }

// SeesAddresses reports whether the user may see addresses of the kernel: whether
// /proc/kallsyms shows them to the user. So kernel.kptr_restrict is followed, by the
// kernel's own code (kallsyms_show_value): 2 hides them from everybody, 1 and as a rule 0
// from all who lack CAP_SYSLOG.
func SeesAddresses() bool {
	f, err := Open("/proc/kallsyms")
	if err != nil {
		return false
	}
	defer f.Close()
	return showsAddresses(f)
}

// showsAddresses looks at some symbols: where addresses are hidden all are 0, and else the
// first may be, of variables that each processor has.
func showsAddresses(kallsyms io.Reader) bool {
	const enough = 100
	lines := bufio.NewScanner(kallsyms)
	for range enough {
		if !lines.Scan() {
			return false
		}
		address, _, _ := strings.Cut(lines.Text(), " ")
		if strings.Trim(address, "0") != "" {
			return true
		}
	}
	return false
}

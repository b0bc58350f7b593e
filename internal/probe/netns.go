package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netNamespaces finds the network namespaces of the host: those of processes,
// those kept by a bind mount (ip netns), and those kept by an open file; the caller
// knows these files. It returns a path for each inode. A namespace that only its
// sockets keep alive is not found.
func netNamespaces(proc string, files []string) (map[uint64]string, error) {
	found := make(map[uint64]string)
	add := func(path string) {
		// All kinds of namespaces are in one file system; only the link tells.
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && found[st.Ino] == "" {
			found[st.Ino] = path
		}
	}
	pids, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return nil, err
	}
	mounts := make(map[string]bool) // mount namespaces whose mounts are read
	for _, pid := range pids {
		add(filepath.Join(pid, "ns/net"))
		mntns, err := os.Readlink(filepath.Join(pid, "ns/mnt"))
		if err != nil || mounts[mntns] {
			continue
		}
		mounts[mntns] = true
		for _, path := range mountedNamespaces(filepath.Join(pid, "mountinfo")) {
			add(filepath.Join(pid, "root", path))
		}
	}
	for _, path := range files {
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "net:[") {
			add(path)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find network namespaces: none in %s", proc)
	}
	return found, nil
}

func mountedNamespaces(mountinfo string) []string {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil // the process has gone
	}
	defer f.Close()
	return parseNamespaceMounts(f)
}

// parseNamespaceMounts gives the mount points of bind-mounted network namespaces
// in proc(5)'s mountinfo: the root is "net:[inode]", the type nsfs.
func parseNamespaceMounts(mountinfo io.Reader) []string {
	var points []string
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 4 && strings.HasPrefix(f[3], "net:[") {
			points = append(points, strings.ReplaceAll(f[4], `\040`, " "))
		}
	}
	return points
}

// inNamespace runs f in the network namespace at path. One that has gone
// meanwhile is no error, f is not run.
func inNamespace(path string, f func() error) error {
	target, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	done := make(chan error)
	go func() { done <- enterNamespace(target, f) }()
	return <-done
}

// enterNamespace needs a thread of its own for the time being. It brings the
// thread back: to let it end with its goroutine is not enough, as the main thread
// does not end, and would keep the namespace alive. A thread that cannot be
// brought back stays locked, and so is not used again.
func enterNamespace(target *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", target.Name(), err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

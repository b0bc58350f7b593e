package enrich

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/procfs"
)

// Files says how many files a process has open and how many it may.
type Files struct {
	Open  uint64
	Limit uint64 // the soft RLIMIT_NOFILE; MaxUint64: none
}

// ReadFiles reads them below procRoot ("/proc") for the process that an event
// names. Where procRoot is of another PID namespace, the error is
// procfs.ErrOtherNamespace. Another user's process needs CAP_SYS_PTRACE. It opens
// three files; before Linux 6.2 it also has to list every descriptor. A process whose main
// thread has ended shows no files under its own number: then they are those of another
// thread.
func ReadFiles(procRoot string, pid uint32) (Files, error) {
	dir, err := procfs.Open(procRoot).Live(pid)
	if err != nil {
		return Files{}, fmt.Errorf("find process %d: %w", pid, err)
	}
	limits, err := os.Open(filepath.Join(dir, "limits"))
	if err != nil {
		return Files{}, fmt.Errorf("read the limits of process %d: %w", pid, err)
	}
	defer limits.Close()
	limit, err := parseFileLimit(limits)
	if err != nil {
		return Files{}, fmt.Errorf("read the limits of process %d: %w", pid, err)
	}
	open, err := countFiles(filepath.Join(dir, "fd"))
	if err == nil && open == 0 { // exit_files in kernel/exit.c: it is ending
		err = errors.New("it shows none")
	}
	if err != nil {
		return Files{}, fmt.Errorf("count the open files of process %d: %w", pid, err)
	}
	return Files{open, limit}, nil
}

// countFiles relies on the size of /proc/PID/fd, which is the number of descriptors
// since Linux 6.2 and 0 before.
func countFiles(dir string) (uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		return uint64(info.Size()), nil
	}
	n := uint64(0)
	for {
		names, err := f.Readdirnames(1024)
		n += uint64(len(names))
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// parseFileLimit reads /proc/PID/limits, see proc_pid_limits(5).
func parseFileLimit(r io.Reader) (uint64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), "Max open files")
		fields := strings.Fields(rest)
		if !found || len(fields) < 2 {
			continue
		}
		if fields[0] == "unlimited" {
			return math.MaxUint64, nil
		}
		return strconv.ParseUint(fields[0], 10, 64)
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("the line Max open files is missing")
}

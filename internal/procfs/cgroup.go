package procfs

import (
	"bufio"
	"io"
	"strings"
)

// EachCgroup reads /proc/PID/cgroup, see cgroups(7), as long as more of it is wanted: the
// path in each hierarchy.
func EachCgroup(r io.Reader, visit func(path string) (more bool)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// 4:memory:/docker/ID; the path may hold colons of its own
		if part := strings.SplitN(lines.Text(), ":", 3); len(part) == 3 && !visit(part[2]) {
			return nil
		}
	}
	return lines.Err()
}

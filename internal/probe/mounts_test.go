package probe

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// endless is a mountinfo without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	return copy(p, "1 1 0:9 / /mnt rw - tmpfs none rw\n"), nil
}

// Reading ends in time, and what was not read is not taken for nothing.
func TestMountinfoWithoutEnd(t *testing.T) {
	limited := &readerUntil{r: endless{}, until: time.Now().Add(10 * time.Millisecond)}
	if got := parseNamespaceMounts(limited); len(got) > 0 || !limited.cut {
		t.Errorf("got %v, cut %v", got, limited.cut)
	}
	search := newMountSearch("/proc")
	search.left = 0
	if !search.has("/proc/self", 1) {
		t.Error("without time to look, a mount is taken for gone")
	}
	ended := &readerUntil{r: strings.NewReader("1 1 0:4 net:[7] /run/x rw - nsfs nsfs rw\n"), until: time.Now().Add(time.Hour)}
	if got := parseNamespaceMounts(ended); got[7] != "/run/x" || ended.cut {
		t.Errorf("got %v, cut %v", got, ended.cut)
	}
}

// manyMounts has a hostile user make so many mount namespaces with thousands of mounts each, with
// a network namespace in the first.
func manyMounts(t *testing.T, count int) (kept uint64) {
	t.Helper()
	user := hostile.Shell(t, `
mount -t tmpfs none /mnt
touch /mnt/ns
unshare -n sh -ec 'readlink /proc/self/ns/net; mount --bind /proc/self/ns/net /mnt/ns'
mkdir /mnt/many
mount -t tmpfs none /mnt/many
mount --make-rprivate /mnt
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir /mnt/many/$i; mount --rbind /mnt/many /mnt/many/$i; done
exec 3<&0
for i in $(seq `+strconv.Itoa(count)+`); do unshare -m --propagation unchanged sh -c 'echo there; exec cat' <&3 & done
read end`)
	others := bufio.NewScanner(user.More)
	for range count {
		if !others.Scan() {
			t.Fatalf("the hostile user could not make all namespaces: %v", others.Err())
		}
	}
	return namespaceInode(user.Line)
}

// Nobody holds up a start by mounting much, and nobody hides by it what root has mounted.
func TestManyMounts(t *testing.T) {
	need.Kernel(t)
	point := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const many = 20
	theirs := manyMounts(t, many)
	made, err := exec.Command("unshare", "-n", "sh", "-ec", `readlink /proc/self/ns/net; mount --bind /proc/self/ns/net "$0"`, point).Output()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(point, unix.MNT_DETACH)
	ours := namespaceInode(strings.TrimSpace(string(made)))
	pids, err := numbersIn("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		left time.Duration
		all  bool
	}{{20 * time.Millisecond, false}, {time.Hour, true}} {
		search, found := newMountSearch("/proc"), make(map[uint64]namespace)
		search.left = test.left
		search.find(pids, found)
		if _, known := found[ours]; !known {
			t.Error("what root has mounted is not found")
		}
		if _, known := found[theirs]; test.all && !known {
			t.Error("what another user has mounted is not found, and there was time")
		}
		if test.all != (search.unread == 0) || test.all != (search.left > 0) {
			t.Errorf("with %v: %d namespaces unread, %v left", test.left, search.unread, search.left)
		}
	}
}

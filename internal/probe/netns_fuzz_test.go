package probe

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzNamespaceMounts reads the mount points that a user chose.
func FuzzNamespaceMounts(f *testing.F) {
	f.Fuzz(func(t *testing.T, mountinfo string) {
		for inode, point := range parseNamespaceMounts(strings.NewReader(mountinfo)) {
			if inode == 0 || point == "" || !strings.Contains(mountinfo, "net:[") {
				t.Errorf("namespace %d at %q", inode, point)
			}
		}
		const mine = "1 1 0:4 net:[4026532000] /run/netns/mine rw - nsfs nsfs rw\n"
		if !strings.HasSuffix(mountinfo, "\n") {
			mountinfo += "\n"
		}
		if got := parseNamespaceMounts(strings.NewReader(mountinfo + mine))[4026532000]; got != "/run/netns/mine" {
			t.Errorf("what comes before hides a mount: got %q", got)
		}
	})
}

func TestLongMountHidesNoOther(t *testing.T) {
	long := "1 1 0:9 / /mnt rw - overlay overlay rw,lowerdir=" + strings.Repeat("/l:", 1<<17)
	mine := fmt.Sprintf("1 1 0:4 net:[%d] /run/netns/mine rw - nsfs nsfs rw\n", 7)
	if got := parseNamespaceMounts(strings.NewReader(long + "\n" + mine)); got[7] != "/run/netns/mine" {
		t.Errorf("got %v", got)
	}
}

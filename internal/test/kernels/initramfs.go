package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path"
)

// file is one file of a guest: everything in a guest is in its initramfs.
type file struct {
	name string // in the guest, without the first slash
	from string // here
}

// initScript is the first process of a guest.
//
//go:embed init.sh
var initScript []byte

// writeInitramfs packs the files and the folders above them as the kernel wants them:
// the format newc of cpio(5), see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func writeInitramfs(w io.Writer, files []file) error {
	a := &archive{w: w, folders: map[string]bool{".": true}}
	a.add("init", 0o100755, initScript)
	for _, f := range files {
		content, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		a.add(f.name, 0o100755, content)
	}
	a.add("TRAILER!!!", 0, nil)
	return a.err
}

type archive struct {
	w       io.Writer
	folders map[string]bool
	inode   int
	err     error // the first; nothing is written after it
}

func (a *archive) add(name string, mode uint32, content []byte) {
	if above := path.Dir(name); !a.folders[above] {
		a.folders[above] = true
		a.add(above, 0o040755, nil) // and those above it
	}
	a.inode++
	var b bytes.Buffer
	// inode mode uid gid nlink mtime size, device and rdevice, name's size, checksum
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	pad(&b)
	b.Write(content)
	pad(&b)
	if a.err == nil {
		_, a.err = a.w.Write(b.Bytes())
	}
}

// pad fills up to a multiple of four bytes.
func pad(b *bytes.Buffer) {
	b.Write(make([]byte, -b.Len()&3))
}

// Command hungfs runs a program from a file system that stops answering, as a dead file
// server does, when the program has written a line:
//
//	hungfs [-overlay] DEVICE DIR FILE [ARG ...]
//
// It mounts a FUSE file system on DIR/fs by way of DEVICE (/dev/fuse, or a copy of it),
// which holds FILE as app, and runs that. With -overlay an overlay file system of it and of
// DIR/empty lies over it, so that also those may look who are not allowed to look into the
// FUSE mount of another user namespace. It is to be started in a mount namespace of its own: everything is gone
// when it ends, which it does when the program ends.
//
// The file server must not be the process that looks: that one waits in the kernel and
// cannot be killed until the server has gone.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	overlay := len(args) > 0 && args[0] == "-overlay"
	if overlay {
		args = args[1:]
	}
	if len(args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: hungfs [-overlay] DEVICE DIR FILE [ARG ...]")
		os.Exit(2)
	}
	if err := run(overlay, args[0], args[1], args[2], args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "hungfs:", err)
		os.Exit(1)
	}
}

func run(overlay bool, device, dir, file string, args []string) error {
	at := filepath.Join(dir, "fs")
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	options := "rootmode=40755,user_id=0,group_id=0,allow_other,fd=" + strconv.Itoa(fd)
	if err := unix.Mount("hungfs", at, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		return fmt.Errorf("mount a FUSE file system: %w", err)
	}
	s := &server{fd: fd, content: content}
	go s.serve()
	if overlay {
		if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+at+":"+filepath.Join(dir, "empty")); err != nil {
			return fmt.Errorf("mount an overlay file system: %w", err)
		}
	}
	cmd := exec.Command(filepath.Join(at, "app"), args...)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	out := bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("wait for the first line of the program: %w", err)
	}
	s.hung.Store(true)
	fmt.Printf("pid %d\n%s", cmd.Process.Pid, line)
	if _, err := io.Copy(os.Stdout, out); err != nil {
		return err
	}
	_ = cmd.Wait() // whatever became of it
	return nil
}

// server answers the requests of the kernel, see fuse(4) and linux/fuse.h.
type server struct {
	fd      int
	content []byte
	hung    atomic.Bool
}

const (
	root, app = 1, 2 // numbers of nodes
	headSize  = 40   // of struct fuse_in_header
)

func (s *server) serve() {
	request := make([]byte, 1<<20)
	for {
		n, err := unix.Read(s.fd, request)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil || n < headSize {
			return
		}
		if s.hung.Load() {
			continue // it was taken, and so waits for ever
		}
		s.answer(request[:n])
	}
}

func (s *server) answer(request []byte) {
	const forget, interrupt, batchForget = 2, 36, 42
	order := binary.NativeEndian
	opcode, unique, node := order.Uint32(request[4:]), order.Uint64(request[8:]), order.Uint64(request[16:])
	if opcode == forget || opcode == interrupt || opcode == batchForget {
		return
	}
	body, errno := s.reply(opcode, node, request[headSize:])
	out := order.AppendUint32(nil, uint32(16+len(body)))
	out = order.AppendUint32(out, uint32(-int32(errno)))
	out = order.AppendUint64(out, unique)
	_, _ = unix.Write(s.fd, append(out, body...)) // fails for a request that was interrupted
}

func (s *server) reply(opcode uint32, node uint64, in []byte) ([]byte, syscall.Errno) {
	order := binary.NativeEndian
	switch opcode {
	case 26: // INIT; no flag, so that reads are not asynchronous
		out := make([]byte, 64)
		order.PutUint32(out, 7)
		order.PutUint32(out[4:], 31)
		order.PutUint32(out[20:], 4096) // max_write
		return out, 0
	case 1: // LOOKUP
		if node != root || string(in) != "app\x00" {
			return nil, unix.ENOENT
		}
		out := order.AppendUint64(nil, app)
		return append(append(out, make([]byte, 32)...), s.attr(app)...), 0 // nothing may be remembered
	case 3: // GETATTR
		return append(make([]byte, 16), s.attr(node)...), 0
	case 14, 27: // OPEN, OPENDIR
		return make([]byte, 16), 0
	case 15: // READ
		from := min(order.Uint64(in[8:]), uint64(len(s.content)))
		return s.content[from:min(from+uint64(order.Uint32(in[16:])), uint64(len(s.content)))], 0
	case 28, 18, 25, 29: // READDIR, RELEASE, FLUSH, RELEASEDIR
		return nil, 0
	case 17: // STATFS
		out := make([]byte, 80)
		order.PutUint32(out[40:], 4096)
		order.PutUint32(out[44:], 255)
		return out, 0
	}
	return nil, unix.ENOSYS
}

// attr is struct fuse_attr.
func (s *server) attr(node uint64) []byte {
	order := binary.NativeEndian
	out := make([]byte, 88)
	order.PutUint64(out, node)
	mode, links := uint32(unix.S_IFDIR|0o755), uint32(2)
	if node == app {
		order.PutUint64(out[8:], uint64(len(s.content)))
		order.PutUint64(out[16:], uint64(len(s.content)+511)/512)
		mode, links = unix.S_IFREG|0o755, 1
	}
	order.PutUint32(out[60:], mode)
	order.PutUint32(out[64:], links)
	order.PutUint32(out[80:], 4096)
	return out
}

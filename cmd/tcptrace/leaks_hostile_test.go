package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/test/hostile"
	"github.com/tcptrace/tcptrace/internal/test/need"
)

// locked keeps the whole program in memory, so that it goes on when its file system hangs.
const locked = `#include <sys/mman.h>
__attribute__((constructor)) static void lock(void) { mlockall(MCL_CURRENT); }
`

// A user without privileges runs a leaking program from a file system of theirs that does
// not answer. The watch goes on, says so once, and ends when it is told to.
func TestLeaksOfAHungProgram(t *testing.T) {
	need.Kernel(t)
	dir := hostile.Dir(t)
	lock, program := filepath.Join(dir, "lock.c"), filepath.Join(dir, "server")
	if err := os.WriteFile(lock, []byte(locked), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("gcc", "-O1", "-g", "-static", "-fno-omit-frame-pointer", "-o", program, "testdata/leaky/server.c", lock)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	victim := hostile.Nobody.HungFS(t, dir, program)

	cmd := exec.Command("tcptrace", "leaks", "-p", fmt.Sprint(victim.PID), "--older-than", "100ms", "--interval", "200ms")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(stdout)
	await := func(what string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return
			}
		}
		t.Fatalf("it did not say %q; stderr: %s", what, &stderr)
	}
	await("CLOSE_WAIT")
	client, err := net.Dial("tcp4", "127.0.0.1:"+victim.Line)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	await("opened by app+0x")
	await("opened by app+0x")
	began := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	for lines.Scan() {
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Logf("it ended after %v: %v", time.Since(began), err)
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end: a thread of it waits for the file system")
	}
	want := fmt.Sprintf("tcptrace: the code in a file is not named: /proc/%d: %s: its file system does not answer\n", victim.PID, filepath.Join(dir, "fs/app"))
	if stderr.String() != want {
		t.Errorf("it said %q, want %q", &stderr, want)
	}
}

// Another user's programs are not what or where they seem: a root tracer names the code all
// the same, in time, and no terminal acts on what it says.
func TestLeaksOfMovedPrograms(t *testing.T) {
	n := newLeakNet(t)
	dir := hostile.Dir(t)
	for _, args := range [][]string{
		{"-g", "-o", "server", "server.c"}, {"-s", "-o", "stripped", "server.c"},
		{"-g", "-shared", "-fPIC", "-Dmain=run", "-o", "libserver.so", "server.c"},
	} {
		args = append([]string{"-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"}, args...)
		args[len(args)-1], args[len(args)-2] = "testdata/leaky/"+args[len(args)-1], filepath.Join(dir, args[len(args)-2])
		n.output("gcc", args...)
	}
	caller := filepath.Join(dir, "caller.c")
	if err := os.WriteFile(caller, []byte("int run(void); int main(void) { return run(); }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.output("gcc", "-o", filepath.Join(dir, "linked"), caller, "-L"+dir, "-lserver", "-Wl,-rpath,$ORIGIN")

	strange := strings.ReplaceAll(hostileText, "/", "") + "\n7f0000000000-7f0000001000 r-xp 00000000 00:00 0 x"
	openers := map[string]string{} // by port
	for name, row := range map[string]struct{ program, file, move, opener string }{
		"FIFO":     {"server", "app", `rm app; mkfifo app`, "take"},
		"mapping":  {"linked", "app", `rm libserver.so; mkfifo libserver.so`, "take"},
		"deleted":  {"server", "app", `rm app`, "take"},
		"renamed":  {"server", "app", `mv app other`, "take"},
		"replaced": {"server", "app", `mv app other; cp other app; truncate -s 100 app`, "take"},
		"loop":     {"server", "app", `rm app; ln -s app app`, "take"},
		"name":     {"server", strange, `:`, "take"},
		"no names": {"stripped", strange, `:`, `\x1b[2J`},
		"gone":     {"stripped", strange, `rm "$1"; mkfifo "$1"`, `\x1b[2J`},
	} {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(at, 0o755), os.Chown(at, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf(`cd '%s'; mkdir "$1"; cd "$1"; cp ../../libserver.so .; cp '../../%s' "$1"
			setpriv --pdeathsig KILL "./$1" >port & echo pid $!
			until [ -s port ]; do sleep 0.05; done
			%s
			cat port; read end`, at, row.program, row.move)
		victim := hostile.Shell(t, "set -- '"+row.file+"'\n"+script)
		openers[victim.Line] = row.opener
		n.start("bash", "-c", `echo; while sleep 0.1; do : </dev/tcp/127.0.0.1/`+victim.Line+`; done`)
	}
	got := expectHarmless(t, exec.Command("tcptrace", "leaks", "--once", "-d", "3s", "--older-than", "100ms", "--top", "20", "--netns", n.namespace()))
	port := ""
	for line := range strings.Lines(got) {
		if fields := strings.Fields(line); strings.Contains(line, " CLOSE_WAIT 127.0.0.1:* ") {
			port = fields[slices.Index(fields, "127.0.0.1:*")+1]
		}
		if _, code, found := strings.Cut(line, " opened by "); found && strings.HasPrefix(code, openers[port]) {
			delete(openers, port)
		}
	}
	if len(openers) > 0 {
		t.Errorf("the code of these is not named: %v in %s", openers, got)
	}
}

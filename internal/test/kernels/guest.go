package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// guestLimit is how long a guest may run. The limits of the tests in init.sh are
// shorter, so that they are what ends a test that hangs, and says where.
const guestLimit = 25 * time.Minute

// machine is how an architecture is emulated: its two serial ports are for the log of
// the kernel and for the results.
type machine struct {
	qemu             string
	args             []string
	console, results string // devices of the guest
}

var machines = map[string]machine{
	"amd64": {
		qemu: "qemu-system-x86_64",
		// One thread for both CPUs: with two, one CPU now and then runs into the int3
		// of an instruction that the other has long finished patching.
		args:    []string{"-M", "q35", "-cpu", "max", "-accel", "tcg,thread=single", "-serial", "chardev:results"},
		console: "ttyS0", results: "ttyS1",
	},
	"arm64": {
		qemu: "qemu-system-aarch64",
		// A CPU without pointer authentication, which takes long to emulate.
		args:    []string{"-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi", "-device", "pci-serial,chardev=results"},
		console: "ttyAMA0", results: "ttyS0",
	},
}

// boot runs the tests on a kernel and collects their results in res. An error says
// why there are fewer results than there should be.
func (l *lab) boot(ctx context.Context, k *kernel, res *result) error {
	ctx, cancel := context.WithTimeout(ctx, guestLimit)
	defer cancel()
	folder, err := os.MkdirTemp(l.work, res.guest.name()+"-")
	if err != nil {
		return err
	}
	initramfs := filepath.Join(folder, "initramfs")
	if err := packInitramfs(initramfs, append(k.files, l.tests...)); err != nil {
		return fmt.Errorf("pack the initramfs: %w", err)
	}
	res.console = filepath.Join(folder, "console")
	qemu := exec.CommandContext(ctx, l.machine.qemu, append([]string{
		"-serial", "file:" + res.console, "-chardev", "stdio,id=results",
		"-smp", "2", "-m", "2048",
		"-nodefaults", "-display", "none", "-no-reboot", "-net", "none",
		"-kernel", k.image(), "-initrd", initramfs,
		"-append", fmt.Sprintf("console=%s results=%s panic=-1 thash_entries=131072 %s", l.machine.console, l.machine.results, res.guest.args),
	}, l.machine.args...)...)
	err = convert(ctx, qemu, res.take)
	if ctx.Err() != nil {
		return fmt.Errorf("the guest was killed after %v: it did not power off", guestLimit)
	}
	return err
}

func packInitramfs(name string, files []file) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	// The best speed: it is unpacked once.
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := writeInitramfs(z, files); err != nil {
		return err
	}
	return z.Close()
}

// event is one line of `go tool test2json`.
type event struct {
	Action string
	Test   string
	Output string
}

// convert runs the guest and hands what its tests print to take, as events.
func convert(ctx context.Context, guest *exec.Cmd, take func(event)) error {
	var complaints strings.Builder
	guest.Stderr = &complaints
	results, err := guest.StdoutPipe()
	if err != nil {
		return err
	}
	converter := exec.CommandContext(ctx, "go", "tool", "test2json")
	converter.Stdin, converter.Stderr = results, os.Stderr
	events, err := converter.StdoutPipe()
	if err != nil {
		return err
	}
	if err := guest.Start(); err != nil {
		return fmt.Errorf("start the guest: %w: run 'make deps' first", err)
	}
	if err := converter.Start(); err != nil {
		return errors.Join(err, guest.Process.Kill(), guest.Wait())
	}
	err = decode(events, take)
	if ended := errors.Join(converter.Wait(), guest.Wait()); ended != nil {
		err = errors.Join(err, fmt.Errorf("%s: %w: %s", filepath.Base(guest.Path), ended, complaints.String()))
	}
	return err
}

func decode(events io.Reader, take func(event)) error {
	lines := json.NewDecoder(events)
	for {
		var e event
		if err := lines.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the results: %w", err)
		}
		take(e)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
)

const churn = "bin/churn"

// A load is what the generator is told to do. Its package comment in
// internal/test/rig/churn says how many state changes that makes.
type load struct {
	name string
	args []string
}

func (p plan) loads() []load {
	seconds := func(s float64) string { return strconv.FormatFloat(s, 'f', -1, 64) }
	return []load{
		{"fin", []string{"run", "-m", "fin", "-t", "1", "-d", seconds(p.fin)}},
		{"storm", []string{"storm", "-t", "1", "-d", seconds(p.storm)}},
	}
}

// allCPUs is the highest rate that the generator reaches here.
func (l load) allCPUs() load {
	return load{l.name, append(l.args[:len(l.args):len(l.args)], "-t", strconv.Itoa(runtime.NumCPU()))}
}

// made is what the generator says that it did.
type made struct {
	PerSecond float64 `json:"conns_per_s"` // connections, or cycles of the storm
	Events    int     // state changes that the kernel's tracepoint reports
	Failed    int
	Errno     string
}

// failure is an error if the generator could not make all connections.
func (m made) failure() error {
	if m.Failed == 0 {
		return nil
	}
	return fmt.Errorf("%d connections failed: %s", m.Failed, m.Errno)
}

// namespace is a network namespace of its own with lo up. Each load has a new one, so
// that none finds the TIME_WAITs of the one before.
type namespace struct {
	holder *exec.Cmd
	hold   io.Closer
}

func newNamespace(ctx context.Context) (*namespace, error) {
	// A crowd in CLOSE_WAIT leaves orphans in FIN_WAIT2, which must not end during a load.
	const script = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/tcp_fin_timeout && echo up && exec cat"
	ns := &namespace{holder: exec.CommandContext(ctx, "unshare", "-n", "sh", "-c", script)}
	ns.holder.Stderr = os.Stderr
	in, err := ns.holder.StdinPipe()
	if err != nil {
		return nil, err
	}
	ns.hold = in
	out, err := ns.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := ns.holder.Start(); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		ns.close()
		return nil, fmt.Errorf("make a network namespace: %w: run this as root", err)
	}
	return ns, nil
}

// close ends the namespace, and every socket in it that no process holds. The kernel
// does that in the background.
func (ns *namespace) close() {
	ns.hold.Close()
	_ = ns.holder.Wait()
}

// command returns a command that will run in the namespace.
func (ns *namespace) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{fmt.Sprintf("-n/proc/%d/ns/net", ns.holder.Process.Pid), "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// churn makes a load in the namespace and returns when it is done.
func (ns *namespace) churn(ctx context.Context, l load) (m made, err error) {
	cmd := ns.command(ctx, churn, l.args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err = errors.Join(err, m.failure()); err != nil {
		return m, fmt.Errorf("churn %q: %w", l.args, err)
	}
	return m, nil
}

// crowd opens n sockets, half of them established, half in CLOSE_WAIT. They live
// until the returned function is called.
func (ns *namespace) crowd(ctx context.Context, n int) (end func(), err error) {
	var herds []*exec.Cmd
	end = func() {
		for _, cmd := range herds {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		}
	}
	// The generator counts both ends of a connection; of those that are half closed
	// only one remains.
	for _, args := range [][]string{
		{"-m", "closewait", "-k", strconv.Itoa(n), "-p", "22000"},
		{"-m", "open", "-k", strconv.Itoa(n / 2), "-p", "21000"},
	} {
		cmd := ns.command(ctx, churn, append([]string{"herd", "-s", "600"}, args...)...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			end()
			return nil, fmt.Errorf("churn %q: %w", args, err)
		}
		herds = append(herds, cmd)
		var m made
		err = json.NewDecoder(out).Decode(&m)
		if err = errors.Join(err, m.failure()); err != nil {
			end()
			return nil, fmt.Errorf("churn %q: %w", args, err)
		}
	}
	return end, nil
}

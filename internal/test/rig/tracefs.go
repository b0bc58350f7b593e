// Package rig checks the tracer against a second source of truth. It holds a load
// generator (churn/churn.c: countable TCP connections) and an oracle: ftrace's own record
// of sock:inet_sock_set_state, taken without BPF, whose counters prove that nothing is
// missing in it. Compare compares the oracle's record with what Translate makes of the
// tracer's JSON.
//
// It is for tests and for the bench; nothing in the tool imports it.
package rig

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// tracefs is where the kernel expects tracefs to be mounted since 4.1.
const tracefs = "/sys/kernel/tracing"

// Edge is one state change of one full socket, as tracefs reports it.
type Edge struct {
	Sk            uint64 // kernel address of the socket; reused within microseconds of its end
	Old, New      tcp.State
	Local, Remote uint16 // ports; on kernels before 6.15 Remote is 0 at LISTEN>SYN_RECV
	Task          uint32 // id of the thread that was current; 0: idle, or not recorded
}

func (e Edge) String() string {
	return fmt.Sprintf("%#x %v>%v local port %d, remote port %d", e.Sk, e.Old, e.New, e.Local, e.Remote)
}

// Recorder is a tracing instance of its own, so that it disturbs no other user of
// tracefs. It keeps everything in the kernel's buffers until Stop: a reader that runs
// meanwhile would compete for the CPU with the tracer that is judged.
type Recorder struct {
	dir   string
	event string
}

// Record starts to record every state change of TCP sockets into megabytes of buffer
// per CPU, about 13,000 events each; where threads are given, only those during which
// one of them is current. It needs root, and mounts tracefs where nobody has. The name
// is that of the instance; a stale one of the same name is replaced.
func Record(name string, megabytes int, threads ...uint32) (*Recorder, error) {
	filter := "protocol==6"
	if len(threads) > 0 {
		filter += "&&" + under(threads)
	}
	return newRecorder(name, megabytes<<10, "sock/inet_sock_set_state", filter)
}

// RecordExpiries starts to count the TIME_WAITs, and FIN_WAIT2s of closed sockets, whose timer
// runs while one of the threads is current; see Count.
func RecordExpiries(name string, threads ...uint32) (*Recorder, error) {
	handler, err := kernelFunction("tw_timer_handler")
	if err != nil {
		return nil, err
	}
	return newRecorder(name, 64, "timer/timer_expire_entry", fmt.Sprintf("function==%#x&&%s", handler, under(threads)))
}

// under is the filter for one of the threads being current.
func under(threads []uint32) string {
	var some []string
	for _, id := range threads {
		some = append(some, fmt.Sprintf("common_pid==%d", id))
	}
	return "(" + strings.Join(some, "||") + ")"
}

// kernelFunction is the address of a function of the kernel.
func kernelFunction(name string) (uint64, error) {
	symbols, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	for line := range strings.Lines(string(symbols)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == name {
			return strconv.ParseUint(f[0], 16, 64)
		}
	}
	return 0, fmt.Errorf("find %s: not in /proc/kallsyms", name)
}

func newRecorder(name string, kilobytes int, event, filter string) (*Recorder, error) {
	if _, err := os.Stat(tracefs + "/instances"); errors.Is(err, os.ErrNotExist) {
		if err := syscall.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount tracefs on %s: %w", tracefs, err)
		}
	}
	r := &Recorder{dir: filepath.Join(tracefs, "instances", name), event: "events/" + event}
	if _, err := os.Stat(r.dir); err == nil {
		if err := r.Remove(); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create a tracing instance: %w", err)
	}
	for _, setting := range []struct{ file, value string }{
		{"trace_clock", "mono"}, // one order for all CPUs
		{"options/overwrite", "0"},
		{"buffer_size_kb", strconv.Itoa(kilobytes)},
		{r.event + "/filter", filter},
		{"tracing_on", "1"},
		{r.event + "/enable", "1"},
	} {
		if err := r.set(setting.file, setting.value); err != nil {
			return nil, errors.Join(err, r.Remove())
		}
	}
	return r, nil
}

// InitThreads are the threads of process 1. Some kernels (6.18 of some virtual machines)
// run no BPF program while one of them is current, even in a softirq that interrupts it,
// and do not count that: tracefs sees such a change and no BPF tracer can.
func InitThreads() (ids []uint32, err error) {
	entries, err := os.ReadDir("/proc/1/task")
	if err != nil {
		return nil, fmt.Errorf("list the threads of process 1: %w", err)
	}
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("list the threads of process 1: %w", err)
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

func (r *Recorder) set(file, value string) error {
	if err := os.WriteFile(filepath.Join(r.dir, file), []byte(value), 0); err != nil {
		return fmt.Errorf("set up the tracing instance: %w", err)
	}
	return nil
}

// end ends the recording, and returns the directories of the buffers that it is in.
func (r *Recorder) end() (cpus []string, err error) {
	if err := r.set(r.event+"/enable", "0"); err != nil {
		return nil, err
	}
	cpus, err = filepath.Glob(filepath.Join(r.dir, "per_cpu", "cpu*"))
	if err != nil || len(cpus) == 0 {
		return nil, fmt.Errorf("no per-CPU buffers in %s", r.dir)
	}
	return cpus, nil
}

// Stop ends the recording and returns it in time order, with the number of losses that
// the kernel counted: 0 means that the record is complete. A page in which events are
// missing counts as at least one loss.
func (r *Recorder) Stop() (edges []Edge, lost uint64, err error) {
	cpus, err := r.end()
	if err != nil {
		return nil, 0, err
	}
	format, err := os.ReadFile(filepath.Join(r.dir, r.event, "format"))
	if err != nil {
		return nil, 0, fmt.Errorf("read the event's format: %w", err)
	}
	layout, err := parseLayout(string(format))
	if err != nil {
		return nil, 0, err
	}
	var all []stamped
	for _, cpu := range cpus {
		stats, err := os.ReadFile(filepath.Join(cpu, "stats"))
		if err != nil {
			return nil, 0, fmt.Errorf("read the oracle's own losses: %w", err)
		}
		events, holes, err := readPages(filepath.Join(cpu, "trace_pipe_raw"), layout)
		if err != nil {
			return nil, 0, fmt.Errorf("read the oracle's record: %w", err)
		}
		all = append(all, events...)
		lost += countLosses(string(stats)) + holes
	}
	slices.SortStableFunc(all, func(a, b stamped) int { return cmp.Compare(a.ns, b.ns) })
	for _, e := range all {
		edges = append(edges, e.Edge)
	}
	return edges, lost, nil
}

// Count ends the recording and returns how many events there were, kept or not.
func (r *Recorder) Count() (n uint64, err error) {
	cpus, err := r.end()
	if err != nil {
		return 0, err
	}
	for _, cpu := range cpus {
		stats, err := os.ReadFile(filepath.Join(cpu, "stats"))
		if err != nil {
			return 0, fmt.Errorf("count events: %w", err)
		}
		n += sumStats(string(stats), "entries", "overrun", "commit overrun", "dropped events")
	}
	return n, nil
}

// Remove deletes the tracing instance and what it recorded.
func (r *Recorder) Remove() error {
	if err := r.set(r.event+"/enable", "0"); err != nil {
		return err
	}
	if err := os.Remove(r.dir); err != nil {
		return fmt.Errorf("delete the tracing instance: %w", err)
	}
	return nil
}

// countLosses adds the counters of a per_cpu/cpuN/stats file that say that an event
// is not in the buffer.
func countLosses(stats string) (lost uint64) {
	return sumStats(stats, "overrun", "commit overrun", "dropped events")
}

// sumStats adds up numbers of a buffer's statistics.
func sumStats(stats string, names ...string) (sum uint64) {
	for line := range strings.Lines(stats) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if !slices.Contains(names, name) {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			n = 1 // what cannot be read does not prove that the record is complete
		}
		sum += n
	}
	return sum
}

// layout says where the fields of the event are, in bytes.
type layout struct {
	id                                       uint16
	pid, skaddr, old, new, sport, dport, end int
}

// parseLayout reads the event's format file.
func parseLayout(format string) (l layout, err error) {
	fields := map[string]*int{"common_pid": &l.pid, "skaddr": &l.skaddr, "oldstate": &l.old, "newstate": &l.new,
		"sport": &l.sport, "dport": &l.dport}
	found := 0
	for line := range strings.Lines(format) {
		line = strings.TrimSpace(line)
		if id, ok := strings.CutPrefix(line, "ID: "); ok {
			n, err := strconv.ParseUint(id, 10, 16)
			if err != nil {
				return l, fmt.Errorf("event format: bad ID %q", id)
			}
			l.id = uint16(n)
		}
		var offset, size int
		decl, rest, _ := strings.Cut(line, ";")
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "offset:%d; size:%d;", &offset, &size); err != nil {
			continue
		}
		name := decl[strings.LastIndexAny(decl, " \t:")+1:]
		if at, ok := fields[name]; ok {
			*at = offset
			l.end = max(l.end, offset+size)
			found++
		}
	}
	if found != len(fields) || l.id == 0 {
		return l, fmt.Errorf("event format: only %d of %d fields found", found, len(fields))
	}
	return l, nil
}

type stamped struct {
	Edge
	ns uint64
}

// readPages reads one CPU's buffer page by page until it is empty. holes counts the
// pages that the kernel marks as having events missing before them.
func readPages(file string, l layout) (events []stamped, holes uint64, err error) {
	fd, err := syscall.Open(file, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer syscall.Close(fd)
	page := make([]byte, os.Getpagesize())
	for {
		n, err := syscall.Read(fd, page)
		if err == syscall.EAGAIN || err == nil && n == 0 {
			return events, holes, nil
		}
		if err != nil {
			return nil, 0, &os.PathError{Op: "read", Path: file, Err: err}
		}
		var hole bool
		if events, hole, err = appendPage(events, page[:n], l); err != nil {
			return nil, 0, fmt.Errorf("%s: %w", file, err)
		}
		if hole {
			holes++
		}
	}
}

var errPage = errors.New("a page of the ring buffer is not laid out as include/linux/ring_buffer.h says")

// appendPage decodes one page of ftrace's ring buffer: a time stamp, the length, and
// records of a 5-bit type_len and a 27-bit time delta each (see enum
// ring_buffer_type in include/linux/ring_buffer.h).
func appendPage(events []stamped, page []byte, l layout) (_ []stamped, hole bool, err error) {
	const (
		padding, timeExtend, timeStamp = 29, 30, 31
		missedEvents                   = 1 << 31
	)
	le := binary.LittleEndian
	if len(page) < 16 {
		return events, false, errPage
	}
	ns, commit := le.Uint64(page), le.Uint64(page[8:])
	size := int(commit & 0xfffff)
	if 16+size > len(page) {
		return events, false, errPage
	}
	for b := page[16 : 16+size]; len(b) >= 8; {
		head, word := le.Uint32(b), le.Uint32(b[4:])
		kind, delta := head&31, uint64(head>>5)
		skip, body := 8, b[:0]
		switch {
		case kind == padding && delta == 0: // the rest of the page is empty
			skip = len(b)
		case kind == padding:
			skip = int(word) + 4
		case kind == timeExtend:
			delta += uint64(word) << 27
		case kind == timeStamp:
			ns = ns&^(1<<59-1) | (delta + uint64(word)<<27)
			delta = 0
		case kind == 0: // the length is in the next word, itself included
			skip = int(word+3)&^3 + 4
			body = b[8:min(len(b), skip)]
		default: // the length in words is the kind itself
			skip = int(kind)*4 + 4
			body = b[4:min(len(b), skip)]
		}
		if skip > len(b) {
			return events, false, errPage
		}
		ns += delta
		b = b[skip:]
		if len(body) >= l.end && le.Uint16(body) == l.id {
			events = append(events, stamped{ns: ns, Edge: Edge{
				Sk:  le.Uint64(body[l.skaddr:]),
				Old: tcp.State(le.Uint32(body[l.old:])), New: tcp.State(le.Uint32(body[l.new:])),
				Local: le.Uint16(body[l.sport:]), Remote: le.Uint16(body[l.dport:]),
				Task: le.Uint32(body[l.pid:]),
			}})
		}
	}
	return events, commit&missedEvents != 0, nil
}

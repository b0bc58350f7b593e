package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what a process has used so far, as /proc says.
type usage struct {
	user, system time.Duration
	rss, peak    int // bytes of resident memory, now and at most
	programs     int // BPF programs that it holds
	programTime  int // ns that these ran, and
	programRuns  int // how often, while statistics are on
	mapBytes     int // kernel memory of the BPF maps that it holds
}

func (u usage) cpu() time.Duration { return u.user + u.system }

func readUsage(pid int) (u usage, err error) {
	folder := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(folder + "stat")
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	u.user, u.system = ticks(fields[11]), ticks(fields[12])
	status, err := readFields(folder + "status")
	if err != nil {
		return u, err
	}
	u.rss, u.peak = status["VmRSS"]<<10, status["VmHWM"]<<10
	return u, u.addBPF(folder + "fdinfo")
}

// ticks reads a CPU time, which the kernel reports in 1/100 s to user space (USER_HZ).
func ticks(field string) time.Duration {
	n, _ := strconv.Atoi(field)
	return time.Duration(n) * 10 * time.Millisecond
}

// addBPF sums up over the programs and maps that are open in a process.
func (u *usage) addBPF(folder string) error {
	files, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	seen := map[string]bool{} // one program may have several descriptors
	for _, f := range files {
		info, err := readFields(filepath.Join(folder, f.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		_, isProgram := info["run_time_ns"] // a link shows the id of its program too
		id, isMap := info["map_id"]
		name := fmt.Sprint("map ", id)
		if isProgram {
			name = fmt.Sprint("program ", info["prog_id"])
		}
		if !isProgram && !isMap || seen[name] {
			continue
		}
		seen[name] = true
		if isProgram {
			u.programs++
			u.programTime += info["run_time_ns"]
			u.programRuns += info["run_cnt"]
		} else {
			u.mapBytes += info["memlock"]
		}
	}
	return nil
}

// readFields reads lines such as "VmRSS:  1234 kB", those that begin with a number.
func readFields(file string) (map[string]int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	fields := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		words := strings.Fields(rest)
		if len(words) == 0 {
			continue
		}
		if n, err := strconv.Atoi(words[0]); err == nil {
			fields[name] = n
		}
	}
	return fields, nil
}

package enrich

import "fmt"

// Finding is one thing about the place where this process runs.
type Finding struct {
	Name  string // in a word or two
	Found string // what was found
	Means string // what is not shown, and what to do; "" where nothing is missing
}

// Findings says what an Enricher can see of processes and cgroups from here.
func (e *Enricher) Findings() []Finding {
	return []Finding{e.pidFinding(), e.cgroupFinding()}
}

// Limitations returns one sentence for each thing that is not shown.
func (e *Enricher) Limitations() (sentences []string) {
	for _, f := range e.Findings() {
		if f.Means != "" {
			sentences = append(sentences, f.Means)
		}
	}
	return sentences
}

func (e *Enricher) pidFinding() Finding {
	f := Finding{Name: "PID namespace", Found: "the host's"}
	switch {
	case e.proc.HasEventPIDs():
	case !e.proc.Mounted():
		f.Found = "not known"
		f.Means = fmt.Sprintf("no proc file system is mounted at %s: nothing is read of processes; mount the host's", e.proc.Root())
	case !e.proc.ShowsUs():
		f.Found = "another one's /proc"
		f.Means = fmt.Sprintf("%s is that of a PID namespace which tcptrace is not in: nothing is read of processes, as others have their PIDs there; "+
			"mount the host's, or leave this mount namespace", e.proc.Root())
	default:
		f.Found = "one of its own"
		f.Means = "this is a PID namespace of its own: processes are shown by the PIDs that they have on the host, and nothing is read of " +
			"them, as other processes have these PIDs here: not their limits, their code or their present name; sockets that " +
			"exist already are shown for this container alone; run tcptrace in the host's PID namespace (--pid=host; in a pod, hostPID: true)"
	}
	return f
}

func (e *Enricher) cgroupFinding() Finding {
	f := Finding{Name: "cgroups", Found: "cgroup v2"}
	switch {
	case e.hidden:
		f.Found = "a cgroup namespace of its own"
		f.Means = "this is a cgroup namespace of its own: cgroups outside this container are not shown, and containers only where " +
			"/proc/PID/cgroup names them; run tcptrace in the host's PID namespace, or its cgroup namespace (--pid=host, --cgroupns=host)"
	case !e.cgroup2.real && e.byOwner:
		f.Found = "cgroup v1"
		f.Means = "this host has cgroup v1 alone: cgroups are not shown, and the container of a socket is that of its owner"
	case !e.cgroup2.real:
		f.Found = "none is mounted"
		f.Means = "no cgroup v2 file system is mounted: cgroups and containers are not shown; mount the host's /sys/fs/cgroup"
	case e.cgroup2.root != "" && e.cgroup2.tree == nil:
		f.Found = "a part of the tree, " + e.cgroup2.root
		f.Means = fmt.Sprintf("only a part of the cgroup tree is mounted, %s: other cgroups and the containers in them are not shown; "+
			"mount the host's /sys/fs/cgroup", e.cgroup2.root)
	case e.cgroup2.tree != nil:
		f.Found = "cgroup v2, mounted by tcptrace"
	}
	return f
}

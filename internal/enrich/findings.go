package enrich

import "fmt"

// Finding is one thing about the place where this process runs.
type Finding struct {
	Name  string // in a word or two
	Found string // what there is
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
			sentences = append(sentences, fmt.Sprintf("%s: %s: %s", f.Name, f.Found, f.Means))
		}
	}
	return sentences
}

func (e *Enricher) pidFinding() Finding {
	f := Finding{Name: "PID namespace", Found: "the host's"}
	if !e.proc.HasEventPIDs() {
		f.Found = "one of its own"
		f.Means = "process ids are those of the host, which are other processes here, so open files, code and existing sockets " +
			"of processes outside are not shown; run it in the host's PID namespace (--pid=host, or hostPID: true)"
	}
	return f
}

func (e *Enricher) cgroupFinding() Finding {
	f := Finding{Name: "cgroups", Found: "cgroup v2"}
	switch {
	case e.hidden != nil:
		f.Found = "a cgroup namespace of its own"
		f.Means = fmt.Sprintf("cgroups outside it are not shown, nor are containers, but for those that /proc names (%v); "+
			"run it in the host's cgroup namespace and PID namespace (--cgroupns=host --pid=host)", e.hidden)
	case !e.cgroup2.real && e.byOwner:
		f.Found = "cgroup v1"
		f.Means = "cgroups are not shown, and containers are those of the owners"
	case !e.cgroup2.real:
		f.Found = "none is mounted"
		f.Means = "cgroups and containers are not shown; mount the host's /sys/fs/cgroup"
	case e.cgroup2.root != "" && e.cgroup2.tree == nil:
		f.Found = "a part of the tree, " + e.cgroup2.root
		f.Means = "other cgroups and the containers in them are not shown; mount the host's /sys/fs/cgroup"
	case e.cgroup2.tree != nil:
		f.Found = "cgroup v2, all of it from a namespace of its own"
	}
	return f
}

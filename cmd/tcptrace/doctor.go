package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// kernelFlags say how a trace gets into the kernel.
type kernelFlags struct {
	BTF     string   `name:"btf" placeholder:"FILE" help:"Type information for a kernel without /sys/kernel/btf/vmlinux."`
	Without []string `placeholder:"HOOK,..." hidden:"" help:"Leave out hooks, as on a kernel that lacks them."`
}

// hooksFlag says how accept() is seen.
type hooksFlag struct {
	Hooks probe.Hooks `enum:"auto,tracepoints,trampolines" default:"auto" placeholder:"WAY" help:"How accept() is seen: tracepoints (at the first read), trampolines (at once) or auto; default ${default}."`
}

// doctorCmd says what a trace can show on this host.
type doctorCmd struct {
	Output string `short:"o" group:"Output" enum:"columns,json" default:"columns" placeholder:"FORMAT" help:"columns or json; default ${default}."`
	JSON   bool   `short:"j" group:"Output" help:"-o json."`

	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// diagnosis is what doctor prints; its JSON has this shape.
type diagnosis struct {
	V        int         `json:"v"`
	Works    bool        `json:"works"`
	Remedy   output.Text `json:"remedy,omitempty"`
	Findings []finding   `json:"findings"`
}

type finding struct {
	Name   string       `json:"name"`
	Status probe.Status `json:"status"`
	Found  output.Text  `json:"found"`
	Means  output.Text  `json:"means,omitempty"` // never empty unless the status is ok
}

// Run prints the diagnosis. If nothing can be traced here, Run returns why.
func (c *doctorCmd) Run(e *env) error {
	if _, err := begin(recordFlags{}, probe.SetupNeeds()); err != nil && !inTheWay(err) {
		return err
	}
	findings, broken := probe.Examine(probe.Config{
		RingBytes: 1 << 20, OwnerRefresh: -1, Stacks: true, Tracked: true,
		Hooks: c.Hooks, Without: c.Without, BTF: c.BTF,
	})
	if !inTheWay(broken) { // what it hides is not missing
		findings = append(findings, placeFindings()...)
		inForce, err := confine.Process(confine.Needs{})
		if err != nil {
			return err
		}
		findings = append(findings, confinementFinding(inForce))
	}
	d := diagnose(findings, broken)
	write := d.columns
	if c.JSON || c.Output == "json" {
		write = d.json
	}
	if err := write(e.stdout); err != nil {
		return err
	}
	if broken != nil {
		return fmt.Errorf("nothing can be traced here: %w", broken)
	}
	return nil
}

// inTheWay reports whether the place is to blame for err, and not the kernel.
func inTheWay(err error) bool {
	_, ok := errors.AsType[*probe.Obstacle](err)
	return ok
}

func placeFindings() (findings []probe.Finding) {
	for _, f := range enrich.New("/proc", "").Findings() {
		status := probe.OK
		if f.Means != "" {
			status = probe.Partly
		}
		findings = append(findings, probe.Finding{Name: f.Name, Status: status, Found: f.Found, Means: f.Means})
	}
	return findings
}

// confinementFinding says what this kernel takes away from a command. Nothing of it is
// missing in what a trace shows.
func confinementFinding(in confine.InForce) probe.Finding {
	found := "no_new_privs"
	if in.Seccomp == nil {
		found += ", seccomp"
	} else {
		found += ", no seccomp: " + in.Seccomp.Error()
	}
	if in.Landlock > 0 {
		found += fmt.Sprintf(", Landlock version %d", in.Landlock)
	} else {
		found += ", no Landlock (Linux 5.13 with landlock in lsm=)"
	}
	return probe.Finding{Name: "confinement", Status: probe.OK, Found: found}
}

// diagnose adds to the findings what the user can do.
func diagnose(findings []probe.Finding, broken error) *diagnosis {
	d := &diagnosis{V: 1, Works: broken == nil}
	if broken != nil {
		d.Remedy = output.Text(withAdvice(broken))
	}
	for _, f := range findings {
		means := f.Means
		if f.Err != nil {
			means = withAdvice(f.Err)
		}
		d.Findings = append(d.Findings, finding{f.Name, f.Status, output.Text(f.Found), output.Text(means)})
	}
	return d
}

// withAdvice returns the text of err and, where a flag or a command helps, says which.
func withAdvice(err error) string {
	var lack *probe.MissingCapabilities
	var obstacle *probe.Obstacle // has its own
	switch {
	case errors.As(err, &obstacle):
		return err.Error()
	case errors.As(err, &lack):
		return fmt.Sprintf("%v: run it with sudo, or let the members of a group trace, once: "+
			"sudo chgrp GROUP %[3]s && sudo chmod 750 %[3]s && sudo setcap %[2]s=ep %[3]s; "+
			"they will see every connection and process name of this host", err, strings.ToLower(strings.Join(lack.Needed, ",")), executable())
	case errors.Is(err, probe.ErrForeignTypes):
		return fmt.Sprintf("%v: run it with sudo, or leave out --btf", err)
	case errors.Is(err, probe.ErrNoTypes):
		return fmt.Sprintf("%v: the kernel has to be built with CONFIG_DEBUG_INFO_BTF=y; if it is and only the file is hidden, "+
			"as in a container, give a copy of the file with --btf FILE", err)
	case errors.Is(err, probe.ErrTrampolines):
		return fmt.Sprintf("%v: leave out --hooks trampolines, and tracepoints do their work", err)
	default:
		return err.Error()
	}
}

// executable is where this program lies, as setcap wants to know.
func executable() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

func (d *diagnosis) json(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(d)
}

// oneLine removes the line breaks that messages of the verifier contain.
func oneLine(s output.Text) string {
	return terminal.Visible(strings.Join(strings.Fields(string(s)), " "))
}

// columns writes a table, and below it what is not shown.
func (d *diagnosis) columns(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %-24s %s\n", "STATUS", "WHAT", "FOUND")
	var limits []output.Text
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%-8s %-24s %s\n", f.Status, f.Name, oneLine(f.Found))
		if f.Status != probe.OK {
			limits = append(limits, cmp.Or(f.Means, output.Text(f.Name+": ")+f.Found))
		}
	}
	switch {
	case !d.Works: // the error says why
	case limits == nil:
		b.WriteString("\nEverything is shown.\n")
	default:
		b.WriteString("\nA trace works here, but:\n")
		for _, limit := range limits {
			fmt.Fprintf(&b, "  %s\n", oneLine(limit))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

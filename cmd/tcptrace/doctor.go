package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/tcptrace/tcptrace/internal/probe"
)

// kernelFlags say how the kernel is looked into.
type kernelFlags struct {
	BTF     string   `name:"btf" placeholder:"FILE" help:"Type information for a kernel without /sys/kernel/btf/vmlinux."`
	Without []string `placeholder:"HOOK,..." hidden:"" help:"Do without hooks, as on a kernel that lacks them."`
}

// hooksFlag says by which way accept() is seen.
type hooksFlag struct {
	Hooks probe.Hooks `enum:"auto,tracepoints,trampolines" default:"auto" placeholder:"WAY" help:"How accept() is seen: auto, tracepoints (at the first read) or trampolines (at once)."`
}

// doctorCmd tells what a trace can show on this host.
type doctorCmd struct {
	Output string `short:"o" group:"Output" enum:"columns,json" default:"columns" placeholder:"FORMAT" help:"columns (the default) or json."`
	JSON   bool   `short:"j" group:"Output" help:"-o json."`

	hooksFlag   `embed:"" group:"Kernel"`
	kernelFlags `embed:"" group:"Kernel"`
}

// diagnosis is what doctor prints; its JSON is of this shape.
type diagnosis struct {
	V        int       `json:"v"`
	Works    bool      `json:"works"`
	Remedy   string    `json:"remedy,omitempty"`
	Findings []finding `json:"findings"`
}

type finding struct {
	Name   string       `json:"name"`
	Status probe.Status `json:"status"`
	Found  string       `json:"found"`
	Means  string       `json:"means,omitempty"`
}

// Run prints the diagnosis. Where nothing can be traced, that is its error.
func (c *doctorCmd) Run(e *env) error {
	findings, broken := probe.Examine(probe.Config{
		RingBytes: 1 << 20, OwnerRefresh: -1, Stacks: true, Tracked: true,
		Hooks: c.Hooks, Without: c.Without, BTF: c.BTF,
	})
	d := diagnosis{V: 1, Works: broken == nil}
	if broken != nil {
		d.Remedy = broken.Error()
	}
	for _, f := range findings {
		d.Findings = append(d.Findings, finding(f))
	}
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

func (d *diagnosis) json(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(d)
}

// oneLine takes the line breaks out of what the verifier says.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// columns writes a table, and below it what is not visible.
func (d *diagnosis) columns(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %-24s %s\n", "STATUS", "WHAT", "FOUND")
	blind := ""
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%-8s %-24s %s\n", f.Status, f.Name, oneLine(f.Found))
		if f.Means != "" && f.Status == probe.Partly {
			blind += fmt.Sprintf("  %s\n", oneLine(f.Means))
		}
	}
	if d.Works && blind != "" {
		fmt.Fprintf(&b, "\nEverything is shown, but:\n%s", blind)
	} else if d.Works {
		b.WriteString("\nEverything is shown.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

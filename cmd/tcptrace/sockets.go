package main

import (
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// socketsCmd prints the sockets that exist now.
type socketsCmd struct {
	formatFlags `embed:"" group:"Output"`
	filterFlags `embed:"" group:"Filters"`
	kernelFlags `embed:"" group:"Kernel"`
}

// Run prints one row per socket of every network namespace.
func (c *socketsCmd) Run(e *env) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	out, err := c.writer(e.stdout, output.Options{Sockets: true})
	if err != nil {
		return err
	}
	where := enrich.New("/proc", "")
	config := c.probeConfig()
	config.KernelAddr, config.BTF, config.Without = c.Extended, c.BTF, c.Without
	err = probe.Sockets(config, func(socket *tcp.Event) error {
		where.Fill(socket)
		if !filter.Match(socket) {
			return nil
		}
		return out.Write(socket)
	})
	if err := e.warnSkipped(err); err != nil {
		return err
	}
	return out.Flush()
}

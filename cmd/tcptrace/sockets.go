package main

import (
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// socketsCmd prints the sockets that exist now.
type socketsCmd struct {
	formatFlags `embed:"" group:"Output"`
	filterFlags `embed:"" group:"Filters"`
	kernelFlags `embed:"" group:"Kernel"`
}

// table is the consumer that prints the sockets that match as they are.
type table struct {
	stream
	filter tcp.Filter
}

func (t *table) Event(e *tcp.Event) error {
	if !t.filter.Match(e) {
		return nil
	}
	return t.stream.Event(e)
}

// Run prints one row per socket of every network namespace.
func (c *socketsCmd) Run(e *env) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	format, err := c.format()
	if err != nil {
		return err
	}
	config := c.probeConfig()
	config.KernelAddr, config.BTF, config.Without = c.Extended, c.BTF, c.Without
	rows := &table{stream{writer: format.writer(e.stdout, c.options(output.Options{Sockets: true})), existing: true}, filter}
	_, err = pipeline.Run(e.ctx, pipeline.Config{
		Existing: func(emit func(*tcp.Event) error) error { return e.saySkipped(probe.Sockets(config, emit)) },
		Drop:     func() error { return probe.DropPrivileges() },
		Enrich:   e.place().Fill,
		Output:   e.stdout,
	}, pipeline.Ended{}, rows)
	return err
}

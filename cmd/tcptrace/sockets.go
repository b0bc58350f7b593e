package main

import (
	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/enrich"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// socketsCmd prints the sockets that exist now.
type socketsCmd struct {
	Output      format `short:"o" placeholder:"FORMAT" group:"Output" help:"${formats}; default ${format}."`
	formatFlags `embed:"" group:"Output"`
	filterFlags `embed:"" group:"Filters"`
	kernelFlags `embed:"" group:"Kernel"`
}

// table is the consumer that prints the sockets that match as they are.
type table struct {
	stream
	filter   tcp.Filter
	any      bool // one matches
	unjudged tcp.Unjudged
}

func (t *table) Event(e *tcp.Event) error {
	if !t.filter.Match(e) {
		t.unjudged.Add(t.filter.Missing(e))
		return nil
	}
	t.any = true
	return t.stream.Event(e)
}

// Run prints one row per socket of every network namespace.
func (c *socketsCmd) Run(e *env) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	format, err := c.format(c.Output)
	if err != nil {
		return err
	}
	config := c.probeConfig()
	config.KernelAddr, config.BTF, config.Without = c.Extended && e.showsAddresses(), c.BTF, c.Without
	rows := &table{stream: stream{writer: format.writer(e.stdout.File(), c.options(output.Options{Sockets: true})), existing: true}, filter: filter}
	if _, err := begin(recordFlags{}); err != nil {
		return err
	}
	where := enrich.New("/proc", "")
	var mistake error // in the filter
	_, err = pipeline.Run(e.ctx, pipeline.Config{
		Existing: func(emit func(*tcp.Event) error) error {
			err := e.saySkipped(probe.Sockets(config, emit))
			if err != nil {
				return err
			}
			e.sayLimits(where)
			if !rows.any {
				mistake = c.census(where, rows.unjudged).nothing(filter)
			}
			return nil
		},
		Confine: confined(confine.Needs{}),
		Enrich:  where.Fill,
		Output:  e.stdout.File(),
	}, pipeline.Ended{}, rows)
	if err != nil {
		return err
	}
	if mistake != nil {
		e.say(mistake.Error())
	}
	for _, sentence := range append(output.Unjudged(rows.unjudged), whereFailed(c.Where.failed())...) {
		e.say(sentence)
	}
	return nil
}

// census looks at all sockets again, whatever their ports.
func (c *socketsCmd) census(where *enrich.Enricher, unjudged tcp.Unjudged) census {
	config := probe.Config{BTF: c.BTF, Without: c.Without}
	return census{where: where, unjudged: unjudged, sockets: func(emit func(*tcp.Event) error) error { return probe.Sockets(config, emit) }}
}

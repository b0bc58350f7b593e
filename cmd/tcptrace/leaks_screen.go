package main

import (
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/top"
)

// hasScreen reports whether what is found is shown on a screen.
func (r *leaksRun) hasScreen() bool {
	format, _ := r.cmd.format() // consistent has seen the error
	return format.name == "columns" && !r.cmd.atEnd() && hasScreen(r.env.stdout.File())
}

// openView takes over the terminal, and returns what watches for it.
func (r *leaksRun) openView(watch leak.Config) pipeline.Consumer {
	desk := top.NewDesk(top.Request{Kind: top.Leaks})
	watch.Detailed = max(top.MaxLeaks, int(r.cmd.Top))
	r.screen = openTopScreen(r.env, desk, top.Options{
		Alone: true, TimeWait: slices.Contains(watch.Rule.States, tcp.TimeWait),
		ASCII: !speaksUTF8(), Styled: isStyled(r.env.stdout.File()), Ask: desk.Ask,
	}, r.kernel.Stop)
	return top.NewLeakCollector(top.LeakConfig{
		Desk: desk, Now: r.kernel.Now, Interval: time.Duration(r.cmd.Interval), Leaks: watch,
		Seen: func(report *leak.Report) { r.last = report }, Last: func(s *top.Snapshot) error { return r.screen.leave(s, r.env.stdout) },
	})
}

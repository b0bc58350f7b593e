package leak

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// Config says what a Watch looks at, and where its reports go.
type Config struct {
	Rule Rule // TIME_WAIT alone: destinations are reported, and only States counts
	// Existing lists the sockets that are in some states now, as pipeline.Source has it.
	Existing func(states []tcp.State, emit func(*tcp.Event) error) error
	Enrich   func(*tcp.Event) // fills in what is known of the place of a socket; nil: all is known
	Filter   tcp.Filter       // picks the sockets that are asked for
	Facts    Facts
	Detailed int                 // so many groups, the worst, have their Facts looked up
	Show     func(*Report) error // takes each report, or with AtEnd only the last
	AtEnd    bool
	Once     bool  // the first look is the end
	Offset   int64 // of the wall clock to CLOCK_BOOTTIME in ns, until an event tells
}

// Watch looks at sockets again and again, and reports those that leak. It is a
// pipeline.Consumer: each Tick is a refresh.
type Watch struct {
	cfg      Config
	table    *Table
	timeWait *TimeWaitTable // nil: another state
	begun    bool
	first    uint64
	shown    uint64 // when the last report was
	offset   int64
	lost     uint64
	anyMatch bool
	// Of the last refresh.
	unjudged     tcp.Unjudged
	groups       []*Group
	destinations []*Destination
}

var _ pipeline.Consumer = (*Watch)(nil)

// NewWatch returns a Watch, which begins with its first event or tick.
func NewWatch(cfg Config) *Watch {
	return &Watch{cfg: cfg, offset: cfg.Offset, table: NewTable(cfg.Rule)}
}

func (w *Watch) begin(now uint64) {
	if w.begun {
		return
	}
	w.begun, w.first = true, now
	if w.cfg.Rule.timeWait() {
		w.timeWait = NewTimeWaitTable(now, w.cfg.Facts.Ports)
	}
}

// Event takes what happens between refreshes.
func (w *Watch) Event(e *tcp.Event) error {
	w.begin(e.BootNS)
	w.offset = e.Time - int64(e.BootNS)
	switch {
	case e.Kind == tcp.Lost:
		w.lost += e.Lost
	case !e.Kind.OfSocket(), !w.admit(e):
	case w.timeWait != nil:
		w.timeWait.Event(e)
	default:
		w.table.Event(e)
		w.remember(e)
	}
	return nil
}

func (w *Watch) admit(e *tcp.Event) bool {
	if w.cfg.Enrich != nil {
		w.cfg.Enrich(e)
	}
	admitted := w.cfg.Filter.Match(e)
	w.anyMatch = w.anyMatch || admitted
	return admitted
}

// remember has the code of a process looked at while it lives.
func (w *Watch) remember(e *tcp.Event) {
	if e.Stack != 0 && e.PID != 0 && w.cfg.Facts.Remember != nil {
		w.cfg.Facts.Remember(e.PID)
	}
}

// Idle has nothing to do.
func (w *Watch) Idle() error { return nil }

// Tick refreshes, and shows the report.
func (w *Watch) Tick(now uint64) error {
	if w.cfg.Once {
		return pipeline.Enough
	}
	if w.cfg.AtEnd {
		return w.refresh(now, nil)
	}
	return w.show(now)
}

// Close shows the last report.
func (w *Watch) Close(now uint64) error {
	if !w.cfg.AtEnd && w.begun && now <= w.shown {
		return nil
	}
	return w.show(now)
}

func (w *Watch) show(now uint64) error {
	w.shown = now
	report, err := w.Report(now, nil)
	if err != nil {
		return err
	}
	return w.cfg.Show(report)
}

// Report refreshes and makes a report. On the way each socket that counts goes to
// visit, if that is not nil, with its group, whose verdict is known when Report returns.
func (w *Watch) Report(now uint64, visit func(*Group, *tcp.Event)) (*Report, error) {
	if err := w.refresh(now, visit); err != nil {
		return nil, err
	}
	r := &Report{
		Time: int64(now) + w.offset, BootNS: now, States: w.cfg.Rule.States, OlderThan: w.cfg.Rule.OlderThan,
		TimeWait: w.timeWait != nil,
		Watched:  now - min(w.first, now), Lost: w.lost, AnyMatch: w.anyMatch, Unjudged: w.unjudged,
		Groups: w.groups, Destinations: w.destinations,
	}
	if w.timeWait != nil {
		r.Unplaced = w.timeWait.Unplaced()
	} else {
		r.Unplaced, r.UnknownAge = w.table.Unplaced(), w.table.UnknownAge()
		r.Unresolved = resolve(r.Groups, &w.cfg.Facts, w.cfg.Detailed)
	}
	r.sum()
	return r, nil
}

// refresh lists the sockets anew and judges them.
func (w *Watch) refresh(now uint64, visit func(*Group, *tcp.Event)) error {
	w.begin(now)
	w.unjudged = tcp.Unjudged{}
	if w.timeWait != nil {
		return w.refreshTimeWait(now)
	}
	w.table.Begin(now)
	if slices.ContainsFunc(w.cfg.Rule.States, half) && !w.cfg.Rule.Recorded {
		err := w.cfg.Existing([]tcp.State{tcp.Listen}, func(row *tcp.Event) error {
			w.table.AddListener(row)
			return nil
		})
		if err != nil {
			return err
		}
	}
	err := w.cfg.Existing(w.cfg.Rule.States, func(row *tcp.Event) error {
		if !w.admit(row) {
			if w.table.wants(row) && !w.table.young(row) {
				w.unjudged.Add(w.cfg.Filter.Missing(row))
			}
			return nil
		}
		if g := w.table.Add(row); g != nil {
			w.remember(row)
			if visit != nil {
				visit(g, row)
			}
		}
		return nil
	})
	w.groups = w.table.End()
	return err
}

// holdingPorts are the states, beside TIME_WAIT, in which a socket has a local port.
var holdingPorts = []tcp.State{
	tcp.Listen, tcp.Established, tcp.SynSent, tcp.FinWait1, tcp.FinWait2, tcp.CloseWait, tcp.LastAck, tcp.Closing,
}

func (w *Watch) refreshTimeWait(now uint64) error {
	err := w.lookAtTimeWait(now)
	if err == nil && w.timeWait.Again() {
		err = w.lookAtTimeWait(now)
	}
	w.destinations = w.timeWait.End()
	return err
}

func (w *Watch) lookAtTimeWait(now uint64) error {
	w.unjudged = tcp.Unjudged{} // a second look counts anew
	w.timeWait.Begin(now)
	err := w.cfg.Existing(w.cfg.Rule.States, func(row *tcp.Event) error {
		switch {
		case row.New != tcp.TimeWait:
		case w.admit(row):
			w.timeWait.Add(row)
		default:
			w.unjudged.Add(w.cfg.Filter.Missing(row))
		}
		return nil
	})
	if err == nil && w.cfg.Facts.Ports != nil {
		// Whoever holds a port holds it: the filter does not matter here.
		err = w.cfg.Existing(holdingPorts, func(row *tcp.Event) error {
			w.timeWait.AddOther(row)
			return nil
		})
	}
	return err
}

package serve

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// PushConfig says what is pushed to OpenTelemetry. The zero value pushes nothing.
type PushConfig struct {
	otlp.Settings
	Host        string  // its name
	Transitions float64 // the share of sockets of which all transitions are pushed, 0 to 1
}

// pushWithin is how long the last push may take when the daemon ends.
const pushWithin = time.Second

// startPush starts what pushes, which the capture then feeds.
func (d *daemon) startPush() error {
	if !d.cfg.Push.On() {
		return nil
	}
	pusher, err := otlp.Start(otlp.Config{
		Settings: d.cfg.Push.Settings, Version: d.cfg.Version, Host: d.cfg.Push.Host, Transitions: d.cfg.Push.Transitions, Say: d.logger.complain,
		Collect: func(ctx context.Context) (otlp.Moment, error) {
			ctx, cancel := context.WithTimeout(ctx, answerLimit)
			defer cancel()
			s, err := d.collector.snapshots.get(ctx, d.collector.stop)
			if err != nil {
				return otlp.Moment{}, unanswered(err)
			}
			return s.moment(d.self)
		},
	})
	if err != nil {
		return err
	}
	d.pusher, d.collector.push.to = pusher, pusher
	d.self.MustRegister(pusher)
	return nil
}

// stopPush pushes what is left. Capture has ended.
func (d *daemon) stopPush() {
	if d.pusher == nil {
		return
	}
	c := d.collector
	last, _ := c.snapshot(c.source.Now()).moment(d.self) // an error: what there is
	d.pusher.Stop(pushWithin, last)
}

// moment is what is pushed of a snapshot.
func (s *snapshot) moment(self prometheus.Gatherer) (otlp.Moment, error) {
	m := otlp.Moment{Sockets: make(map[tcp.State]int)}
	for i := range s.services {
		for at, n := range s.services[i].sockets {
			if state := tcp.State(at); state != tcp.Close { // what is not connected is not followed
				m.Sockets[state] += n
			}
		}
	}
	var err error
	m.Families, err = prometheus.Gatherers{prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return s.gather() }), self}.Gather()
	return m, err
}

// push is the side of the capture.
type push struct {
	to     *otlp.Pusher          // nil: nothing is pushed
	leaked map[*leak.Group]named // those whose last verdict that was pushed is a leak
}

// named is what stays the same of a group.
type named struct{ service, who string }

// connections reports whether records of connections are pushed.
func (p *push) connections() bool { return p.to != nil && p.to.Connections() }

// transition pushes a state change, if its socket is one of those that are.
func (p *push) transition(e *tcp.Event, m *meter) {
	if p.connections() && p.to.Sampled(e.Cookie) {
		p.to.Transition(e, m.nameOf(serviceOf(e)))
	}
}

func (p *push) tick(now uint64) {
	if p.to != nil {
		p.to.Tick(now)
	}
}

// verdicts pushes each verdict that has changed since the last look: that a group leaks, and that
// it does so no longer. r is nil if the look failed; then nothing is known to have changed.
func (p *push) verdicts(r *leak.Report, m *meter) {
	if r == nil || !p.connections() {
		return
	}
	if p.leaked == nil {
		p.leaked = make(map[*leak.Group]named)
	}
	exist := make(map[*leak.Group]bool)
	for _, g := range r.Groups {
		_, before := p.leaked[g]
		switch is := g.Verdict == leak.Leak; {
		case is && !before && len(p.leaked) < maxGroups:
			f := findingOf(g, m)
			p.leaked[g] = named{f.service, f.who()}
			p.to.Leak(verdictOf(r, g, &f, f.sentence()))
		case !is && before:
			f := findingOf(g, m)
			delete(p.leaked, g)
			p.to.Leak(verdictOf(r, g, &f, f.who()+" leaks no longer: "+f.diagnosis))
		}
		if _, is := p.leaked[g]; is {
			exist[g] = true
		}
	}
	if r.Unplaced > 0 {
		return // the absence of a group proves nothing
	}
	for g, was := range p.leaked {
		if exist[g] {
			continue
		}
		delete(p.leaked, g)
		p.to.Leak(&otlp.Verdict{
			Time: r.Time, Verdict: "ended", State: g.State, Service: was.service,
			Sentence: fmt.Sprintf("%s leaks no longer: it has no socket in %s.", was.who, g.State),
		})
	}
}

// verdictOf is a verdict about a group as a record.
func verdictOf(r *leak.Report, g *leak.Group, f *finding, sentence string) *otlp.Verdict {
	v := &otlp.Verdict{
		Time: r.Time, Leak: g.Verdict == leak.Leak, Verdict: string(g.Verdict), Sentence: sentence, Service: f.service,
		State: g.State, PID: g.PID, Comm: g.Comm, Container: g.Container, Names: g.Names, Cgroup: g.Cgroup, Role: g.Role, Holder: g.Holder,
		NetNS: g.NetNS, LocalPort: g.LocalPort, Remote: g.Remote, Sockets: g.Count, Oldest: g.Oldest, AtLeast: g.AtLeast,
		Growth: g.Growth, GrowthKnown: g.GrowthKnown, FilesLeft: g.Left, FilesLeftKnown: g.LeftKnown,
		Cause: string(g.Cause), Diagnosis: g.Diagnosis,
	}
	if len(g.Stacks) > 0 {
		for _, frame := range g.Stacks[0].Frames {
			v.Stack = append(v.Stack, visible(frame.String()))
		}
	}
	return v
}

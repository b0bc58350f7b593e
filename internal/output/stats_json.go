package output

import (
	"encoding/json"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// statsObject is a report in JSON. Absent is what is not known.
type statsObject struct {
	V           int           `json:"v"`
	Type        string        `json:"type"`
	Time        string        `json:"time"`
	BootNS      string        `json:"boot_ns"`
	Watched     float64       `json:"watched_s"`
	Transitions uint64        `json:"transitions"`
	Lost        uint64        `json:"lost"`
	Forgotten   uint64        `json:"forgotten"`
	Unended     uint64        `json:"ended_unseen"`
	States      []stateObject `json:"states"`
	Edges       []edgeObject  `json:"edges"`
	Total       countsObject  `json:"total"`
	By          stats.By      `json:"by"`
	Groups      []groupCounts `json:"groups"`
}

type stateObject struct {
	State   string              `json:"state"`
	Now     *int                `json:"now,omitempty"`
	Entered uint64              `json:"entered"`
	Exact   *distributionObject `json:"exact,omitempty"`
	AtLeast *distributionObject `json:"at_least,omitempty"`
	Unknown uint64              `json:"unknown"`
}

// distributionObject is a histogram; what is in ms has all digits of the ns.
type distributionObject struct {
	Count   uint64         `json:"count"`
	Min     json.Number    `json:"min_ms"`
	P50     json.Number    `json:"p50_ms"`
	P90     json.Number    `json:"p90_ms"`
	P99     json.Number    `json:"p99_ms"`
	Max     json.Number    `json:"max_ms"`
	Zero    uint64         `json:"zero,omitempty"`
	Buckets []bucketObject `json:"buckets"`
}

type bucketObject struct {
	Number int         `json:"number"`
	Upper  json.Number `json:"le_ms"`
	Count  uint64      `json:"count"`
}

type edgeObject struct {
	From      string            `json:"old_state"`
	To        string            `json:"new_state"`
	Name      string            `json:"name,omitempty"`
	Paths     []tcp.Role        `json:"path,omitempty"`
	Extension string            `json:"extension,omitempty"`
	Illegal   bool              `json:"illegal,omitempty"`
	Count     uint64            `json:"count"`
	PerSecond *float64          `json:"per_s,omitempty"`
	Client    uint64            `json:"client"`
	Server    uint64            `json:"server"`
	Reasons   map[string]uint64 `json:"reasons,omitempty"`
}

type countsObject struct {
	Opened  uint64 `json:"opened"`
	Closed  uint64 `json:"closed"`
	Reset   uint64 `json:"reset"`
	Failed  uint64 `json:"failed"`
	Broken  uint64 `json:"broken"`
	Unknown uint64 `json:"unknown"`
	Open    int    `json:"open"`
}

type groupCounts struct {
	Name  Text `json:"name,omitempty"`
	Comm  Text `json:"comm,omitempty"`
	Other bool `json:"other,omitempty"`
	countsObject
}

func newStatsObject(r *stats.Report) *statsObject {
	o := &statsObject{
		V: tcp.SchemaVersion, Type: "stats", Time: rfc3339(r.Time), BootNS: strconv.FormatUint(r.BootNS, 10), Watched: seconds(r.Watched),
		Transitions: r.Transitions, Lost: r.Lost, Forgotten: r.Forgotten, Unended: r.Unended,
		Total: countsObject(r.Total), By: r.By,
		States: make([]stateObject, 0, len(r.States)), Edges: make([]edgeObject, 0, len(r.Edges)), Groups: make([]groupCounts, 0, len(r.Groups)),
	}
	for i := range r.States {
		s := &r.States[i]
		state := stateObject{
			State: s.State.String(), Entered: s.Entered, Unknown: s.Unknown,
			Exact: newDistribution(s.Exact), AtLeast: newDistribution(s.AtLeast),
		}
		if s.NowKnown {
			state.Now = &s.Now
		}
		o.States = append(o.States, state)
	}
	for i := range r.Edges {
		o.Edges = append(o.Edges, newEdgeObject(&r.Edges[i], r.Watched))
	}
	for _, g := range r.Groups {
		o.Groups = append(o.Groups, groupCounts{Text(g.Name), Text(g.Comm), g.Other, countsObject(g.Counts)})
	}
	return o
}

// newDistribution returns nil for a histogram without durations.
func newDistribution(h *stats.Histogram) *distributionObject {
	if h.Count == 0 {
		return nil
	}
	at := func(q float64) json.Number { return milliseconds(h.Quantile(q)) }
	d := &distributionObject{
		Count: h.Count, Min: at(0), P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1),
		Zero: h.Zero, Buckets: []bucketObject{},
	}
	for _, b := range h.Buckets() {
		d.Buckets = append(d.Buckets, bucketObject{b.Number, milliseconds(b.Upper), b.Count})
	}
	return d
}

func milliseconds(ns uint64) json.Number { return json.Number(appendFixed(nil, ns, 6, 6)) }

func newEdgeObject(e *stats.Edge, watched uint64) edgeObject {
	o := edgeObject{
		From: e.From.String(), To: e.To.String(), Name: e.Name, Extension: e.Extension, Illegal: !e.Legal,
		Count: e.Count, Client: e.Client, Server: e.Server,
	}
	if perSecond, known := e.PerSecond(watched); known {
		o.PerSecond = &perSecond
	}
	if e.Path&tcp.ClientPath != 0 {
		o.Paths = append(o.Paths, tcp.Client)
	}
	if e.Path&tcp.ServerPath != 0 {
		o.Paths = append(o.Paths, tcp.Server)
	}
	for _, why := range e.Reasons {
		if o.Reasons == nil {
			o.Reasons = make(map[string]uint64)
		}
		name := string(why.Reason)
		if name == "" {
			name = "unknown"
		}
		o.Reasons[name] += why.Count
	}
	return o
}

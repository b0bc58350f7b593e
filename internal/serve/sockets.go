package serve

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// socketRows are the sockets of one moment, which nobody changes.
type socketRows struct {
	rows    []socketRow
	leftOut int
}

type socketRow struct {
	event   tcp.Event
	service string
}

// socketQuery says which of them are asked for.
type socketQuery struct {
	service string    // empty: all
	state   tcp.State // 0: all
	limit   int       // so many, those that are in their state for longest; 0: all, in no order
}

func parseSocketQuery(v url.Values) (q socketQuery, err error) {
	q.service = v.Get("service")
	if name := v.Get("state"); name != "" {
		if q.state, err = tcp.ParseState(name); err != nil {
			return q, err
		}
	}
	if text := v.Get("limit"); text != "" {
		if q.limit, err = strconv.Atoi(text); err != nil || q.limit < 1 || q.limit > maxRows {
			return q, fmt.Errorf("%q is not a limit: give 1 to %d", text, maxRows)
		}
	}
	return q, nil
}

// sockets serves the sockets that exist.
func (d *daemon) sockets(w http.ResponseWriter, r *http.Request) {
	q, err := parseSocketQuery(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerLimit)
	defer cancel()
	all, err := d.collector.socketsAsked.get(ctx, d.collector.stop)
	if err == nil {
		var lines []byte
		if lines, err = all.json(q); err == nil {
			w.Header().Set("Content-Type", jsonLines)
			_, _ = w.Write(lines) // an error: the client has gone
			return
		}
	}
	refuse(w, http.StatusServiceUnavailable, unanswered(err))
}

// json writes those that are asked for.
func (s *socketRows) json(q socketQuery) ([]byte, error) {
	var picked []*tcp.Event
	for i := range s.rows {
		row := &s.rows[i]
		if (q.service == "" || row.service == q.service) && (q.state == 0 || index(row.event.New) == index(q.state)) {
			picked = append(picked, &row.event)
		}
	}
	leftOut := s.leftOut
	if q.limit > 0 {
		slices.SortStableFunc(picked, func(a, b *tcp.Event) int { return cmp.Compare(age(b), age(a)) })
		leftOut += max(0, len(picked)-q.limit)
		picked = picked[:min(q.limit, len(picked))]
	}
	var b bytes.Buffer
	lines := output.NewJSON(&b)
	for _, e := range picked {
		if err := lines.Write(e); err != nil {
			return nil, err
		}
	}
	err := lines.Flush()
	return appendLeftOut(b.Bytes(), leftOut), err
}

// age is how long a socket is known to be in its state.
func age(e *tcp.Event) uint64 {
	if !e.DurationKind.Known() {
		return 0
	}
	return e.Duration
}

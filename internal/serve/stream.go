package serve

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// The bounds of the streams: a client has maxWaiting events waiting for it at most, of some 450
// bytes each. What passes that is dropped, and counted. A batch has one event on a quiet host.
const (
	maxStreams = 256
	maxWaiting = 512
	batchSize  = 64
)

// errTooMany is for whoever comes when there are maxStreams clients.
var errTooMany = errors.New("too many clients read events: try again later")

// batch is lines of JSON, which nobody changes.
type batch struct {
	lines  []byte
	events uint64
}

// client is one reader of a topic.
type client struct {
	queue   chan batch    // has room for maxWaiting
	waiting atomic.Int64  // events in queue
	dropped atomic.Uint64 // events, since it was last told
}

// offer gives it a batch, unless too many events wait already.
func (c *client) offer(b batch) bool {
	events := int64(b.events)
	if c.waiting.Add(events) > maxWaiting {
		c.waiting.Add(-events)
		return false
	}
	c.queue <- b // has room: a batch has one event or more
	return true
}

// took is called for each batch that came out of queue.
func (c *client) took(b batch) { c.waiting.Add(-int64(b.events)) }

// topic is what clients can read. The capture writes; clients come and go meanwhile, and it
// waits for none of them.
type topic struct {
	name    string
	hub     *hub
	clients atomic.Pointer[[]*client] // nil: none; copied, never changed
	lines   bytes.Buffer
	events  uint64 // in lines, or on the way there
	flush   func() error
}

// hub has all topics.
type hub struct {
	lock    sync.Mutex // for clients that come and go
	count   atomic.Int64
	dropped atomic.Uint64
	stop    chan struct{}
}

// wanted reports whether somebody reads.
func (t *topic) wanted() bool { return t.clients.Load() != nil }

// wrote is called for each event that was written; flush brings them to lines.
func (t *topic) wrote() error {
	if t.events++; t.events < batchSize {
		return nil
	}
	return t.send()
}

// send hands what was written to all clients.
func (t *topic) send() error {
	if t.events == 0 {
		return nil
	}
	if err := t.flush(); err != nil {
		return err
	}
	b := batch{bytes.Clone(t.lines.Bytes()), t.events}
	t.lines.Reset()
	t.events = 0
	readers := t.clients.Load()
	if readers == nil {
		return nil
	}
	for _, c := range *readers {
		if !c.offer(b) {
			c.dropped.Add(b.events)
			t.hub.dropped.Add(b.events)
		}
	}
	return nil
}

// join adds a client, which is to leave.
func (t *topic) join() (*client, error) {
	t.hub.lock.Lock()
	defer t.hub.lock.Unlock()
	if t.hub.count.Load() >= maxStreams {
		return nil, errTooMany
	}
	t.hub.count.Add(1)
	c := &client{queue: make(chan batch, maxWaiting)}
	t.set(append(slices.Clone(t.list()), c))
	return c, nil
}

func (t *topic) leave(c *client) {
	t.hub.lock.Lock()
	defer t.hub.lock.Unlock()
	t.hub.count.Add(-1)
	t.set(slices.DeleteFunc(slices.Clone(t.list()), func(other *client) bool { return other == c }))
}

func (t *topic) list() []*client {
	if readers := t.clients.Load(); readers != nil {
		return *readers
	}
	return nil
}

func (t *topic) set(readers []*client) {
	if len(readers) == 0 {
		t.clients.Store(nil)
		return
	}
	t.clients.Store(&readers)
}

// writeFrames writes lines as server-sent events of this name.
func writeFrames(w io.Writer, name string, lines []byte) error {
	for line := range bytes.Lines(lines) {
		for _, part := range [][]byte{[]byte("event: "), []byte(name), []byte("\ndata: "), line, []byte("\n")} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}

package otlp

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
)

// The bounds of what waits to be sent. A record takes about a kilobyte.
const (
	maxBatch     = 512             // records of one request
	maxWaiting   = 4 << 20         // bytes that wait, the request at hand left out
	moreForLeaks = 512 << 10       // and as many more where verdicts are among them
	gatherFor    = time.Second     // a request that is not full waits so long
	firstRetry   = 1 * time.Second // and twice as long each time, up to
	lastRetry    = 30 * time.Second
)

// batch is records, each with its tag as a field of ScopeLogs.
type batch struct {
	records []byte
	n       uint64
	leaks   bool // verdicts are among them
}

// queue is between capture, which never waits, and the goroutine that sends.
type queue struct {
	lock    sync.Mutex
	batches []batch       // that wait, the oldest first
	size    int           // bytes of batches
	spare   [][]byte      // for batches to come
	full    chan struct{} // has room for one: there is a batch
	noRoom  atomic.Bool   // since a batch was dropped none was taken
	dropped func(n uint64)

	// Of the capturing goroutine.
	encoder  encoder
	gathered batch
}

func newQueue(dropped func(uint64)) *queue {
	return &queue{full: make(chan struct{}, 1), dropped: dropped}
}

// add takes the record that the encoder holds. It takes the lock once for each full batch.
func (q *queue) add() {
	const scopeRecords = 2
	b := protowire.AppendTag(q.gathered.records, scopeRecords, protowire.BytesType)
	q.gathered.records = protowire.AppendBytes(b, q.encoder.b)
	if q.gathered.n++; q.gathered.n == maxBatch {
		q.hand()
	}
}

// refuses reports whether there is no room for a record, and counts it then: while a receiver is
// away nothing has to be encoded.
func (q *queue) refuses() bool {
	if !q.noRoom.Load() {
		return false
	}
	q.dropped(1)
	return true
}

// hand hands over what was gathered. Where there is no room it is dropped: what waits is the
// beginning of the trouble, as a rule.
func (q *queue) hand() {
	if q.gathered.n == 0 {
		return
	}
	q.lock.Lock()
	defer q.lock.Unlock()
	limit := maxWaiting
	if q.gathered.leaks {
		limit += moreForLeaks
	}
	if q.size+len(q.gathered.records) > limit {
		q.noRoom.Store(true)
		q.dropped(q.gathered.n)
		q.gathered = batch{records: q.gathered.records[:0]}
		return
	}
	handed := q.gathered
	q.size += len(handed.records)
	q.batches = append(q.batches, handed)
	q.gathered = batch{}
	if last := len(q.spare) - 1; last >= 0 {
		q.gathered.records, q.spare = q.spare[last][:0], q.spare[:last]
	} else if handed.n == maxBatch { // so will the next one be, as a rule
		q.gathered.records = make([]byte, 0, len(handed.records)*9/8)
	}
	select {
	case q.full <- struct{}{}:
	default:
	}
}

// take returns the oldest batch; false: there is none.
func (q *queue) take() (batch, bool) {
	q.lock.Lock()
	defer q.lock.Unlock()
	q.noRoom.Store(false)
	if len(q.batches) == 0 {
		q.batches = nil // what it had may have been large
		return batch{}, false
	}
	b := q.batches[0]
	q.batches[0] = batch{}
	q.batches, q.size = q.batches[1:], q.size-len(b.records)
	return b, true
}

// done gives the memory of a batch back.
func (q *queue) done(b batch) {
	const keep = 4
	q.lock.Lock()
	defer q.lock.Unlock()
	if len(q.spare) < keep {
		q.spare = append(q.spare, b.records)
	}
}

// logs sends records, one request at a time.
type logs struct {
	queue  *queue
	client *client
	begin  []byte // of ResourceLogs, and
	scope  []byte // of ScopeLogs: what comes before the records
	sent   *counts
}

// newLogs returns what sends the records of a resource.
func newLogs(c *client, resource []*commonpb.KeyValue, version string, sent *counts) (*logs, error) {
	l := &logs{client: c, sent: sent}
	l.queue = newQueue(func(n uint64) { sent.dropped.Add(n) })
	var err error
	if l.begin, err = proto.Marshal(&logspb.ResourceLogs{Resource: &resourcepb.Resource{Attributes: resource}}); err != nil {
		return nil, err
	}
	l.scope, err = proto.Marshal(&logspb.ScopeLogs{Scope: &commonpb.InstrumentationScope{Name: scopeName, Version: version}})
	return l, err
}

// run sends until stop is closed, and then what waits, as far as ctx allows.
func (l *logs) run(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-l.queue.full:
		case <-stop:
			l.rest(ctx)
			return
		}
		for b, is := l.queue.take(); is; b, is = l.queue.take() {
			if !l.deliver(ctx, stop, b) {
				l.rest(ctx)
				return
			}
		}
	}
}

// rest sends what waits at the end, as long as it goes well.
func (l *logs) rest(ctx context.Context) {
	going := true
	for b, is := l.queue.take(); is; b, is = l.queue.take() {
		if going {
			going, _ = l.try(ctx, b)
		}
		if !going {
			l.sent.dropped.Add(b.n)
		}
	}
}

// deliver sends a batch, again and again while that may help. It returns false if the end came
// first; the batch is counted then.
func (l *logs) deliver(ctx context.Context, stop <-chan struct{}, b batch) bool {
	wait := firstRetry
	for {
		over, after := l.try(ctx, b)
		if over {
			l.queue.done(b)
			return true
		}
		timer := time.NewTimer(max(after, jitter(wait)))
		select {
		case <-timer.C:
		case <-stop:
			timer.Stop()
			if over, _ := l.try(ctx, b); !over {
				l.sent.dropped.Add(b.n)
			}
			return false
		}
		wait = min(2*wait, lastRetry)
	}
}

// try sends a batch once. over: it was taken, or it is no use to send it again. after is how
// long the receiver wants us to wait.
func (l *logs) try(ctx context.Context, b batch) (over bool, after time.Duration) {
	answer, after, err := l.client.post(ctx, l.body(b))
	switch {
	case err == nil:
	case isTemporary(err):
		return false, after
	default:
		l.sent.rejected.Add(b.n)
		return true, 0
	}
	var response collectorpb.ExportLogsServiceResponse
	rejected := uint64(0)
	if proto.Unmarshal(answer, &response) == nil { // one that cannot be read says nothing
		rejected = min(uint64(max(response.GetPartialSuccess().GetRejectedLogRecords(), 0)), b.n)
		l.client.complain(response.GetPartialSuccess().GetErrorMessage())
	}
	l.sent.rejected.Add(rejected)
	l.sent.sent.Add(b.n - rejected)
	return true, 0
}

// body is an ExportLogsServiceRequest with a batch. It is new each time: the transport may still write
// the one before, if the receiver answered early.
func (l *logs) body(b batch) []byte {
	const requestResource, resourceScope = 1, 2
	scope := len(l.scope) + len(b.records)
	resource := len(l.begin) + protowire.SizeTag(resourceScope) + protowire.SizeBytes(scope)
	out := make([]byte, 0, protowire.SizeTag(requestResource)+protowire.SizeBytes(resource))
	out = protowire.AppendTag(out, requestResource, protowire.BytesType)
	out = append(protowire.AppendVarint(out, uint64(resource)), l.begin...)
	out = protowire.AppendVarint(protowire.AppendTag(out, resourceScope, protowire.BytesType), uint64(scope))
	return append(append(out, l.scope...), b.records...)
}

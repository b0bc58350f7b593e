package serve

import (
	"context"
	"errors"
	"sync/atomic"
)

// errStopping is what clients are told that wait when the capture ends.
var errStopping = errors.New("tcptrace is stopping")

// An exchange has the capture make a value when somebody asks for it. All that ask before its
// next tick get the same one, so what it costs does not depend on how many they are. The
// capture waits for nobody: it looks whether there is a question, and leaves the answer.
type exchange[T any] struct {
	asked atomic.Pointer[question[T]]
}

type question[T any] struct {
	done  chan struct{} // closed when value and err are there
	value T
	err   error
}

// get waits for a value that is made after the call.
func (x *exchange[T]) get(ctx context.Context, stop <-chan struct{}) (T, error) {
	q := x.join()
	select {
	case <-q.done:
		return q.value, q.err
	case <-stop:
		return *new(T), errStopping
	case <-ctx.Done():
		return *new(T), ctx.Err()
	}
}

func (x *exchange[T]) join() *question[T] {
	for {
		if q := x.asked.Load(); q != nil {
			return q
		}
		q := &question[T]{done: make(chan struct{})}
		if x.asked.CompareAndSwap(nil, q) {
			return q
		}
	}
}

// answer has make called if somebody waits.
func (x *exchange[T]) answer(make func() (T, error)) {
	q := x.asked.Swap(nil)
	if q == nil {
		return
	}
	q.value, q.err = make()
	close(q.done)
}

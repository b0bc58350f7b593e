// Command client prints the stack that it has in functions of several kinds, as its
// own runtime tells it, and waits for the end of its input.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
)

func main() {
	work := func() { fetch() }
	work()
	io.Copy(io.Discard, os.Stdin)
}

type pool[T any] struct{ last T }

// fetch and get are short enough to be inlined.
func fetch() { new(pool[int]).get() }

func (p *pool[T]) get() { p.each(connect) }

//go:noinline
func (p *pool[T]) each(f func()) { f() }

//go:noinline
func connect() {
	pcs := make([]uintptr, 32)
	pcs = pcs[:runtime.Callers(1, pcs)]
	for _, pc := range pcs {
		frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
		fmt.Printf("%x\t%s\t%s\t%d\n", pc, frame.Function, frame.File, frame.Line)
	}
	fmt.Println()
}

package servers

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// truth is how long the connections of traffic stayed in two states, by its own clock, in seconds.
type truth struct{ Established, CloseWait []float64 }

// How traffic spreads its times. ESTABLISHED has all between two bounds of the classic buckets,
// evenly: what those can tell. CLOSE_WAIT has the same time again and again: the hardest case.
const (
	connections   = 200
	shortest      = 250 * time.Millisecond
	step          = (time.Second - shortest) / connections
	waitsForClose = 300 * time.Millisecond
)

// traffic makes connections to itself, closes each after a time, and prints the truth.
func traffic() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	var all truth
	var lock sync.Mutex
	var both sync.WaitGroup
	go func() {
		for {
			server, err := listener.Accept()
			if err != nil {
				return
			}
			both.Go(func() {
				_, _ = io.Copy(io.Discard, server) // until the client closes
				closed := time.Now()
				time.Sleep(waitsForClose)
				lock.Lock()
				all.CloseWait = append(all.CloseWait, time.Since(closed).Seconds())
				lock.Unlock()
				server.Close()
			})
		}
	}()
	for i := range connections {
		client, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			return err
		}
		opened := time.Now()
		both.Go(func() {
			time.Sleep(shortest + time.Duration(i)*step)
			lock.Lock()
			all.Established = append(all.Established, time.Since(opened).Seconds())
			lock.Unlock()
			client.Close()
		})
		time.Sleep(5 * time.Millisecond)
	}
	both.Wait()
	return json.NewEncoder(os.Stdout).Encode(all)
}

// readTruth waits for the end of traffic.
func readTruth(t *testing.T, path string) (all truth) {
	t.Helper()
	eventually(t, "the end of the traffic", time.Minute, func() error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &all)
	})
	if len(all.Established) != connections || len(all.CloseWait) != connections {
		t.Fatalf("%d and %d of %d", len(all.Established), len(all.CloseWait), connections)
	}
	slices.Sort(all.Established)
	slices.Sort(all.CloseWait)
	return all
}

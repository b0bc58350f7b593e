package top

import (
	"fmt"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/stats"
	"github.com/tcptrace/tcptrace/internal/test/capture"
)

// A screen that takes nothing does not hold up events, and then shows the latest.
func TestOldSnapshotsAreDropped(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	for r.now < capture.BootNS+5e9 {
		r.now += 1e9
		r.do(r.c.Tick(r.now))
	}
	s := r.desk.Take()
	if s == nil || s.Watched != 4e9 {
		t.Fatalf("got %+v", s)
	}
	if s := r.desk.Take(); s != nil {
		t.Errorf("an old one is there: %+v", s)
	}
}

// What was handed out does not change any more.
func TestSnapshotsStay(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(10 * time.Second)
	r.press("enter")
	r.press("enter")
	before := *r.m.shown()
	sockets := r.c.snapshot(r.now)
	screen := r.m.Screen()
	r.press("space")
	r.play(100 * time.Second)
	if after := *r.m.shown(); after.Text != before.Text || sockets.Text != before.Text {
		t.Errorf("it was\n%s\nand is\n%s", before.Text, after.Text)
	}
	r.press("space")
	if r.m.Screen() == screen {
		t.Error("it does not go on")
	}
}

// A request is answered when no event comes.
func TestIdleAnswers(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(5 * time.Second)
	r.desk.Ask(Request{Kind: Groups, By: stats.ByPID})
	r.do(r.c.Idle())
	if s := r.desk.Take(); s == nil || s.Request.By != stats.ByPID || s.Watched != 5e9 {
		t.Errorf("got %+v", s)
	}
	r.do(r.c.Idle())
	if s := r.desk.Take(); s != nil {
		t.Errorf("it was answered again: %+v", s)
	}
}

// Of connections that are over the latest are listed, the last one first.
func TestRecentSocketsAreBounded(t *testing.T) {
	text := ""
	for i := range maxRecent + 50 {
		text += fmt.Sprintf("%dms s%d ESTABLISHED>CLOSE 10.0.0.1:80 10.0.0.2:%d rst_received role=server pid=1/web unknown=\n", i, i, 1000+i)
	}
	r := newRig(t, text, Options{})
	r.play(2 * time.Second)
	rows, more := r.c.sockets(&Request{Kind: Sockets, By: stats.ByComm, Group: r.rowOf("web").GroupName}, r.now)
	if len(rows) != maxRecent || more != 0 {
		t.Fatalf("%d rows and %d more", len(rows), more)
	}
	if first, last := rows[0].Remote.Port(), rows[maxRecent-1].Remote.Port(); first != 1000+maxRecent+49 || last != 1050 {
		t.Errorf("from port %d to %d", first, last)
	}
}

// The sockets of a group are those that exist, then those that are over.
func TestSocketsOfAGroup(t *testing.T) {
	r := newRig(t, capture.Mixed, Options{})
	r.play(30 * time.Second)
	for comm, want := range map[string][]string{
		"billing": {"CLOSE_WAIT", "FIN_WAIT2"},
		"job":     {"- aborted_linger", "- rst_received"},
		"curl":    {"TIME_WAIT", "- rst_received"},
	} {
		rows, more := r.c.sockets(&Request{Kind: Sockets, By: stats.ByComm, Group: r.rowOf(comm).GroupName}, r.now)
		var got []string
		for i := range rows {
			got = append(got, socketState(&rows[i]))
		}
		if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || more != 0 {
			t.Errorf("%s: %v and %d more, want %v", comm, got, more, want)
		}
	}
}

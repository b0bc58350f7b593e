package serve

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// The names of services that are none. No unit, container or cgroup begins with ~.
const (
	unknownService = "~unknown" // nobody knows the cgroup
	otherService   = "~other"   // there was no room for one more
)

// serviceOf is the name of what a socket belongs to: the container, by the first digits of its
// id, else the systemd unit, else the cgroup. It is fit to be the value of a label.
func serviceOf(e *tcp.Event) string {
	id := e.ContainerID
	if len(id) == 64 {
		id = id[:12] // as the tools of containers show an id; others are names
	}
	name := cmp.Or(id, tcp.Unit(e.Cgroup), e.Cgroup)
	if name == "" {
		return unknownService
	}
	return label(name)
}

// maxLabel is how long the value of a label may be.
const maxLabel = 128

// label returns text from outside as the value of a label: UTF-8 on which no terminal acts, and
// no more than maxLabel bytes. What is too long ends in a hash of all of it. Usual text stays
// as it is, and costs nothing.
func label(text string) string {
	if plain(text) {
		return text
	}
	shown := visible(text)
	if text[0] == '~' { // it is none of our own names
		shown = `\x7e` + shown[1:]
	}
	if len(shown) <= maxLabel {
		return shown
	}
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, text) // it never fails
	end := fmt.Sprintf("~%016x", hash.Sum64())
	at := maxLabel - len(end)
	for !utf8.RuneStart(shown[at]) {
		at--
	}
	return shown[:at] + end
}

// visible returns text from outside without what a terminal or a page acts on, such as a change
// of the direction in which it is written.
func visible(text string) string { return string(terminal.AppendVisible(nil, text, math.MaxInt)) }

// plain reports whether text is short and printable ASCII, and none of our own names.
func plain(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return len(text) <= maxLabel && (text == "" || text[0] != '~')
}

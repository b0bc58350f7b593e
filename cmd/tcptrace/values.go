package main

import (
	"fmt"
	"io"
	"math"
	"math/bits"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/tcp"
)

// The types below are values of flags. The parser calls UnmarshalText once per
// occurrence of the flag, so lists grow by repetition and by commas alike.

type (
	ports    []uint16
	pids     []uint32
	uids     []uint32
	states   []tcp.State
	prefixes []netip.Prefix
	netns    []uint32 // inode numbers
	names    []string
	count    uint32        // positive
	duration time.Duration // positive
	ringSize int           // a size the kernel takes for a ring buffer
)

// format is a way to print events.
type format struct {
	name     string
	writer   func(io.Writer, output.Options) writer
	existing bool // it has rows for the sockets that exist at the start: a recording is to be complete, a screen is small
}

// formats are all of them, the default first.
var formats = []format{
	{"columns", func(w io.Writer, o output.Options) writer { return output.NewColumns(w, o) }, false},
	{"json", func(w io.Writer, _ output.Options) writer { return output.NewJSON(w) }, true},
	{"csv", func(w io.Writer, o output.Options) writer { return output.NewCSV(w, o) }, false},
}

// formatNamed returns the format of that name, one without a name if there is none.
func formatNamed(name string) format {
	for _, f := range formats {
		if f.name == name {
			return f
		}
	}
	return format{}
}

// either joins words as in "a, b or c".
func either(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// eachOf calls add for every element of a comma list.
func eachOf(list []byte, add func(string) error) error {
	for element := range strings.SplitSeq(string(list), ",") {
		if err := add(strings.TrimSpace(element)); err != nil {
			return err
		}
	}
	return nil
}

// number reads a positive number, which is called what.
func number(s, what string, max uint64) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || n > max {
		return 0, fmt.Errorf("%q is not a %s: give a number from 1 to %d", s, what, max)
	}
	return uint32(n), nil
}

func (l *ports) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		n, err := number(s, "port", math.MaxUint16)
		*l = append(*l, uint16(n))
		return err
	})
}

func (l *pids) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		n, err := number(s, "process id", 1<<22) // the kernel's PID_MAX_LIMIT
		*l = append(*l, n)
		return err
	})
}

func (l *uids) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		id := s
		if known, err := user.Lookup(s); err == nil {
			id = known.Uid
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil || uint32(n) == tcp.NoUID {
			return fmt.Errorf("%q is neither a user of this host nor a user id", s)
		}
		*l = append(*l, uint32(n))
		return nil
	})
}

func (l *names) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		*l = append(*l, s) // tcp.Filter knows what a name may be
		return nil
	})
}

func (l *states) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		state, err := tcp.ParseState(s)
		*l = append(*l, state)
		return err
	})
}

func (l *prefixes) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		prefix, err := netip.ParsePrefix(s)
		if addr, bad := netip.ParseAddr(s); bad == nil {
			prefix, err = addr.WithZone("").Prefix(addr.BitLen()) // events have no zone
		}
		if err != nil {
			return fmt.Errorf("%q is not an address: give one such as 10.0.0.1, 10.0.0.0/8 or fd00::/8", s)
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 { // events carry IPv4 as IPv4
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		*l = append(*l, prefix.Masked())
		return nil
	})
}

// UnmarshalText takes what people have at hand: the inode number (of lsns, ss or
// our own output), a name given with `ip netns`, a path such as /proc/1/ns/net.
func (l *netns) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		if inode, err := strconv.ParseUint(s, 10, 32); err == nil && inode != 0 {
			*l = append(*l, uint32(inode))
			return nil
		}
		path := s
		if !strings.Contains(path, "/") {
			path = "/run/netns/" + path
		}
		var stat syscall.Stat_t
		if err := syscall.Stat(path, &stat); err != nil {
			return fmt.Errorf("%q is not a network namespace: give an inode number (see lsns -t net), "+
				"a name of 'ip netns' or a path: stat %s: %w", s, path, err)
		}
		*l = append(*l, uint32(stat.Ino))
		return nil
	})
}

func (f *format) UnmarshalText(text []byte) error {
	if *f = formatNamed(string(text)); f.name == "" {
		return fmt.Errorf("%q is not a format: give %s", text, either(f.Words()))
	}
	return nil
}

// Words are the names of the formats.
func (*format) Words() (words []string) {
	for _, f := range formats {
		words = append(words, f.name)
	}
	return words
}

// Words are the states as one types them.
func (*states) Words() (words []string) {
	for s := tcp.Established; s < tcp.NewSynRecv; s++ { // which no event shows
		words = append(words, strings.ReplaceAll(strings.ToLower(s.String()), "_", "-"))
	}
	return words
}

// Words are the states that a connection can be stuck in.
func (*stuckStates) Words() []string {
	return slices.DeleteFunc(new(states).Words(), func(word string) bool {
		return new(stuckStates).UnmarshalText([]byte(word)) != nil
	})
}

// Words are what one can group by.
func (*leakBy) Words() (words []string) {
	for _, by := range leak.Bys {
		words = append(words, string(by))
	}
	return words
}

func (c *count) UnmarshalText(text []byte) error {
	n, err := number(string(text), "count", math.MaxUint32)
	*c = count(n)
	return err
}

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil || parsed <= 0 {
		return fmt.Errorf("%q is not a duration: give a number and a unit, such as 10s, 1m30s or 250ms", text)
	}
	*d = duration(parsed)
	return nil
}

func (r *ringSize) UnmarshalText(text []byte) error {
	digits := strings.TrimRight(string(text), "KMG")
	unit := map[string]uint64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[string(text[len(digits):])]
	n, err := strconv.ParseUint(digits, 10, 31)
	n *= unit
	if err != nil || bits.OnesCount64(n) != 1 || n < 64<<10 || n > 1<<30 {
		return fmt.Errorf("%q is not a ring size: give a power of two from 64K to 1G", text)
	}
	*r = ringSize(n)
	return nil
}

package main

import (
	"fmt"
	"io"
	"math"
	"math/bits"
	"net/netip"
	"os/user"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/tcp"
	"github.com/tcptrace/tcptrace/internal/where"
)

// The types below are values of flags. The parser calls UnmarshalText once per
// occurrence of the flag, so lists grow by repetition and by commas alike.

type (
	ports    tcp.Ports
	ratio    float64 // from 0 to 1
	pids     []uint32
	uids     []uint32
	states   []tcp.State
	reasons  []tcp.Reason
	errnos   []uint32
	cookies  []uint64
	prefixes []netip.Prefix
	netns    []uint32 // inode numbers
	names    []string
	count    uint32        // positive
	duration time.Duration // positive
	ringSize int           // a size the kernel takes for a ring buffer
)

// expression is a condition over the fields of an event; without one if none was given.
type expression struct{ *where.Expression }

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

// streamFormats are those of a stream of changes.
var streamFormats = append(slices.Clip(formats),
	format{"trace", func(w io.Writer, _ output.Options) writer { return output.NewTrace(w) }, true})

// streamFormat is one of them.
type streamFormat format

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

func (r *ratio) UnmarshalText(text []byte) error {
	x, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(x >= 0 && x <= 1) {
		return fmt.Errorf("%q is not a share: give a number from 0 to 1, such as 0.01", text)
	}
	*r = ratio(x)
	return nil
}

// UnmarshalText takes ports and ranges such as 8000-8100; a ! before one excludes it.
func (p *ports) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		to := &p.Only
		if rest, excluded := strings.CutPrefix(s, "!"); excluded {
			s, to = rest, &p.Except
		}
		first, last, ranged := strings.Cut(s, "-")
		from, err := number(first, "port", math.MaxUint16)
		upTo := from
		if ranged && err == nil {
			upTo, err = number(last, "port", math.MaxUint16)
		}
		if err == nil && upTo < from {
			err = fmt.Errorf("%q is not a range of ports: %d is less than %d", s, upTo, from)
		}
		*to = append(*to, tcp.PortRange{First: uint16(from), Last: uint16(upTo)})
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

// raw is the value of a flag, byte by byte. The parser's own way to a text replaces what is
// not UTF-8, and the name of a file, a cgroup or a process may be anything.
func raw(ctx *kong.DecodeContext) (string, error) {
	token, err := ctx.Scan.PopValue("string")
	text, _ := token.Value.(string) // on a command line it is one
	return text, err
}

// rawString reads a flag that is a string.
func rawString(ctx *kong.DecodeContext, flag reflect.Value) error {
	text, err := raw(ctx)
	flag.SetString(text)
	return err
}

func (l *names) Decode(ctx *kong.DecodeContext) error {
	text, err := raw(ctx)
	if err != nil {
		return err
	}
	return eachOf([]byte(text), func(s string) error {
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

func (l *reasons) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		if !slices.Contains(tcp.Reasons, tcp.Reason(s)) {
			return fmt.Errorf("%q is not a reason: the reasons are %s", s, strings.Join(l.Words(), ", "))
		}
		*l = append(*l, tcp.Reason(s))
		return nil
	})
}

// Words are all reasons.
func (*reasons) Words() []string { return wordsIn(tcp.Reasons) }

func (l *errnos) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		errno, err := recording.ParseErrno(strings.ToUpper(s))
		if err != nil || errno == 0 {
			return fmt.Errorf("%q is not an error of the kernel: give a name such as ECONNRESET, or a number", s)
		}
		*l = append(*l, errno)
		return nil
	})
}

// Words are the errors that the kernel puts into a TCP socket most.
func (*errnos) Words() []string {
	return []string{"ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"}
}

func (l *cookies) UnmarshalText(text []byte) error {
	return eachOf(text, func(s string) error {
		cookie, err := strconv.ParseUint(strings.TrimPrefix(s, "sk:"), 16, 64)
		if err != nil || cookie == 0 {
			return fmt.Errorf("%q is not a cookie: give the hexadecimal digits that COOKIE or ss -e shows", s)
		}
		*l = append(*l, cookie)
		return nil
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
func (l *netns) Decode(ctx *kong.DecodeContext) error {
	text, err := raw(ctx)
	if err != nil {
		return err
	}
	return eachOf([]byte(text), func(s string) error {
		if inode, err := strconv.ParseUint(s, 10, 32); err == nil && inode != 0 {
			*l = append(*l, uint32(inode))
			return nil
		}
		path := s
		if !strings.Contains(path, "/") {
			path = "/run/netns/" + path
		}
		var stat syscall.Stat_t
		if err := confine.AsUser(func() error { return syscall.Stat(path, &stat) }); err != nil {
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
func (*format) Words() []string { return namesOf(formats) }

func (f *streamFormat) UnmarshalText(text []byte) error {
	i := slices.IndexFunc(streamFormats, func(f format) bool { return f.name == string(text) })
	if i < 0 {
		return fmt.Errorf("%q is not a format: give %s", text, either(f.Words()))
	}
	*f = streamFormat(streamFormats[i])
	return nil
}

// Words are the names of the formats.
func (*streamFormat) Words() []string { return namesOf(streamFormats) }

func namesOf(formats []format) (names []string) {
	for _, f := range formats {
		names = append(names, f.name)
	}
	return names
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
func (*leakBy) Words() []string { return wordsIn(leak.Bys) }

// parseGroup returns what a text says to group by, which is one of bys.
func parseGroup[By ~string](text []byte, bys []By) (By, error) {
	if by := By(text); slices.Contains(bys, by) {
		return by, nil
	}
	return "", fmt.Errorf("unknown group %q: give one of %s", text, strings.Join(wordsIn(bys), ", "))
}

// wordsIn returns the words of a list as plain text.
func wordsIn[T ~string](list []T) (words []string) {
	for _, word := range list {
		words = append(words, string(word))
	}
	return words
}

// failed returns why the expression could not be evaluated for an event, if so.
func (x expression) failed() error {
	if x.Expression == nil {
		return nil
	}
	return x.Err()
}

func (x *expression) UnmarshalText(text []byte) (err error) {
	x.Expression, err = where.Compile(string(text))
	return err
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
	n, ok := parseSize(string(text))
	if !ok || bits.OnesCount64(n) != 1 || n < 64<<10 || n > 1<<30 {
		return fmt.Errorf("%q is not a ring size: give a power of two from 64K to 1G", text)
	}
	*r = ringSize(n)
	return nil
}

// parseSize reads a number of bytes, which may end in K, M or G.
func parseSize(text string) (bytes uint64, ok bool) {
	digits := strings.TrimRight(text, "KMG")
	unit := map[string]uint64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 31)
	return n * unit, err == nil && unit != 0
}

// The bounds of a rotation.
const (
	minFileSize, maxFileSize = 64 << 10, 1 << 40
	usualFiles, maxFiles     = 10, 100
)

// UnmarshalText takes SIZE or SIZE,COUNT.
func (r *rotation) UnmarshalText(text []byte) error {
	size, files, given := strings.Cut(string(text), ",")
	n, ok := parseSize(size)
	if !ok || n < minFileSize || n > maxFileSize {
		return fmt.Errorf("%q is not the size of a file: give 64K to 1024G, such as 100M", size)
	}
	*r = rotation{int64(n), usualFiles}
	if given {
		count, err := strconv.ParseUint(files, 10, 32)
		if err != nil || count < 2 || count > maxFiles {
			return fmt.Errorf("%q is not a count of files: give 2 to %d", files, maxFiles)
		}
		r.files = int(count)
	}
	return nil
}

// Command tcptrace shows every TCP state change of this host: how long each
// state lasted, which process owns the socket and why the state ended.
//
// This package only wires: it parses the command line, opens a source, hands it to
// pipeline.Run with what shows its events, and says on stderr what went wrong.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tcptrace/tcptrace/internal/confine"
	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// The exit statuses beside 0.
const (
	exitFailure = 1 // what was asked for could not be done
	exitUsage   = 2 // what was asked for makes no sense
	exitFound   = 2 // leaks --check found something
)

func main() {
	// Go dies by SIGPIPE when a write to stdout fails; ignored, the write
	// returns EPIPE and we end in order: `tcptrace | head -1` exits with 0.
	// Where a file must not grow (ulimit -f) a write returns EFBIG, likewise.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGXFSZ)
	if os.Args[0] == stackHelper {
		os.Exit(serveStacks(os.Stdin, os.Stdout))
	}
	// TZ names any file. It is read once, now: later no file can be opened.
	_ = confine.AsUser(func() error { _, _ = time.Now().Zone(); return nil })
	stdout, stderr := terminal.NewWriter(os.Stdout), terminal.NewWriter(os.Stderr)
	os.Exit(run(&env{context.Background(), os.Stdin, stdout, stderr}, os.Args[1:]))
}

// env is what a command knows of the world outside. Text gets out through its writers
// alone, so that a terminal acts on none of it, wherever it comes from.
type env struct {
	ctx            context.Context // its end ends a run in order
	stdin          *os.File
	stdout, stderr *terminal.Writer
}

// show writes a line on stdout. It is one line whatever the text is.
func (e *env) show(text string) error {
	_, err := io.WriteString(e.stdout, terminal.Visible(text)+"\n")
	return err
}

// sayLimit is how long a message may take to write. A terminal that was stopped must not
// keep a process from ending that has something to say about it.
const sayLimit = 200 * time.Millisecond

// say writes a line on stderr. It is one line whatever the text is: no name in it can forge
// another one.
func (e *env) say(text string) { e.hint("tcptrace: " + text) }

// hint is say without the name of the program.
func (e *env) hint(text string) {
	done := make(chan struct{})
	go func() {
		fmt.Fprintln(e.stderr, terminal.Visible(text)) // if that fails there is nobody to tell
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(sayLimit):
	}
}

// cli is the command line. It is the only list of flags: parser, help and
// completion are made from it.
type cli struct {
	Trace       traceCmd       `cmd:"" default:"withargs" hidden:"" help:"Show every TCP state change."`
	Sockets     socketsCmd     `cmd:"" help:"Print a table of all sockets as they are now."`
	Connections connectionsCmd `cmd:"" help:"Print a line for each connection that ends: times, who closed first, why."`
	Stats       statsCmd       `cmd:"" help:"Count: time in each state, every edge of the diagram, who opens and resets."`
	Top         topCmd         `cmd:"" help:"Watch groups of sockets on a screen, sort and filter them, and look into one."`
	Timeline    timelineCmd    `cmd:"" help:"Tell the story of each connection: both ends, every state, what ended it."`
	Leaks       leaksCmd       `cmd:"" help:"Find who leaks sockets, why, and where in the code."`
	Serve       serveCmd       `cmd:"" help:"Run as a daemon: metrics for Prometheus, JSON and events over HTTP."`
	Doctor      doctorCmd      `cmd:"" help:"Report what this kernel lets tcptrace see, and what it does not."`
	Completion  completionCmd  `cmd:"" help:"Print the completion script for a shell."`
	Man         manCmd         `cmd:"" help:"Print the manual page: tcptrace man | man -l -"`

	Version kong.VersionFlag `short:"V" help:"Print the version."`
}

// usageError is a mistake in the command line that the parser cannot see.
type usageError struct{ error }

// run does what args ask for and returns the exit status.
func run(e *env, args []string) int {
	command, err := execute(e, args)
	var parse *kong.ParseError
	var usage usageError
	var found leaksFound
	switch {
	case errors.As(err, &found):
		return exitFound
	case err == nil, errors.Is(err, syscall.EPIPE): // nobody reads on: we are done
		return 0
	case errors.As(err, &parse), errors.As(err, &usage):
		e.say(plainly(err))
		e.hint(fmt.Sprintf("Try '%s --help'.", command))
		if checks(args) {
			return exitFailure // 2 would say that a leak was found
		}
		return exitUsage
	default:
		e.say(withAdvice(err))
		return exitFailure
	}
}

// checks reports whether args ask for leaks --check in any spelling, also behind a
// mistake where the parser did not get to it.
func checks(args []string) bool {
	for _, arg := range args {
		value, given := strings.CutPrefix(arg, "--check")
		switch {
		case arg == "--":
			return false
		case !given, value != "" && value[0] != '=':
		case !slices.Contains([]string{"=false", "=no", "=0"}, strings.ToLower(value)):
			return true
		}
	}
	return false
}

// plainly returns the text of err, in better words where the parser's are
// written for its author.
func plainly(err error) string {
	text := err.Error()
	flag, rest, _ := strings.Cut(strings.TrimPrefix(text, "flag "), " ")
	switch {
	case strings.HasPrefix(rest, "expected ") && strings.Contains(rest, " value but got "),
		strings.HasPrefix(rest, "missing value"):
		return strings.TrimSuffix(flag, ":") + " needs a value"
	case strings.HasPrefix(rest, "applies to the default command"):
		return fmt.Sprintf("%s has to come after %s", flag, text[strings.LastIndexByte(text, ' ')+1:])
	case strings.HasPrefix(text, `expected "`+shellArgument):
		return "name a shell: bash, zsh or fish"
	case flag == shellArgument:
		return "the shell " + rest
	case strings.HasPrefix(text, "unexpected argument "):
		return text + instead(err)
	}
	text, _, _ = strings.Cut(text, `, did you mean one of "-`)
	return text
}

// instead says what can stand in the place of an argument that err calls unexpected.
func instead(err error) string {
	parse, ok := errors.AsType[*kong.ParseError](err)
	if !ok {
		return ""
	}
	if called(parse.Context) != parse.Context.Model.Name {
		return ": only flags are expected here"
	}
	return ": the command can be " + either(commandNames(parse.Context.Model.Node))
}

// execute also returns how the command is called, as far as that was understood.
func execute(e *env, args []string) (command string, err error) {
	const program = "tcptrace"
	done := false // by --help or --version
	printed := &failure{Writer: e.stdout}
	parser, err := newParser(e, func(int) { done = true }, kong.Writers(printed, e.stderr))
	if err != nil {
		return program, err
	}
	parsed, err := parser.Parse(args)
	if done || printed.err != nil {
		return program, printed.err
	}
	var bad *kong.ParseError
	if errors.As(err, &bad) {
		return called(bad.Context), err
	} else if err != nil {
		return program, err
	}
	return called(parsed), parsed.Run(e)
}

// failure keeps the first error of a writer: the parser drops that of --version, and takes
// that of --help for a mistake of the user.
type failure struct {
	io.Writer
	err error
}

func (f *failure) Write(p []byte) (n int, err error) {
	n, err = f.Writer.Write(p)
	f.err = cmp.Or(f.err, err)
	return n, err
}

// called is how the selected command is called.
func called(c *kong.Context) string {
	if command := c.Selected(); command != nil && command != c.Model.DefaultCmd {
		return c.Model.Name + " " + command.Name
	}
	return c.Model.Name
}

// newParser never fails but for a mistake in the tags of cli.
func newParser(e *env, exit func(int), more ...kong.Option) (*kong.Kong, error) {
	return kong.New(&cli{}, append([]kong.Option{
		kong.Name("tcptrace"),
		kong.Description("Show every TCP state change of this host, live: how long each state lasted, " +
			"which process owns the socket, and why the state ended."),
		kong.Vars{
			"version":       "tcptrace " + version(),
			"formats":       either(new(format).Words()),
			"streamFormats": either(new(streamFormat).Words()),
			"format":        formats[0].name,
			"pictured":      strconv.Itoa(output.MaxPictured),
			"olderThan":     leak.DefaultOlderThan.String(),
		},
		kong.Writers(e.stdout, e.stderr),
		kong.Exit(exit),
		kong.KindMapper(reflect.String, kong.MapperFunc(rawString)),
		kong.Help(printHelp),
	}, more...)...)
}

// version is what the Go toolchain recorded: the module's version, or one made
// from the commit when built in a clone.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown version)"
	}
	return info.Main.Version
}

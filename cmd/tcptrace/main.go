// Command tcptrace shows every TCP state change of this host: how long each
// state lasted, which process owns the socket and why the state ended.
//
// This package only wires: it parses the command line, opens a source, moves
// events from it to a writer, and says on stderr what went wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/tcptrace/tcptrace/internal/probe"
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
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(&env{context.Background(), os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// env is what a command knows of the world outside.
type env struct {
	ctx            context.Context // its end ends a live trace in order
	stdin          io.Reader
	stdout, stderr io.Writer
}

// warnSkipped says what a walk over the sockets had to leave out, which is not an error.
func (e *env) warnSkipped(err error) error {
	if skipped, ok := errors.AsType[*probe.SkippedError](err); ok {
		fmt.Fprintf(e.stderr, "tcptrace: %v\n", skipped)
		return nil
	}
	return err
}

// cli is the command line. It is the only list of flags: parser, help and
// completion are made from it.
type cli struct {
	Trace      traceCmd      `cmd:"" default:"withargs" hidden:"" help:"Show every TCP state change."`
	Sockets    socketsCmd    `cmd:"" help:"Print a table of all sockets, once."`
	Leaks      leaksCmd      `cmd:"" help:"Find who leaks sockets, why, and where in the code."`
	Doctor     doctorCmd     `cmd:"" help:"Tell what this kernel lets us see, and what it does not."`
	Completion completionCmd `cmd:"" help:"Print the completion script for a shell."`
	Man        manCmd        `cmd:"" help:"Print the manual page: tcptrace man | man -l -"`

	Version kong.VersionFlag `short:"V" help:"Print the version."`
}

// usageError is a mistake in the command line that the parser cannot see.
type usageError struct{ error }

// run does what args ask for and returns the exit status.
func run(e *env, args []string) int {
	err := execute(e, args)
	var parse *kong.ParseError
	var usage usageError
	var found leaksFound
	switch {
	case errors.As(err, &found):
		return exitFound
	case err == nil, errors.Is(err, syscall.EPIPE): // nobody reads on: we are done
		return 0
	case errors.As(err, &parse), errors.As(err, &usage):
		fmt.Fprintf(e.stderr, "tcptrace: %s\nTry 'tcptrace --help'.\n", plainly(err))
		if slices.Contains(args, "--check") {
			return exitFailure // 2 would say that a leak was found
		}
		return exitUsage
	default:
		fmt.Fprintf(e.stderr, "tcptrace: %s\n", withAdvice(err))
		return exitFailure
	}
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
	}
	text, _, _ = strings.Cut(text, `, did you mean one of "-`)
	return text
}

func execute(e *env, args []string) error {
	done := false // by --help or --version
	parser, err := newParser(e, func(int) { done = true })
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if done {
		return nil
	}
	if err != nil {
		return err
	}
	return command.Run(e)
}

// newParser never fails but for a mistake in the tags of cli.
func newParser(e *env, exit func(int)) (*kong.Kong, error) {
	return kong.New(&cli{},
		kong.Name("tcptrace"),
		kong.Description("Show every TCP state change of this host, live: how long each state lasted, "+
			"which process owns the socket, and why the state ended."),
		kong.Vars{"version": "tcptrace " + version()},
		kong.Writers(e.stdout, e.stderr),
		kong.Exit(exit),
		kong.Help(printHelp),
	)
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

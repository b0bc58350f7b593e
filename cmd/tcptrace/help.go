package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

const (
	helpWidth  = 80
	helpIndent = 27 // where the words about a flag begin
)

const traceExamples = `
Examples:
  sudo tcptrace                          every state change of every socket
  sudo tcptrace -L 443 -T                one service, with the time of day
  sudo tcptrace --comm curl -n 20        the first 20 transitions of curl
  sudo tcptrace --state syn-sent --min-duration 1s
                                         connections that are slow to open
  sudo tcptrace -j | jq -c 'select(.new_state=="CLOSE_WAIT")'
  sudo tcptrace -j > trace.json          record now ...
  tcptrace -r trace.json -D 5432         ... and look later, without root
  sudo tcptrace stats --record tcp.zst   a recording beside what is shown

Run 'tcptrace COMMAND --help' for the flags of a command, and
'tcptrace man | man -l -' for the manual: fields, reasons, overhead, caveats.
`

const socketsExamples = `
Examples:
  sudo tcptrace sockets                        all sockets, with owner and age
  sudo tcptrace sockets --state close-wait     who forgot to close, and when
  sudo tcptrace sockets --by unit --watch 2s   how many each unit has, live
  sudo tcptrace sockets -L 443 -x              who holds them, command lines
  sudo tcptrace sockets -j | jq -r .raddr | sort | uniq -c
`

const connectionsExamples = `
Examples:
  sudo tcptrace connections                    each connection when it is over
  sudo tcptrace connections -D 5432 --open     also those that stay open
  sudo tcptrace connections -j | jq 'select(.outcome=="reset")'
  tcptrace connections -r trace.json -s        of a recording, for a spreadsheet
`

const statsExamples = `
Examples:
  sudo tcptrace stats                          a live screen
  sudo tcptrace stats --by unit -d 1m          who opens and resets
  sudo tcptrace stats -D 5432 -d 1m            how long in each state
  sudo tcptrace stats --diagram                the state diagram, live
  tcptrace stats -r trace.json -j | jq '.states[].exact.p99_ms'
`

const topExamples = `
Examples:
  sudo tcptrace top                            what processes do, live
  sudo tcptrace top --by container -P 443      one service, by container
  tcptrace top -r trace.json                   play a recording, + is faster

The key ? shows all keys and columns.
`

const timelineExamples = `
Examples:
  sudo tcptrace timeline --comm curl           each connection of curl
  sudo tcptrace timeline -D 5432 -n 1          one connection, then stop
  sudo tcptrace timeline -n 1 --svg one.svg    ... and draw it
  tcptrace timeline -r trace.json --cookie 2001
  tcptrace timeline -r client.json -r server.json -P 443
                                               both ends, of two hosts
`

const leaksExamples = `
A group leaks when its oldest socket is three times --older-than old, or when it
grows, unless its sockets are seen to be closed; the manual explains the rule.

Examples:
  sudo tcptrace leaks                          watch CLOSE_WAIT
  sudo tcptrace leaks --once -d 1m             one report, with growth
  sudo tcptrace leaks --check -d 30s -p $PID || echo it leaks
  sudo tcptrace leaks --kill --dry-run -p $PID what would be closed
  sudo tcptrace leaks --state time-wait        who eats the local ports
`

const serveExamples = `
Paths: /metrics, /healthz, /readyz, /api/v1/stats, leaks, sockets and
timeline/COOKIE, /events and /events?type=transition.

Examples:
  sudo tcptrace serve                          on 127.0.0.1:9293
  sudo tcptrace serve --listen :9293 --web-config web.yml
                                               for others, with TLS
  curl -s localhost:9293/metrics
  curl -s localhost:9293/api/v1/leaks | jq .diagnosis
  curl -sN localhost:9293/events               each connection that ends
`

// printHelp lays out help by hand, because the flags of the command without a name
// belong on the first page.
func printHelp(_ kong.HelpOptions, ctx *kong.Context) error {
	var b strings.Builder
	node, examples := ctx.Selected(), ""
	switch {
	case node == nil:
		node, examples = ctx.Model.DefaultCmd, traceExamples
		b.WriteString("Usage: tcptrace [FLAGS]\n       tcptrace COMMAND [FLAGS]\n\n")
		writeWrapped(&b, 0, ctx.Model.Help)
		b.WriteString("\nCommands:\n")
		for _, command := range ctx.Model.Leaves(true) {
			writeEntry(&b, "  "+command.Name, command.Help)
		}
	default:
		fmt.Fprintf(&b, "Usage: %s\n\n", strings.Replace(ctx.Model.Name+" "+node.Summary(), "[flags]", "[FLAGS]", 1))
		writeWrapped(&b, 0, node.Help)
		examples = map[string]string{
			"sockets": socketsExamples, "connections": connectionsExamples, "stats": statsExamples,
			"top": topExamples, "timeline": timelineExamples, "leaks": leaksExamples, "serve": serveExamples,
		}[node.Name]
	}
	writeFlags(&b, node)
	b.WriteString(examples)
	_, err := fmt.Fprint(ctx.Stdout, b.String())
	return err
}

// writeFlags writes the node's flags under the titles of their groups.
func writeFlags(b *strings.Builder, node *kong.Node) {
	title := ""
	for _, flag := range node.Flags {
		if flag.Hidden {
			continue
		}
		if flag.Group != nil && flag.Group.Title != title {
			title = flag.Group.Title
			fmt.Fprintf(b, "\n%s:\n", title)
		}
		writeEntry(b, flagTerm(flag), flag.Help)
	}
	if title == "" {
		b.WriteString("\nFlags:\n")
	} else {
		b.WriteString("\nOther:\n")
	}
	writeEntry(b, "  -h, --help", "Print this help.")
	if node.Parent.DefaultCmd == node {
		writeEntry(b, "  -V, --version", "Print the version.")
	}
}

// flagTerm is a flag as in "  -L, --lport PORT,...".
func flagTerm(flag *kong.Flag) string {
	term := "      "
	if flag.Short != 0 {
		term = fmt.Sprintf("  -%c, ", flag.Short)
	}
	name := flag.Name
	if flag.Tag.Negatable != "" {
		name = "[no-]" + name
	}
	term += "--" + name
	if flag.PlaceHolder != "" {
		term += " " + flag.PlaceHolder
	}
	return term
}

// writeEntry writes a term and, in the second column, the words about it.
func writeEntry(b *strings.Builder, term, words string) {
	fmt.Fprintf(b, "%-*s", helpIndent-1, term)
	if len(term) >= helpIndent {
		fmt.Fprintf(b, "\n%*s", helpIndent-1, "")
	}
	b.WriteByte(' ')
	writeWrapped(b, helpIndent, words)
}

// writeWrapped writes text that begins at column indent, broken at helpWidth.
func writeWrapped(b *strings.Builder, indent int, text string) {
	column := indent
	for i, word := range strings.Fields(text) {
		if i > 0 && column+1+len(word) > helpWidth {
			fmt.Fprintf(b, "\n%*s", indent, "")
			column = indent
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}

package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tcptrace/tcptrace/internal/confine"
)

// completionCmd prints a script made from the command line's own description,
// so that it can never lag behind.
type completionCmd struct {
	Shell string `arg:"" name:"bash|zsh|fish" enum:"bash,zsh,fish"`
}

// shellArgument is what the parser calls the argument in its messages.
const shellArgument = "<bash|zsh|fish>"

// Run prints the script for the shell.
func (c *completionCmd) Run(e *env) error {
	if _, err := confine.Process(confine.Needs{}); err != nil {
		return err
	}
	parser, err := newParser(e, func(int) {})
	if err != nil {
		return err
	}
	var b strings.Builder
	map[string]func(io.Writer, *kong.Node){"bash": bash, "zsh": zsh, "fish": fish}[c.Shell](&b, parser.Model.Node)
	_, err = io.WriteString(e.stdout, b.String())
	return err
}

// valuesOf returns the words that a flag takes, or whether it takes a file. The flag
// itself knows: by its enum tag, by the method Words of its type, by its placeholder.
func valuesOf(flag *kong.Flag) (words string, file bool) {
	if flag.Enum != "" {
		return strings.Join(flag.EnumSlice(), " "), false
	}
	value := flag.Target
	if value.Kind() == reflect.Pointer { // a flag that may be absent
		value = reflect.New(value.Type().Elem()).Elem()
	}
	if typed, ok := value.Addr().Interface().(interface{ Words() []string }); ok {
		return strings.Join(typed.Words(), " "), false
	}
	return "", flag.PlaceHolder == "FILE"
}

// spellings returns every way to write a flag: -o --output.
func spellings(flag *kong.Flag) []string {
	all := []string{"--" + flag.Name}
	if flag.Short != 0 {
		all = append([]string{"-" + string(flag.Short)}, all...)
	}
	if flag.Tag.Negatable != "" {
		all = append(all, "--no-"+flag.Name)
	}
	return all
}

// wordsOf returns every word that may follow a command: flags and arguments.
func wordsOf(node *kong.Node) string {
	words := []string{"-h", "--help"}
	for _, flag := range node.Flags {
		words = append(words, spellings(flag)...)
	}
	return strings.Join(append(words, arguments(node)...), " ")
}

// arguments returns the words that a command takes beside flags.
func arguments(node *kong.Node) (words []string) {
	for _, argument := range node.Positional {
		words = append(words, argument.EnumSlice()...)
	}
	return words
}

// commandNames returns the commands that have a name to type.
func commandNames(root *kong.Node) (names []string) {
	for _, command := range root.Leaves(true) {
		names = append(names, command.Name)
	}
	return names
}

func bash(w io.Writer, root *kong.Node) {
	names := strings.Join(commandNames(root), "|")
	fmt.Fprintf(w, `# bash completion for tcptrace: source <(tcptrace completion bash)
_tcptrace() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word words
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $word in %s) command=$word ;; esac
	done
	case $command:$prev in
`, names)
	bashValues(w, "", root.DefaultCmd)
	for _, command := range root.Leaves(true) {
		bashValues(w, command.Name, command)
	}
	fmt.Fprint(w, "\tesac\n\tcase $command in\n")
	for _, command := range root.Leaves(true) {
		fmt.Fprintf(w, "\t%s) words='%s' ;;\n", command.Name, wordsOf(command))
	}
	fmt.Fprintf(w, "\t*) words='%s -V --version %s' ;;\n\tesac\n", strings.ReplaceAll(names, "|", " "), wordsOf(root.DefaultCmd))
	fmt.Fprint(w, "\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F _tcptrace tcptrace\n")
}

// bashValues writes what may follow a flag of a command.
func bashValues(w io.Writer, command string, node *kong.Node) {
	for _, flag := range node.Flags {
		if flag.IsBool() {
			continue
		}
		words, file := valuesOf(flag)
		reply := fmt.Sprintf("compgen -W '%s'", words)
		if file {
			reply = "compgen -f"
		}
		fmt.Fprintf(w, "\t%s:%s) COMPREPLY=($(%s -- \"$cur\")); return ;;\n",
			command, strings.Join(spellings(flag), "|"+command+":"), reply)
	}
}

func zsh(w io.Writer, root *kong.Node) {
	fmt.Fprint(w, "#compdef tcptrace\n# zsh completion for tcptrace: source <(tcptrace completion zsh)\n"+
		"_tcptrace() {\n\tcase $words[2] in\n")
	for _, command := range root.Leaves(true) {
		fmt.Fprintf(w, "\t%s) _arguments -s '1:command:(%[1]s)'", command.Name)
		if words := arguments(command); words != nil {
			fmt.Fprintf(w, " '2:argument:(%s)'", strings.Join(words, " "))
		}
		fmt.Fprintf(w, "%s ;;\n", zshFlags(command))
	}
	fmt.Fprintf(w, "\t*) _arguments -s '1:command:(%s)' -V'[Print the version.]' --version'[Print the version.]'%s ;;\n",
		strings.Join(commandNames(root), " "), zshFlags(root.DefaultCmd))
	fmt.Fprint(w, "\tesac\n}\ncompdef _tcptrace tcptrace\n")
}

// zshFlags returns the flags of a command as arguments of zsh's _arguments.
func zshFlags(node *kong.Node) string {
	quote := strings.NewReplacer("'", `'\''`, "[", `\[`, "]", `\]`, ":", `\:`)
	var b strings.Builder
	for _, flag := range node.Flags {
		value := ""
		if words, file := valuesOf(flag); file {
			value = ":file:_files"
		} else if !flag.IsBool() {
			value = ":value:(" + words + ")"
		}
		for _, name := range spellings(flag) {
			fmt.Fprintf(&b, " \\\n\t\t'*%s[%s]%s'", name, quote.Replace(flag.Help), value)
		}
	}
	return b.String()
}

func fish(w io.Writer, root *kong.Node) {
	fmt.Fprint(w, "# fish completion for tcptrace: tcptrace completion fish | source\ncomplete -c tcptrace -f\n")
	fishFlags(w, "not __fish_seen_subcommand_from "+strings.Join(commandNames(root), " "), root.DefaultCmd)
	for _, command := range root.Leaves(true) {
		fmt.Fprintf(w, "complete -c tcptrace -n __fish_use_subcommand -a %s -d '%s'\n", command.Name, command.Help)
		seen := "__fish_seen_subcommand_from " + command.Name
		if words := arguments(command); words != nil {
			fmt.Fprintf(w, "complete -c tcptrace -n '%s' -a '%s'\n", seen, strings.Join(words, " "))
		}
		fishFlags(w, seen, command)
	}
}

// fishFlags writes the flags of a command, offered when condition holds.
func fishFlags(w io.Writer, condition string, node *kong.Node) {
	for _, flag := range node.Flags {
		fmt.Fprintf(w, "complete -c tcptrace -n '%s'", condition)
		for _, name := range spellings(flag) {
			if short := strings.TrimPrefix(name, "-"); len(short) == 1 {
				fmt.Fprintf(w, " -s %s", short)
			} else {
				fmt.Fprintf(w, " -l %s", short[1:])
			}
		}
		if words, file := valuesOf(flag); file {
			fmt.Fprint(w, " -r -F")
		} else if !flag.IsBool() {
			fmt.Fprintf(w, " -x -a '%s'", words)
		}
		fmt.Fprintf(w, " -d '%s'\n", strings.ReplaceAll(flag.Help, "'", `\'`))
	}
}

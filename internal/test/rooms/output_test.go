package rooms

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unescaped are the functions of cmd/tcptrace that may take the file behind stdout: to hand
// it to writers of events, which escape what they write, or to the screen; or to watch it.
var unescaped = []string{
	"traceCmd.Run", "connectionsCmd.Run", "tracingFlags.show", "socketsCmd.Run", "socketsCmd.once",
	"socketsCmd.watch", "leaksCmd.runConfig", "statsCmd.Run", "statsCmd.count", "statsShow.print",
	"openScreen", "timelineCmd.pair",
	"topCmd.Run", "topRun.open", "topRun.options", "topRun.print", "openTopScreen",
	"leaksRun.hasScreen", "leaksRun.openView",
}

// Text from outside gets out through a terminal.Writer, and so a terminal acts on none of
// it: main alone names stdout and stderr, and wraps them.
func TestOutputIsEscaped(t *testing.T) {
	checked := 0
	for _, file := range sources(t) {
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		checked++
		for _, way := range waysOut(parsed) {
			if way.what == "os.Stdout" || way.what == "os.Stderr" {
				if strings.HasSuffix(file, "cmd/tcptrace/main.go") && way.in == "main" {
					continue
				}
			}
			if way.what == "File" && slices.Contains(unescaped, way.in) {
				continue
			}
			if strings.HasPrefix(way.what, "log") && strings.HasSuffix(file, "internal/serve/log.go") {
				continue // it makes of what libraries log a line for env.say
			}
			t.Errorf("%s: %s in %s: text goes through the writers of env, in main.go", fset.Position(way.at), way.what, way.in)
		}
	}
	if checked < 50 {
		t.Errorf("%d files were looked at: where are the others?", checked)
	}
}

// The rule catches what it is for.
func TestWaysOut(t *testing.T) {
	const source = `package p
import "log"
func (c *cmd) f() {
	fmt.Println("a")
	println("b")
	os.Stderr.WriteString("c")
	write(c.env.stdout.File())
	fmt.Fprintln(w, "fine")
}`
	parsed, err := parser.ParseFile(token.NewFileSet(), "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, way := range waysOut(parsed) {
		got = append(got, way.in+": "+way.what)
	}
	want := []string{": log", "cmd.f: fmt.Println", "cmd.f: println", "cmd.f: os.Stderr", "cmd.f: File"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// sources are the Go files of the program, without tests and generated files.
func sources(t *testing.T) (files []string) {
	t.Helper()
	for _, root := range []string{"../../../cmd", "../../../internal"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || strings.HasSuffix(path, "internal/test")):
				return filepath.SkipDir
			case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, "_bpfel.go"):
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// wayOut is something by which text can leave the program.
type wayOut struct {
	what, in string // in a function: f, or type.f
	at       token.Pos
}

func waysOut(file *ast.File) (ways []wayOut) {
	for _, spec := range file.Imports {
		if path := strings.Trim(spec.Path.Value, `"`); path == "log" || path == "log/slog" {
			ways = append(ways, wayOut{path, "", spec.Pos()})
		}
	}
	for _, decl := range file.Decls {
		name := nameOf(decl)
		ast.Inspect(decl, func(n ast.Node) bool {
			if what := wayOutAt(n); what != "" {
				ways = append(ways, wayOut{what, name, n.Pos()})
			}
			return true
		})
	}
	return ways
}

func wayOutAt(n ast.Node) string {
	switch n := n.(type) {
	case *ast.CallExpr:
		if called, ok := n.Fun.(*ast.Ident); ok && (called.Name == "print" || called.Name == "println") {
			return called.Name
		}
	case *ast.SelectorExpr:
		if of, ok := n.X.(*ast.Ident); ok {
			name := of.Name + "." + n.Sel.Name
			if slices.Contains([]string{"os.Stdout", "os.Stderr", "fmt.Print", "fmt.Printf", "fmt.Println"}, name) {
				return name
			}
		}
		of, ok := n.X.(*ast.SelectorExpr)
		if ok && n.Sel.Name == "File" && (of.Sel.Name == "stdout" || of.Sel.Name == "stderr") {
			return n.Sel.Name
		}
	}
	return ""
}

// nameOf is "f", or "type.f" for a method, and "" for what is no function.
func nameOf(decl ast.Decl) string {
	f, ok := decl.(*ast.FuncDecl)
	if !ok {
		return ""
	}
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	if pointer, ok := of.(*ast.StarExpr); ok {
		of = pointer.X
	}
	if ident, ok := of.(*ast.Ident); ok {
		return ident.Name + "." + f.Name.Name
	}
	return f.Name.Name
}

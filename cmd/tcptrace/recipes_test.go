package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// asRecorded lets a live recipe read trace.json instead of the kernel.
const asRecorded = `set -euo pipefail
sudo() { "$@" -r trace.json; }
`

// withRecipes gives a script the recipes of the manual: the commands of "One container", say,
// are recipes/one-container.sh, and those of a second block below that heading
// recipes/one-container-2.sh.
func withRecipes(env *testscript.Env) error {
	folder := filepath.Join(env.WorkDir, "recipes")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	for name, commands := range recipes() {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(asRecorded+commands), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// recipes are the blocks of the manual's section of that name, which it prints as they stand.
func recipes() map[string]string {
	_, section, _ := strings.Cut(manPage, ".Sh RECIPES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	all := map[string]string{}
	for _, part := range strings.Split(section, ".Ss ")[1:] {
		title, text, _ := strings.Cut(part, "\n")
		title = strings.ToLower(strings.ReplaceAll(title, " ", "-"))
		for i, block := range strings.Split(text, ".Bd -literal -offset indent\n")[1:] {
			name := title
			if i > 0 {
				name += fmt.Sprint("-", i+1)
			}
			commands, _, _ := strings.Cut(block, ".Ed\n")
			all[name+".sh"] = commands
		}
	}
	return all
}

// Every recipe is run by the script, and is text that roff prints as it stands.
func TestRecipesAreRun(t *testing.T) {
	script, err := os.ReadFile("testdata/recipes.txtar")
	if err != nil {
		t.Fatal(err)
	}
	all := recipes()
	if len(all) < 6 {
		t.Errorf("the manual has %d recipes", len(all))
	}
	for name, commands := range all {
		if !strings.Contains(string(script), "exec bash recipes/"+name+"\n") {
			t.Errorf("no test runs %s:\n%s", name, commands)
		}
		for line := range strings.Lines(commands) {
			if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") || strings.Contains(line, `\`) {
				t.Errorf("%s: roff does not print this line as it stands: %s", name, line)
			}
		}
	}
}

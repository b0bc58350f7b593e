package main

import (
	_ "embed"
	"io"

	"github.com/tcptrace/tcptrace/internal/confine"
)

//go:embed tcptrace.1
var manPage string

type manCmd struct{}

// Run prints the manual page in its source form, for man -l or for a file
// under /usr/share/man/man1.
func (*manCmd) Run(e *env) error {
	if _, err := confine.Process(confine.Needs{}); err != nil {
		return err
	}
	_, err := io.WriteString(e.stdout, manPage)
	return err
}

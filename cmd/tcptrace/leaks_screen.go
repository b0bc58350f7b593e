package main

import (
	"strings"

	"github.com/tcptrace/tcptrace/internal/leak"
	"github.com/tcptrace/tcptrace/internal/output"
)

// screenGroups is how many groups a screen is made of: more than it has room for.
const screenGroups = 64

// showLeaks draws a report on a screen.
func showLeaks(screen *liveScreen) func(*leak.Report) error {
	return func(r *leak.Report) error {
		var b strings.Builder
		if err := output.NewReportColumns(&b, output.ReportOptions{Top: screenGroups}).Write(r); err != nil {
			return err
		}
		return screen.show(strings.Replace(b.String(), "\n", "\n\n", 1))
	}
}

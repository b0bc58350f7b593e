package main

import (
	"testing"

	"github.com/tcptrace/tcptrace/internal/leak"
)

// What was not watched for long enough to be judged is neither a finding nor cleared.
func TestTooEarlyToCheck(t *testing.T) {
	many := 100
	for name, c := range map[string]struct {
		report leak.Report
		limits leak.Limits
		want   bool
	}{
		"one look, undecided":                   {leak.Report{Undecided: 1}, leak.Limits{}, true},
		"a short watch":                         {leak.Report{Undecided: 2, Watched: 9e9}, leak.Limits{}, true},
		"nothing is undecided":                  {leak.Report{}, leak.Limits{}, false},
		"it came up during a watch long enough": {leak.Report{Undecided: 1, Watched: 30e9}, leak.Limits{}, false},
		"a limit does not ask for a verdict":    {leak.Report{Undecided: 1}, leak.Limits{Count: &many}, false},
	} {
		run := leaksRun{last: &c.report}
		if err := run.tooEarly(c.limits); (err != nil) != c.want {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// That nobody reads what is printed is no failure, but that there is no picture is one.
func TestWithPicture(t *testing.T) {
	gone, other, full := fmt.Errorf("print: %w", syscall.EPIPE), errors.New("corrupt"), pictureError(syscall.ENOSPC)
	for _, c := range []struct {
		printed, picture error
		want             string
	}{
		{nil, nil, ""}, {gone, nil, "print: broken pipe"}, {other, nil, "corrupt"},
		{nil, full, "cannot write the picture: no space left on device"},
		{gone, full, "cannot write the picture: no space left on device"},
		{other, full, "corrupt\ncannot write the picture: no space left on device"},
	} {
		got := ""
		if err := withPicture(c.printed, c.picture); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v and %v: got %q, want %q", c.printed, c.picture, got, c.want)
		}
		if c.picture != nil && strings.Contains(got, "broken pipe") {
			t.Errorf("%q would pass for a success", got)
		}
	}
}

package procfs

import (
	"bufio"
	"io"
	"iter"
)

// maxLine is how much of a line is looked at.
const maxLine = 64 << 10

// Lines yields the lines of a file. One that is longer than any that matters is cut, and
// hides none of those after it: who mounts an overlay of 500 layers writes megabytes into
// mountinfo. An error ends the file.
func Lines(r io.Reader) iter.Seq[string] {
	return func(yield func(string) bool) {
		lines := bufio.NewReaderSize(r, maxLine)
		for {
			line, more, err := lines.ReadLine()
			if err != nil {
				return
			}
			text := string(line)
			for more && err == nil {
				_, more, err = lines.ReadLine()
			}
			if !yield(text) {
				return
			}
		}
	}
}

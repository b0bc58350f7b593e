package output

import "strings"

// Wrap breaks the lines of a report that are sentences at the width: the title, and what is
// indented. Those of the table are left alone.
func Wrap(text string, width int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		indent, isSentence := "", b.Len() == 0
		if strings.HasPrefix(line, Indent) {
			indent, isSentence = Indent, true
		}
		for isSentence && len(line) > width+1 {
			at := strings.LastIndexByte(line[:width+1], ' ')
			if at <= len(indent) {
				break
			}
			b.WriteString(line[:at] + "\n")
			line = indent + line[at+1:]
		}
		b.WriteString(line)
	}
	return b.String()
}

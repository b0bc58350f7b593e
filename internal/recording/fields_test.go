package recording

import (
	"reflect"
	"slices"
	"testing"

	"github.com/tcptrace/tcptrace/internal/output"
)

// What is written is read, and nothing else is expected.
func TestReadsEveryField(t *testing.T) {
	var read []string
	for field := range reflect.TypeFor[record]().Fields() {
		read = append(read, field.Tag.Get("json"))
	}
	written := output.Fields()
	slices.Sort(read)
	slices.Sort(written)
	if !slices.Equal(read, written) {
		t.Errorf("the reader knows %v\nthe writer %v", read, written)
	}
}

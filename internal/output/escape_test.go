package output

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/terminal"
)

func TestTextInJSON(t *testing.T) {
	got, err := json.Marshal(struct{ S Text }{"a\x1b\u009b\"<"})
	if want := `{"S":"a\u001b\u009b\"\u003c"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

// A string is written as encoding/json writes it, but for what it leaves raw and
// a terminal would act on.
func FuzzJSONString(f *testing.F) {
	f.Add("plain")
	f.Add("\x00\x1f\"\\/<>&\xff\u2028日本🦀")
	f.Fuzz(func(t *testing.T, s string) {
		got := string(append(appendJSON([]byte{'"'}, s), '"'))
		var value string
		if err := json.Unmarshal([]byte(got), &value); err != nil || value != string([]rune(s)) {
			t.Errorf("%q is written as %s: %v", s, got, err)
		}
		raw := func(r rune) bool { return r == 0x7f || r == 0xfffd || r > 0x7f && terminal.ActsOn(r) }
		if strings.ContainsFunc(got, raw) {
			t.Errorf("%q is not harmless", got)
		}
		if strings.ContainsFunc(strings.ToValidUTF8(s, ""), raw) {
			return
		}
		var want bytes.Buffer
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(s); err != nil {
			t.Fatal(err)
		}
		compare(t, got+"\n", want.String())
	})
}

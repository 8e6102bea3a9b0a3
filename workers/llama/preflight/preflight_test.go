package preflight

import (
	"bytes"
	"strings"
	"testing"
)

func TestNamesWhatIsMissing(t *testing.T) {
	if !Passed {
		t.Fatal("the check did not run")
	}
	var out bytes.Buffer
	code := 0
	if check("libffi-that-is-not-there.so.8", &out, func(c int) { code = c }) {
		t.Skip("libffi is carried by the program on this system")
	}
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{"libffi-that-is-not-there.so.8", "apt install libffi8", "\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the message %q lacks %q", out.String(), want)
		}
	}
}

package llama

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestTaken: what other programs did meanwhile is not taken for the model's.
func TestTaken(t *testing.T) {
	raw, err := os.ReadFile("../../vendors/builtin/models/stories260k.gguf")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	const gib = contract.GiB
	for _, c := range []struct{ before, after, want contract.Bytes }{
		{10 * gib, 9 * gib, gib}, {10 * gib, 10 * gib, 0}, {9 * gib, 10 * gib, 0}, {0, 0, 0}, {30 * gib, 10 * gib, 0},
	} {
		if got := taken(c.before, c.after, path); got != c.want {
			t.Errorf("%s free before and %s after: %s", c.before, c.after, got)
		}
	}
	if got := taken(10*gib, 9*gib, path+".gone"); got != 0 {
		t.Errorf("of a model that is not there: %s", got)
	}
}

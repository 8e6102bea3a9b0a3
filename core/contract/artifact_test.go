package contract

import "testing"

func TestIsReference(t *testing.T) {
	for name, want := range map[string]bool{
		"hf:org/repo": true, "builtin:x": true, "file:/a/b": true, "org/repo": true, "org/repo:Q8_0": true,
		"": false, "name": false, "a/b/c": false, "/repo": false, "org/": false, "/": false,
	} {
		if got := IsReference(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

package cli

import (
	"slices"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestProtections: what is the same everywhere is said once, and what differs with the names of the hives.
func TestProtections(t *testing.T) {
	names := map[string]string{"a": "attic", "b": "cellar", "c": "old"}
	locked := &contract.Protection{NoNewPrivs: true, Landlock: 7}
	bare := &contract.Protection{NoNewPrivs: true, Reason: "This kernel has no Landlock."}
	with := "no new privileges, no core dumps, and files and ports by Landlock (version 7)"
	hive := func(id string, p *contract.Protection) contract.HiveView {
		return contract.HiveView{HiveBeat: contract.HiveBeat{ID: id}, Protection: p}
	}
	for name, c := range map[string]struct {
		hives []contract.HiveView
		want  []string
	}{
		"not known": {[]contract.HiveView{hive("a", nil)}, []string{}},
		"same":      {[]contract.HiveView{hive("a", locked), hive("b", locked)}, []string{"workers and plugins are held to: " + with}},
		"different": {[]contract.HiveView{hive("a", locked), hive("b", locked), hive("c", bare)}, []string{
			"workers and plugins of attic, cellar are held to: " + with,
			"workers and plugins of old are held to: no new privileges, no core dumps. This kernel has no Landlock.",
		}},
	} {
		if got := protections(c.hives, names); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

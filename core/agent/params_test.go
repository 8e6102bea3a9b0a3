package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestParametersOfAnEmptyFile: what the configuration says by default is what the deciders do by default, and it reaches them.
func TestParametersOfAnEmptyFile(t *testing.T) {
	home := t.TempDir()
	cfg, err := config.Load(config.Options{Embedded: []byte("queen {\n}\n"), Env: func(name string) (string, bool) {
		if name == "APIARY_HOME" {
			return home, true
		}
		return "", false
	}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(registry.DefaultParams(), registryParams(cfg)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(placement.DefaultParams(), placementParams(cfg)); d != "" {
		t.Error(d)
	}
	cfg.Queen.Detection.FlapHold, cfg.Queen.Detection.BrakeHives, cfg.Queen.Placement.ScaleUp = time.Hour, 9, time.Second
	if r, p := registryParams(cfg), placementParams(cfg); r.FlapHold != time.Hour || r.BrakeHives != 9 || p.ScaleUp != time.Second {
		t.Errorf("%+v %+v", r, p)
	}
}

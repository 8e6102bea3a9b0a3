package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/apiary-dev/apiary/core/contract"
)

// PlaceDevice is a device of a hive as the conditions of deployments see it. What is not known is empty or 0.
type PlaceDevice struct {
	ID     string // "cuda0"
	Kind   string // "cpu", "cuda", "vulkan", "metal", "rocm"
	Index  int    // 0 of "cuda0"
	Name   string // as the driver calls it
	Vendor string // "nvidia", "amd", "intel", "apple"
	Driver string
	Cores  int            // of a processor
	Memory contract.Bytes // in all
	Free   contract.Bytes

	HiveID   string // node id
	HiveName string // agent.name
	Labels   []string
	OS       string // "linux", "darwin"
	Arch     string // "amd64", "arm64"
}

func deviceKinds() []string { return []string{"cpu", "cuda", "vulkan", "metal", "rocm"} }

// NewPlaceDevice describes a device of the hive that has the node id of inv and is called hiveName.
func NewPlaceDevice(hiveName string, inv contract.Inventory, d contract.Device) PlaceDevice {
	index, _ := strconv.Atoi(strings.TrimLeft(d.ID, "abcdefghijklmnopqrstuvwxyz")) // 0 where there is none
	return PlaceDevice{ID: d.ID, Kind: d.Kind, Index: index, Name: d.Name, Vendor: maker(d), Driver: d.Driver, Cores: d.Cores,
		Memory: d.MemoryTotal, Free: d.MemoryFree, HiveID: inv.HiveID, HiveName: hiveName, Labels: inv.Labels, OS: inv.OS, Arch: inv.Arch}
}

// maker says who made a device, as far as its kind or name tells.
func maker(d contract.Device) string {
	switch d.Kind {
	case "cuda":
		return "nvidia"
	case "rocm":
		return "amd"
	case "metal":
		return "apple"
	}
	name := strings.ToLower(d.Name)
	for _, m := range [][2]string{{"nvidia", "nvidia"}, {"geforce", "nvidia"}, {"amd", "amd"}, {"radeon", "amd"}, {"intel", "intel"}, {"apple", "apple"}} {
		if strings.Contains(name, m[0]) {
			return m[1]
		}
	}
	return ""
}

// Judge is a deployment's opinion of devices, ready to be asked. It never changes and may be used from many goroutines. An answer
// depends on nothing but the device, and takes as long as the conditions are.
type Judge struct {
	pins            [][2]string // hive and device; no device: all of the hive's
	devices         []string
	worker          string
	require, prefer *rule
}

// rule is a condition that was checked.
type rule struct {
	*node
	at string // " (config.hcl:63)"; empty where it is not known
}

// NewJudge reads the conditions of a deployment. An error says what is wrong with one of them; a deployment of a Config has none.
func NewJudge(d contract.Deployment) (*Judge, error) {
	j := &Judge{devices: d.Devices, worker: d.Worker.Name}
	for _, p := range d.Pin {
		if err := checkPin(p); err != nil {
			return nil, err
		}
		hive, device, _ := strings.Cut(p, "/")
		j.pins = append(j.pins, [2]string{hive, device})
	}
	var err error
	if j.require, err = newRule("require", d.Place.Require); err == nil {
		j.prefer, err = newRule("prefer", d.Place.Prefer)
	}
	if err != nil {
		return nil, fmt.Errorf("deployment %s: %w", d.Name, err)
	}
	return j, nil
}

func newRule(option string, e *contract.Expression) (*rule, error) {
	if e == nil {
		return nil, nil
	}
	src := []byte(e.Text)
	if len(src) > maxExpression || tooDeep(src, option) {
		return nil, fmt.Errorf("the condition %s is too long or nested too deep", option)
	}
	expr, diags := hclsyntax.ParseExpression(src, option, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, fmt.Errorf("the condition %s cannot be read: %s", option, diags[0].Detail)
	}
	var wrong []error
	c := newCompiler(func(_ hcl.Range, format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) })
	n := c.condition(expr)
	if n == nil {
		return nil, fmt.Errorf("the condition %s is not one: %w", option, errors.Join(wrong...))
	}
	r := &rule{node: n}
	if e.At != "" {
		r.at = " (" + e.At + ")"
	}
	return r, nil
}

// Allows reports whether the deployment may run on a device, and if not, why, as in
//
//	excluded by require (config.hcl:63): device.kind is "cpu"
func (j *Judge) Allows(d PlaceDevice) (ok bool, reason string) {
	if len(j.pins) > 0 && !slices.ContainsFunc(j.pins, func(p [2]string) bool {
		return (p[0] == d.HiveName || p[0] == d.HiveID) && (p[1] == "" || p[1] == d.ID)
	}) {
		var places []string
		for _, p := range j.pins {
			places = append(places, strings.TrimSuffix(p[0]+"/"+p[1], "/"))
		}
		return false, "excluded by pin: it runs only on " + strings.Join(places, ", ")
	}
	if len(j.devices) > 0 && !slices.Contains(j.devices, d.ID) {
		return false, fmt.Sprintf("excluded by the worker %q, which runs only on %s", j.worker, strings.Join(j.devices, ", "))
	}
	if j.require != nil && !j.require.eval(&d).b {
		return false, "excluded by require" + j.require.at + j.require.because(&d)
	}
	return true, ""
}

// Prefers reports whether the deployment would rather run on this device than on others, and if so, why.
func (j *Judge) Prefers(d PlaceDevice) (ok bool, reason string) {
	if j.prefer == nil || !j.prefer.eval(&d).b {
		return false, ""
	}
	return true, "preferred" + j.prefer.at + j.prefer.because(&d)
}

// because names what the device has that decided, once each.
func (r *rule) because(d *PlaceDevice) string {
	var facts []string
	for _, f := range r.why(d) {
		if !slices.Contains(facts, f) {
			facts = append(facts, f)
		}
	}
	if len(facts) == 0 {
		return ""
	}
	return ": " + strings.Join(facts, ", ")
}

// checkPin wants HIVE or HIVE/DEVICE.
func checkPin(s string) error {
	hive, device, has := strings.Cut(s, "/")
	if !agentPattern.MatchString(hive) || has && !devicePattern.MatchString(device) {
		return fmt.Errorf("%q is no place to pin to; write the hive and perhaps its device, for example \"tower\" or \"tower/cuda0\"", s)
	}
	return nil
}

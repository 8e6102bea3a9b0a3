package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

// devices are the ones that the tests of conditions are about.
func testDevices() map[string]PlaceDevice {
	tower := contract.Inventory{HiveID: "0a1b", OS: "linux", Arch: "amd64", Labels: []string{"quiet", "office"}}
	return map[string]PlaceDevice{
		"tower/cuda0": NewPlaceDevice("tower", tower, contract.Device{ID: "cuda0", Kind: "cuda", Name: "NVIDIA GeForce RTX 4090", Driver: "550.1", MemoryTotal: 24 * contract.GiB, MemoryFree: 20 * contract.GiB}),
		"tower/cuda1": NewPlaceDevice("tower", tower, contract.Device{ID: "cuda1", Kind: "cuda", Name: "NVIDIA GTX 1060", MemoryTotal: 6 * contract.GiB, MemoryFree: 6 * contract.GiB}),
		"tower/cpu0":  NewPlaceDevice("tower", tower, contract.Device{ID: "cpu0", Kind: "cpu", Name: "AMD Ryzen", Cores: 16, MemoryTotal: 64 * contract.GiB}),
		"mac/metal0":  NewPlaceDevice("mac", contract.Inventory{HiveID: "2c", OS: "darwin", Arch: "arm64"}, contract.Device{ID: "metal0", Kind: "metal", Name: "Apple M3"}),
	}
}

func judge(t *testing.T, p contract.Deployment) *Judge {
	t.Helper()
	j, err := NewJudge(p)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// TestConditions: what a condition says of each device, and why.
func TestConditions(t *testing.T) {
	for _, c := range []struct{ text, allows, why string }{
		{`true`, "mac/metal0 tower/cpu0 tower/cuda0 tower/cuda1", ""},
		{`false`, "", `tower/cpu0: excluded by require (config.hcl:63)`},
		{`device.kind == "cuda"`, "tower/cuda0 tower/cuda1", `tower/cpu0: excluded by require (config.hcl:63): device.kind is "cpu"`},
		{`device.kind == "cuda" && device.memory >= gib(8)`, "tower/cuda0", `tower/cuda1: excluded by require (config.hcl:63): device.memory is 6.0 GiB`},
		{`device.memory >= gib(8) && hive.name == "tower"`, "tower/cpu0 tower/cuda0", `mac/metal0: excluded by require (config.hcl:63): device.memory is not known`},
		{`hive.name == "mac" || contains(hive.labels, "loud")`, "mac/metal0", `tower/cpu0: excluded by require (config.hcl:63): hive.name is "tower", hive.labels is ["quiet", "office"]`},
		{`!contains(hive.labels, "quiet")`, "mac/metal0", `tower/cpu0: excluded by require (config.hcl:63): hive.labels is ["quiet", "office"]`},
		{`contains(["nvidia", "apple"], device.vendor)`, "mac/metal0 tower/cuda0 tower/cuda1", `tower/cpu0: excluded by require (config.hcl:63): device.vendor is "amd"`},
		{`contains(lower(device.name), "rtx")`, "tower/cuda0", `tower/cuda1: excluded by require (config.hcl:63): device.name is "NVIDIA GTX 1060"`},
		{`contains([0, 2], device.index) && device.kind != "cpu"`, "mac/metal0 tower/cuda0", `tower/cuda1: excluded by require (config.hcl:63): device.index is 1`},
		{`device.kind == "cpu" ? device.cores > 8 : device.free >= mib(6144)`, "tower/cpu0 tower/cuda0 tower/cuda1", `mac/metal0: excluded by require (config.hcl:63): device.kind is "metal", device.free is not known`},
		{`startswith(hive.name, "to") && endswith(device.id, "0")`, "tower/cpu0 tower/cuda0", `tower/cuda1: excluded by require (config.hcl:63): device.id is "cuda1"`},
		{`length(hive.labels) == 2 && length(device.driver) > 0`, "tower/cuda0", `tower/cuda1: excluded by require (config.hcl:63): device.driver is ""`},
		{`hive.os == "darwin" == true && hive.arch != "amd64" && hive.id == "2c"`, "mac/metal0", `tower/cpu0: excluded by require (config.hcl:63): hive.os is "linux"`},
		{`upper(hive.name) == "MAC" && -1 < 0 && 7 % 4 == 3 && 1 / 0 > 5 && 2 * 3 - 1 + 1 == 6 && 1 <= 1`, "mac/metal0", `tower/cpu0: excluded by require (config.hcl:63): hive.name is "tower"`},
		{`"" == ""`, "mac/metal0 tower/cpu0 tower/cuda0 tower/cuda1", ""},
	} {
		j := judge(t, contract.Deployment{Place: contract.PlacementRule{
			Require: &contract.Expression{Text: c.text, At: "config.hcl:63"}, Prefer: &contract.Expression{Text: "!(" + c.text + ")"}}})
		var allowed []string
		for _, name := range []string{"mac/metal0", "tower/cpu0", "tower/cuda0", "tower/cuda1"} {
			d := testDevices()[name]
			ok, why := j.Allows(d)
			if ok {
				allowed = append(allowed, name)
			}
			if want, is := strings.CutPrefix(c.why, name+": "); is && want != why {
				t.Errorf("%s: %s because %q, want %q", c.text, name, why, want)
			}
			if prefers, reason := j.Prefers(d); prefers == ok || prefers != (reason != "") || ok != (why == "") {
				t.Errorf("%s: %s: allowed %v (%s), preferred %v (%s)", c.text, name, ok, why, prefers, reason)
			}
		}
		if got := strings.Join(allowed, " "); got != c.allows {
			t.Errorf("%s allows %q, want %q", c.text, got, c.allows)
		}
	}
}

// TestPins: pins and the devices of the worker block are told apart from conditions.
func TestPins(t *testing.T) {
	for _, c := range []struct {
		d    contract.Deployment
		want map[string]string
	}{
		{contract.Deployment{Pin: []string{"tower/cuda0", "2c"}}, map[string]string{"tower/cuda0": "", "mac/metal0": "", "tower/cuda1": "excluded by pin: it runs only on tower/cuda0, 2c"}},
		{contract.Deployment{Pin: []string{"tower"}}, map[string]string{"tower/cuda0": "", "tower/cpu0": "", "mac/metal0": "excluded by pin: it runs only on tower"}},
		{contract.Deployment{Worker: contract.WorkerKind{Name: "gpu"}, Devices: []string{"cuda0", "cuda1"}},
			map[string]string{"tower/cuda1": "", "tower/cpu0": `excluded by the worker "gpu", which runs only on cuda0, cuda1`}},
	} {
		for name, want := range c.want {
			if _, why := judge(t, c.d).Allows(testDevices()[name]); why != want {
				t.Errorf("%v: %s: %q, want %q", c.d.Pin, name, why, want)
			}
		}
	}
}

// TestSharedRoundTrip: what queens share means the same to one that has none of this configuration.
func TestSharedRoundTrip(t *testing.T) {
	c, err := Load(Options{Path: "testdata/good/full.hcl", Env: environment(nil)})
	if err != nil {
		t.Fatal(err)
	}
	here, _ := filepath.Abs("testdata/good")
	want := []contract.Deployment{
		{Name: "chat", Model: "gpt-4o-mini", Source: "file:" + filepath.Join(here, "models/smol.gguf"), Aliases: []string{"org/smol", "Llama3:8b"},
			Worker:  contract.WorkerKind{Name: "gpu", Adapter: "native", Source: "path:" + filepath.Join(here, "engine")},
			Devices: []string{"cuda0", "cuda1"}, Context: 8192, Env: map[string]string{"LANG": "C", "TOKEN": "canary-token"},
			Args: []string{"--a", "--a", "--b"}, Priority: -5, IdleTTLSeconds: 90, Pin: []string{"tower/cuda0", "laptop"}, Replicas: contract.Replicas{Min: 2, Max: 4},
			Place: contract.PlacementRule{Require: &contract.Expression{Text: `(device.kind == "cuda" && device.memory >= gib(8))`, At: "full.hcl:95"},
				Prefer: &contract.Expression{Text: `contains(hive.labels, "quiet")`, At: "full.hcl:99"}}},
		{Name: "everywhere", Model: "builtin:stories260k", Source: "builtin:stories260k",
			Worker:  contract.WorkerKind{Name: "gpu", Adapter: "native", Source: "path:" + filepath.Join(here, "engine")},
			Devices: []string{"cuda0", "cuda1"}, Env: map[string]string{"LANG": "C.UTF-8"}, Args: []string{"--a", "--a"},
			IdleTTLSeconds: 900, Replicas: contract.Replicas{Per: "gpu"}, Place: contract.PlacementRule{Spread: true}},
		{Name: "hello", Model: "echo:hello", Source: "echo:hello", Worker: contract.WorkerKind{Name: "echo", Adapter: "echo"},
			IdleTTLSeconds: 900, Replicas: contract.Replicas{Min: 1, Max: 1}, Place: contract.PlacementRule{Spread: true}},
	}
	text, err := json.Marshal(c.Shared())
	if err != nil {
		t.Fatal(err)
	}
	var got []contract.Deployment
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	j := judge(t, got[0])
	if ok, why := j.Allows(testDevices()["tower/cuda0"]); !ok {
		t.Error(why)
	}
	if ok, why := j.Prefers(testDevices()["tower/cuda0"]); !ok || why != `preferred (full.hcl:99): hive.labels is ["quiet", "office"]` {
		t.Errorf("%v %q", ok, why)
	}
}

// TestForeignDeployments: another queen's deployments are looked at before they are used.
func TestForeignDeployments(t *testing.T) {
	long := strings.Repeat("true && ", 2000) + "true"
	for name, d := range map[string]contract.Deployment{
		"pin": {Pin: []string{"-x"}}, "syntax": {Place: contract.PlacementRule{Require: &contract.Expression{Text: "device.kind =="}}},
		"kind": {Place: contract.PlacementRule{Prefer: &contract.Expression{Text: "device.memory"}}}, "long": {Place: contract.PlacementRule{Prefer: &contract.Expression{Text: long}}},
		"deep":  {Place: contract.PlacementRule{Prefer: &contract.Expression{Text: strings.Repeat("!", 2000) + "true"}}},
		"empty": {Place: contract.PlacementRule{Prefer: &contract.Expression{}}},
	} {
		if j, err := NewJudge(d); j != nil || err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestLongConditions: what is taken can be shown and read again, however it was laid out.
func TestLongConditions(t *testing.T) {
	for operators, ok := range map[int]bool{60: true, 100: false, 100_000: false} {
		src := "deployment \"a\" {\n model = \"builtin:stories260k\"\n place {\n  require = (true" + strings.Repeat(" &&\n true", operators) + ")\n }\n}\n"
		c, diags := parse([]byte(src), "f.hcl", "", environment(nil))
		if (c != nil) != ok {
			t.Errorf("%d: %v", operators, diags)
			continue
		}
		if !ok {
			continue
		}
		var b bytes.Buffer
		if err := c.Show(&b); err != nil {
			t.Fatal(err)
		}
		if _, diags := parse(b.Bytes(), "again.hcl", "", environment(nil)); diags != nil {
			t.Error(diags)
		}
	}
}

// TestShippedExamples: the examples in config.hcl are a valid configuration.
func TestShippedExamples(t *testing.T) {
	src, _ := shipped(t)
	path := filepath.Join(t.TempDir(), "config.hcl")
	if err := os.WriteFile(path, src, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Options{Path: path, Env: environment(map[string]string{"NPM_TOKEN": "canary"})})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Deployments) == 0 || len(c.Models) == 0 || len(c.Plugins) == 0 {
		t.Errorf("%+v", c)
	}
}

// FuzzCondition: whatever stands in a condition, it is refused with a reason, or it can be asked and read again.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{`device.kind == "cuda" && device.memory >= gib(8)`, `contains(hive.labels, "quiet") || !(1 < 2)`, `true ? "a" == "b" : false`,
		`[1, 2`, `"${device.name}" == ""`, `1e99999999999 % 3 > 0`, "(true # x\n)", "<<E\nx\nE\n", `device["kind"]`, `length("a\u0000b") == -1`, "a.*.b", "{}"} {
		f.Add(s)
	}
	devices := testDevices()
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 2*maxExpression {
			return
		}
		src := "deployment \"a\" {\n model = \"builtin:stories260k\"\n place {\n  require = " + text + "\n }\n}\n"
		c, diags := parse([]byte(src), "f.hcl", "", environment(nil))
		if c == nil {
			if diags.Error() == "" {
				t.Fatal("no message")
			}
			return
		}
		for _, d := range c.Shared() {
			j, err := NewJudge(d)
			if err != nil {
				t.Fatalf("%q: what is shared cannot be read: %v", text, err)
			}
			for _, p := range devices {
				if ok, why := j.Allows(p); ok != (why == "") {
					t.Fatalf("%q: %v %q", text, ok, why)
				}
			}
		}
		var b, again bytes.Buffer
		if err := c.Show(&b); err != nil {
			t.Fatal(err)
		}
		c2, diags := parse(b.Bytes(), "again.hcl", "", environment(nil))
		if diags != nil {
			t.Fatalf("what Show prints is not valid: %v\n%s", diags, b.String())
		}
		if err := errors.Join(c2.Show(&again)); err != nil || again.String() != b.String() {
			t.Fatalf("shown twice, it differs: %v\n%s\n%s", err, b.String(), again.String())
		}
	})
}

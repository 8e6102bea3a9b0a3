package config

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

// told gives changes in lines.
func told(changes []contract.ConfigChange) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %s %s", c.Action, c.Kind, c.Name)
		for _, f := range c.Fields {
			fmt.Fprintf(&b, " | %s %s -> %s", f.Name, f.Old, f.New)
		}
		if c.Restart {
			b.WriteString(" (restart)")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestDiff: what differs is told, with the options, without secrets, and with what needs a restart.
func TestDiff(t *testing.T) {
	env := environment(map[string]string{"A": "canary-a", "B": "canary-b"})
	load := func(src string) *Config {
		c, diags := parse([]byte(src), "c.hcl", "", env)
		if diags != nil {
			t.Fatal(diags)
		}
		return c
	}
	const before = `
agent {
  labels = ["a"]
}
queen {
  limits {
    load_wait = "1m"
  }
}
model "smol" {
  source = "builtin:stories260k"
}
model "gone" {
  source = "builtin:stories260k"
}
worker "gpu" {
  adapter = "native"
  env     = { TOKEN = env("A"), LANG = "C" }
}
deployment "chat" {
  model = "smol"
  context = 2048
  env   = { KEY = env("A") }
  place {
    require = device.kind == "cuda"
  }
}
deployment "old" {
  model = "smol"
}
deployment "embed" {
  model  = "smol"
  worker = "echo2"
}
worker "echo2" {
  adapter = "native"
}
credential "npm" {
  value = env("A")
  hosts = ["npm.example.org"]
}
plugin "p" {
  source = "./p.wasm"
  config {
    token = "canary-a"
    region = "eu"
  }
}
`
	const after = `
# Lines move.
agent {
  labels = ["a", "b"]
  log {
    level = "debug"
  }
}
queen {
  listen = "127.0.0.1:1"
}
worker "echo2" {
  adapter = "native"
}
worker "gpu" {
  adapter = "native"
  env     = { TOKEN = env("B"), LANG = "C" }
  slots   = 2
}
model "smol" {
  source  = "builtin:stories260k"
  aliases = ["s"]
}
deployment "new" {
  model = "smol"
}
deployment "chat" {
  model   = "smol"
  context = 8192
  env     = { KEY = env("B"), MORE = "x" }
  place {
    require = device.kind=="cuda" # the same
    prefer  = true
  }
  replicas {
    max = 2
  }
}
deployment "embed" {
  model  = "smol"
  worker = "echo2"
}
credential "npm" {
  value = env("B")
  hosts = ["npm.example.org"]
}
plugin "p" {
  source = "./p.wasm"
  config {
    token = "canary-b"
    region = "eu"
  }
}
provisioner "npm" {
  registry = "https://npm.example.org"
}
`
	got := told(Diff(load(before), load(after)))
	if strings.Contains(got, "canary") {
		t.Error("a secret is told")
	}
	golden(t, "testdata/diff.golden", got)
	for _, src := range []string{before, after} {
		if d := told(Diff(load(src), load("# moved\n\n"+src))); d != "" {
			t.Errorf("the same differs:\n%s", d)
		}
	}
	if d := told(DiffDeployments(nil, load(after).Shared())); d != "add deployment new\nadd deployment chat\nadd deployment embed\n" {
		t.Error(d)
	}
}

// TestDiffCoversEverything: an option that differs from its default is told, whichever it is.
func TestDiffCoversEverything(t *testing.T) {
	src, err := os.ReadFile("testdata/good/full.hcl")
	if err != nil {
		t.Fatal(err)
	}
	full, diags := parse(src, "testdata/good/full.hcl", "testdata/good/full.hcl", environment(nil))
	empty, diags2 := parse(nil, "", "", environment(nil))
	if diags != nil || diags2 != nil {
		t.Fatal(diags, diags2)
	}
	there, back := Diff(empty, full), Diff(full, empty)
	if len(there) != len(back) || len(there) < 20 {
		t.Errorf("%d and %d changes", len(there), len(back))
	}
	golden(t, "testdata/diff_full.golden", told(there))
	if d := cmp.Diff("", told(Diff(full, full))); d != "" {
		t.Error(d)
	}
	// The two tables name options and blocks that there are.
	var names []string
	for _, b := range schema(empty).blocks {
		names = append(names, paths(b, b.name+".")...)
	}
	for _, o := range liveOptions() {
		if !strings.Contains("\n"+strings.Join(names, "\n")+"\n", "\n"+o+"\n") {
			t.Errorf("there is no option %s", o)
		}
	}
}

func paths(b *block, prefix string) (out []string) {
	for _, o := range b.options {
		out = append(out, prefix+o.name)
	}
	for _, s := range b.blocks {
		out = append(out, paths(s, prefix+s.name+".")...)
	}
	return out
}

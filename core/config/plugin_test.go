package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const pluginFile = `
plugin "gitea" {
  source  = "./gitea.wasm"
  kind    = "vendor"
  version = "1.2.0"
  grants {
    http        = ["git.example.org", "10.0.0.5:3000"]
    private     = ["10.0.0.5:3000"]
    credentials = ["gitea"]
    memory      = "32MiB"
  }
  config {
    region  = env("REGION")
    retries = "3"
    labels  = { a = "b" }
    api_key = "do not show"
    mirror "cn" {
      url = "https://cn.example.org"
    }
    mirror "de" {
      url    = "https://de.example.org"
      weight = 2
    }
    cache {
      days = 7
    }
    rule {
      name = "one"
    }
    rule {
      name = "two"
    }
  }
}
plugin "plain" {
  source  = "https://plugins.example.org/plain"
  enabled = false
}
`

func pluginSettings() vendor.Schema {
	return vendor.Schema{
		Attributes: []vendor.Attribute{
			{Name: "region", Type: "string", Required: true, Description: "Where to look.", Example: `"eu"`},
			{Name: "retries", Type: "number", DefaultJSON: "1"},
			{Name: "labels", Type: "map(string)"},
			{Name: "api_key", Type: "string", Sensitive: true},
			{Name: "flags", Type: "list(string)", DefaultJSON: `["x"]`},
		},
		Blocks: []vendor.Block{
			{Name: "mirror", Label: "name", Schema: vendor.Schema{Attributes: []vendor.Attribute{{Name: "url", Type: "string", Required: true}, {Name: "weight", Type: "number", DefaultJSON: "1"}}}},
			{Name: "cache", Schema: vendor.Schema{Attributes: []vendor.Attribute{{Name: "days", Type: "number"}}}},
			{Name: "rule", Many: true, Schema: vendor.Schema{Attributes: []vendor.Attribute{{Name: "name", Type: "string"}}}},
		},
	}
}

func TestPlugin(t *testing.T) {
	c, diags := parse([]byte(pluginFile), "c.hcl", "/etc/c.hcl", environment(map[string]string{"REGION": "eu"}))
	if diags != nil {
		t.Fatal(diags)
	}
	p := c.Plugins[0]
	if got, err := p.Values(pluginSettings()); err != nil || string(got) != `{"api_key":"do not show","cache":{"days":7},"flags":["x"],"labels":{"a":"b"},"mirror":{"cn":{"url":"https://cn.example.org","weight":1},`+
		`"de":{"url":"https://de.example.org","weight":2}},"region":"eu","retries":3,"rule":[{"name":"one"},{"name":"two"}]}` {
		t.Errorf("%s, %v", got, err)
	}
	p.config, p.at = later{}, blockPlace{}
	want := Plugin{Name: "gitea", Source: "./gitea.wasm", Kind: "vendor", Version: "1.2.0", Enabled: true, Grants: Grants{
		HTTP: []string{"git.example.org", "10.0.0.5:3000"}, Private: []string{"10.0.0.5:3000"}, Credentials: []string{"gitea"}, Memory: 32 * contract.MiB,
	}}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("%+v", p)
	}
	if q := c.Plugins[1]; q.Enabled || q.Grants.Memory != DefaultPluginMemory {
		t.Errorf("%+v", q)
	}
	if got, err := c.Plugins[1].Values(vendor.Schema{Attributes: []vendor.Attribute{{Name: "a", Type: "number", DefaultJSON: "4"}}}); err != nil || string(got) != `{"a":4}` {
		t.Errorf("without a block: %s, %v", got, err)
	}

	var shown bytes.Buffer
	if err := c.Show(&shown); err != nil {
		t.Fatal(err)
	}
	again, diags := parse(shown.Bytes(), "again.hcl", "", environment(map[string]string{"REGION": "eu"}))
	if diags != nil {
		t.Fatalf("%v in\n%s", diags, shown.String())
	}
	if got, err := again.Plugins[0].Values(pluginSettings()); err != nil || !strings.Contains(string(got), `"retries":3`) || strings.Contains(shown.String(), "do not show") {
		t.Errorf("%s, %v from\n%s", got, err, shown.String())
	}
	shown.Reset()
	if err := c.ShowJSON(&shown); err != nil || !json.Valid(shown.Bytes()) || strings.Contains(shown.String(), "do not show") {
		t.Errorf("%v, %s", err, shown.String())
	}
}

func TestPluginMistakes(t *testing.T) {
	const src = `plugin "gitea" {
  source = "g.wasm"
  config {
    retires = 3
    labels  = "none"
    mirror "cn" {
    }
    rule "x" {
    }
    cache {
      day = 1
    }
  }
}
`
	c, diags := parse([]byte(src), "c.hcl", "/etc/c.hcl", environment(nil))
	if diags != nil {
		t.Fatal(diags)
	}
	_, err := c.Plugins[0].Values(pluginSettings())
	found, ok := errors.AsType[Diagnostics](err)
	if !ok {
		t.Fatal(err)
	}
	var lines []int
	for _, d := range found {
		lines = append(lines, d.Line)
	}
	if !reflect.DeepEqual(lines, []int{3, 4, 5, 6, 8, 11}) {
		t.Errorf("mistakes on %v:\n%v", lines, found)
	}
	for _, want := range []string{`Did you mean "retries"?`, `in plugin "gitea".config`, `The option "region" is needed: Where to look`, "A map(string) is needed.", `The option "url" is needed`, `The block "rule" takes no name`, `Did you mean "days"?`} {
		if !strings.Contains(found.Error(), want) {
			t.Errorf("no %q in\n%v", want, found)
		}
	}

	_, diags = parse([]byte("plugin \"x\" {\n transport = \"ssh\"\n tls = \"some\"\n sha256 = \"ab\"\n version = \"v1\"\n grants {\n  http = [\"http://a\"]\n  private = [\"b\"]\n }\n}\n"), "c.hcl", "/etc/c.hcl", environment(nil))
	for _, want := range []string{`"ssh" is not one of`, `"some" is not one of`, "is not a SHA-256", `"v1" is not a version`, `"http://a" is not a host`, "A plugin needs a source", "must be in both"} {
		if !strings.Contains(diags.Error(), want) {
			t.Errorf("no %q in\n%v", want, diags)
		}
	}
}

func TestPluginTLS(t *testing.T) {
	c, diags := parse([]byte("plugin \"x\" {\n source = \"./x\"\n tls = \"none\"\n}\n"), "c.hcl", "/etc/c.hcl", environment(nil))
	if len(diags) > 0 || c.Plugins[0].TLS != TLSNone {
		t.Errorf("%+v, %v", c, diags)
	}
	_, diags = parse([]byte("plugin \"x\" {\n source = \"./x\"\n transport = \"wasm\"\n tls = \"none\"\n}\n"), "c.hcl", "/etc/c.hcl", environment(nil))
	if len(diags) != 1 || diags[0].Line != 4 || !strings.Contains(diags.Error(), "A WASM module has no connection") {
		t.Errorf("%v", diags)
	}
}

func TestHostileSchemas(t *testing.T) {
	deep := vendor.Schema{}
	for range maxSchemaDepth {
		deep = vendor.Schema{Blocks: []vendor.Block{{Name: "b", Schema: deep}}}
	}
	many := vendor.Schema{}
	for i := range maxAttributes + 1 {
		many.Attributes = append(many.Attributes, vendor.Attribute{Name: "a" + strings.Repeat("x", i%60) + string(rune('a'+i/60)), Type: "string"})
	}
	one := func(a vendor.Attribute) vendor.Schema { return vendor.Schema{Attributes: []vendor.Attribute{a}} }
	p := Plugin{Name: "p"}
	for name, s := range map[string]vendor.Schema{
		"deep": deep, "many": many,
		"name":      one(vendor.Attribute{Name: "A b", Type: "string"}),
		"no type":   one(vendor.Attribute{Name: "a"}),
		"code":      one(vendor.Attribute{Name: "a", Type: `file("/etc/passwd")`}),
		"unclosed":  one(vendor.Attribute{Name: "a", Type: "list("}),
		"deep type": one(vendor.Attribute{Name: "a", Type: strings.Repeat("list(", 100) + "string" + strings.Repeat(")", 100)}),
		"default":   one(vendor.Attribute{Name: "a", Type: "number", DefaultJSON: `"x"`}),
		"twice":     {Attributes: []vendor.Attribute{{Name: "a", Type: "string"}, {Name: "a", Type: "string"}}},
	} {
		if _, err := p.Values(s); err == nil || !strings.Contains(err.Error(), "not usable") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

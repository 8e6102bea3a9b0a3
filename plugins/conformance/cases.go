package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// CasesFile is where the cases of a plugin lie, relative to its folder.
const CasesFile = "testdata/conformance.json"

// Cases are what a plugin is asked in the suite. Without any it is still checked, with references that it cannot know.
type Cases struct {
	Settings map[string]json.RawMessage `json:"settings,omitempty"` // of the block config
	Bad      []BadSettings              `json:"bad,omitempty"`
	Grants   *Grants                    `json:"grants,omitempty"` // nil: what the plugin asks for
	Platform *vendor.Platform           `json:"platform,omitempty"`
	HTTP     []Answer                   `json:"http,omitempty"`    // requests that have no answer here get 404
	Resolve  []Wanted                   `json:"resolve,omitempty"` // of a provisioner: what it plans
	Refuse   []Refused                  `json:"refuse,omitempty"`
	Search   []Query                    `json:"search,omitempty"`
	Launch   *vendor.LaunchRequest      `json:"launch,omitempty"`
	Faults   map[string]vendor.Kind     `json:"faults,omitempty"` // by the name of a fault, such as "404": the kind that the error must have
}

// BadSettings must be refused, with the name of the setting at fault.
type BadSettings struct {
	Settings map[string]json.RawMessage `json:"settings,omitempty"`
	Param    string                     `json:"param"`
}

// Grants are what the plugin may do in the suite.
type Grants struct {
	HTTP    []string `json:"http,omitempty"`
	Private []string `json:"private,omitempty"` // may speak plain http
	Run     []string `json:"run,omitempty"`     // tools; none: those that the plugin asks for
}

// Answer is what a server answers to a request. The body is Text, or JSON, or the content of File, which lies beside the cases.
type Answer struct {
	Method string            `json:"method,omitempty"` // "": GET
	URL    string            `json:"url"`
	Status int               `json:"status,omitempty"` // 0: 200
	Header map[string]string `json:"header,omitempty"`
	Text   string            `json:"text,omitempty"`
	JSON   json.RawMessage   `json:"json,omitempty"`
	File   string            `json:"file,omitempty"`
}

// Wanted is a reference that must be answered. Fields that are empty may be anything.
type Wanted struct {
	Reference string `json:"reference"`
	Canonical string `json:"canonical,omitempty"`
	Format    string `json:"format,omitempty"`
	Files     int    `json:"files,omitempty"`
	Digests   bool   `json:"digests,omitempty"` // each file must have one, of its own or of the archive that it is in
}

// Refused is a reference that must not be.
type Refused struct {
	Reference string      `json:"reference"`
	Kind      vendor.Kind `json:"kind"`
	Code      string      `json:"code,omitempty"`
}

// Query is a search, with the least number of results.
type Query struct {
	Query   string `json:"query"`
	Results int    `json:"results"`
}

// ReadCases reads the cases in a file. {dir} in it stands for the folder of the file. A file that is not there has none.
func ReadCases(path string) (Cases, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Cases{}, nil
	}
	bad := func(err error) (Cases, error) {
		return Cases{}, fault.New(fault.Invalid, "bad_cases", "The cases in %s cannot be used: %w.", path, err)
	}
	if err != nil {
		return bad(err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return bad(err)
	}
	quoted, err := json.Marshal(dir)
	if err != nil {
		return bad(err)
	}
	d := json.NewDecoder(bytes.NewReader(bytes.ReplaceAll(raw, []byte("{dir}"), quoted[1:len(quoted)-1])))
	d.DisallowUnknownFields()
	var c Cases
	if err := d.Decode(&c); err != nil {
		return bad(err)
	}
	for i, a := range c.HTTP {
		if a.File == "" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(a.File)))
		if err != nil {
			return bad(err)
		}
		c.HTTP[i].Text = string(body)
	}
	for name := range c.Faults {
		if !slices.ContainsFunc(faults(), func(f failure) bool { return f.name == name }) {
			return bad(fmt.Errorf("there is no fault %q", name))
		}
	}
	return c, nil
}

func (a Answer) body() []byte {
	if len(a.JSON) > 0 {
		return a.JSON
	}
	return []byte(a.Text)
}

// platform is the machine that asks.
func (c Cases) platform() vendor.Platform {
	if c.Platform != nil {
		return *c.Platform
	}
	return vendor.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH, Devices: []string{"cpu"}}
}

// decode makes of settings what the plugin gets, by way of the configuration's own decoder.
func decode(schema vendor.Schema, settings map[string]json.RawMessage) (string, error) {
	var b strings.Builder
	if err := writeHCL(&b, schema, settings); err != nil {
		return "", err
	}
	p, err := config.PluginWith(b.String())
	if err != nil {
		return "", err
	}
	values, err := p.Values(schema)
	return string(values), err
}

// writeHCL writes settings as a person would into a block config.
func writeHCL(b *strings.Builder, schema vendor.Schema, settings map[string]json.RawMessage) error {
	for name, value := range settings {
		i := slices.IndexFunc(schema.Blocks, func(k vendor.Block) bool { return k.Name == name })
		if i < 0 {
			fmt.Fprintf(b, "%s = %s\n", name, strings.NewReplacer("${", "$${", "%{", "%%{").Replace(string(value)))
			continue
		}
		block := schema.Blocks[i]
		labels, inner := []string{""}, make([]map[string]json.RawMessage, 1)
		var err error
		switch {
		case block.Label != "":
			labels, inner = nil, nil
			named := map[string]map[string]json.RawMessage{}
			err = json.Unmarshal(value, &named)
			for label, one := range named {
				labels, inner = append(labels, fmt.Sprintf("%q", label)), append(inner, one)
			}
		case block.Many:
			err = json.Unmarshal(value, &inner)
			labels = make([]string, len(inner))
		default:
			err = json.Unmarshal(value, &inner[0])
		}
		if err != nil {
			return fmt.Errorf("the settings of the block %s cannot be read: %w", name, err)
		}
		for i, one := range inner {
			fmt.Fprintf(b, "%s %s {\n", name, labels[i])
			if err := writeHCL(b, block.Schema, one); err != nil {
				return err
			}
			b.WriteString("}\n")
		}
	}
	return nil
}

// defaults are settings for a plugin without cases: the examples of what it requires, as far as they can be used.
func defaults(schema vendor.Schema) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for _, a := range schema.Attributes {
		if !a.Required || a.DefaultJSON != "" {
			continue
		}
		example := []byte(a.Example)
		if !json.Valid(example) {
			example, _ = json.Marshal(a.Example) // a text always can be written
		}
		out[a.Name] = example
	}
	return out
}

package scaffold

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// sdkPackages are the folders with the packages that plugins in Go are built with.
func sdkPackages() []string {
	return []string{
		"plugins/vendor", "plugins/sdk", "plugins/sdk/wire",
		"plugins/proto", "plugins/proto/hostv1", "plugins/proto/pluginv1", "plugins/proto/provisionerv1", "plugins/proto/vendorv1",
	}
}

// sdkModules are the modules that a program needs, those that the SDK imports itself first. A WASM module needs none of them.
func sdkModules() (direct, indirect []string) {
	return []string{"github.com/hashicorp/go-hclog", "github.com/hashicorp/go-plugin", "google.golang.org/grpc", "google.golang.org/protobuf"},
		[]string{
			"github.com/fatih/color", "github.com/golang/protobuf", "github.com/hashicorp/yamux", "github.com/mattn/go-colorable", "github.com/mattn/go-isatty",
			"github.com/oklog/run", "golang.org/x/net", "golang.org/x/sys", "golang.org/x/text", "google.golang.org/genproto/googleapis/rpc",
		}
}

const sdkReadme = `# The packages that this plugin is built with

A copy of the parts of Apiary that plugins in Go import: the contract, the SDK and the protobuf messages. go.mod of the plugin replaces
the module by this folder. When the plugin requires a published version, remove the line ` + "`replace`" + ` and this folder.
`

// collectSDK reads the packages, and writes go.mod and go.sum of the plugin with the versions that Apiary itself has.
func collectSDK(sources fs.FS, name string, into map[string][]byte) error {
	for _, folder := range sdkPackages() {
		entries, err := fs.ReadDir(sources, folder)
		if err != nil {
			return fmt.Errorf("read the SDK: %w", err)
		}
		for _, e := range entries {
			ext := path.Ext(e.Name())
			if e.IsDir() || strings.HasSuffix(e.Name(), "_test.go") || ext != ".go" && ext != ".proto" {
				continue
			}
			raw, err := fs.ReadFile(sources, path.Join(folder, e.Name()))
			if err != nil {
				return fmt.Errorf("read the SDK: %w", err)
			}
			into[path.Join(sdkFolder, folder, e.Name())] = raw
		}
	}
	mod, err := fs.ReadFile(sources, "go.mod")
	if err != nil {
		return fmt.Errorf("read the versions of the SDK: %w", err)
	}
	sum, err := fs.ReadFile(sources, "go.sum")
	if err != nil {
		return fmt.Errorf("read the versions of the SDK: %w", err)
	}
	module, goVersion, versions := parseMod(string(mod))
	direct, indirect := sdkModules()
	all := slices.Concat(direct, indirect)
	list := func(modules []string, comment string) string {
		var b strings.Builder
		for _, m := range slices.Sorted(slices.Values(modules)) {
			fmt.Fprintf(&b, "\t%s %s%s\n", m, versions[m], comment)
		}
		return b.String()
	}
	for _, m := range all {
		if versions[m] == "" {
			return fmt.Errorf("go.mod of Apiary has no version of %s, which the SDK needs", m)
		}
	}
	var sums strings.Builder
	for line := range strings.Lines(string(sum)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && strings.TrimSuffix(fields[1], "/go.mod") == versions[fields[0]] && slices.Contains(all, fields[0]) {
			sums.WriteString(line)
		}
	}
	into["go.mod"] = fmt.Appendf(nil, "module example.org/%s\n\ngo %s\n\nrequire %s v0.0.0\n\nreplace %s => ./%s\n\nrequire (\n%s)\n", name, goVersion, module, module, sdkFolder, list(all, " // indirect"))
	into["go.sum"] = []byte(sums.String())
	into[sdkFolder+"/go.mod"] = fmt.Appendf(nil, "module %s\n\ngo %s\n\nrequire (\n%s)\n\nrequire (\n%s)\n", module, goVersion, list(direct, ""), list(indirect, " // indirect"))
	into[sdkFolder+"/README.md"] = []byte(sdkReadme)
	return nil
}

// parseMod reads as much of a go.mod as is needed: the module's path, the version of Go and the versions of the modules.
func parseMod(text string) (module, goVersion string, versions map[string]string) {
	versions = map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "module":
			module = fields[1]
		case "go":
			goVersion = fields[1]
		case "require":
			if len(fields) >= 3 {
				versions[fields[1]] = fields[2]
			}
		default:
			if strings.HasPrefix(fields[1], "v") {
				versions[fields[0]] = fields[1]
			}
		}
	}
	return module, goVersion, versions
}

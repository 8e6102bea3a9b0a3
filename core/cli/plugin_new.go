package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/scaffold"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func (a *app) pluginNew() *cobra.Command {
	o := scaffold.Options{Parent: "."}
	c := &cobra.Command{Use: "new NAME", Short: "Make a folder with a plugin that works, to start from", Args: argCount(1, 1, "NAME"),
		Long: "Make a folder with a plugin that works, to start from: sources, tests, a README that leads on. It builds and passes as it is.",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := host.CheckName(args[0]); err != nil {
				return err
			}
			o.Name = args[0]
			if long, ok := map[string]string{"assemblyscript": "as", "golang": "go"}[o.Language]; ok {
				o.Language = long
			}
			files, err := scaffold.New(a.sources, o)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"name": o.Name, "language": o.Language, "kind": o.Kind, "files": files})
			}
			return a.tell("created %s/: %s\nNext: cd %s && apiary plugin build     (%s/README.md leads on)", o.Name, strings.Join(topFiles(files), ", "), o.Name, o.Name)
		}}
	c.Flags().StringVar(&o.Language, "lang", "go", fmt.Sprintf("`language`: one of %s", strings.Join(scaffold.Languages(), ", ")))
	c.Flags().StringVar(&o.Kind, "kind", vendor.KindVendor, "`kind` of plugin: vendor, which resolves models, or provisioner, which resolves engines (in Go only)")
	return c
}

// topFiles are the files and folders that somebody sees who looks into the folder.
func topFiles(files []string) []string {
	var out []string
	for _, f := range files {
		top, _, inside := strings.Cut(f, "/")
		if inside {
			top += "/"
		}
		if !strings.HasPrefix(top, ".") && !slices.Contains(out, top) {
			out = append(out, top)
		}
	}
	return out
}

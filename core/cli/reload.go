package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

// reload has the agent read its configuration again and says what came of it.
func (a *app) reload(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var done contract.ConfigReloaded
	if err := c.PostJSON(ctx, "/admin/reload", struct{}{}, &done); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	for _, change := range done.Changes {
		if _, err := fmt.Fprintln(a.out, printable(changeLine(change))); err != nil {
			return err
		}
	}
	later := len(slices.DeleteFunc(slices.Clone(done.Changes), func(c contract.ConfigChange) bool { return !c.Restart }))
	text := fmt.Sprintf("Nothing changed in %s.", cmp.Or(done.Path, "the built-in configuration"))
	switch {
	case later > 0:
		text = fmt.Sprintf("%d in force, %d at the next start: `apiary stop` and then `apiary agent`.", len(done.Changes)-later, later)
	case len(done.Changes) > 0:
		text = fmt.Sprintf("%s in force.", plural(len(done.Changes), "change"))
	}
	_, err = fmt.Fprintln(a.err, text)
	return err
}

// changeLine shows a change as in
//
//	~ deployment chat   context 2048 → 8192
func changeLine(c contract.ConfigChange) string {
	sign := map[string]string{contract.ChangeAdd: "+", contract.ChangeRemove: "-"}[c.Action]
	line := cmp.Or(sign, "~") + " " + strings.TrimSpace(c.Kind+" "+c.Name)
	var fields []string
	for _, f := range c.Fields {
		if f.Old == f.New { // secrets
			fields = append(fields, strings.TrimSpace(f.Name+" is another one"))
			continue
		}
		fields = append(fields, strings.TrimSpace(fmt.Sprintf("%s %s → %s", f.Name, cmp.Or(f.Old, "none"), cmp.Or(f.New, "none"))))
	}
	if len(fields) > 0 {
		line += "   " + strings.Join(fields, ", ")
	}
	if c.Restart {
		line += "   (needs a restart)"
	}
	return line
}

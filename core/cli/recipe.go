package cli

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/workers/provision/recipe"
)

// agreeToRecipe shows which programs a recipe runs, and has somebody agree to that; other references need it not. A recipe for a hive
// elsewhere is a file of that machine, which cannot be shown here.
func (a *app) agreeToRecipe(ctx context.Context, ref, hive string, yes bool) error {
	p := recipe.New(config.ReadRecipe)
	if yes || !p.Supports(ref) {
		return nil
	}
	plan, err := p.Plan(ctx, vendor.PlanRequest{Reference: ref, Platform: vendor.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}})
	switch {
	case err != nil && hive != "":
		return a.agreeToBuild("The recipe is a file of another machine and cannot be shown here; the programs that it names will run there. Build it?")
	case err != nil:
		return err
	}
	var lines []string
	for _, st := range plan.Steps {
		if st.Run != nil {
			lines = append(lines, "  "+commandLine(st.Run))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	lines = append([]string{fmt.Sprintf("%s %s is built on this machine by these programs, which may do all that your user may:", plan.Name, plan.Version)}, lines...)
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.err, plain(printable(l), isTerminal(a.err))); err != nil {
			return err
		}
	}
	return a.agreeToBuild("Run them?")
}

func (a *app) agreeToBuild(question string) error {
	if !isTerminal(a.in) {
		return fault.New(fault.Denied, "not_granted", "Nothing was built, because nobody is there to answer; say --yes to run the programs of the recipe.")
	}
	return a.agree(question)
}

// commandLine writes a step as it could be typed.
func commandLine(r *vendor.RunStep) string {
	words := []string{r.Tool}
	for _, arg := range r.Args {
		if arg == "" || strings.ContainsAny(arg, " \t\n\"'\\$&|;<>()*?") {
			arg = strconv.Quote(arg)
		}
		words = append(words, arg)
	}
	line := strings.Join(words, " ")
	if r.Dir != "" && r.Dir != "." {
		line += "   (in " + r.Dir + ")"
	}
	if r.Network {
		line += "   (with the network)"
	}
	return line
}

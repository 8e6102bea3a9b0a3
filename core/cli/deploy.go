package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func (a *app) planCommand() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "plan", Short: "Show what applying the deployments of the configuration would change", Args: argCount(0, 0, "")}
	c.Long = c.Short + ".\n\nIt says which workers would be started where and why, what would be fetched, who would have to make room, and who would not be served\nmeanwhile. Nothing is done."
	fileFlag(c, &file)
	c.RunE = interruptible(func(ctx context.Context, _ []string) error {
		req, _, err := a.deployments(contract.OpPlan, file)
		if err != nil {
			return err
		}
		return ask(ctx, a, req, func(p contract.PlanView) error {
			if len(p.Items) == 0 {
				_, err := fmt.Fprintln(a.out, "Nothing to do: what runs is what the configuration says.")
				return err
			}
			a.printPlan(p)
			_, err := fmt.Fprintf(a.out, "%d to add, %d to change, %d to stop. Nothing was done; `apiary apply` does it.\n", p.Add, p.Change, p.Stop)
			return err
		})
	})
	return c
}

func (a *app) applyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "apply", Short: "Make the deployments of the configuration what runs, and follow until they are served", Args: argCount(0, 0, "")}
	c.Long = c.Short + `.

The deployments that the queen has and the configuration has not are taken back. Where something cannot be, the command says why and fails; what can be is done
all the same. Ctrl-C ends the following, not the apply.`
	fileFlag(c, &file)
	c.RunE = interruptible(func(ctx context.Context, _ []string) error {
		req, name, err := a.deployments(contract.OpApply, file)
		if err != nil {
			return err
		}
		conn, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		job, err := conn.Submit(ctx, req)
		if err != nil {
			return a.outdated(conn.target, req, err)
		}
		raw, err := conn.Follow(ctx, job.JobID, func(n contract.Narration) {
			if !a.json {
				_, _ = fmt.Fprintln(a.err, printable(n.Message))
			}
		})
		if ctx.Err() != nil {
			_, _ = fmt.Fprintf(a.err, "The apply goes on; `apiary job follow %s` follows it, and `apiary status` shows where it stands.\n", job.JobID)
			return err
		}
		if err != nil {
			return err
		}
		var done contract.Applied
		if err := json.Unmarshal(raw, &done); err != nil {
			return fmt.Errorf("read what was applied: %w", err)
		}
		if a.json {
			return a.printJSON(done)
		}
		_, err = fmt.Fprintf(a.out, "%s of %s in force.\n", plural(len(done.Deployments), "deployment"), name)
		return err
	})
	return c
}

func (a *app) explainCommand() *cobra.Command {
	c := &cobra.Command{Use: "explain MODEL", Short: "Say for each device whether a model could run there, and why not", Args: argCount(1, 1, "MODEL")}
	c.Long = c.Short + ".\n\nMODEL is a name of a model or of a deployment. Where it fits nowhere now, smaller choices that do are named."
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		return ask(ctx, a, contract.ExplainRequest{Operation: contract.OpExplain, Model: args[0]}, func(e contract.Explanation) error {
			for line := range strings.Lines(e.Text) {
				if _, err := fmt.Fprintln(a.out, printable(strings.TrimSuffix(line, "\n"))); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return c
}

func fileFlag(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "file", "", "the configuration `file` whose deployments, models and workers are meant (default: the one in use)")
}

// deployments reads the deployments of a configuration file, or of the one in use, and says what it is called.
func (a *app) deployments(operation, file string) (req contract.PlanRequest, name string, err error) {
	if file != "" {
		a.configPath = file
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return req, "", err
	}
	return contract.PlanRequest{Operation: operation, Deployments: cfg.Shared()}, configName(cfg), nil
}

func configName(cfg *config.Config) string { return cmp.Or(cfg.Path, "the built-in configuration") }

// printPlan prints a plan as in
//
//   - deployment chat   2 replicas of smol (Q4_K_M, 105.0 MB) with llama
//     replica 1 → tower/cuda0   fits 0.6 GiB of 23.1 GiB free · weights already there
func (a *app) printPlan(p contract.PlanView) {
	width := 0
	for _, i := range p.Items {
		width = max(width, len(i.Kind)+1+len(i.Name))
	}
	for _, i := range p.Items {
		sign := map[string]string{contract.ChangeAdd: "+", contract.ChangeModify: "~", contract.ChangeRemove: "-"}[i.Action]
		_, _ = fmt.Fprintln(a.out, printable(fmt.Sprintf("%s %-*s   %s", cmp.Or(sign, " "), width, i.Kind+" "+i.Name, i.Text)))
		for _, s := range i.Steps {
			text := "    " + s.Text
			if s.Place != "" {
				text = fmt.Sprintf("    replica %d → %s   %s", s.Replica+1, s.Place, s.Text)
			}
			_, _ = fmt.Fprintln(a.out, printable(text))
		}
		if i.Problem != "" {
			_, _ = fmt.Fprintln(a.out, printable("    "+i.Problem))
		}
	}
}

func (a *app) hiveDrainCommand(resume bool) *cobra.Command {
	use, short := "drain NAME", "Start nothing new on a hive, and move its deployments' workers elsewhere"
	if resume {
		use, short = "resume NAME", "Let a drained hive take workers again"
	}
	return &cobra.Command{Use: use, Short: short, Args: argCount(1, 1, "NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			conn, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			op := contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: args[0], Resume: resume}
			job, err := conn.Submit(ctx, op)
			if err != nil {
				return a.outdated(conn.target, op, err)
			}
			raw, err := conn.Follow(ctx, job.JobID, func(n contract.Narration) {
				if !a.json {
					_, _ = fmt.Fprintln(a.err, printable(n.Message))
				}
			})
			if ctx.Err() != nil {
				return fault.New(fault.Interrupted, "interrupted", "The command was interrupted; the hive is drained all the same, until `apiary hive resume %s`.", args[0])
			}
			if err != nil {
				return err
			}
			var h contract.HiveView
			if err := json.Unmarshal(raw, &h); err != nil {
				return fmt.Errorf("read the hive: %w", err)
			}
			if a.json {
				return a.printJSON(h)
			}
			word := "is drained"
			if resume {
				word = "takes workers again"
			}
			_, err = fmt.Fprintf(a.out, "Hive %s %s.\n", printable(cmp.Or(h.Name, h.ID)), word)
			return err
		})}
}

// showDeployments prints how the deployments stand, and why the last thing was done to their workers.
func (a *app) showDeployments(st contract.Status) error {
	if len(st.Deployments) == 0 {
		return nil
	}
	rows := make([][]string, 0, len(st.Deployments))
	for _, d := range st.Deployments {
		want := fmt.Sprint(d.Replicas.Min)
		switch {
		case d.Replicas.Per != "":
			want = "1 per " + d.Replicas.Per
		case d.Replicas.Max > d.Replicas.Min:
			want = fmt.Sprintf("%d to %d", d.Replicas.Min, d.Replicas.Max)
		}
		rows = append(rows, []string{d.Name, d.Model, want, fmt.Sprint(d.Ready), fmt.Sprint(d.Starting), fmt.Sprint(d.Ending), cmp.Or(d.Reason, "-")})
	}
	_, _ = fmt.Fprintln(a.out)
	return writeTable(a.out, []string{"DEPLOYMENT", "MODEL", "REPLICAS", "READY", "STARTING", "ENDING", "SHORT OF SOME BECAUSE"}, rows)
}

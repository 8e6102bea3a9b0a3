package cli

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func (a *app) jobCommand() *cobra.Command {
	return a.holder("job", "List, follow and cancel jobs", a.jobList(), a.jobFollow(), a.jobCancel())
}

func (a *app) jobList() *cobra.Command {
	var all bool
	c := &cobra.Command{Use: "list", Short: "List the queen's jobs of the last hour", Args: argCount(0, 0, "")}
	c.Long = c.Short + ".\n\nOperations that only looked something up are left out; --all shows those of the last minute too."
	c.Flags().BoolVar(&all, "all", false, "also operations that only looked something up")
	c.RunE = interruptible(func(ctx context.Context, _ []string) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		jobs, err := c.Jobs(ctx, all)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(jobs)
		}
		rows := make([][]string, 0, len(jobs))
		for _, j := range jobs {
			note := ""
			if j.Error != nil {
				note = j.Error.Message
			}
			rows = append(rows, []string{j.ID, j.Operation, cmp.Or(printable(j.Subject), "-"), string(j.State), when(j.CreatedAt), note})
		}
		return a.table([]string{"JOB", "OPERATION", "ABOUT", "STATE", "STARTED", "ERROR"}, rows, "There are no jobs.")
	})
	return c
}

func (a *app) jobFollow() *cobra.Command {
	c := &cobra.Command{Use: "follow ID", Short: "Tell a job's story from its start to its end", Args: argCount(1, 1, "ID")}
	c.Long = c.Short + ".\n\nWith --json each step is a JSON object on a line of its own, and the last line is {\"result\": …}. When the job fails, so does the command."
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		result, err := c.Follow(ctx, args[0], func(n contract.Narration) {
			if a.json {
				_ = a.printLine(n)
				return
			}
			_, _ = fmt.Fprintf(a.out, "%s  %-8s  %s\n", n.Time.Local().Format("15:04:05"), n.Action, printable(n.Message))
		})
		if err != nil {
			return err
		}
		if a.json {
			return a.printLine(contract.JobDoneEvent{Result: result})
		}
		_, err = fmt.Fprintf(a.out, "%s\n", result)
		return err
	})
	return c
}

func (a *app) jobCancel() *cobra.Command {
	return &cobra.Command{Use: "cancel ID", Short: "Cancel a job and wait for its end", Args: argCount(1, 1, "ID"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Cancel(ctx, args[0]); err != nil {
				return err
			}
			_, _ = c.Follow(ctx, args[0], nil) // how it ended is asked next
			if ctx.Err() != nil {
				return ctx.Err()
			}
			j, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			if j.State != contract.JobCancelled {
				return fault.New(fault.Conflict, "job_over", "Job %s ended before it could be cancelled: %s.", j.ID, j.State)
			}
			if a.json {
				return a.printJSON(j)
			}
			_, err = fmt.Fprintf(a.err, "Cancelled %s.\n", j.ID)
			return err
		})}
}

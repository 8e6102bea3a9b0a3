package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

// stopPatience is how long an agent may let running requests finish before it is told to hurry.
const stopPatience = 130 * time.Second

// stopped is what `apiary stop` ended.
type stopped struct {
	Running bool                     `json:"running"` // an agent was running
	PID     int                      `json:"pid,omitempty"`
	Workers []contract.WorkerDeleted `json:"workers"`
}

func (a *app) stopCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{Use: "stop", Short: "End the workers of this machine, then the agent", Args: argCount(0, 0, "")}
	c.Long = c.Short + `.

The agent is the one of the data folder (APIARY_HOME); --addr plays no part. Requests that run are finished first; a second
Ctrl-C to an agent in the foreground, or a second SIGTERM, makes it hurry. Without a running agent the
workers that one left behind are ended; the command says that no agent runs, and succeeds.`
	c.Flags().BoolVar(&keep, "keep-workers", false, "leave the workers running; an agent that starts later hears them again")
	c.RunE = interruptible(func(ctx context.Context, _ []string) error { return a.stop(ctx, keep) })
	return c
}

func (a *app) stop(ctx context.Context, keep bool) error {
	home, err := a.home()
	if err != nil {
		return err
	}
	result := stopped{Workers: []contract.WorkerDeleted{}}
	locked, err := agent.Locked(home)
	if err != nil {
		return err
	}
	r, err := agent.ReadRunFile(home)
	if locked && errors.Is(err, fs.ErrNotExist) {
		// It has just started: it writes the file as soon as it listens.
		for deadline := time.Now().Add(5 * time.Second); errors.Is(err, fs.ErrNotExist) && time.Now().Before(deadline) && ctx.Err() == nil; {
			time.Sleep(20 * time.Millisecond)
			r, err = agent.ReadRunFile(home)
		}
	}
	if !locked || errors.Is(err, fs.ErrNotExist) {
		return a.stopOrphans(ctx, home, keep, result)
	}
	if err != nil {
		return err
	}
	result.Running, result.PID = true, r.Process.PID
	var left error
	if !keep {
		left = a.endWorkers(ctx, home, r, &result)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	ended, err := agent.Stop(ctx, r, stopPatience)
	if err != nil {
		return err
	}
	if !keep && r.Hive != "" {
		// A queen elsewhere may have had a worker started here in place of one that was ended.
		left = errors.Join(left, a.endLeft(ctx, r.NodeID, &result))
	}
	if a.json {
		if err := a.printJSON(result); err != nil {
			return err
		}
	} else if ended {
		_, _ = fmt.Fprintf(a.out, "agent (%s) stopped · pid %d\n", strings.Join(r.Roles, " + "), r.Process.PID)
	}
	return left
}

// stopOrphans ends the workers that an agent left which was killed or told to keep them.
func (a *app) stopOrphans(ctx context.Context, home string, keep bool, result stopped) error {
	var errs []error
	id, err := agent.NodeID(home)
	if err == nil && !keep {
		errs = append(errs, a.endLeft(ctx, id, &result))
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if a.json {
		errs = append(errs, a.printJSON(result))
	} else {
		_, _ = fmt.Fprintf(a.err, "No agent runs with the data folder %s.\n", tilde(home, a.getenv("HOME")))
	}
	return errors.Join(errs...)
}

// endLeft ends the workers of a hive whose agent does not run.
func (a *app) endLeft(ctx context.Context, id string, result *stopped) error {
	left, err := process.Scan(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range left {
		o, err := process.Kill(ctx, p.Identity, process.KillOptions{})
		if err != nil {
			errs = append(errs, fmt.Errorf("end worker %s: %w", p.WorkerID, err))
			continue
		}
		a.ended(result, contract.WorkerDeleted{WorkerID: p.WorkerID, Outcome: o})
	}
	return errors.Join(errs...)
}

// ended says that a worker has ended.
func (a *app) ended(result *stopped, d contract.WorkerDeleted) {
	result.Workers = append(result.Workers, d)
	if !a.json {
		_, _ = fmt.Fprintf(a.out, "worker %s %s\n", d.WorkerID, outcome(d.Outcome))
	}
}

// endWorkers deletes the workers that the queen lists on this hive, and then what the hive still finds in the process
// table: workers of another queen, or ones that have not beaten yet.
func (a *app) endWorkers(ctx context.Context, home string, r agent.RunFile, result *stopped) error {
	told := func(d contract.WorkerDeleted) { a.ended(result, d) }
	var errs []error
	if r.Queen != "" {
		errs = append(errs, endByQueen(ctx, target{base: r.Queen, home: home}, r, told))
	}
	if r.Hive != "" {
		errs = append(errs, endByHive(ctx, home, r, told))
	}
	return errors.Join(errs...)
}

func endByQueen(ctx context.Context, t target, r agent.RunFile, told func(contract.WorkerDeleted)) error {
	c, err := t.conn()
	if err != nil {
		return err
	}
	defer c.Close()
	workers, err := client.Run[[]contract.WorkerView](ctx, c.Client, op{Operation: contract.OpWorkerList}, nil)
	if err != nil {
		return fmt.Errorf("list the workers: %w", err)
	}
	var errs []error
	for _, w := range workers {
		if w.HiveID != r.NodeID {
			continue
		}
		d, err := client.Run[contract.WorkerDeleted](ctx, c.Client, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: w.ID}, nil)
		if fault.KindOf(err) == fault.NotFound {
			continue // it ended by itself after it was listed; what took its place is in the process table
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("end worker %s: %w", w.ID, err))
			continue
		}
		told(d)
	}
	return errors.Join(errs...)
}

func endByHive(ctx context.Context, home string, r agent.RunFile, told func(contract.WorkerDeleted)) error {
	key, err := loadKey(home, secret.ClusterKeyFile)
	if err != nil {
		return err
	}
	c := client.New(client.Options{Base: r.Hive, Token: secret.ForHive(key, r.NodeID)})
	defer c.Close()
	processes, err := client.Run[[]contract.Process](ctx, c, op{Operation: contract.OpProcessList}, nil)
	if err != nil {
		return fmt.Errorf("list the worker processes: %w", err)
	}
	var errs []error
	for _, p := range processes {
		d, err := client.Run[contract.WorkerDeleted](ctx, c, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: p.WorkerID, Identity: &p.Identity}, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("end worker %s: %w", p.WorkerID, err))
			continue
		}
		told(d)
	}
	return errors.Join(errs...)
}

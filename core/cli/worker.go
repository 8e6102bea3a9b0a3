package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/workers/conformance"
	"github.com/apiary-dev/apiary/workers/echo"
)

func (a *app) workerCommand() *cobra.Command {
	return a.holder("worker", "Start, list, read and end workers", a.workerSpawn(), a.workerList(), a.workerGet(), a.workerDelete(), a.workerLogs(), a.workerTest(), a.workerEcho())
}

func (a *app) workerSpawn() *cobra.Command {
	var spawn contract.WorkerSpawn
	var noWait bool
	var kind string
	c := &cobra.Command{Use: "spawn MODEL", Short: "Start a worker for a model", Args: argCount(1, 1, "MODEL")}
	f := c.Flags()
	f.StringVar(&kind, "worker", "", "`name` of the worker block (default: the configuration's first)")
	f.StringSliceVar(&spawn.Devices, "device", nil, "`device` to run on, for example cuda0 (repeatable)")
	f.IntVar(&spawn.Context, "context", 0, "context length in `tokens` (default: what fits, up to the model's)")
	f.IntVar(&spawn.Slots, "slots", 0, "`requests` at once, at most 240 (default: the worker's)")
	f.IntVar(&spawn.Threads, "threads", 0, "`threads`, at most the cores of the machine (default: the free cores)")
	f.StringVar(&spawn.SpawnKey, "spawn-key", "", "`key`: the same one again returns the worker that has it")
	f.BoolVar(&noWait, "no-wait", false, "return when the process has started, not when it is ready")
	hiveFlag(c, &spawn.HiveID)
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		ref, err := reference(args[0])
		if err != nil {
			return err
		}
		spawn.Operation, spawn.Model, spawn.Wait, spawn.Worker.Name = contract.OpWorkerSpawn, ref, !noWait, kind
		started := time.Now()
		id := func(w contract.WorkerSpawned) string { return w.WorkerID }
		return fetch(ctx, a, spawn, "worker ", id, func(_ *story, w contract.WorkerSpawned, _ bool) string {
			word := "started"
			switch {
			case w.Existing:
				word = "was running already"
			case spawn.Wait:
				word = fmt.Sprintf("ready in %.1f s", time.Since(started).Seconds())
			}
			return fmt.Sprintf("%s · %s · pid %d · port %d", w.WorkerID, word, w.PID, w.Port)
		})
	})
	return c
}

func (a *app) workerList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the workers that the queen hears", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpWorkerList}, func(workers []contract.WorkerView) error {
				rows := make([][]string, 0, len(workers))
				for _, w := range workers {
					rows = append(rows, []string{w.ID, w.ModelID, cmp.Or(w.HiveName, w.HiveID) + "/" + w.Device, workerState(w), w.Implementation, fmt.Sprint(w.PID), fmt.Sprint(w.Port), age(w.AgeMS)})
				}
				return a.table([]string{"WORKER", "MODEL", "WHERE", "STATE", "KIND", "PID", "PORT", "HEARD"}, rows, "There are no workers; `apiary worker spawn MODEL` starts one.")
			})
		})}
}

func (a *app) workerGet() *cobra.Command {
	return &cobra.Command{Use: "get ID", Short: "Show a worker", Args: argCount(1, 1, "ID"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return ask(ctx, a, contract.WorkerRef{Operation: contract.OpWorkerGet, WorkerID: args[0]}, func(w contract.WorkerView) error {
				return a.fields([][2]string{{"id", w.ID}, {"model", w.ModelID}, {"state", workerState(w)}, {"heard", age(w.AgeMS) + " ago"},
					{"where", cmp.Or(w.HiveName, w.HiveID) + "/" + w.Device}, {"address", fmt.Sprintf("%s:%d", w.Address, w.Port)}, {"implementation", w.Implementation + " " + w.Version},
					{"apis", strings.Join(w.APIs, ", ")}, {"capabilities", strings.Join(w.Capabilities, ", ")}, {"context", count(uint64(w.ContextLength))},
					{"slots", fmt.Sprintf("%d of %d busy", w.SlotsBusy, w.Slots)}, {"queue", fmt.Sprint(w.QueueDepth)}, {"in flight", fmt.Sprint(w.InFlight)},
					{"kv tokens", count(uint64(w.KVTokensUsed))}, {"memory", w.MemoryBytes.String()}, {"pid", fmt.Sprint(w.PID)}, {"boot id", w.BootID},
					{"start ticks", fmt.Sprint(w.StartTicks)}, {"started", when(w.StartedAt)}, {"spawn key", w.SpawnKey}})
			})
		})}
}

func (a *app) workerDelete() *cobra.Command {
	ref := contract.WorkerRef{Operation: contract.OpWorkerDelete}
	c := &cobra.Command{Use: "delete ID", Aliases: []string{"rm"}, Short: "End a worker when its requests are answered", Args: argCount(1, 1, "ID")}
	c.Flags().BoolVar(&ref.Force, "force", false, "end it at once: its requests fail")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		ref.WorkerID = args[0]
		return ask(ctx, a, ref, func(d contract.WorkerDeleted) error {
			_, err := fmt.Fprintf(a.out, "%s %s\n", d.WorkerID, outcome(d.Outcome))
			return err
		})
	})
	return c
}

func outcome(o string) string {
	if o == "gone" {
		return "was gone already"
	}
	return o
}

// maxLogLines is as many lines as WorkerLogs gives.
const maxLogLines = 10_000

func (a *app) workerLogs() *cobra.Command {
	ref := contract.WorkerRef{Operation: contract.OpWorkerLogs}
	c := &cobra.Command{Use: "logs ID", Short: "Print the last lines of a worker's log, also of one that has ended", Args: argCount(1, 1, "ID")}
	c.Flags().IntVarP(&ref.Lines, "lines", "n", 100, "`lines`, at most 10,000")
	hiveFlag(c, &ref.HiveID)
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		if ref.Lines < 1 || ref.Lines > maxLogLines {
			return fault.New(fault.Invalid, "bad_flag", "--lines is %d and must be from 1 to 10,000.", ref.Lines)
		}
		ref.WorkerID = args[0]
		return ask(ctx, a, ref, func(l contract.WorkerLogLines) error {
			for _, line := range l.Lines {
				if _, err := fmt.Fprintln(a.out, printable(line)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return c
}

func (a *app) workerTest() *cobra.Command {
	var withSecret bool
	c := &cobra.Command{Use: "test URL", Short: "Run the conformance suite against a worker", Args: argCount(1, 1, "URL")}
	c.Long = c.Short + ".\n\nFor a worker of this queen the secret is derived from the data folder's cluster key; for another one it is read from\nstandard input with --secret-stdin."
	c.Flags().BoolVar(&withSecret, "secret-stdin", false, "read the worker's secret from standard input")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		base := strings.TrimSuffix(args[0], "/")
		u, err := url.Parse(base)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fault.New(fault.Invalid, "bad_url", "%q is not a URL; write for example http://127.0.0.1:7855.", args[0])
		}
		if err := reachable(ctx, base); err != nil {
			return err
		}
		key, err := a.workerSecret(ctx, base, withSecret)
		if err != nil {
			return err
		}
		var results []conformance.Result
		sum := conformance.Run(ctx, conformance.Target{BaseURL: base, Secret: key}, func(r conformance.Result) {
			results = append(results, r)
			if !a.json {
				line := fmt.Sprintf("%-4s  %s", r.Outcome, r.Name)
				if r.Detail != "" {
					line += ": " + printable(r.Detail)
				}
				_, _ = fmt.Fprintln(a.out, line)
			}
		})
		if a.json {
			if err := a.printJSON(map[string]any{"passed": sum.Passed, "failed": sum.Failed, "skipped": sum.Skipped, "results": results}); err != nil {
				return err
			}
		} else {
			_, _ = fmt.Fprintf(a.out, "%d passed, %d failed, %d skipped\n", sum.Passed, sum.Failed, sum.Skipped)
		}
		if sum.Failed > 0 {
			return fault.New(fault.Invalid, "not_conformant", "%s of the worker contract failed; each line above that begins with \"fail\" says what was expected.", plural(sum.Failed, "check"))
		}
		return ctx.Err()
	})
	return c
}

// reachable reports that nobody listens at a URL: a suite would say only that its first check failed.
func reachable(ctx context.Context, base string) error {
	_, err := get(ctx, base+"/health")
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return fault.New(fault.Unavailable, "no_worker", "No worker answers at %s, because nobody accepts a connection there; is it running, and is that its port?", base)
	}
	return nil
}

// workerSecret finds the secret for a worker: given on standard input, or derived where the queen lists a worker at that
// port. Without either the suite runs with none, and says what it could not do.
func (a *app) workerSecret(ctx context.Context, base string, stdin bool) (secret.Secret, error) {
	if stdin {
		return a.readSecret("of the worker")
	}
	c, err := a.connect(ctx)
	if err != nil {
		return "", nil //nolint:nilerr // a stranger's worker needs no agent
	}
	defer c.Close()
	workers, err := client.Run[[]contract.WorkerView](ctx, c.Client, op{Operation: contract.OpWorkerList}, nil)
	if err != nil {
		return "", err
	}
	key, err := loadKey(c.home, secret.ClusterKeyFile)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(workers, func(w contract.WorkerView) bool { return base == fmt.Sprintf("http://%s:%d", w.Address, w.Port) })
	if i < 0 {
		return "", nil
	}
	return secret.ForWorker(key, workers[i].ID), nil
}

// workerEcho is a worker itself: it is what a hive starts for the adapter echo.
func (a *app) workerEcho() *cobra.Command {
	return &cobra.Command{Use: "echo", Short: "Be a worker without a model (started by hives; a fake for tests)", DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			a.exit = echo.Main(args)
			return nil
		}}
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show who serves what", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpStatus}, a.showStatus)
		})}
}

// queensText says how many queens there are and whether they agree; nothing where there is one.
func queensText(members []contract.Member) string {
	n := map[string]int{}
	for _, m := range members {
		if m.Records != "" {
			n[m.Records]++
		}
	}
	others := n[contract.RecordsSame] + n[contract.RecordsDifferent] + n[contract.RecordsUnheard]
	if others == 0 {
		return ""
	}
	text := "     " + plural(others+1, "queen")
	if n[contract.RecordsSame] == others {
		return text + " in step"
	}
	if d := n[contract.RecordsDifferent]; d > 0 {
		text += fmt.Sprintf(", %d not in step", d)
	}
	if u := n[contract.RecordsUnheard]; u > 0 {
		text += fmt.Sprintf(", %d not heard", u)
	}
	return text
}

func (a *app) showStatus(st contract.Status) error {
	alive, late := 0, 0
	hives := map[string]string{}
	for _, h := range st.Hives {
		hives[h.ID] = cmp.Or(h.Name, h.ID)
		if h.Liveness == contract.LivenessAlive {
			alive++
		} else {
			late++
		}
	}
	summary := fmt.Sprintf("queen %s %s     %s up", cmp.Or(st.Name, st.NodeID), st.Version, plural(alive, "hive"))
	if late > 0 {
		summary += fmt.Sprintf(", %d not heard", late)
	}
	if others := len(st.Members) - 1; others > 0 {
		gone := 0
		for _, m := range st.Members {
			if m.State != contract.MemberAlive {
				gone++
			}
		}
		summary += fmt.Sprintf("     %s", plural(len(st.Members), "agent"))
		if gone > 0 {
			summary += fmt.Sprintf(", %d not there", gone)
		}
	}
	summary += queensText(st.Members)
	states := map[string]int{}
	for _, w := range st.Workers {
		states[strings.ToLower(stateWord(w))]++
	}
	var parts []string
	for _, s := range sortedKeys(states) {
		parts = append(parts, fmt.Sprintf("%d %s", states[s], s))
	}
	summary += "     " + plural(len(st.Workers), "worker")
	if len(parts) > 0 {
		summary += ": " + strings.Join(parts, ", ")
	}
	if _, err := fmt.Fprintln(a.out, printable(summary)); err != nil {
		return err
	}
	for _, line := range protections(st.Hives, hives) {
		if _, err := fmt.Fprintln(a.out, printable(line)); err != nil {
			return err
		}
	}
	if err := a.showDeployments(st); err != nil {
		return err
	}
	if len(st.Workers) == 0 && len(st.Deployments) > 0 {
		return nil
	}
	if len(st.Workers) == 0 {
		_, err := fmt.Fprintln(a.out, "\nNobody serves a model yet; the first request for one starts a worker, or `apiary worker spawn MODEL`.")
		return err
	}
	names := map[string]string{}
	for _, m := range st.Models {
		if m.ID != "" {
			names[m.ID] = displayName(m)
		}
	}
	rows := make([][]string, 0, len(st.Workers))
	for _, w := range st.Workers {
		slots := "-"
		if w.Slots > 0 {
			slots = fmt.Sprintf("%d/%d", w.SlotsBusy, w.Slots)
		}
		rows = append(rows, []string{cmp.Or(names[w.ModelID], w.ModelID), w.ID, cmp.Or(hives[w.HiveID], w.HiveID) + "/" + w.Device, workerState(w), slots,
			fmt.Sprint(w.QueueDepth), fmt.Sprint(w.InFlight), w.MemoryBytes.String()})
	}
	_, _ = fmt.Fprintln(a.out)
	return writeTable(a.out, []string{"MODEL", "WORKER", "WHERE", "STATE", "SLOTS", "QUEUE", "IN FLIGHT", "MEMORY"}, rows)
}

// protections says in a line for each group of hives what their workers and plugins are held to.
func protections(hives []contract.HiveView, names map[string]string) []string {
	by := map[string][]string{}
	for _, h := range hives {
		if h.Protection == nil {
			continue
		}
		says := "no new privileges, no core dumps"
		if h.Protection.Landlock > 0 {
			says += fmt.Sprintf(", and files and ports by Landlock (version %d)", h.Protection.Landlock)
		} else if h.Protection.Reason != "" {
			says += ". " + h.Protection.Reason
		}
		by[says] = append(by[says], names[h.ID])
	}
	lines := []string{}
	for _, says := range sortedKeys(by) {
		of := ""
		if len(by) > 1 {
			of = " of " + strings.Join(by[says], ", ")
		}
		lines = append(lines, "workers and plugins"+of+" are held to: "+says)
	}
	return lines
}

// stateWord is one word for what a worker does: the queen's judgement where it has one, else the worker's own.
func stateWord(w contract.WorkerView) string {
	switch {
	case w.Condition != "":
		return w.Condition
	case w.Liveness != contract.LivenessAlive && w.Liveness != "":
		return string(w.Liveness)
	case w.Status == contract.StatusStarting:
		return "loading"
	}
	return strings.ToLower(string(w.Status))
}

func workerState(w contract.WorkerView) string {
	s := stateWord(w)
	if s == "loading" {
		s += fmt.Sprintf(" %.0f %%", w.LoadProgress*100)
	}
	return s
}

// age writes a time in its largest unit, rounded.
func age(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d >= u.size {
			return fmt.Sprintf("%d %s", d.Round(u.size)/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d ms", ms)
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/remote"
	"github.com/apiary-dev/apiary/core/secret"
)

// beatLimit is how long the queen may take to hear a hive that was started again: some beats and polls.
const beatLimit = 30 * time.Second

func (a *app) upgradeCommand() *cobra.Command {
	var r reach
	var binary string
	c := &cobra.Command{Use: "upgrade [HOST…]", Short: "Have the agent run another version, while its workers go on serving", Args: argCount(0, -1, "[HOST…]")}
	c.Long = c.Short + `.

Without HOST it is the agent of this machine and data folder, and the new version is the program that runs this command: for example
the one that was just built in the old one's place. It is tried first; then the agent finishes the requests that run and ends, and the new one is started as
the old one was, with its configuration, options and environment. Where the new one does not become ready, the old one runs again
and the command says why. A command that was cut off is taken up again by giving it again. An agent that systemd runs keeps its
unit: the program there is replaced. Any other one runs from the program's own file from then on, so leave that where it is.

With HOSTs, what ` + "`apiary hive install`" + ` has put there is upgraded through ssh, one machine after the other: the next one's turn comes when the
queen has heard the new agent. The first failure is undone and ends the command.`
	c.Flags().StringVar(&binary, "binary", "", "the new program, a `file` (default: this program; for a HOST of another platform apiary-OS-ARCH beside it)")
	r.flags(c)
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return a.upgradeHosts(ctx, args, binary, r)
		}
		s := a.story(ctx)
		defer s.end()
		v, err := a.upgradeHere(ctx, s, binary)
		if err != nil {
			return err
		}
		s.end()
		if a.json {
			return a.printJSON(v)
		}
		if _, err := fmt.Fprintln(a.out, "agent "+printable(v.line())); err != nil {
			return err
		}
		return a.tellNotes(v.Notes)
	})
	return c
}

// upgradeHosts upgrades the hives on other machines, one after the other.
func (a *app) upgradeHosts(ctx context.Context, hosts []string, binary string, r reach) error {
	for i, h := range hosts {
		if err := remote.CheckHost(h); err != nil {
			return err
		}
		if slices.Contains(hosts[:i], h) {
			return fault.New(fault.Invalid, "bad_arguments", "The machine %s is named twice; name it once.", h)
		}
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	key, err := loadKey(cfg.Home, secret.ClusterKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "no_cluster_key", "The data folder %s has no cluster key, so no hive was installed from here; give the command where `apiary hive install` was given.", cfg.Home)
	}
	if err != nil {
		return err
	}
	lock, err := agent.LockUpgrade(cfg.Home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() { _ = lock.Close() }() // of a nil file it does nothing
	s := a.story(ctx)
	defer s.end()
	views := make([]upgradeView, 0, len(hosts))
	for i, h := range hosts {
		v, err := a.upgradeHost(ctx, s, h, binary, r, key)
		if err != nil {
			if left := hosts[i+1:]; len(left) > 0 {
				e := *fault.As(err)
				e.Err = err
				e.Message = strings.TrimSuffix(e.Message, "\n") + " Not upgraded: " + strings.Join(left, ", ") + "."
				err = &e
			}
			return err
		}
		views = append(views, v)
		if !a.json {
			s.clear()
			if _, err := fmt.Fprintln(a.out, printable(h+" "+v.line())); err != nil {
				return err
			}
			if err := a.tellNotes(v.Notes); err != nil {
				return err
			}
		}
	}
	s.end()
	if a.json {
		return a.printJSON(views)
	}
	return nil
}

// upgradeHost upgrades the hive on another machine, and waits until the queen has heard it.
func (a *app) upgradeHost(ctx context.Context, s *story, host, binary string, r reach, key secret.Secret) (upgradeView, error) {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	none := upgradeView{}
	c, err := a.dial(ctx, s, host, r)
	if err != nil {
		return none, err
	}
	defer c.Close()
	m, err := c.Look(ctx, remote.Places{})
	if err != nil {
		return none, err
	}
	if m.Existing == nil {
		return none, remote.NotInstalled(m)
	}
	program, err := programFor(m, binary)
	if err != nil {
		return none, err
	}
	watch, err := a.watchHives(ctx)
	if err != nil {
		return none, err
	}
	defer watch.close()
	v := upgradeView{Host: host, From: spokenVersion(m.Existing.Version), Lost: []string{}, Notes: []string{}}
	var before queenView
	was := 0 // the process
	plan := remote.Plan{Program: program, Version: "the new version", Say: s.narrate}
	if binary == "" {
		plan.Version = a.version
	}
	plan.Before = func(ctx context.Context, there remote.Agent) error {
		was = there.PID
		before, err = watch.look(ctx, there.NodeID)
		return err
	}
	plan.Answers = func(ctx context.Context, there remote.Installed) error {
		run, err := reachHive(ctx, there.Agent, key)
		if err != nil || there.PID == was {
			return err
		}
		return watch.heard(ctx, s, there.NodeID, before, run)
	}
	s.step("hive   ")
	done, err := c.Upgrade(ctx, m, plan)
	if err != nil {
		return none, err
	}
	v.HiveID, v.Changed = done.NodeID, done.Restarted
	v.Notes = append(v.Notes, done.Notes...)
	if m, err = c.Look(ctx, remote.Places{}); err == nil && m.Existing != nil {
		v.To = spokenVersion(m.Existing.Version)
	}
	after, err := watch.look(ctx, done.NodeID)
	if err != nil {
		return none, err
	}
	v.From = cmp.Or(before.hive.Version, v.From)
	v.To = cmp.Or(after.hive.Version, v.To)
	v.compare(before.workers, after.workers)
	if watch.conn == nil {
		v.Notes = append(v.Notes, "No queen runs here, so it was not waited until one has heard the hive.")
	} else if before.hive.ID == "" {
		v.Notes = append(v.Notes, "The queen here does not know the hive, so it was not waited until it has heard it.")
	}
	return v, nil
}

// compare counts the workers that went on.
func (v *upgradeView) compare(before, after []contract.WorkerView) {
	for _, w := range before {
		if slices.ContainsFunc(after, func(o contract.WorkerView) bool { return o.ID == w.ID && o.PID == w.PID }) {
			v.Kept++
		} else {
			v.Lost = append(v.Lost, w.ID)
		}
	}
}

// spokenVersion is the version in what `apiary version` prints.
func spokenVersion(said string) string {
	f := strings.Fields(said)
	if len(f) < 2 {
		return cmp.Or(said, "an unknown version")
	}
	return f[1]
}

// hiveWatch asks the queen of this machine about hives. Without one it knows nothing and waits for nothing.
type hiveWatch struct{ conn *conn }

func (a *app) watchHives(ctx context.Context) (hiveWatch, error) {
	t, err := a.target()
	if err != nil {
		return hiveWatch{}, err
	}
	if t.look(ctx) != ready {
		return hiveWatch{}, nil
	}
	c, err := t.conn()
	return hiveWatch{c}, err
}

func (w hiveWatch) close() {
	if w.conn != nil {
		w.conn.Close()
	}
}

// queenView is a hive with its workers as the queen sees them. Without an id it does not know the hive.
type queenView struct {
	hive    contract.HiveView
	workers []contract.WorkerView
}

func (w hiveWatch) look(ctx context.Context, id string) (v queenView, err error) {
	if w.conn == nil {
		return v, nil
	}
	hives, err := client.Run[[]contract.HiveView](ctx, w.conn.Client, op{Operation: contract.OpHiveList}, nil)
	if err != nil {
		return v, fmt.Errorf("list the hives: %w", err)
	}
	i := slices.IndexFunc(hives, func(h contract.HiveView) bool { return h.ID == id })
	if i < 0 {
		return v, nil
	}
	v.hive = hives[i]
	all, err := client.Run[[]contract.WorkerView](ctx, w.conn.Client, op{Operation: contract.OpWorkerList}, nil)
	if err != nil {
		return v, fmt.Errorf("list the workers: %w", err)
	}
	for _, k := range all {
		if k.HiveID == id && k.Status != contract.StatusStopped && k.Liveness != contract.LivenessLost {
			v.workers = append(v.workers, k)
		}
	}
	return v, nil
}

// heard waits until the queen, where it knew the hive before, has had a beat of its run that was started.
func (w hiveWatch) heard(ctx context.Context, s *story, id string, before queenView, run int64) error {
	if before.hive.ID == "" {
		return nil
	}
	s.narrate(contract.Narration{Action: "wait", Message: "waiting until the queen has heard the hive"})
	for deadline := time.Now().Add(beatLimit); ; {
		now, err := w.look(ctx, id)
		if err != nil {
			return err
		}
		up := now.hive.Liveness == contract.LivenessAlive || now.hive.Liveness == contract.LivenessSuspect
		if up && now.hive.Incarnation == run {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Unavailable, "hive_not_heard", "The hive runs and answers, but the queen has not heard it within %v; `apiary hive list` shows how it stands.", beatLimit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

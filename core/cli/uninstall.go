package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/remote"
)

// hiveChange is what `hive start`, `stop` and `uninstall` did, for programs.
type hiveChange struct {
	Host    string   `json:"host"`
	HiveID  string   `json:"hive_id,omitempty"`
	Address string   `json:"address,omitempty"`
	Changed bool     `json:"changed"`
	Notes   []string `json:"notes"`
}

// atMachine connects to a machine and looks at it for a command.
func (a *app) atMachine(ctx context.Context, host string, r reach, f func(context.Context, *story, *remote.Conn, remote.Machine) (hiveChange, error)) error {
	if err := remote.CheckHost(host); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	s := a.story(ctx)
	defer s.end()
	c, err := a.dial(ctx, s, host, r)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := c.Look(ctx, remote.Places{})
	if err != nil {
		return err
	}
	s.step("hive   ")
	change, err := f(ctx, s, c, m)
	if err != nil {
		return err
	}
	s.end()
	change.Host = host
	if a.json {
		if change.Notes == nil {
			change.Notes = []string{}
		}
		return a.printJSON(change)
	}
	return a.tellNotes(change.Notes)
}

func (a *app) hiveStartCommand() *cobra.Command {
	var r reach
	c := &cobra.Command{Use: "start HOST", Short: "Start the hive that was installed on another machine", Args: argCount(1, 1, "HOST")}
	r.flags(c)
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		return a.atMachine(ctx, args[0], r, func(ctx context.Context, s *story, c *remote.Conn, m remote.Machine) (hiveChange, error) {
			there, now, err := c.Start(ctx, m)
			if err != nil {
				return hiveChange{}, err
			}
			words := "runs already"
			if now {
				words = "started"
			}
			s.done("%s · %s", words, there.URL)
			return hiveChange{HiveID: there.NodeID, Address: there.URL, Changed: now}, nil
		})
	})
	return c
}

func (a *app) hiveStopCommand() *cobra.Command {
	var r reach
	var keep bool
	c := &cobra.Command{Use: "stop HOST", Short: "End the workers of a hive on another machine, then the hive", Args: argCount(1, 1, "HOST")}
	c.Long = c.Short + ".\n\nIt starts again with `apiary hive start`, and where systemd runs it at the next boot."
	r.flags(c)
	c.Flags().BoolVar(&keep, "keep-workers", false, "leave the workers running; a hive that starts later finds them")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		return a.atMachine(ctx, args[0], r, func(ctx context.Context, s *story, c *remote.Conn, m remote.Machine) (hiveChange, error) {
			lines, err := c.Stop(ctx, m, keep)
			if err != nil {
				return hiveChange{}, err
			}
			for _, l := range lines {
				s.line(l)
			}
			running := m.Existing.Running
			if running {
				s.done("stopped")
			} else {
				s.done("did not run")
			}
			return hiveChange{Changed: running}, nil
		})
	})
	return c
}

func (a *app) hiveUninstallCommand() *cobra.Command {
	var r reach
	var purge, yes bool
	c := &cobra.Command{Use: "uninstall HOST", Short: "Take a hive off another machine", Args: argCount(1, 1, "HOST")}
	c.Long = c.Short + ".\n\nIts workers and the hive are ended; the unit, the program and the configuration are removed. The data folder stays, unless --purge is said."
	r.flags(c)
	c.Flags().BoolVar(&purge, "purge", false, "remove the data folder too: models, logs and keys")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "purge without a question")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		return a.atMachine(ctx, args[0], r, func(ctx context.Context, s *story, c *remote.Conn, m remote.Machine) (hiveChange, error) {
			if purge && !yes && m.Existing != nil {
				s.clear()
				if err := a.agreeToPurge(m); err != nil {
					return hiveChange{}, err
				}
			}
			was := ""
			if m.Existing != nil {
				was = c.URL(ctx, m)
			}
			notes, err := c.Uninstall(ctx, m, purge)
			if err != nil {
				return hiveChange{}, err
			}
			s.done("removed from %s", m.Name)
			cfg, err := a.loadConfig()
			if err != nil {
				return hiveChange{}, err
			}
			if was != "" {
				switch gone, err := inTurn(ctx, cfg.Home, func() (bool, error) { return config.RemoveHive(configFile(cfg), was) }); {
				case err != nil:
					notes = append(notes, fmt.Sprintf("Remove %q from queen.hives by hand. (%s)", was, strings.TrimSuffix(fault.As(err).Message, ".")))
				case gone:
					notes = append(notes, fmt.Sprintf("%s was removed from queen.hives of %s.", was, configFile(cfg)))
					if problem := a.rereadHere(ctx); problem != "" {
						notes = append(notes, problem)
					}
				}
			}
			return hiveChange{Changed: true, Address: was, Notes: notes}, nil
		})
	})
	return c
}

// agreeToPurge asks before a data folder is removed.
func (a *app) agreeToPurge(m remote.Machine) error {
	if !isTerminal(a.in) {
		return fault.New(fault.Denied, "not_confirmed", "Nothing was removed, because nobody is there to answer; say --yes to remove %s on %s with all models, logs and keys.", m.Layout.Data, m.Host)
	}
	if _, err := fmt.Fprintf(a.err, "Remove %s on %s with all models, logs and keys? [y/N] ", m.Layout.Data, m.Host); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return fault.New(fault.Denied, "not_confirmed", "Nothing was removed, because it was not confirmed.")
	}
	return nil
}

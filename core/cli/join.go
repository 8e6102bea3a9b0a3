package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/trust"
)

func (a *app) tokenCommand() *cobra.Command {
	var n contract.NewToken
	var ttl time.Duration
	create := &cobra.Command{Use: "create", Short: "Make a token that lets one more machine into the cluster, and print it, once", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			if ttl != 0 && ttl < time.Minute || ttl > 24*time.Hour {
				return fault.New(fault.Invalid, "bad_ttl", "A token lives from a minute to a day; give --ttl a time such as 15m.")
			}
			n.TTLSeconds = int64(ttl / time.Second)
			return a.createToken(ctx, n)
		})}
	create.Long = create.Short + `.

  apiary token create                              on a queen's machine
  apiary join TOKEN                                on the other one

Who has the token can join until it is used or has expired, so give it by a way that nobody else reads. A token for a queen lets in a
machine that routes and holds the cluster's keys.`
	f := create.Flags()
	f.StringVar(&n.Role, "role", trust.RoleHive, "what it lets in: a `hive`, or a queen, which may be a hive too")
	f.StringVar(&n.Name, "name", "", "the `name` that the machine must have as agent.name (default: any)")
	f.DurationVar(&ttl, "ttl", trust.DefaultTokenTTL, "how long it can be used, from `1m` to 24h")
	return a.holder("token", "Let machines into the cluster", create)
}

func (a *app) createToken(ctx context.Context, n contract.NewToken) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var made contract.MadeToken
	if err := c.PostJSON(ctx, "/admin/tokens", n, &made); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(made)
	}
	who := "a " + made.Role
	if made.Name != "" {
		who += " called " + printable(made.Name)
	}
	text := fmt.Sprintf("Token %s for %s, until %s. On the other machine: apiary join TOKEN. It is shown this once:\n", made.ID, who, made.Expires.Local().Format(time.TimeOnly))
	if here := slices.IndexFunc(made.Addresses, func(at string) bool { host, _, _ := net.SplitHostPort(at); return !isLoopbackName(host) }) < 0; here {
		text = fmt.Sprintf("The queen listens at %s, so the token can be used on this machine only; for others set queen.listen, hive.listen and gossip.bind to this machine's address and start the agent again.\n", strings.Join(made.Addresses, ", ")) + text
	}
	if _, err := io.WriteString(a.err, text); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, made.Token)
	return err
}

func isLoopbackName(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

func (a *app) joinCommand() *cobra.Command {
	start, insecure := true, false
	c := &cobra.Command{Use: "join TOKEN|-", Short: "Make this machine a member of the cluster that a token is of, and start its agent", Args: argCount(1, 1, "TOKEN|-"),
		RunE: interruptible(func(ctx context.Context, args []string) error { return a.join(ctx, args[0], start, insecure) })}
	c.Long = c.Short + `.

  apiary join "$TOKEN"
  echo "$TOKEN" | apiary join -                    the token is not in the table of processes

The token comes from ` + "`apiary token create`" + ` on a queen's machine. This machine makes its own key, checks that the queen is of the cluster of the
token, and gets its certificate, the cluster's keys and the addresses of the others. What its configuration lacks is written into it and told.
Where the configuration does not set agent.roles it becomes what the token is for: a hive, or a queen that is a hive too.`
	c.Flags().BoolVar(&start, "start", true, "start the agent afterwards; --start=false where a service does")
	c.Flags().BoolVar(&insecure, "insecure-i-know", false, "start the agent so that it listens where other machines can connect, although what they say is not encrypted yet")
	return c
}

func (a *app) join(ctx context.Context, text string, start, insecure bool) error {
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(a.in, 64<<10))
		if err != nil {
			return fmt.Errorf("read the token: %w", err)
		}
		text = string(b)
	}
	token, err := trust.ParseToken(text)
	if err != nil {
		return err
	}
	cfg, err := a.loadAgentConfig()
	if err != nil {
		return err
	}
	if cfg.Path == "" || !cfg.Agent.RolesSet { // nobody has said what this machine is to be
		cfg.Agent.Roles = []string{config.RoleHive}
		if token.Role == trust.RoleQueen {
			cfg.Agent.Roles = []string{config.RoleQueen, config.RoleHive}
		}
	}
	if locked, err := agent.Locked(cfg.Home); err != nil {
		return err
	} else if locked {
		return fault.New(fault.Conflict, agent.CodeAlreadyRunning, "An agent runs with the data folder %s; stop it with `apiary stop`, and join then.", cfg.Home)
	}
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	done, err := config.TakeTurn(ctx, cfg.Home)
	if err != nil {
		return err
	}
	m, err := agent.Join(ctx, agent.JoinOptions{Config: cfg, File: configFile(cfg), Token: token, Version: a.version})
	done()
	if err != nil {
		return err
	}
	notes := []string{fmt.Sprintf("%s joined the cluster %s as %s, at the queen %s.", m.Name, m.Cluster[:8], strings.Join(m.Roles, " + "), m.Queen)}
	if len(m.Wrote) > 0 {
		notes = append(notes, fmt.Sprintf("Written into %s: %s.", m.File, strings.Join(m.Wrote, ", ")))
	}
	if m.Former {
		notes = append(notes, "This machine was a cluster of its own; its CA and what it shared are kept beside the new ones, in secrets/ca.key.old and state/shared.json.old.")
	}
	how := "apiary agent"
	if m.Reachable {
		how += " --insecure-i-know"
		start = start && insecure
	}
	if start {
		if err := a.startMember(ctx, cfg.Home, insecure); err != nil {
			return errors.Join(a.tellNotes(notes), err)
		}
		notes = append(notes, "The agent runs; its log is "+tilde(agent.LogPath(cfg.Home), a.getenv("HOME"))+".")
	} else {
		notes = append(notes, fmt.Sprintf("Start it with `%s`.", how))
	}
	if a.json {
		return a.printJSON(m)
	}
	return a.tellNotes(notes)
}

// startMember starts the agent of a data folder, which may be one without a queen, and waits until it runs.
func (a *app) startMember(ctx context.Context, home string, insecure bool) error {
	t, err := a.target()
	if err != nil {
		return err
	}
	var more []string
	if insecure {
		more = append(more, "--insecure-i-know")
	}
	b, err := a.startAgent(t, more...)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if r, err := agent.ReadRunFile(home); err == nil && r.Process.PID == b.pid {
			return nil
		}
		select {
		case <-b.ended:
			return b.failure(home)
		case <-wait.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "agent_not_ready", "The agent has not started within %v; its log is %s.", startLimit, agent.LogPath(home))
		case <-time.After(pause):
		}
	}
}

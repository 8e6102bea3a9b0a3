package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gossip"
)

func (a *app) memberCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the agents of the cluster", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpMemberList}, func(members []contract.Member) error {
				rows := make([][]string, 0, len(members))
				for _, m := range members {
					rows = append(rows, []string{memberName(m), m.ID, strings.Join(m.Roles, "+"), m.Address, m.Version, string(m.State), since(m.Since, time.Now()), skew(m), cmp.Or(m.Records, "-")})
				}
				return a.table([]string{"NAME", "ID", "ROLES", "GOSSIP", "VERSION", "STATE", "SINCE", "CLOCK", "RECORDS"}, rows, "The agent knows no members.")
			})
		})}
	list.Long = list.Short + ".\n\nRECORDS says of each other queen whether it has the same deployments, drained hives and keys as the one that is asked."
	keys := &cobra.Command{Use: "keys", Short: "List which gossip keys each agent accepts, by fingerprint; the first one is the one in use", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpMemberList}, a.showKeys)
		})}
	change := func(use, short, action string, read func(string) (contract.KeyChange, error)) *cobra.Command {
		_, arg, _ := strings.Cut(use, " ")
		return &cobra.Command{Use: use, Short: short, Args: argCount(1, 1, arg), RunE: interruptible(func(ctx context.Context, args []string) error {
			c, err := read(args[0])
			if err != nil {
				return err
			}
			c.Operation, c.Action = contract.OpMemberKeys, action
			return ask(ctx, a, c, a.showKeys)
		})}
	}
	print := func(s string) (contract.KeyChange, error) { return contract.KeyChange{Fingerprint: s}, nil }
	hold := a.holder("key", "Change the gossip key of all agents: add the new one, use it, remove the old one",
		change("add FILE", "Have all agents accept one more key, which `apiary keygen > FILE` has made", contract.KeyAdd, readKey),
		change("use FINGERPRINT", "Have all agents use a key that all of them accept", contract.KeyUse, print),
		change("remove FINGERPRINT", "Have all agents refuse a key that none of them uses", contract.KeyRemove, print))
	return a.holder("member", "Look at the agents of the cluster, and change their keys", list, keys, hold)
}

func readKey(path string) (contract.KeyChange, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return contract.KeyChange{}, fault.New(fault.NotFound, "no_key_file", "The key file cannot be read: %w; `apiary keygen > FILE` makes one.", err)
	}
	return contract.KeyChange{Key: strings.TrimSpace(string(b))}, nil
}

func (a *app) showKeys(members []contract.Member) error {
	rows := make([][]string, 0, len(members))
	for _, m := range members {
		rows = append(rows, []string{memberName(m), m.ID, string(m.State), strings.Join(m.Keys, ", ")})
	}
	return a.table([]string{"NAME", "ID", "STATE", "KEYS"}, rows, "The agent knows no members.")
}

func memberName(m contract.Member) string {
	if m.Self {
		return m.Name + " *"
	}
	return m.Name
}

// since is how long ago something began, in its two largest units at most.
func since(t, now time.Time) string {
	d := max(now.Sub(t), 0).Truncate(time.Second)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Hour:
		d = d.Truncate(time.Minute)
		return strings.TrimSuffix(d.String(), "0s")
	}
	return d.String()
}

// skew says how a member's clock differs from that of who lists it; small differences are those of the measurement.
func skew(m contract.Member) string {
	if m.Self || m.SkewMS == nil {
		return "-"
	}
	d := time.Duration(*m.SkewMS) * time.Millisecond
	switch {
	case d.Abs() < time.Second:
		return "same"
	case d < 0:
		return d.Abs().Truncate(time.Second).String() + " behind"
	}
	return d.Truncate(time.Second).String() + " ahead"
}

func (a *app) keygenCommand() *cobra.Command {
	c := &cobra.Command{Use: "keygen", Short: "Make a gossip key and print it", Args: argCount(0, 0, ""), RunE: func(*cobra.Command, []string) error {
		key := gossip.NewKey()
		if a.json {
			return a.printJSON(map[string]string{"key": key.Reveal(), "fingerprint": gossip.Fingerprint(key)})
		}
		_, err := fmt.Fprintln(a.out, key.Reveal())
		return err
	}}
	c.Long = c.Short + `.

  apiary keygen > gossip.key

The same key goes to each machine, by a way that nobody else reads, and gossip { key = file("gossip.key") } into its configuration.
What encrypts follows from this key and from secrets/cluster.key together, so that both must be the same on all machines.`
	return c
}

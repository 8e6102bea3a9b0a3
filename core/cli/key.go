package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func (a *app) keyCommand() *cobra.Command {
	var n contract.NewKey
	var ttl time.Duration
	create := &cobra.Command{Use: "create NAME", Short: "Make an API key and print it, once", Args: argCount(1, 1, "NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			n.Name = args[0]
			if ttl != 0 && ttl < time.Second {
				return fault.New(fault.Invalid, "bad_ttl", "A key is good for at least a second; give --ttl a time such as 720h, or leave it out for a key that does not expire.")
			}
			n.TTLSeconds = int64(ttl / time.Second)
			return a.createKey(ctx, n)
		})}
	create.Long = create.Short + `.

  apiary key create anna                                   for OpenAI clients, as OPENAI_API_KEY
  apiary key create ci --ttl 720h --model smol --concurrency 4 --tokens-per-minute 20000
  apiary key create grafana --class metrics

The first key that is made closes inference and metrics to callers without one, on all queens. The limits hold on each queen for itself.`
	f := create.Flags()
	f.StringVar(&n.Class, "class", contract.KeyInference, "what it is for: `inference`, metrics, or admin, which may do all that this command line can")
	f.DurationVar(&ttl, "ttl", 0, "how long it is good, such as `720h` (default: until it is revoked)")
	f.StringArrayVar(&n.Models, "model", nil, "a `model` that it may ask for, by its name or reference; may be given again (default: all)")
	f.IntVar(&n.Concurrency, "concurrency", 0, "`requests` at once, those that wait included (default: any number)")
	f.IntVar(&n.TokensPerMinute, "tokens-per-minute", 0, "`tokens` of prompts and answers together (default: any number)")
	f.IntVar(&n.Queue, "queue", 0, "`requests` that may wait for one model (default: limits.queue_per_key)")
	list := &cobra.Command{Use: "list", Short: "List the API keys, without what is secret of them", Args: argCount(0, 0, ""), RunE: interruptible(func(ctx context.Context, _ []string) error {
		return a.listKeys(ctx)
	})}
	revoke := &cobra.Command{Use: "revoke ID|NAME", Short: "Revoke an API key; its open requests end", Args: argCount(1, 1, "ID|NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error { return a.revokeKey(ctx, args[0]) })}
	return a.holder("key", "Make, list and revoke the API keys of callers", create, list, revoke)
}

func (a *app) createKey(ctx context.Context, n contract.NewKey) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var made contract.MadeKey
	if err := c.PostJSON(ctx, "/admin/keys", n, &made); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(made)
	}
	if _, err := fmt.Fprintf(a.err, "Key %s of %s, class %s, %s. It is shown this once:\n", made.ID, printable(made.Name), made.Class, limitText(made.APIKey)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, made.Key)
	return err
}

func (a *app) listKeys(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var list []contract.APIKey
	if err := c.GetJSON(ctx, "/admin/keys", &list); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	rows := make([][]string, 0, len(list))
	for _, k := range list {
		rows = append(rows, []string{k.ID, k.Name, k.Class, k.Created.Format(time.DateOnly), expiry(k, time.Now()), limitText(k)})
	}
	return a.table([]string{"ID", "NAME", "CLASS", "CREATED", "EXPIRES", "LIMITS"}, rows, "There are no API keys; `apiary key create NAME` makes one.")
}

func (a *app) revokeKey(ctx context.Context, which string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var gone contract.APIKey
	if err := c.DeleteJSON(ctx, "/admin/keys/"+url.PathEscape(which), &gone); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(gone)
	}
	_, err = fmt.Fprintf(a.err, "Key %s of %s is revoked; its open requests end.\n", gone.ID, printable(gone.Name))
	return err
}

func expiry(k contract.APIKey, now time.Time) string {
	switch {
	case k.Expires.IsZero():
		return "never"
	case now.After(k.Expires):
		return "expired"
	}
	return "in " + since(now, k.Expires)
}

// limitText says what a key is limited to.
func limitText(k contract.APIKey) string {
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, strconv.Itoa(n)+" "+what)
		}
	}
	add(k.Concurrency, "at once")
	add(k.TokensPerMinute, "tokens/min")
	add(k.Queue, "waiting")
	if len(k.Models) > 0 {
		parts = append(parts, "only "+printable(strings.Join(k.Models, " ")))
	}
	return cmp.Or(strings.Join(parts, ", "), "no limits")
}

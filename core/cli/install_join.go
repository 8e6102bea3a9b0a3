package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	maxJoin   = 8                      // addresses that a new hive is told; one is enough, and it remembers the others
	hiveHeard = 40 * time.Second       // until the queen hears a hive: it joins at its start, and again within 20 s
	pause     = 250 * time.Millisecond // between two questions
)

// company is how a hive on another machine gets to know the agents of this cluster.
type company struct {
	join []string      // gossip addresses of the queens, this machine's first; none: the gossip here is on loopback
	key  secret.Secret // of the gossip; "" without join
	live *conn         // to the queen here; nil: it does not run
}

// company asks the agent here for the members, or reads the configuration where it does not run. The caller closes what it gives.
func (a *app) company(ctx context.Context, cfg *config.Config, cluster secret.Secret) (company, error) {
	var out company
	t, err := a.target()
	if err != nil {
		return out, err
	}
	var at []string
	if t.look(ctx) == ready {
		if out.live, err = t.conn(); err != nil {
			return out, err
		}
		members, err := client.Run[[]contract.Member](ctx, out.live.Client, op{Operation: contract.OpMemberList}, nil)
		if err != nil {
			return out, err
		}
		at = queensOf(members)
	} else if own, err := agent.GossipAddress(cfg); err == nil {
		at = []string{own.String()}
	}
	for _, address := range at {
		if ip, err := netip.ParseAddrPort(address); err == nil && !ip.Addr().IsLoopback() && len(out.join) < maxJoin {
			out.join = append(out.join, address)
		}
	}
	if len(out.join) > 0 {
		out.key, err = agent.GossipKey(cfg, cluster)
	}
	return out, err
}

func (c company) close() {
	if c.live != nil {
		c.live.Close()
	}
}

// queensOf are the gossip addresses of the members that are queens and have not left: this agent's first, the others in an order that
// is always the same, so that the same command again changes nothing.
func queensOf(members []contract.Member) []string {
	var own, others []string
	for _, m := range members {
		switch {
		case m.Queen == "" || m.State == contract.MemberLeft:
		case m.Self:
			own = []string{m.Address}
		default:
			others = append(others, m.Address)
		}
	}
	slices.Sort(others)
	return append(own, others...)
}

// gossipAt decides where the gossip of a hive listens: "" where it has none that others could reach.
func (o hiveInstall) gossipAt(listen string, c company) (string, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	ip, err := netip.ParseAddr(host)
	loopback := err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
	at := net.JoinHostPort(host, strconv.Itoa(contract.GossipPort))
	if o.gossip != "" {
		at = o.gossip
	}
	host, port, err := net.SplitHostPort(at)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || !plainHost(host) {
		return "", fault.New(fault.Invalid, "bad_address", "%q is not where a hive's gossip can listen; write host:port, for example 10.0.0.7:%d.", at, contract.GossipPort)
	}
	if loopback || len(c.join) == 0 {
		return "", nil
	}
	return at, nil
}

// gossipBlock is the block of a hive's configuration. Its texts have been checked: nothing in them needs escaping.
func gossipBlock(bind, keyFile string, c company) string {
	quoted := make([]string, len(c.join))
	for i, j := range c.join {
		quoted[i] = strconv.Quote(j)
	}
	return fmt.Sprintf(`
gossip {
  bind = %q
  join = [%s]
  key  = file(%q)
}
`, bind, strings.Join(quoted, ", "), keyFile)
}

// heard waits until the queen here hears a run of a hive that was started, by gossip.
func (c company) heard(ctx context.Context, id string, run int64) error {
	if c.live == nil {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, hiveHeard)
	defer cancel()
	for {
		members, err := client.Run[[]contract.Member](wait, c.live.Client, op{Operation: contract.OpMemberList}, nil)
		if err == nil && slices.ContainsFunc(members, func(m contract.Member) bool { return m.ID == id && m.State == contract.MemberAlive }) {
			if l, err := c.sees(wait, id, run); err == nil && l != "" {
				return nil
			}
		}
		if err != nil && wait.Err() == nil {
			return err
		}
		select {
		case <-wait.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "gossip_unreachable",
				"The hive answers over HTTP and is not heard by gossip here; let TCP and UDP through to the gossip ports of both machines, that is to %s here.", strings.Join(c.join, " and "))
		case <-time.After(pause):
		}
	}
}

// sees says how the queen sees a run of a hive: alive, or suspect where it comes and goes; "": not.
func (c company) sees(ctx context.Context, id string, run int64) (contract.Liveness, error) {
	hives, err := client.Run[[]contract.HiveView](ctx, c.live.Client, op{Operation: contract.OpHiveList}, nil)
	for _, h := range hives {
		if h.ID == id && h.Incarnation == run && (h.Liveness == contract.LivenessAlive || h.Liveness == contract.LivenessSuspect) {
			return h.Liveness, nil
		}
	}
	return "", err
}

// listed waits until the queen here hears a run of a hive that it knows of, and reports whether it does. held says that it hears
// it and holds it suspect, because it comes and goes.
func (c company) listed(ctx context.Context, s *story, id string, run int64) (listed, held bool, err error) {
	s.narrate(contract.Narration{Action: "wait", Message: "waiting until the queen lists the hive"})
	wait, cancel := context.WithTimeout(ctx, queenListens)
	defer cancel()
	for {
		l, err := c.sees(wait, id, run)
		switch {
		case l != "":
			return true, l == contract.LivenessSuspect, nil
		case ctx.Err() != nil:
			return false, false, ctx.Err()
		case wait.Err() != nil:
			return false, false, nil
		case err != nil:
			return false, false, err
		}
		select {
		case <-wait.Done():
		case <-time.After(pause):
		}
	}
}

// reread has the queen here take over what was written into its configuration, and returns what is to be said about it; "": it is in
// force.
func (c company) reread(ctx context.Context) string {
	if c.live == nil {
		return "The queen takes it over when its agent starts."
	}
	var done contract.ConfigReloaded
	if err := c.live.PostJSON(ctx, "/admin/reload", struct{}{}, &done); err != nil {
		return fmt.Sprintf("The queen could not take it over: `apiary config reload` does, once this is mended. (%s)", strings.TrimSuffix(fault.As(err).Message, "."))
	}
	return ""
}

// rereadHere has the queen here take over its configuration, if it runs.
func (a *app) rereadHere(ctx context.Context) string {
	var c company
	if t, err := a.target(); err == nil && t.look(ctx) == ready {
		c.live, _ = t.conn()
	}
	defer c.close()
	return c.reread(ctx)
}

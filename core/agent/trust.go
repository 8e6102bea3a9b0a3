package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/queen"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/trust"
)

// gossipKeyFile is the gossip key of the cluster, in the folder of secrets: made with the cluster, or given by the queen that let this
// node in.
const gossipKeyFile = "gossip.key"

// credentials is what a node has of its cluster's certificates. Its methods may be called from many goroutines.
type credentials struct {
	store     *trust.Store
	clock     *trust.Clock
	roster    *trust.Roster
	verifier  *trust.Verifier
	identity  *trust.Identity
	authority *trust.Authority // nil: this node issues no certificates
	own       contract.NodeRecord
	nodeID    string
	name      string
	roles     []string
	addresses []string
	log       *slog.Logger
}

// openCredentials reads the node's certificate, or makes the cluster where this is the first start. A node that can issue gives itself a
// new certificate at each start, because its name, its roles and its addresses may have changed. The caller holds the lock.
func openCredentials(o Options, nodeID string) (*credentials, error) {
	cfg := o.Config
	store, err := trust.OpenStore(cfg.Home)
	if err != nil {
		return nil, err
	}
	c := &credentials{
		store: store, clock: trust.NewClock(nil), roster: trust.NewRoster(), nodeID: nodeID, name: CertifiedName(cfg.Agent.Name, nodeID),
		roles: cfg.Agent.Roles, addresses: CertifiedAddresses(cfg), log: o.Log,
	}
	root, err := store.Root()
	if errors.Is(err, fs.ErrNotExist) {
		if _, err = store.CreateCluster(); err == nil {
			root, err = store.Root()
		}
	}
	if err != nil {
		return nil, err
	}
	c.verifier = trust.NewVerifier(root, c.clock, c.roster.Revoked)
	switch c.authority, err = store.Authority(); {
	case errors.Is(err, fs.ErrNotExist):
		c.authority = nil
		c.identity, err = store.Identity(c.verifier)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Conflict, "join_incomplete", "This machine was to join another cluster and that was cut off, so it belongs to none; run `apiary join` with a token of `apiary token create` again.")
		}
		return c, err
	case err != nil:
		return nil, err
	}
	return c, c.issue()
}

// issue gives this node a certificate of its own authority.
func (c *credentials) issue() error {
	key, err := c.store.NodeKey()
	if err != nil {
		return err
	}
	chain, own, err := c.authority.IssueOwn(key, c.nodeID, c.name, c.roles, c.addresses, c.clock.Now())
	if err != nil { // of an address that no certificate can name; nodes know each other by their ids
		chain, own, err = c.authority.IssueOwn(key, c.nodeID, c.name, c.roles, nil, c.clock.Now())
	}
	if err != nil {
		return fmt.Errorf("make the certificate of this node: %w", err)
	}
	if c.identity == nil {
		c.identity, err = trust.NewIdentity(key, chain, c.verifier)
	} else {
		err = c.identity.Replace(chain)
	}
	if err != nil {
		return fmt.Errorf("take the certificate of this node into use: %w", err)
	}
	c.own = own
	return c.store.SaveNode(chain)
}

// Bounds of the waits between two tries to renew.
const (
	renewRetry = time.Minute
	renewLook  = time.Hour // after which the clocks are looked at again: a machine that slept is late
)

// renew keeps the certificate young until ctx ends.
func (c *credentials) renew(ctx context.Context, ask func(context.Context, contract.RenewRequest) (contract.RenewReply, error)) error {
	jitter := rand.Float64()
	failing := false
	for {
		wait := min(max(c.identity.RenewIn(jitter), renewRetry), renewLook)
		if run.Sleep(ctx, wait) != nil {
			return nil
		}
		if c.identity.RenewIn(jitter) > 0 {
			continue
		}
		err := c.renewOnce(ctx, ask)
		switch {
		case err != nil && !failing:
			c.log.Warn("the certificate of this node is not renewed", "expires", c.identity.Peer().Expires, "error", err.Error())
		case err == nil:
			c.log.Info("certificate renewed", "expires", c.identity.Peer().Expires)
		}
		failing = err != nil
	}
}

// renewOnce gets the next certificate: of this node's own authority, or through ask, which asks queens.
func (c *credentials) renewOnce(ctx context.Context, ask func(context.Context, contract.RenewRequest) (contract.RenewReply, error)) error {
	if c.authority != nil {
		return c.issue()
	}
	csr, err := c.identity.NewCSR()
	if err != nil {
		return err
	}
	reply, err := ask(ctx, contract.RenewRequest{Addresses: append([]string{}, c.addresses...), CSR: csr, Time: c.clock.Now()})
	if err != nil {
		return err
	}
	chain, _, err := c.identity.Renewed(reply, nil)
	if err != nil {
		return err
	}
	return c.store.SaveNode(chain)
}

// renewAt asks the queens, one after the other, to renew this node's certificate.
func (a *assembly) renewAt(ctx context.Context, req contract.RenewRequest) (contract.RenewReply, error) {
	err := errors.New("no queen is known that renews it")
	for _, base := range a.queens() {
		c := client.New(client.Options{Base: overTLS(base), Dial: a.network.dial, DialTLS: a.network.dialTLS})
		var reply contract.RenewReply
		err = c.PostJSON(ctx, "/v1/renew", req, &reply)
		c.Close()
		if err == nil || ctx.Err() != nil {
			return reply, err
		}
	}
	return contract.RenewReply{}, err
}

// overTLS is a base URL with https: a queen takes TLS at its one port also where others may speak plain HTTP there.
func overTLS(base string) string {
	if rest, ok := strings.CutPrefix(base, "http://"); ok {
		return "https://" + rest
	}
	return base
}

// trust is what the queen of this agent lets machines in with.
func (a *assembly) trust(n node) *queen.Trust {
	return &queen.Trust{
		Authority: n.authority, Clock: n.clock, Roster: n.roster, Verifier: n.verifier, NodeID: n.id, Own: func() contract.NodeRecord { return n.own },
		Addresses: a.joinAddresses,
		Welcome: func([]string) (trust.Welcome, error) {
			w := trust.Welcome{GossipKeys: a.gossip.Keys(), ClusterKey: n.cluster, AdminKey: n.admin}
			var own []string
			for _, m := range a.members() {
				switch {
				case m.Queen == "" || m.State == contract.MemberLeft:
				case m.Self:
					own = []string{m.Address}
				case len(w.Peers) < maxWelcome:
					w.Peers = append(w.Peers, m.Address)
				}
			}
			w.Peers = append(own, w.Peers...)
			return w, nil
		},
	}
}

// maxWelcome bounds the addresses that one who joins is told, and those in a token.
const maxWelcome = 7

// joinAddresses are the queens at which others join, this one first.
func (a *assembly) joinAddresses() ([]string, error) {
	var out []string
	for _, m := range a.members() {
		u, err := url.Parse(m.Queen)
		if m.Queen == "" || err != nil || m.State != contract.MemberAlive {
			continue
		}
		host := u.Hostname()
		gossip, gerr := netip.ParseAddrPort(m.Address)
		if m.Self && !isLoopbackHost(host) && gerr == nil && gossip.Addr().IsLoopback() {
			return nil, fault.New(fault.Conflict, "gossip_on_loopback", "The queen listens at %s and its gossip at %s, where other machines cannot reach it; set gossip.bind to this machine's address too, and start the agent again.", u.Host, m.Address)
		}
		switch {
		case m.Self:
			out = append([]string{u.Host}, out...)
		case !isLoopbackHost(host) && len(out) < maxWelcome:
			out = append(out, u.Host)
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Unavailable, "starting", "The agent has just started and does not know its own address yet; try again.").WithRetryAfter(time.Second)
	}
	return out, nil
}

var (
	certNameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	notCertName  = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// CertifiedName is how a certificate names an agent: by agent.name, with a dash for what certificates cannot say. A name without one
// usable character is the node's id.
func CertifiedName(name, nodeID string) string {
	name = notCertName.ReplaceAllString(name, "-")
	for len(name) > 0 && !certNameForm.MatchString(name[:1]) {
		name = name[1:]
	}
	if name = name[:min(len(name), 64)]; !certNameForm.MatchString(name) {
		return nodeID
	}
	return name
}

// CertifiedAddresses are the hosts at which an agent of this configuration can be reached: what it advertises, and the addresses that it
// listens at.
func CertifiedAddresses(cfg *config.Config) []string {
	out := advertised(cfg.Agent.Advertise)
	for _, l := range []struct{ role, addr string }{{config.RoleQueen, cfg.Queen.Listen}, {config.RoleHive, cfg.Hive.Listen}} {
		host, _, err := net.SplitHostPort(l.addr)
		if ip, perr := netip.ParseAddr(host); err == nil && perr == nil && cfg.Agent.Has(l.role) && !ip.IsUnspecified() && ip.Zone() == "" {
			out = append(out, ip.Unmap().String())
		}
	}
	return out
}

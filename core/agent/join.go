package agent

import (
	"cmp"
	"context"

	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/gossip"
	"github.com/apiary-dev/apiary/core/queen"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/trust"
)

// JoinOptions says who joins.
type JoinOptions struct {
	Config  *config.Config // of this machine, with the roles that it is to have
	File    string         // the configuration to be written
	Token   trust.Token
	Version string
}

// Membership is what came of a join.
type Membership struct {
	NodeID  string   `json:"node_id"`
	Name    string   `json:"name"`
	Roles   []string `json:"roles"`
	Cluster string   `json:"cluster_id"`
	Queen   string   `json:"queen"`   // host:port of the one that let this machine in
	Peers   []string `json:"peers"`   // gossip addresses
	File    string   `json:"config"`  // that was written
	Wrote   []string `json:"written"` // settings of it, as name = value
	// Reachable says that its agent listens where other machines can connect.
	Reachable bool `json:"reachable"`
	Former    bool `json:"former"` // the data folder was that of a cluster of its own, whose keys were put aside
}

// Join makes the data folder of this machine a member of the cluster that a token is of. No agent may run with it. A data folder that is a
// member of another cluster already is a Conflict.
func Join(ctx context.Context, o JoinOptions) (Membership, error) {
	home := o.Config.Home
	none := Membership{}
	if err := folder.Make(home); err != nil {
		return none, fmt.Errorf("make the data folder: %w", err)
	}
	if err := folder.CheckAll(home); err != nil {
		return none, err
	}
	lock, err := lockHome(home)
	if err != nil {
		return none, err
	}
	defer func() { _ = lock.Close() }()
	id, err := nodeID(home)
	if err != nil {
		return none, err
	}
	store, err := trust.OpenStore(home)
	if err != nil {
		return none, err
	}
	former, err := mayJoin(store, home, id, o.Token)
	if err != nil {
		return none, err
	}
	clock := trust.NewClock(nil)
	who := trust.Applicant{NodeID: id, Name: CertifiedName(o.Config.Agent.Name, id), Roles: o.Config.Agent.Roles, Version: o.Version}
	if who.Key, err = store.NodeKey(); err != nil {
		return none, err
	}
	if o.Config.Agent.Has(config.RoleQueen) && o.Token.Role == trust.RoleQueen {
		if who.IssuerKey, err = store.IssuerKey(); err != nil {
			return none, err
		}
	}
	joined, at, err := ask(ctx, o, who, clock)
	if err != nil && fault.As(err).Code == trust.CodeRevokedKey {
		// The machine was shut out with its former key, which stays so; the token lets it in with another one.
		if err = store.ForgetNodeKey(); err == nil {
			who.Key, err = store.NodeKey()
		}
		if err == nil {
			joined, at, err = ask(ctx, o, who, clock)
		}
	}
	if err != nil {
		return none, err
	}
	settings := joinSettings(o.Config, at.local, joined.Peers)
	if err := keepKeys(o.Config, home, joined, former); err != nil {
		return none, err
	}
	if err := config.PutJoin(o.File, o.Config, settings); err != nil {
		return none, err
	}
	if err := store.SaveJoined(joined); err != nil {
		return none, err
	}
	host, _, _ := net.SplitHostPort(cmp.Or(settings.GossipBind, o.Config.Gossip.Bind))
	m := Membership{Reachable: !isLoopbackHost(host), NodeID: id, Name: who.Name, Roles: who.Roles, Cluster: trust.ClusterID(joined.Root), Queen: at.queen, Peers: joined.Peers, File: o.File, Former: former, Wrote: []string{}}
	for _, s := range []struct{ name, value string }{{"gossip.bind", settings.GossipBind}, {"queen.listen", settings.QueenListen}, {"hive.listen", settings.HiveListen}} {
		if s.value != "" {
			m.Wrote = append(m.Wrote, s.name+" = "+strconv.Quote(s.value))
		}
	}
	return m, nil
}

// mayJoin refuses a data folder that is a member of another cluster, or has others in its own. former reports whether it leaves a
// cluster of its own.
func mayJoin(store *trust.Store, home, id string, t trust.Token) (former bool, err error) {
	root, err := store.Root()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || trust.Fingerprint(root) == t.Fingerprint {
		return false, err
	}
	a, err := store.Authority()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if a == nil || !a.IsRoot() {
		if _, err := store.Identity(trust.NewVerifier(root, trust.NewClock(nil), nil)); errors.Is(err, fs.ErrNotExist) {
			return false, nil // a join that was cut off
		}
		return false, fault.New(fault.Conflict, "other_cluster", "The data folder %s belongs to another cluster already (%s); set APIARY_HOME to another folder for this one, or remove its folder secrets to leave that one.", home, trust.ClusterID(root))
	}
	others, err := queen.LetIn(home, id)
	if err != nil {
		return false, err
	}
	if len(others) > 0 {
		return false, fault.New(fault.Conflict, "other_cluster", "The data folder %s is that of a cluster with other machines in it, among them %s; set APIARY_HOME to another folder, or move this one away first.", home, others[0])
	}
	return true, nil
}

// contact is how a queen was reached.
type contact struct {
	queen string
	local netip.Addr // from which
}

// ask uses the token at the queens that it names, until one of them answers.
func ask(ctx context.Context, o JoinOptions, who trust.Applicant, clock *trust.Clock) (trust.Joined, contact, error) {
	var last error
	for _, host := range o.Token.Addresses {
		var at contact
		tlsDial := func(ctx context.Context, kind, addr string) (net.Conn, error) {
			c, err := network{tls: trust.JoinConfig(o.Token, clock)}.dialTLS(ctx, kind, addr)
			if err == nil {
				if ap, perr := netip.ParseAddrPort(c.LocalAddr().String()); perr == nil {
					at = contact{host, ap.Addr().Unmap()}
				}
			}
			return c, err
		}
		c := client.New(client.Options{Base: "https://" + host, DialTLS: tlsDial})
		var health contract.Health // also finds out from which address the queen is reached
		err := c.GetJSON(ctx, "/healthz", &health)
		if err != nil {
			c.Close()
			if ctx.Err() != nil || fault.KindOf(err) != fault.Unavailable {
				return trust.Joined{}, at, err
			}
			last = err
			continue
		}
		who.Addresses = []string{}
		if from := at.local.String(); at.local.IsValid() && at.local.Zone() == "" {
			who.Addresses = append(who.Addresses, from)
		}
		for _, a := range CertifiedAddresses(o.Config) {
			if !isLoopbackHost(a) && !slices.Contains(who.Addresses, a) {
				who.Addresses = append(who.Addresses, a)
			}
		}
		req, err := who.Request(o.Token, clock)
		if err != nil {
			c.Close()
			return trust.Joined{}, at, err
		}
		var reply contract.JoinReply
		err = c.PostJSON(ctx, "/v1/join", req, &reply)
		c.Close()
		if err != nil {
			return trust.Joined{}, at, err
		}
		j, err := who.Accept(o.Token, reply, clock)
		return j, at, err
	}
	return trust.Joined{}, contact{}, fault.New(fault.Unavailable, "queen_unreachable",
		"None of the queens that the token names (%q) can be reached from here: %w; check that the agent there runs and that firewalls let TCP through to it.", o.Token.Addresses, last)
}

// joinSettings is what the configuration of a machine lacks that reached a queen from an address. On loopback it shares the usual ports
// with the agent that it joins.
func joinSettings(cfg *config.Config, local netip.Addr, peers []string) config.JoinSettings {
	s := config.JoinSettings{Roles: cfg.Agent.Roles, GossipJoin: peers}
	if !local.IsValid() || local.IsLoopback() {
		if cfg.Agent.Has(config.RoleHive) && !cfg.Hive.ListenSet {
			s.HiveListen = "127.0.0.1:0"
		}
		return s
	}
	at := func(addr string) string {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || !isLoopbackHost(host) {
			return "" // others reach it already
		}
		return net.JoinHostPort(local.String(), port)
	}
	s.GossipBind = at(cfg.Gossip.Bind)
	if cfg.Agent.Has(config.RoleQueen) {
		s.QueenListen = at(cfg.Queen.Listen)
	}
	if cfg.Agent.Has(config.RoleHive) {
		s.HiveListen = at(cfg.Hive.Listen)
	}
	return s
}

// keepKeys writes the keys of the cluster into the data folder. What the node's former cluster of its own shared is put aside.
func keepKeys(cfg *config.Config, home string, j trust.Joined, former bool) error {
	dir := filepath.Join(home, "secrets")
	write := func(name string, k secret.Secret) error {
		return folder.Full(publish(filepath.Join(dir, name), []byte(k.Reveal()+"\n"), 0o600), home, "a key file", 0)
	}
	if former {
		path := filepath.Join(home, "state", "shared.json")
		if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put what the former cluster shared aside: %w", err)
		}
	}
	if err := write(secret.ClusterKeyFile, j.ClusterKey); err != nil {
		return err
	}
	if err := write(gossipKeyFile, j.GossipKeys[0]); err != nil {
		return err
	}
	if j.AdminKey != "" {
		if err := write(secret.AdminKeyFile, j.AdminKey); err != nil {
			return err
		}
	}
	return gossip.Replace(filepath.Join(dir, gossipKeysFile), j.ClusterKey, "", j.GossipKeys[:min(len(j.GossipKeys), 3)])
}

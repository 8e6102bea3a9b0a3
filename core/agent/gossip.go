package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/gossip"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	peersFile      = "members.json" // in the state folder
	gossipKeysFile = "gossip.keys"  // in the folder of secrets
)

// buildGossip makes the membership, which the roles of a built agent meet through.
func (a *assembly) buildGossip(o Options, n node, l *listeners) error {
	cfg := o.Config
	home := cfg.Home
	if err := folder.Make(home, "state"); err != nil {
		return fmt.Errorf("make the state folder: %w", folder.Full(err, home, "the state folder", 0))
	}
	keys, err := keyring(cfg, n.cluster)
	if err != nil {
		return err
	}
	if keys.Retired(cfg.Gossip.Key) {
		o.Log.Warn("gossip.key is a key that was taken out of use; the one in use goes on, write it into the configuration", "configured", gossip.Fingerprint(cfg.Gossip.Key))
	}
	at, err := advertisedGossip(cfg, l.gossip.Addr().String())
	if err != nil {
		return err
	}
	g := gossip.Options{
		Self:     gossip.Self{NodeID: n.id, Start: a.start, Name: cfg.Agent.Name, Version: o.Version, Queen: a.queenURL, Hive: a.hiveURL},
		Listener: l.gossip, Packets: l.packets, Dial: a.network.dial, Advertise: at, Join: slices.Concat(cfg.Gossip.Join, o.Join), Keys: keys,
		PeersFile: filepath.Join(home, "state", peersFile), Answers: a.network.answers,
		Interval: cfg.Queen.Heartbeat.Interval, Rejoin: cfg.Gossip.Rejoin, Metrics: a.metrics, Log: o.Log.With("role", "gossip"),
	}
	if a.hive != nil {
		g.Beat = a.hive.Beat
	}
	if a.queen != nil {
		g.Heard, g.Changed = a.queen.HeardHive, a.queen.MembersChanged
	}
	a.gossip, err = gossip.New(g)
	return err
}

// keyring opens the gossip keys of a data folder. Without a key in the configuration it is that of the cluster where other machines can
// reach the gossip, and one that follows from the cluster key where they cannot.
func keyring(cfg *config.Config, cluster secret.Secret) (*gossip.Keyring, error) {
	key := cfg.Gossip.Key
	if host, _, err := net.SplitHostPort(cfg.Gossip.Bind); key == "" && err == nil && !isLoopbackHost(host) {
		if key, err = secret.Load(filepath.Join(cfg.Home, "secrets", gossipKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return gossip.OpenKeyring(cluster, key, filepath.Join(cfg.Home, "secrets", gossipKeysFile))
}

// GossipKey is the gossip key that the agent of a data folder uses, or will when it starts: that of the configuration, or the one that took
// its place while agents ran.
func GossipKey(cfg *config.Config, cluster secret.Secret) (secret.Secret, error) {
	k, err := keyring(cfg, cluster)
	if err != nil {
		return "", err
	}
	return k.InUse(), nil
}

// GossipAddress is where others reach the gossip of an agent with this configuration.
func GossipAddress(cfg *config.Config) (netip.AddrPort, error) {
	at, err := advertisedGossip(cfg, cfg.Gossip.Bind)
	if err == nil && at.Addr().IsUnspecified() {
		err = fault.New(fault.Invalid, "no_advertise", "gossip.bind is %q, which is no address that other machines can be told; set agent.advertise to this machine's address.", cfg.Gossip.Bind)
	}
	return at, err
}

// advertisedGossip is where others reach the gossip that listens at an address: at agent.advertise, where that is set and they can
// reach anything.
func advertisedGossip(cfg *config.Config, listens string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(listens)
	names := advertised(cfg.Agent.Advertise)
	if err != nil || len(names) == 0 || at.Addr().IsLoopback() {
		return at, err
	}
	ip, err := netip.ParseAddr(names[0])
	if err != nil {
		ips, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", names[0])
		if err != nil || len(ips) == 0 {
			return at, fault.New(fault.Invalid, "advertise_unknown", "The name in agent.advertise, %q, has no address: %w; write this machine's address instead.", names[0], err)
		}
		ip = ips[0]
	}
	return netip.AddrPortFrom(ip.Unmap(), at.Port()), nil
}

// members, queens and changeKeys are for the roles, which are built before the gossip and ask it only once they run.
func (a *assembly) members() []contract.Member { return a.gossip.Members() }

func (a *assembly) queens() []string { return a.gossip.Queens() }

func (a *assembly) changeKeys(ctx context.Context, c contract.KeyChange) error {
	return a.gossip.ChangeKeys(ctx, c)
}

// Package agent builds the configured roles of one machine and runs them: queen with its gateway, hive, or both. It is the
// only place that knows all of them; the roles meet here through the interfaces that they declare. It decides nothing about
// models, workers or requests.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
)

// Options says what to run.
type Options struct {
	Config     *config.Config
	Version    string
	Executable string          // this executable, absolute: it is also the launcher of children and the echo worker
	Insecure   bool            // listen off loopback although there are no keys and certificates
	Hurry      <-chan struct{} // closed to stop within five seconds instead of draining; nil: never
	Join       []string        // gossip addresses to join beside those of the configuration
	Launch     *Launch         // how this process was started, for run/agent.json; nil: not known
	// Load reads the configuration again, at POST /admin/reload and at each value of Reload. nil: as Config.
	Load    func() (*config.Config, error)
	Reload  <-chan struct{} // nil: never
	Level   *slog.LevelVar  // of Log, set when the configuration changes; nil: it stays
	Started func()          // called once when the roles are built, before anybody can learn where they are; nil: nothing
	Log     *slog.Logger
}

const (
	drainRetry   = 5 * time.Second  // after which a client that was refused may ask again
	warnInterval = time.Minute      // between warnings about an insecure start
	closeTimeout = 10 * time.Second // for a service that has nothing left to drain
)

// Run holds the data folder's lock and runs the configured roles until ctx ends; then it refuses new requests, lets running
// ones finish within hive.drain, and returns nil. Workers are never touched. Another agent with the same data folder is a
// Conflict (CodeAlreadyRunning), an address off loopback without Options.Insecure an Invalid.
func Run(ctx context.Context, o Options) error {
	cfg := o.Config
	queen, hive := cfg.Agent.Has(config.RoleQueen), cfg.Agent.Has(config.RoleHive)
	if err := checkBinds(o, queen, hive); err != nil {
		return err
	}
	if err := process.Harden(); err != nil {
		return err
	}
	if err := folder.Make(cfg.Home); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if err := folder.CheckAll(cfg.Home); err != nil {
		return err
	}
	lock, err := lockHome(cfg.Home)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	runFile := runPath(cfg.Home, "agent.json")
	if f, err := folder.OpenFile(runFile, os.O_RDONLY, 0); err == nil {
		_ = f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the run file of an earlier agent: %w", err)
	}
	if err := os.Remove(runFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the run file of an earlier agent: %w", err)
	}
	n, err := openNode(o)
	if err != nil {
		return err
	}
	var l listeners
	defer l.close()
	if queen {
		if l.queen, err = listen(cfg.Queen.Listen, "queen.listen"); err != nil {
			return err
		}
	}
	if hive {
		if l.hive, err = listen(cfg.Hive.Listen, "hive.listen"); err != nil {
			return err
		}
	}
	if l.gossip, l.packets, err = listenGossip(cfg.Gossip); err != nil {
		return err
	}
	a, err := build(o, n, l.addresses())
	if err != nil {
		return err
	}
	if err := a.buildGossip(o, n, &l); err != nil {
		return err
	}
	me, err := self()
	if err != nil {
		return err
	}
	if o.Started != nil {
		o.Started()
	}
	record := RunFile{NodeID: n.id, Process: me, Roles: cfg.Agent.Roles, Queen: a.queenURL, Hive: a.hiveURL, Version: o.Version, StartedAt: time.Now().UTC(), Launch: o.Launch}
	if err := writeJSON(runFile, record); err != nil {
		return err
	}
	defer func() { _ = os.Remove(runFile) }()
	group := run.NewGroup(o.Log, o.Hurry)
	a.addServices(group, o, &l)
	err = group.Run(ctx)
	if kerr := keepProgram(cfg.Home, o.Launch); kerr != nil {
		o.Log.Warn("there will be no way back from this upgrade", "error", kerr.Error())
	}
	return err
}

// addServices lists what runs, in the order of starting; stopping is the reverse. So new requests are refused and running
// ones finish first, the roles end next, and the ports close last.
func (a *assembly) addServices(group *run.Group, o Options, l *listeners) {
	if a.queenServer != nil {
		group.Add(run.Service{Name: "queen http", StopTimeout: closeTimeout, Run: func(ctx context.Context) error {
			return a.queenServer.Serve(ctx, trusted(l.queen, a.credentials, o.Insecure, o.Config.Queen.Limits.Connections, o.Log))
		}})
	}
	if a.hiveServer != nil {
		group.Add(run.Service{Name: "hive http", StopTimeout: closeTimeout, Run: func(ctx context.Context) error { return a.hiveServer.Serve(ctx, l.hive) }})
	}
	if a.hive != nil {
		group.Add(run.Service{Name: "plugins", StopTimeout: closeTimeout, Run: func(ctx context.Context) error {
			<-ctx.Done()
			a.plugins.Close()
			return nil
		}})
		group.Add(run.Service{Name: "hive", StopTimeout: 2 * closeTimeout, Run: a.hive.Run})
	}
	if a.queen != nil {
		group.Add(run.Service{Name: "gateway", Run: func(ctx context.Context) error {
			<-ctx.Done()
			a.gateway.Close()
			return nil
		}})
		group.Add(run.Service{Name: "queen", StopTimeout: 2 * closeTimeout, Run: a.queen.Run})
	}
	group.Add(run.Service{Name: "certificate", Run: func(ctx context.Context) error { return a.credentials.renew(ctx, a.renewAt) }})
	group.Add(run.Service{Name: "gossip", Run: a.gossip.Run})
	if o.Insecure && !a.guard.loopback {
		group.Add(run.Service{Name: "warning", Run: func(ctx context.Context) error { return warnInsecure(ctx, o.Log) }})
	}
	group.Add(run.Service{Name: "reload", StopTimeout: closeTimeout, Run: func(ctx context.Context) error {
		a.reloader.run(ctx, o.Reload)
		return nil
	}})
	limit := o.Config.Hive.Drain
	group.Add(run.Service{Name: "drain", StopTimeout: limit + closeTimeout, Run: func(ctx context.Context) error { return a.drain.run(ctx, limit) }})
}

func warnInsecure(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(warnInterval)
	defer tick.Stop()
	for {
		log.Warn("other machines can use this agent without a key, because of --insecure-i-know")
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// listeners are the open sockets of the roles and of the gossip.
type listeners struct {
	queen, hive, gossip net.Listener
	packets             net.PacketConn // of the gossip
}

func (l *listeners) close() {
	for _, ln := range []net.Listener{l.queen, l.hive, l.gossip} {
		if ln != nil {
			_ = ln.Close() // a server that ran has closed it already
		}
	}
	if l.packets != nil {
		_ = l.packets.Close()
	}
}

// addresses are where the roles listen; empty for a role that this agent has not.
type addresses struct{ queen, hive string }

func (l *listeners) addresses() addresses {
	var a addresses
	if l.queen != nil {
		a.queen = l.queen.Addr().String()
	}
	if l.hive != nil {
		a.hive = l.hive.Addr().String()
	}
	return a
}

// checkBinds refuses addresses that other machines can reach, before any socket is opened.
func checkBinds(o Options, queen, hive bool) error {
	if queen {
		if err := httpd.CheckBind(o.Config.Queen.Listen, o.Insecure, "queen.listen"); err != nil {
			return err
		}
	}
	if hive {
		if err := httpd.CheckBind(o.Config.Hive.Listen, o.Insecure, "hive.listen"); err != nil {
			return err
		}
	}
	return checkGossip(o, queen, hive)
}

func isLoopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// node is this machine's identity and keys.
type node struct {
	id      string
	cluster secret.Secret
	admin   secret.Secret
	*credentials
}

func openNode(o Options) (node, error) {
	var n node
	var err error
	if n.id, err = nodeID(o.Config.Home); err != nil {
		return n, err
	}
	home := o.Config.Home
	if err := folder.Make(home, "secrets"); err != nil {
		return n, fmt.Errorf("make the secrets folder: %w", folder.Full(err, home, "the secrets folder", 0))
	}
	dir := filepath.Join(home, "secrets")
	if n.cluster, err = secret.LoadOrCreate(dir, secret.ClusterKeyFile); err == nil {
		n.admin, err = secret.LoadOrCreate(dir, secret.AdminKeyFile)
	}
	if err == nil {
		_, err = secret.LoadOrCreate(dir, gossipKeyFile)
	}
	if err != nil {
		return n, folder.Full(err, home, "a key file", 0)
	}
	n.credentials, err = openCredentials(o, n.id)
	return n, err
}

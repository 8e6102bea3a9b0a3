package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/logging"
	"github.com/apiary-dev/apiary/core/secret"
)

// Bounds of agent.log.
const (
	logMaxBytes = 10 << 20
	logKeep     = 3
)

type agentFlags struct {
	insecure   bool
	dump       bool
	background bool
	join       []string
}

// serve runs an agent until it is told to stop.
func (a *app) serve(f agentFlags) error {
	asked := map[string]bool{}
	cfg, err := a.agentConfig(func(name string) (string, bool) {
		asked[name] = true
		return os.LookupEnv(name)
	})
	if err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	o := agent.Options{Config: cfg, Version: a.version, Executable: own, Insecure: f.insecure, Join: f.join}
	if o.Launch, err = a.startedAs(own, f, asked); err != nil {
		return err
	}
	if f.dump {
		return agent.DumpRoutes(a.out, o)
	}
	var w io.Writer = a.err
	if f.background {
		if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
		file, err := logging.OpenFile(agent.LogPath(cfg.Home), logMaxBytes, logKeep)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		w = file
	}
	o.Level = new(slog.LevelVar)
	o.Level.Set(cfg.Agent.Log.Level)
	o.Log = logging.New(w, logging.Options{Level: o.Level, Format: cfg.Agent.Log.Format})

	if os.Getenv("GOMAXPROCS") == "" && slices.Contains(cfg.Agent.Roles, config.RoleHive) {
		// The cores are the workers'. A relay that runs on few threads also spends less on waking them for each token.
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hurry, ended := make(chan struct{}), make(chan struct{})
	o.Hurry = hurry
	signals, hangups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	reload := make(chan struct{}, 1)
	o.Load, o.Reload = a.loadAgentConfig, reload
	closes := hasTerminal() && !signal.Ignored(syscall.SIGHUP)
	// Until it has started there is nothing to end in order, and a step of the start may take long: a signal ends the process.
	o.Started = func() {
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		if closes {
			signal.Notify(signals, syscall.SIGHUP) // its terminal was closed
		} else {
			signal.Notify(hangups, syscall.SIGHUP)
		}
	}
	defer close(ended)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-hangups:
			case <-ended:
				return
			}
			select {
			case reload <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	go func() {
		defer signal.Stop(signals) // a third signal ends the process at once
		for _, act := range []func(){cancel, func() { close(hurry) }} {
			select {
			case <-signals:
				act()
			case <-ended:
				return
			}
		}
	}()
	return agent.Run(ctx, o)
}

// hasTerminal reports whether this process belongs to a terminal. Then SIGHUP says that it was closed; for all others it is the
// customary way to have the configuration read again.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// loadKey reads a key of a data folder. A missing one is fs.ErrNotExist.
func loadKey(home, name string) (secret.Secret, error) {
	if err := folder.Check(home, "secrets"); err != nil {
		return "", err
	}
	return secret.Load(filepath.Join(home, "secrets", name))
}

package sdk

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/logging"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

// Implementation is what a worker program hands to Main: its name and how to make its engine.
type Implementation struct {
	Name    string // "llama-cpp", "echo": WorkerInfo.Implementation
	Version string // WorkerInfo.Version
	// Flags declares the engine's own arguments beside those of the worker contract. Optional.
	Flags func(*flag.FlagSet)
	// New makes the engine after the arguments were read. It does not load: Engine.Load does.
	New func(Config) (Engine, error)
	// Middleware wraps the inference handlers, behind authentication. Optional; for workers that play faults.
	Middleware func(http.Handler) http.Handler
	// Listen opens the worker's socket. Optional; default: TCP on Config.Address and Config.Port.
	Listen func(Config) (net.Listener, error)
}

// Main runs a worker from its arguments (without the program's name) until it is told to stop, and returns its exit code:
// 0 after a stop that was asked for or an orphan lease that ran out, 2 for arguments that are wrong, process.ExitPortTaken
// for a port in use, 1 for another failure.
func Main(args []string, impl Implementation) int {
	cfg, fd, err := parse(args, impl, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg.LogPath = appendedLog() // before Harden, which takes /proc/self away from other users
	cfg.Log = logging.New(os.Stderr, logging.Options{Format: "text"})
	if err := process.Harden(); err != nil {
		cfg.Log.Error("the worker could not be protected from other users", "cause", err)
		return 1
	}
	key, err := readSecret(fd)
	if err != nil {
		cfg.Log.Error("the worker has no secret", "cause", err)
		return 2
	}
	engine, err := impl.New(cfg)
	if err != nil {
		cfg.Log.Error("the engine could not be made", "cause", err)
		return fault.ExitCode(err)
	}
	s, err := New(Options{Config: cfg, Implementation: impl.Name, Version: impl.Version, Engine: engine, Secret: key, Middleware: impl.Middleware})
	if err != nil {
		cfg.Log.Error("the worker could not be made", "cause", err)
		return fault.ExitCode(err)
	}
	listen := impl.Listen
	if listen == nil {
		listen = func(c Config) (net.Listener, error) {
			return net.Listen("tcp", net.JoinHostPort(c.Address, strconv.Itoa(c.Port)))
		}
	}
	ln, err := listen(cfg)
	if err != nil {
		cfg.Log.Error("the worker could not listen", "address", cfg.Address, "port", cfg.Port, "cause", err)
		if errors.Is(err, syscall.EADDRINUSE) {
			return process.ExitPortTaken
		}
		return 1
	}
	cfg.Log.Info("the worker started", "worker_id", cfg.WorkerID, "model", cfg.Model, "implementation", impl.Name, "version", impl.Version,
		"address", ln.Addr().String())
	if err := s.runUntilSignal(ln); err != nil {
		cfg.Log.Error("the worker failed", "cause", err)
		return 1
	}
	cfg.Log.Info("the worker stopped")
	return 0
}

// runUntilSignal runs s until SIGTERM or SIGINT. A second signal shortens the drain.
func (s *Server) runUntilSignal(ln net.Listener) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for i := range 2 {
			select {
			case <-signals:
				if i == 0 {
					cancel()
				} else {
					close(s.hurry)
				}
			case <-ended:
				return
			}
		}
	}()
	return s.Run(ctx, ln)
}

// readSecret reads the worker's secret from an inherited descriptor to its end, and closes it: nothing that the engine starts
// can inherit it.
func readSecret(fd int) (secret.Secret, error) {
	f := os.NewFile(uintptr(fd), "secret")
	if f == nil {
		return "", fmt.Errorf("descriptor %d of --secret-fd is not open", fd)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	err = errors.Join(err, f.Close())
	if err != nil {
		return "", fmt.Errorf("read the secret from descriptor %d of --secret-fd: %w", fd, err)
	}
	v := strings.TrimSpace(string(b))
	if err := secret.Check(v); err != nil {
		return "", fmt.Errorf("descriptor %d of --secret-fd: %w", fd, err)
	}
	return secret.Secret(v), nil
}

package agent

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/httpd"
)

const reloadTimeout = 30 * time.Second

// reloader takes over what changed in the configuration while the agent runs. A configuration with a mistake changes nothing.
type reloader struct {
	load func() (*config.Config, error)
	// take puts what can change into force. changed reports whether a kind of block, or an option below a path, did.
	take func(cfg *config.Config, changed func(what string) bool)
	log  *slog.Logger

	mu sync.Mutex // guards the fields below, and is held while a configuration is taken over
	// started is what everything was made by that does not change, current what the rest goes by.
	started, current *config.Config
}

// reload reads the configuration and takes it over. What needs a restart is listed each time, until there is one.
func (r *reloader) reload() (contract.ConfigReloaded, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, err := r.load()
	if err != nil {
		r.log.Error("the configuration has a mistake, so the agent goes on with the one that it has", "error", err)
		return contract.ConfigReloaded{}, err
	}
	live := slices.DeleteFunc(config.Diff(r.current, next), func(c contract.ConfigChange) bool { return c.Restart })
	later := slices.DeleteFunc(config.Diff(r.started, next), func(c contract.ConfigChange) bool { return !c.Restart })
	r.take(next, func(what string) bool {
		return slices.ContainsFunc(live, func(c contract.ConfigChange) bool {
			return c.Kind == what || c.Kind == "option" && strings.HasPrefix(c.Name, what+".")
		})
	})
	r.current = next
	r.log.Info("configuration read again", "path", next.Path, "changes", len(live), "waiting_for_restart", len(later))
	return contract.ConfigReloaded{Path: next.Path, Changes: append(append([]contract.ConfigChange{}, live...), later...)}, nil
}

// run reloads at each signal until ctx ends.
func (r *reloader) run(ctx context.Context, signals <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			_, _ = r.reload() // it is in the log
		}
	}
}

func (r *reloader) route() httpd.Route {
	return httpd.Route{Pattern: "POST /admin/reload", Class: httpd.ClassAdmin, BodyLimit: contract.KiB, Timeout: reloadTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			var none struct{}
			if err := httpd.ReadJSON(q, &none); err != nil {
				httpd.WriteError(w, q, err)
				return
			}
			done, err := r.reload()
			if err != nil {
				httpd.WriteError(w, q, err)
				return
			}
			httpd.WriteJSON(w, http.StatusOK, done)
		})}
}

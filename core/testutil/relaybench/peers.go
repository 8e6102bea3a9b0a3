package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// reverseProxy is the usual Go relay: net/http's, which unmarshals the body to find the model. It runs in a process of its own.
func (s *setup) reverseProxy(_ context.Context, name, listen, upstream string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	return s.run(name, nil, os.Environ(), self, "-listen", listen, "-reverse", upstream)
}

func serveReverse(listen, upstream string) error {
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: upstream}) },
		Transport:     &http.Transport{MaxIdleConns: 4096, MaxIdleConnsPerHost: 4096, DisableCompression: true},
		FlushInterval: -1,
	}
	srv := &http.Server{Addr: listen, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var q struct {
			Model  string `json:"model"`
			Stream bool   `json:"stream"`
		}
		if err != nil || json.Unmarshal(b, &q) != nil || q.Model == "" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		proxy.ServeHTTP(w, r)
	})}
	return srv.ListenAndServe()
}

// haproxy is Debian's, with what a careful operator would set for streams.
func (s *setup) haproxy(_ context.Context, name, listen, upstream string) (int, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return 0, fmt.Errorf("%w; install the Debian package haproxy", err)
	}
	config := filepath.Join(s.dir, name+".cfg")
	err = os.WriteFile(config, fmt.Appendf(nil, `global
  nbthread 2
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option http-no-delay
  http-reuse always
frontend f
  bind %s
  default_backend b
backend b
  server w %s
`, listen, upstream), 0o600)
	if err != nil {
		return 0, err
	}
	return s.run(name, nil, os.Environ(), path, "-db", "-f", config)
}

// vllmRouter is the Rust router of the vLLM project, from its Python package, in a cached virtual environment.
func (s *setup) vllmRouter(ctx context.Context, name, listen, upstream string) (int, error) {
	path, err := routerPath(ctx)
	if err != nil {
		return 0, err
	}
	host, port, _ := net.SplitHostPort(listen)
	metrics, err := freeport.Address()
	if err != nil {
		return 0, err
	}
	_, metricsPort, _ := net.SplitHostPort(metrics)
	return s.run(name, nil, os.Environ(), path, "--host", host, "--port", port, "--worker-urls", "http://"+upstream, "--policy", "round_robin",
		"--prometheus-host", "127.0.0.1", "--prometheus-port", metricsPort, "--log-level", "error", "--worker-startup-check-interval", "1")
}

func routerPath(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "apiary-test", "vllm-router")
	path := filepath.Join(dir, "bin", "vllm-router")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, args := range [][]string{{"python3", "-m", "venv", dir}, {filepath.Join(dir, "bin", "pip"), "install", "--quiet", "vllm-router==0.1.17"}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("install vllm-router: %w: %.200s", err, bytes.TrimSpace(out))
		}
	}
	return path, nil
}

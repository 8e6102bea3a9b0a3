package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestGossipThatCannotWork is refused before anything listens, with exit code 2 and the setting to change.
func TestGossipThatCannotWork(t *testing.T) {
	type setup struct{ bind, key, advertise, queen, hive, join, keys string }
	for name, c := range map[string]struct {
		setup
		insecure bool
		want     string // "" for what is allowed
	}{
		"defaults":                 {setup: setup{}},
		"several on one machine":   {setup: setup{join: "127.0.0.1:9"}},
		"off loopback":             {setup: setup{bind: "10.0.0.5:7834", key: "k"}, want: "gossip.bind"},
		"a first start":            {setup: setup{bind: "10.0.0.5:7834", queen: "10.0.0.5:7833", hive: "10.0.0.5:7835"}, insecure: true},
		"keys brought by hand":     {setup: setup{bind: "10.0.0.5:7834", queen: "10.0.0.5:7833", hive: "10.0.0.5:7835", keys: "cluster.key"}, insecure: true, want: "apiary keygen"},
		"keys of a cluster":        {setup: setup{bind: "10.0.0.5:7834", queen: "10.0.0.5:7833", hive: "10.0.0.5:7835", keys: "cluster.key gossip.key"}, insecure: true},
		"all is said":              {setup: setup{bind: "10.0.0.5:7834", key: "k", queen: "10.0.0.5:7833", hive: "10.0.0.5:7835"}, insecure: true},
		"a hive on loopback":       {setup: setup{bind: "10.0.0.5:7834", key: "k", queen: "10.0.0.5:7833"}, insecure: true, want: "hive.listen"},
		"a queen on loopback":      {setup: setup{bind: "10.0.0.5:7834", key: "k", hive: "10.0.0.5:7835"}, insecure: true, want: "queen.listen"},
		"every address":            {setup: setup{bind: "0.0.0.0:7834", key: "k", queen: "0.0.0.0:7833", hive: "0.0.0.0:7835"}, insecure: true, want: "agent.advertise"},
		"every address, one told":  {setup: setup{bind: "0.0.0.0:7834", key: "k", queen: "0.0.0.0:7833", hive: "0.0.0.0:7835", advertise: "10.0.0.5"}, insecure: true},
		"joins others on loopback": {setup: setup{join: "10.0.0.5"}, want: "gossip.bind"},
		"joins what is no address": {setup: setup{join: "http://10.0.0.5"}, want: "--join"},
	} {
		t.Run(name, func(t *testing.T) {
			or := func(s, def string) string {
				if s == "" {
					return def
				}
				return s
			}
			cfg := &config.Config{Agent: config.Agent{Roles: []string{config.RoleQueen, config.RoleHive}, Advertise: c.advertise}}
			cfg.Home = t.TempDir()
			for _, name := range strings.Fields(c.keys) {
				path := filepath.Join(cfg.Home, "secrets", name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Gossip.Bind, cfg.Queen.Listen, cfg.Hive.Listen = or(c.bind, "127.0.0.1:7834"), or(c.queen, "127.0.0.1:7833"), or(c.hive, "127.0.0.1:7835")
			if c.key != "" {
				cfg.Gossip.Key = "0123456789abcdef0123456789abcdef"
			}
			o := Options{Config: cfg, Insecure: c.insecure}
			if c.join != "" {
				o.Join = []string{c.join}
			}
			err := checkBinds(o, true, true)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (fault.ExitCode(err) != 2 || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestGossipPortThatIsTaken(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0") // UDP alone is enough
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	at := taken.LocalAddr().String()
	if _, _, err := listenGossip(config.Gossip{Bind: at, BindSet: true}); fault.ExitCode(err) != 4 || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "gossip.bind") {
		t.Errorf("a port that was chosen: %v", err)
	}
	ln, p, err := listenGossip(config.Gossip{Bind: at})
	if err != nil {
		t.Fatalf("a port that nobody chose: %v", err)
	}
	defer func() { _, _ = ln.Close(), p.Close() }()
	if ln.Addr().String() == at || ln.Addr().String() != p.LocalAddr().String() {
		t.Errorf("TCP at %s, UDP at %s", ln.Addr(), p.LocalAddr())
	}
}

// TestWhoAnswers: another run, another agent and nobody are not the one that is meant.
func TestWhoAnswers(t *testing.T) {
	body := `{"status":"ok","node_id":"n1","start":"s1"}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
	}))
	defer srv.Close()
	for _, c := range []struct {
		member contract.Member
		body   string
		want   bool
	}{
		{contract.Member{ID: "n1", Start: "s1", Queen: srv.URL}, body, true},
		{contract.Member{ID: "n1", Start: "s1", Hive: srv.URL}, body, true},
		{contract.Member{ID: "n1", Start: "s0", Queen: srv.URL}, body, false},
		{contract.Member{ID: "n2", Start: "s1", Queen: srv.URL}, body, false},
		{contract.Member{ID: "n1", Start: "s1", Queen: srv.URL}, `{"status":"ok"}`, true},
		{contract.Member{ID: "n1", Start: "s1", Queen: srv.URL}, `<html>`, false},
		{contract.Member{ID: "n1", Start: "s1", Queen: "http://127.0.0.1:1"}, body, false},
		{contract.Member{ID: "n1", Start: "s1"}, body, false},
	} {
		body = c.body
		if got := (network{}).answers(context.Background(), c.member); got != c.want {
			t.Errorf("%+v with %s: %v", c.member, c.body, got)
		}
	}
}

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/trust"
)

// servedQueen is a queen whose server listens on loopback, for TLS and plain HTTP.
func servedQueen(t *testing.T) *assembly {
	t.Helper()
	home := t.TempDir()
	cfg, err := config.Load(config.Options{Embedded: []byte("agent {\n  name = \"first\"\n  roles = [\"queen\"]\n}\ngossip {\n  bind = \"127.0.0.1:0\"\n}\nqueen {\n  listen = \"127.0.0.1:0\"\n}\n"), Env: func(name string) (string, bool) {
		v, ok := map[string]string{"HOME": home, "APIARY_HOME": home}[name]
		return v, ok
	}})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Config: cfg, Executable: "/nonexistent/apiary", Log: slog.New(slog.DiscardHandler)}
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	var l listeners
	t.Cleanup(l.close)
	if l.queen, err = listen(cfg.Queen.Listen, "queen.listen"); err == nil {
		l.gossip, l.packets, err = listenGossip(cfg.Gossip)
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := build(o, n, l.addresses())
	if err == nil {
		err = a.buildGossip(o, n, &l)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- a.queenServer.Serve(ctx, trusted(l.queen, a.credentials, false, 64, o.Log)) }()
	go func() { done <- a.gossip.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestJoinAndRenew: a hive joins with a token, and later has its certificate renewed over a connection that shows it. Without one, and
// over plain HTTP, nobody gets either.
func TestJoinAndRenew(t *testing.T) {
	a := servedQueen(t)
	c := client.New(client.Options{Base: a.queenURL, Token: a.guard.admin})
	defer c.Close()
	var made contract.MadeToken
	if err := c.PostJSON(t.Context(), "/admin/tokens", contract.NewToken{Name: "tower"}, &made); err != nil {
		t.Fatal(err)
	}
	token, err := trust.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	o := trustOptions(home, config.RoleHive)
	m, err := Join(t.Context(), JoinOptions{Config: o.Config, File: filepath.Join(home, "config.hcl"), Token: token, Version: "test"})
	if err != nil || m.Name != "tower" || m.Former || m.Reachable || m.Cluster != a.credentials.verifier.Cluster() {
		t.Fatalf("joined as %+v, error %v", m, err)
	}
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	hive := n.credentials
	if p := hive.identity.Peer(); hive.authority != nil || p.NodeID != m.NodeID || p.Has(trust.RoleQueen) {
		t.Fatalf("the hive is %+v", p)
	}
	if !secret.ForHive(n.cluster, a.credentials.nodeID).Equal(a.guard.hive.Reveal()) {
		t.Error("the hive has another cluster key")
	}
	before := hive.identity.Peer()
	own := &assembly{network: network{tls: trust.ClientConfig(hive.identity, hive.verifier, trust.Expect{})}, gossip: a.gossip, credentials: hive}
	if err := hive.renewOnce(t.Context(), own.renewAt); err != nil {
		t.Fatal(err)
	}
	after := hive.identity.Peer()
	if after.Serial == before.Serial || after.Key != before.Key || after.Name != before.Name {
		t.Errorf("renewed to %+v from %+v", after, before)
	}
	if kept, err := hive.store.Identity(hive.verifier); err != nil || kept.Peer().Serial != after.Serial {
		t.Errorf("the folder keeps %v, error %v", kept, err)
	}
	var reply contract.RenewReply
	csr, err := hive.identity.NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	req := contract.RenewRequest{Addresses: []string{}, CSR: csr, Time: hive.clock.Now()}
	nobody := network{tls: trust.ClientConfig(nil, hive.verifier, trust.Expect{})}
	for base, dial := range map[string]network{a.queenURL: {}, overTLS(a.queenURL): nobody} {
		c := client.New(client.Options{Base: base, Token: a.guard.admin, DialTLS: dial.dialTLS})
		if err := c.PostJSON(t.Context(), "/v1/renew", req, &reply); fault.As(err).Code != trust.CodeNoCertificate || fault.As(err).Status != http.StatusUnauthorized {
			t.Errorf("at %s without a certificate: %v", base, err)
		}
		c.Close()
	}
	if err := c.PostJSON(t.Context(), "/v1/join", contract.JoinRequest{}, nil); fault.As(err).Code != "https_required" {
		t.Errorf("a join over plain HTTP: %v", err)
	}
	// A machine whose key was shut out gets nothing with it, and comes back with another key and another token.
	a.credentials.roster.RevokeKey(after.Key, after.NodeID, a.credentials.clock.Now())
	if err := hive.renewOnce(t.Context(), own.renewAt); err == nil {
		t.Error("a node that was shut out renews its certificate")
	}
	if err := c.PostJSON(t.Context(), "/admin/tokens", contract.NewToken{}, &made); err != nil {
		t.Fatal(err)
	}
	second, err := trust.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), JoinOptions{Config: o.Config, File: filepath.Join(home, "config.hcl"), Token: second, Version: "test"}); err != nil {
		t.Fatal(err)
	}
	if back, err := hive.store.Identity(hive.verifier); err != nil || back.Peer().NodeID != after.NodeID || back.Peer().Key == after.Key {
		t.Errorf("back as %v, error %v", back, err)
	}
	// A token that was used lets no other machine in.
	o2 := trustOptions(t.TempDir(), config.RoleHive)
	if _, err := Join(t.Context(), JoinOptions{Config: o2.Config, File: filepath.Join(o2.Config.Home, "config.hcl"), Token: token, Version: "test"}); fault.As(err).Code != trust.CodeTokenUsed {
		t.Errorf("a used token: %v", err)
	}
	// A queen of another cluster that has the address is told apart before anything is sent.
	other := token
	other.Fingerprint[0] ^= 1
	if _, err := Join(t.Context(), JoinOptions{Config: o2.Config, File: filepath.Join(o2.Config.Home, "config.hcl"), Token: other, Version: "test"}); fault.As(err).Code != trust.CodeWrongCluster {
		t.Errorf("at a queen of another cluster: %v", err)
	}
	// A certificate of another cluster is refused by the handshake.
	stranger, err := openNode(trustOptions(t.TempDir(), config.RoleHive))
	if err != nil {
		t.Fatal(err)
	}
	cross := network{tls: trust.ClientConfig(stranger.identity, hive.verifier, trust.Expect{})}
	c2 := client.New(client.Options{Base: overTLS(a.queenURL), DialTLS: cross.dialTLS})
	defer c2.Close()
	if err := c2.PostJSON(t.Context(), "/v1/renew", req, &reply); err == nil {
		t.Error("a node of another cluster gets a certificate")
	}
}

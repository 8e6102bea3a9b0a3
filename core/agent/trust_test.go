package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/trust"
)

func trustOptions(home string, roles ...string) Options {
	cfg := &config.Config{Home: home, Agent: config.Agent{Name: "tower", Roles: roles}}
	cfg.Gossip.Bind, cfg.Queen.Listen, cfg.Hive.Listen = "127.0.0.1:0", "127.0.0.1:7833", "127.0.0.1:7835"
	return Options{Config: cfg, Log: slog.New(slog.DiscardHandler)}
}

// TestFirstStartMakesTheCluster: a CA, a certificate and a gossip key lie beside the other keys, for their owner alone; the next start
// has the same CA and the same keys.
func TestFirstStartMakesTheCluster(t *testing.T) {
	home := t.TempDir()
	o := trustOptions(home, config.RoleQueen, config.RoleHive)
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	first := n.credentials
	for _, name := range []string{"ca.key", "ca.crt", "node.key", "node.crt", "gossip.key", "cluster.key", "admin.key"} {
		st, err := os.Stat(filepath.Join(home, "secrets", name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, error %v", name, st, err)
		}
	}
	p := first.identity.Peer()
	if p.NodeID != n.id || p.Name != "tower" || !p.Has(trust.RoleQueen) || !p.Has(trust.RoleHive) {
		t.Errorf("the certificate is of %+v", p)
	}
	o.Config.Gossip.Bind = "10.0.0.5:7834"
	key, err := GossipKey(o.Config, n.cluster)
	if err != nil {
		t.Fatal(err)
	}
	o.Config.Agent.Roles = []string{config.RoleHive}
	if n, err = openNode(o); err != nil {
		t.Fatal(err)
	}
	again := n.credentials
	if q := again.identity.Peer(); q.NodeID != p.NodeID || q.Key != p.Key || q.Has(trust.RoleQueen) {
		t.Errorf("the second start is %+v after %+v", q, p)
	}
	if k, err := GossipKey(o.Config, n.cluster); err != nil || again.verifier.Cluster() != first.verifier.Cluster() || k.Reveal() != key.Reveal() {
		t.Error("the second start has another cluster or gossip key")
	}
}

// TestOldDataFolder: one of a version without certificates gets them, and keeps its keys.
func TestOldDataFolder(t *testing.T) {
	home := t.TempDir()
	o := trustOptions(home, config.RoleQueen)
	before, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.key", "ca.crt", "node.key", "node.crt", "gossip.key"} {
		if err := os.Remove(filepath.Join(home, "secrets", name)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := openNode(o)
	if err != nil || after.cluster.Reveal() != before.cluster.Reveal() || after.id != before.id || after.credentials.identity == nil {
		t.Errorf("got %+v, error %v", after, err)
	}
}

func TestIssuedAgain(t *testing.T) {
	o := trustOptions(t.TempDir(), config.RoleQueen)
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	c := n.credentials
	before := c.identity.Peer()
	if err := c.renewOnce(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if after := c.identity.Peer(); after.Serial == before.Serial || after.Key != before.Key {
		t.Errorf("the renewed certificate is %+v after %+v", after, before)
	}
	kept, err := c.store.Identity(c.verifier)
	if err != nil || kept.Peer().Serial != c.identity.Peer().Serial {
		t.Errorf("the folder keeps %v, error %v", kept, err)
	}
}

func TestCertifiedName(t *testing.T) {
	long := "a0123456789012345678901234567890123456789012345678901234567890123456789"
	for name, want := range map[string]string{"tower": "tower", "Anna's laptop": "Anna-s-laptop", "_x": "x", "": "aabbccddeeff", "日本": "aabbccddeeff", long: long[:64], "a.b_c-d": "a.b_c-d"} {
		if got := CertifiedName(name, "aabbccddeeff"); got != want {
			t.Errorf("%q is called %q, want %q", name, got, want)
		}
	}
}

// TestCutOffJoin: a folder with the CA of another cluster and no certificate says what to do.
func TestCutOffJoin(t *testing.T) {
	home := t.TempDir()
	o := trustOptions(home, config.RoleQueen)
	if _, err := openNode(o); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.key", "node.crt"} {
		if err := os.Remove(filepath.Join(home, "secrets", name)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := openNode(o)
	if fault.ExitCode(err) != 4 || !strings.Contains(err.Error(), "apiary join") {
		t.Errorf("an agent without a certificate: %v", err)
	}
	if _, serr := os.Stat(filepath.Join(home, "secrets", "ca.key")); serr == nil {
		t.Error("it made another CA")
	}
}

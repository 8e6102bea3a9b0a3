package queen

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestRefusedChangesChangeNothing: what could not be written as a whole is neither in force here nor told to other queens.
func TestRefusedChangesChangeNothing(t *testing.T) {
	home := t.TempDir()
	b, err := openBook(home, "q1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.apply([]contract.Deployment{echoDeployment("chat", 1, 1)}); err != nil {
		t.Fatal(err)
	}
	digest := b.digest()
	_, rev, _ := b.since(0)
	unchanged := func(after string) {
		t.Helper()
		if list := b.deployments(); len(list) != 1 || list[0].Replicas.Min != 1 || len(b.drained()) != 0 || b.digest() != digest {
			t.Errorf("%s: %+v, drained %v", after, list, b.drained())
		}
		if list, _, _ := b.since(rev); len(list) != 0 {
			t.Errorf("%s: %d records are told", after, len(list))
		}
	}
	huge := echoDeployment("huge", 1, 1)
	huge.Env = map[string]string{"X": strings.Repeat("x", 2<<20)}
	if b.apply([]contract.Deployment{echoDeployment("chat", 2, 2), echoDeployment("more", 1, 1), huge}) == nil {
		t.Error("a deployment of 2 MiB is taken")
	}
	unchanged("a deployment that is too large")
	if err := os.RemoveAll(filepath.Join(home, stateFolder)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, stateFolder), nil, 0o600); err != nil { // no file can be written there
		t.Fatal(err)
	}
	if b.apply(nil) == nil || b.drain("h1", true) == nil || b.addKey(contract.APIKey{ID: "k1", Name: "anna"}) == nil {
		t.Error("what cannot be stored is done")
	}
	unchanged("a disk that takes nothing")
	if list, ever := b.keys(); len(list) != 0 || ever {
		t.Errorf("keys %v %v", list, ever)
	}
}

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestLock(t *testing.T) {
	home := t.TempDir()
	if l, err := ReadLock(home); err != nil || len(l.Plugins) != 0 {
		t.Fatalf("without a file: %+v, %v", l, err)
	}
	digest := strings.Repeat("0a", 32)
	l := &Lock{}
	l.Put(LockedPlugin{Name: "zeta", Source: "./z", Version: "0.1.0", Kind: "provisioner", Contract: "provisioner.v1", Grants: Grants{Run: []string{"cmake"}, Memory: DefaultPluginMemory},
		Packages: []Package{{Platform: "linux_amd64", Size: 9_123_456, SHA256: digest}, {Platform: "darwin_arm64", Size: 1, SHA256: digest}}})
	l.Put(LockedPlugin{Name: "gitea", Source: "https://example.org/gitea.wasm?a=${b}", Version: "1.2.0-rc.1", Kind: "vendor", Contract: "vendor.v1",
		Grants: Grants{HTTP: []string{"*.example.org"}, Private: []string{}, Credentials: []string{"gitea"}, Memory: 32 * contract.MiB}, Packages: []Package{{Platform: PlatformWASM, Size: 89356, SHA256: digest}}})
	if err := WriteLock(home, l); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLock(home)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Plugins) != 2 || got.Plugins[0].Name != "gitea" || got.Plugins[0].Source != l.Plugins[0].Source || !reflect.DeepEqual(got.Plugins[0].Grants.HTTP, []string{"*.example.org"}) {
		t.Errorf("%+v", got)
	}
	z, ok := got.Find("zeta")
	if !ok {
		t.Fatal("zeta is lost")
	}
	if k, ok := z.Package("linux_amd64"); !ok || *k != l.Plugins[1].Packages[0] {
		t.Errorf("%+v", k)
	}
	if _, ok := z.Package(PlatformWASM); ok {
		t.Error("a package that is not there")
	}
	if raw, err := os.ReadFile(filepath.Join(home, LockName)); err != nil || strings.Contains(string(raw), "pending") {
		t.Errorf("%s, %v", raw, err)
	}
	z.Pending = true
	if err := WriteLock(home, got); err != nil {
		t.Fatal(err)
	}
	if again, err := ReadLock(home); err != nil || again.Plugins[0].Pending || !again.Plugins[1].Pending {
		t.Errorf("%+v, %v", again, err)
	}
	got.Remove("zeta")
	if _, ok := got.Find("zeta"); ok || len(got.Plugins) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestDamagedLocks(t *testing.T) {
	for name, src := range map[string]string{
		"half a file":  "plugin \"a\" {\n",
		"twice":        "plugin \"a\" {\n}\nplugin \"a\" {\n}\n",
		"digest":       "plugin \"a\" {\n package \"wasm\" {\n sha256 = \"00\"\n }\n}\n",
		"no digest":    "plugin \"a\" {\n package \"wasm\" {\n size = 1\n }\n}\n",
		"size":         "plugin \"a\" {\n package \"wasm\" {\n size = -1\n }\n}\n",
		"function":     "plugin \"a\" {\n source = file(\"/etc/passwd\")\n}\n",
		"unknown":      "plugin \"a\" {\n exec = \"x\"\n}\n",
		"name":         "plugin \"../a\" {\n}\n",
		"deep":         "plugin \"a\" {\n source = " + strings.Repeat("[", 1000) + "\n}\n",
		"two packages": "plugin \"a\" {\n package \"wasm\" {\n }\n package \"wasm\" {\n }\n}\n",
	} {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, LockName), []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := ReadLock(home); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

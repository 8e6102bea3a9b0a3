package artifact

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/npmrc"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// TestRealRegistry installs the real engine from the registry that this machine is configured for. The archive is kept in the
// user's cache folder, so that it is fetched once; the description of the package is asked for every time.
func TestRealRegistry(t *testing.T) {
	t.Parallel()
	onLinux(t)
	if testing.Short() {
		t.Skip("asks the network")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const ref = "npm:@node-llama-cpp/{platform}@3.21.1"
	registries := npmrc.New("", npmrc.SystemEnvironment())
	client := egress.NewClient(egress.Options{Own: registries.Own})
	registry, _, err := registries.Addresses(ctx)
	if err != nil || registry == "" {
		t.Skipf("npm is not configured here: %v", err)
	}
	prov := npmAt(registry, NewHost(HostOptions{Name: "npm", HTTP: client}))
	plan, err := prov.Plan(ctx, vendor.PlanRequest{Reference: ref, Platform: platform(nil)})
	if kind := fault.KindOf(err); kind == fault.Unavailable || errors.Is(err, context.DeadlineExceeded) {
		t.Skipf("the package registry cannot be reached: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sources, %s", len(plan.Files[0].Sources), plan.Files[0].Digests.SHA512)

	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("there is no cache folder to keep the archive in")
	}
	kept := filepath.Join(cache, "apiary-test", "node-llama-cpp-linux-x64-3.21.1.tgz")
	s := openStore(t, t.TempDir(), func(o *Options) { o.Provisioners = []vendor.Provisioner{prov}; o.HTTP = client })
	s.timing = timing{backoff: 100 * time.Millisecond, longest: time.Second, attempts: 3}
	part := s.path("partial", partialKey(plan.Files[0])+".part")
	if err := copyFile(part, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s.at = func(point string) {
		if point == "engine unpacked" {
			if err := copyFile(kept, part); err != nil {
				t.Error(err)
			}
		}
	}
	var log reports
	e, err := s.InstallEngine(ctx, ref, []contract.Device{{Kind: "cpu"}}, log.add)
	if kind := fault.KindOf(err); kind == fault.Unavailable {
		t.Skipf("the package cannot be fetched: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	log.checkMonotonic(t)
	if e.ID != "npm:@node-llama-cpp/linux-x64@3.21.1" || e.SHA512 != plan.Files[0].Digests.SHA512 || e.SizeBytes < 20<<20 {
		t.Errorf("got %+v", e)
	}
	for _, lib := range []string{"libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu-haswell.so"} {
		f, err := os.Open(filepath.Join(s.EngineDir(e), lib))
		if err != nil {
			t.Error(err)
			continue
		}
		var magic [4]byte
		if _, err := io.ReadFull(f, magic[:]); err != nil || string(magic[:]) != "\x7fELF" {
			t.Errorf("%s starts with %q, %v", lib, magic, err)
		}
		_ = f.Close()
	}
}

// copyFile copies by way of another name, so that nobody sees half a file.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".copy-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

package artifact

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/workers/provision/npm"
)

const enginePackage = "npm:@test/{platform}@1.2.3"

// registry is an npm registry with one version of @test/<platform> for some platforms.
type registry struct {
	*httptest.Server
	tarballs  map[string][]byte // by platform
	base      string            // the server's URL
	integrity string            // replaces the right one
	cutAt     int               // the tarball ends there once
	unpacked  int64             // unpackedSize, when > 0
	// hostile answers instead where it returns true. n counts the requests of its kind.
	hostile  func(w http.ResponseWriter, r *http.Request, tarball bool, n int) bool
	asked    map[bool]int
	requests []*http.Request
	mu       sync.Mutex
}

func newRegistry(t testing.TB, platforms ...string) *registry {
	r := &registry{tarballs: map[string][]byte{}}
	for _, p := range platforms {
		r.tarballs[p] = engineArchive(t, p)
	}
	// The handler needs the address, and a client in another process gives no order between a setting after the start and that.
	r.Server = httptest.NewUnstartedServer(r)
	r.base = "http://" + r.Listener.Addr().String()
	r.Start()
	t.Cleanup(r.Close)
	return r
}

// engineArchive is a package that looks like a build of llama.cpp.
func engineArchive(t testing.TB, platform string) []byte {
	dir := "package/bins/" + platform + "/"
	noise := make([]byte, 300_000) // packs badly
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	return tgz(t,
		entry{name: "package/package.json", body: "{}"},
		entry{name: dir + "libllama.v1.2.so", body: "llama for " + platform + string(noise), mode: 0o755},
		entry{name: dir + "libggml.v1.2.so", body: "ggml", mode: 0o755},
		entry{name: dir + "libggml-base.so", body: "base", mode: 0o755},
	)
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
	platform := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(req.URL.Path, "/@test/"), "-/"), "-1.2.3.tgz")
	platform, _, tarball := strings.Cut(strings.TrimSuffix(platform, "/1.2.3"), "/-/")
	if r.asked == nil {
		r.asked = map[bool]int{}
	}
	r.asked[tarball]++
	if r.hostile != nil && r.hostile(w, req, tarball, r.asked[tarball]) {
		return
	}
	body, ok := r.tarballs[platform]
	if !ok {
		w.WriteHeader(404)
		return
	}
	if !tarball {
		sri := r.integrity
		if sri == "" {
			sri = integrityOf(body)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"version": "1.2.3", "dist": map[string]any{
			"tarball": r.base + "/@test/" + platform + "/-/" + platform + "-1.2.3.tgz", "integrity": sri, "shasum": "0000", "unpackedSize": r.unpacked,
		}})
		return
	}
	if n := r.cutAt; n > 0 {
		r.cutAt = 0
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:n])
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("ETag", `"e"`)
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(body)))
}

// integrityOf is the integrity as registries write it.
func integrityOf(body []byte) string {
	sum, _ := hex.DecodeString(sum512(body))
	return "sha512-" + base64.StdEncoding.EncodeToString(sum)
}

func (r *registry) count() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.requests) }

// provisioner is the real npm provisioner, pointed at r.
func (r *registry) provisioner() *npm.Provisioner {
	h := NewHost(HostOptions{Name: "npm", HTTP: ownClient(impatient)})
	h.(*host).pause = time.Millisecond
	return npmAt(r.URL, h)
}

// npmAt is the npm provisioner, configured.
func npmAt(registry string, h vendor.Host) *npm.Provisioner {
	p := npm.New()
	values, err := json.Marshal(npm.Settings{Registry: registry})
	if err == nil {
		err = p.Configure(context.Background(), vendor.Configuration{Values: values, Host: h})
	}
	if err != nil {
		panic(err)
	}
	return p
}

func (r *registry) use(o *Options) {
	o.Provisioners = append(o.Provisioners, r.provisioner())
	o.SelfTest = func(_ context.Context, dir string) (SelfTestReport, error) {
		b, err := os.ReadFile(filepath.Join(dir, "libllama.so"))
		if err != nil {
			return SelfTestReport{}, err
		}
		return SelfTestReport{Build: string(b[:min(len(b), 20)]), Devices: []contract.Device{{ID: "cpu0", Kind: "cpu"}}}, nil
	}
}

// onLinux skips where the table of platforms has other names.
func onLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("the archives of this test are for linux-x64")
	}
}

func TestInstallEngine(t *testing.T) {
	t.Parallel()
	onLinux(t)
	r := newRegistry(t, "linux-x64")
	r.cutAt = 100_000
	s := openStore(t, t.TempDir(), r.use)
	var log reports
	e, err := s.InstallEngine(t.Context(), enginePackage, []contract.Device{{Kind: "cpu"}}, log.add)
	if err != nil {
		t.Fatal(err)
	}
	log.checkMonotonic(t)
	archive := r.tarballs["linux-x64"]
	if e.ID != "npm:@test/linux-x64@1.2.3" || e.References[0] != enginePackage || e.SHA256 != sum256(archive) || e.SHA512 != sum512(archive) ||
		e.Dir != "llama.cpp/1.2.3-"+e.SHA256[:12] || e.Platform != "linux-x64" || e.Build != "llama for linux-x64"+e.Build[19:] || len(e.Devices) != 1 || e.SizeBytes < 300_000 {
		t.Errorf("got %+v", e)
	}
	dir := s.EngineDir(e)
	for link, want := range map[string]string{"libllama.so": "libllama.v1.2.so", "libggml.so": "libggml.v1.2.so"} {
		if got, err := os.Readlink(filepath.Join(dir, link)); err != nil || got != want {
			t.Errorf("%s leads to %q, %v", link, got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "package.json")); err == nil {
		t.Error("a file outside the prefix was unpacked")
	}
	if left := append(files(t, s, "partial"), files(t, s, "blobs")...); len(left) > 0 {
		t.Errorf("the archive stays: %v", left)
	}
	n := r.count()
	if log.has(contract.ActionPresent, "") {
		t.Error("it was there already")
	}
	var second reports
	if again, err := s.InstallEngine(t.Context(), enginePackage, nil, second.add); err != nil || again.ID != e.ID || !second.has(contract.ActionPresent, e.ID+" is installed already") {
		t.Errorf("again: %v, %v, %v", again.ID, err, second.events)
	}
	if again, err := s.InstallEngine(t.Context(), e.ID, nil, nil); err != nil || again.ID != e.ID || len(again.References) > 1 && again.References[1] != e.ID {
		t.Errorf("by its ID: %v, %v", again, err)
	}
	if r.count() != n {
		t.Error("the network was asked about an installed engine")
	}
	if got, err := s.Engine(enginePackage); err != nil || got.ID != e.ID {
		t.Errorf("%v, %v", got, err)
	}
	if err := s.RemoveEngine(enginePackage); err != nil {
		t.Fatal(err)
	}
	if left := append(files(t, s, "engines"), files(t, s, "catalog")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	wantFault(t, s.RemoveEngine(e.ID), fault.NotFound, "engine_not_found", "apiary engine install")
}

// Builds for several devices and versions lie side by side, and the best one for the machine is chosen.
func TestInstallSideBySide(t *testing.T) {
	t.Parallel()
	onLinux(t)
	r := newRegistry(t, "linux-x64", "linux-x64-cuda", "linux-x64-vulkan")
	s := openStore(t, t.TempDir(), r.use)
	for _, c := range []struct{ devices, want string }{{"cpu", "linux-x64"}, {"vulkan cpu", "linux-x64-vulkan"}, {"cpu cuda vulkan", "linux-x64-cuda"}} {
		var devices []contract.Device
		for _, k := range strings.Fields(c.devices) {
			devices = append(devices, contract.Device{Kind: k})
		}
		e, err := s.InstallEngine(t.Context(), enginePackage, devices, nil)
		if err != nil || e.Platform != c.want {
			t.Errorf("%s: %v, %v", c.devices, e.Platform, err)
		}
	}
	if all, err := s.Engines(); err != nil || len(all) != 3 {
		t.Errorf("%d engines, %v", len(all), err)
	}
}

func TestFailingSelfTest(t *testing.T) {
	t.Parallel()
	onLinux(t)
	r := newRegistry(t, "linux-x64", "linux-x64-cuda")
	broken := map[string]bool{"cuda": true, "x64": true}
	s := openStore(t, t.TempDir(), func(o *Options) {
		r.use(o)
		o.SelfTest = func(_ context.Context, dir string) (SelfTestReport, error) {
			b, _ := os.ReadFile(filepath.Join(dir, "libllama.so"))
			if strings.Contains(string(b[:24]), "cuda") && broken["cuda"] {
				return SelfTestReport{}, errors.New("libcudart.so.13 is missing")
			}
			if broken["x64"] {
				return SelfTestReport{}, errors.New("libffi.so.8 is missing; install libffi8")
			}
			return SelfTestReport{Build: "b1"}, nil
		}
	})
	gpu := []contract.Device{{Kind: "cpu"}, {Kind: "cuda"}}
	_, err := s.InstallEngine(t.Context(), enginePackage, gpu, nil)
	wantFault(t, err, fault.Unavailable, codeSelfTest, "install libffi8")
	if left := append(files(t, s, "engines"), files(t, s, "catalog")...); len(left) > 0 {
		t.Errorf("published: %v", left)
	}
	// With the processor's build working, that is used, and the other is not fetched every time.
	broken["x64"] = false
	n := r.count()
	var log reports
	e, err := s.InstallEngine(t.Context(), enginePackage, gpu, log.add)
	if err != nil || e.Platform != "linux-x64" || !log.has("fallback", "libcudart") {
		t.Fatalf("%+v, %v, %v", e, err, log.events)
	}
	if got := r.count(); got != n+2 {
		t.Errorf("%d requests; archives that were verified before should be used again", got-n)
	}
	n = r.count()
	if again, err := s.InstallEngine(t.Context(), enginePackage, gpu, nil); err != nil || again.ID != e.ID || r.count() != n {
		t.Errorf("again: %v, %v, %d requests", again.ID, err, r.count()-n)
	}
	// One that was asked for by name is not replaced by another.
	_, err = s.InstallEngine(t.Context(), "npm:@test/linux-x64-cuda@1.2.3", gpu, nil)
	wantFault(t, err, fault.Unavailable, codeSelfTest, "libcudart")
}

func TestEngineRefused(t *testing.T) {
	t.Parallel()
	onLinux(t)
	good := engineArchive(t, "linux-x64")
	dir := "package/bins/linux-x64/"
	for name, c := range map[string]struct {
		prepare func(*registry)
		kind    fault.Kind
		code    string
	}{
		"wrong integrity": {func(r *registry) {
			r.integrity = "sha512-" + base64.StdEncoding.EncodeToString(make([]byte, 64))
		}, fault.Conflict, codeDigest},
		"sha1 only":    {func(r *registry) { r.integrity = "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=" }, fault.Denied, "no_integrity"},
		"no package":   {func(r *registry) { delete(r.tarballs, "linux-x64") }, fault.NotFound, "engine_not_found"},
		"no libraries": {func(r *registry) { r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "x", body: "x"}) }, fault.Invalid, "engine_incomplete"},
		"two libraries": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "libllama.v1.so"}, entry{name: dir + "libllama.v2.so"})
		}, fault.Invalid, "engine_incomplete"},
		"link": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "libllama.v1.so", typ: '2', link: "/etc/passwd"})
		}, fault.Invalid, "bad_archive"},
		"out of the way": {func(r *registry) { r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "../../../../x", body: "x"}) }, fault.Invalid, "bad_archive"},
		"file as folder": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "a", body: "x"}, entry{name: dir + "a/x", body: "x"})
		}, fault.Invalid, "bad_archive"},
		"file as a folder above": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "a", body: "x"}, entry{name: dir + "a/b/c/x", body: "x"})
		}, fault.Invalid, "bad_archive"},
		"folder as file": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + "a/x", body: "x"}, entry{name: dir + "a", body: "x"})
		}, fault.Invalid, "bad_archive"},
		"name too long": {func(r *registry) {
			r.tarballs["linux-x64"] = tgz(t, entry{name: dir + strings.Repeat("a", 300), body: "x"})
		}, fault.Invalid, "bad_archive"},
		"no tarball": {func(r *registry) { r.tarballs["linux-x64"] = []byte("<html>") }, fault.Invalid, "bad_archive"},
		"damaged":    {func(r *registry) { r.tarballs["linux-x64"] = good[:len(good)/2] }, fault.Invalid, "bad_archive"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, "linux-x64")
			c.prepare(r)
			s := openStore(t, t.TempDir(), r.use)
			_, err := s.InstallEngine(t.Context(), enginePackage, nil, nil)
			wantFault(t, err, c.kind, c.code, "")
			if left := append(append(files(t, s, "engines"), files(t, s, "catalog")...), files(t, s, "partial")...); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if q := files(t, s, "quarantine"); (c.code == codeDigest) != (len(q) == 1) {
				t.Errorf("quarantine: %v", q)
			}
		})
	}
	s := openStore(t, t.TempDir(), nil)
	_, err := s.InstallEngine(t.Context(), "github:a/b@1", nil, nil)
	wantFault(t, err, fault.Invalid, "unknown_scheme", "path:")
}

func TestEngineNeedsSpaceToUnpack(t *testing.T) {
	t.Parallel()
	onLinux(t)
	r := newRegistry(t, "linux-x64")
	s := openStore(t, t.TempDir(), r.use)
	s.free = func(string) (contract.Bytes, error) { return contract.Bytes(len(r.tarballs["linux-x64"])) * 2, nil }
	_, err := s.InstallEngine(t.Context(), enginePackage, nil, nil)
	wantFault(t, err, fault.Exhausted, "no_space", "unpacking")
	s.free = folder.Free
	n := r.count()
	if _, err := s.InstallEngine(t.Context(), enginePackage, nil, nil); err != nil || r.count() != n+1 {
		t.Errorf("%v after %d requests: the archive should have been kept", err, r.count()-n)
	}
}

func TestEngineInPlace(t *testing.T) {
	dir := t.TempDir()
	tests := 0
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.SelfTest = func(_ context.Context, got string) (SelfTestReport, error) {
			if tests++; got != dir {
				t.Errorf("tested %s", got)
			}
			return SelfTestReport{Build: "b1"}, nil
		}
	})
	ref := "path:" + dir
	_, err := s.InstallEngine(t.Context(), ref, nil, nil)
	wantFault(t, err, fault.Invalid, "engine_incomplete", "libllama")
	suffix := ".so"
	if runtime.GOOS == "darwin" {
		suffix = ".dylib"
	}
	write(t, filepath.Join(dir, "libllama.v1"+suffix), []byte("one"))
	if err := os.Symlink("libllama.v1"+suffix, filepath.Join(dir, "libllama"+suffix)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "libggml"+suffix), []byte("two"))
	e, err := s.InstallEngine(t.Context(), ref, nil, nil)
	if err != nil || s.EngineDir(e) != dir || e.ID != ref+"@"+e.SHA256[:12] || e.Build != "b1" {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := s.InstallEngine(t.Context(), ref, nil, nil); err != nil || tests != 1 {
		t.Errorf("%v, %d tests", err, tests)
	}
	write(t, filepath.Join(dir, "libggml"+suffix), []byte("another"))
	e2, err := s.InstallEngine(t.Context(), ref, nil, nil)
	if err != nil || e2.ID == e.ID || tests != 2 {
		t.Errorf("%v, %v, %d tests", e2.ID, err, tests)
	}
	if all, _ := s.Engines(); len(all) != 1 {
		t.Errorf("%d engines", len(all))
	}
	if err := s.RemoveEngine(ref); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "libggml"+suffix)); err != nil {
		t.Error("an engine in place lost its files")
	}
}

func TestPlanIsChecked(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	good := func() *vendor.Plan {
		return &vendor.Plan{Reference: "x:y", Name: "e", Version: "1", Platform: "p", Files: []vendor.File{{Path: "a", Digests: vendor.Digests{SHA512: "00"}}}}
	}
	if err := checkPlan(good(), vendor.Info{Schemes: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*vendor.Plan){
		"name":      func(p *vendor.Plan) { p.Name = "../e" },
		"version":   func(p *vendor.Plan) { p.Version = "1/2" },
		"platform":  func(p *vendor.Plan) { p.Platform = "" },
		"file":      func(p *vendor.Plan) { p.Files[0].Path = "/a" },
		"no digest": func(p *vendor.Plan) { p.Files[0].Digests = vendor.Digests{} },
		"no files":  func(p *vendor.Plan) { p.Files = nil },
		"both":      func(p *vendor.Plan) { p.InPlace = "/x" },
		"changes": func(p *vendor.Plan) {
			p.Files, p.InPlace, p.Steps = nil, "/x", []vendor.Step{{Link: &vendor.LinkStep{}}}
		},
		"relative": func(p *vendor.Plan) { p.Files, p.InPlace = nil, "x" },
	} {
		p := good()
		change(p)
		if err := checkPlan(p, vendor.Info{Schemes: []string{"x"}}); fault.As(err).Code != "bad_plan" {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := t.TempDir()
	for name, st := range map[string]vendor.Step{
		"nothing":       {},
		"link out":      {Link: &vendor.LinkStep{Name: "a", Target: "../x"}},
		"link name out": {Link: &vendor.LinkStep{Name: "../a", Target: "x"}},
		"expect out":    {Expect: &vendor.ExpectStep{Path: "../a"}},
		"extract":       {Extract: &vendor.ExtractStep{File: "nothing"}},
	} {
		if err := s.step(t.Context(), dir, st, nil, nil); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

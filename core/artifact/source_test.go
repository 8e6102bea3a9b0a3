package artifact

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
)

// plainSources may ask servers on this machine in the clear, which the product never does for plugins.
func plainSources() *Sources {
	s := NewSources()
	s.protocols = "http"
	s.client = func(pluginhost.Source) *http.Client { return ownClient(impatient) }
	return s
}

// gitServer serves repositories as real servers do, over HTTP, below a folder, and counts requests with a password.
func gitServer(t *testing.T, root string) string {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	out, err := exec.Command(git, "--exec-path").Output()
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, serr := os.Stat(backend); err != nil || serr != nil {
		t.Skip("this git has no HTTP backend")
	}
	h := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + root, "REMOTE_USER="}, Stderr: io.Discard}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/private/"):
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, strings.Replace(r.URL.RequestURI(), "/moved/", "/", 1), http.StatusFound)
		default:
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// repository makes a repository with a tag v1 and something newer on its branch.
func repository(t *testing.T, dir string) {
	t.Helper()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, content string) {
		t.Helper()
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run("init", "-q", "-b", "main")
	write("dist/p.wasm", "\x00asm v1")
	write("post-checkout", "#!/bin/sh\ntouch /tmp/never\n")
	run("add", ".")
	run("commit", "-q", "-m", "one")
	run("tag", "v1")
	write("dist/p.wasm", "\x00asm v2")
	run("commit", "-q", "-a", "-m", "two")
	run("branch", "large", "main")
}

func TestGitSource(t *testing.T) {
	root := t.TempDir()
	repository(t, filepath.Join(root, "p.git"))
	at := gitServer(t, root)
	// What a user has configured for git, or a hostile environment says, is not asked.
	canary := filepath.Join(t.TempDir(), "ran")
	t.Setenv("GIT_ASKPASS", "/bin/sh -c 'touch "+canary+"'")
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
	t.Setenv("GIT_CONFIG_VALUE_0", filepath.Dir(canary))
	hook := filepath.Join(filepath.Dir(canary), "post-checkout")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+canary+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		place, ref string
		change     func(*Sources)
		want, code string
	}{
		"default branch": {place: "/p.git", want: "\x00asm v2"},
		"tag":            {place: "/p.git", ref: "v1", want: "\x00asm v1"},
		"branch":         {place: "/p.git", ref: "large", want: "\x00asm v2"},
		"no such ref":    {place: "/p.git", ref: "v9", code: "git_failed"},
		"no such place":  {place: "/q.git", code: "git_failed"},
		"a password":     {place: "/private/p.git", code: "git_failed"},
		"a redirect":     {place: "/moved/p.git", code: "git_failed"},
		"too large":      {place: "/p.git", change: func(s *Sources) { s.most = 100 }, code: "plugin_too_large"},
		"protocol":       {place: "/p.git", change: func(s *Sources) { s.protocols = "https" }, code: "git_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := plainSources()
			if c.change != nil {
				c.change(s)
			}
			dir := t.TempDir()
			path, err := s.Fetch(t.Context(), pluginhost.Source{Kind: pluginhost.SourceGit, Place: at + c.place, Ref: c.ref}, dir)
			if c.code != "" {
				if fault.As(err).Code != c.code || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want %s", err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(path, "dist", "p.wasm")); err != nil || string(got) != c.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a hook or a helper of this machine ran")
	}
}

// TestGitHangs: a server that says nothing does not hold the caller, and nothing of git is left.
func TestGitHangs(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	asked := make(chan struct{}, 8)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- struct{}{}; <-r.Context().Done() }))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := plainSources().Fetch(ctx, pluginhost.Source{Kind: pluginhost.SourceGit, Place: srv.URL + "/p.git"}, t.TempDir())
		done <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a hanging fetch succeeded")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the fetch does not end")
	}
}

// tarOf is a tar.gz archive.
func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	tw := tar.NewWriter(gz)
	for _, h := range headers {
		body := []byte(h.Linkname)
		if h.Typeflag == tar.TypeReg {
			h.Size, h.Linkname = int64(len(body)), ""
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveSource(t *testing.T) {
	file := func(name, body string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Linkname: body}
	}
	good := tarOf(t, file("p/p.wasm", "\x00asm"), file("p/README", "x"))
	bodies := map[string][]byte{
		"/good.tgz": good, "/plain": good, "/z.zip": zipFiles(t, packed{name: "p.wasm", body: "\x00asm"}),
		"/link.tgz": tarOf(t, file("a", "x"), tar.Header{Typeflag: tar.TypeSymlink, Name: "p.wasm", Linkname: "/etc/passwd"}),
		"/hard.tgz": tarOf(t, file("a", "x"), tar.Header{Typeflag: tar.TypeLink, Name: "p.wasm", Linkname: "a"}),
		"/up.tgz":   tarOf(t, file("../p.wasm", "x")),
		"/case.tgz": tarOf(t, file("P", "x"), file("p", "x")),
		"/bomb.tgz": tarOf(t, file("p", strings.Repeat("\x00", 50<<20))),
		"/html.tgz": []byte("<html>not found</html>"), "/raw.wasm": []byte("\x00asm"), "/cut.tgz": good[:len(good)/2],
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved.tgz" {
			http.Redirect(w, r, "http://[::1]:9/good.tgz", http.StatusFound)
			return
		}
		body, ok := bodies[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	local := filepath.Join(t.TempDir(), "good.tgz")
	if err := os.WriteFile(local, good, 0o600); err != nil {
		t.Fatal(err)
	}
	web := func(place, archive, sum string) pluginhost.Source {
		return pluginhost.Source{Kind: pluginhost.SourceHTTP, Place: srv.URL + place, Archive: archive, SHA256: sum}
	}
	for name, c := range map[string]struct {
		src  pluginhost.Source
		file string // that is there afterwards, below what is returned
		code string
	}{
		"tar":            {web("/good.tgz", "tar.gz", ""), "p/p.wasm", ""},
		"without a name": {web("/plain", "tar.gz", sum256(good)), "p/p.wasm", ""},
		"zip":            {web("/z.zip", "zip", ""), "p.wasm", ""},
		"no archive":     {web("/raw.wasm", "", ""), "", ""},
		"of the machine": {pluginhost.Source{Kind: pluginhost.SourcePath, Place: local, Archive: "tar.gz", SHA256: sum256(good)}, "p/p.wasm", ""},
		"local checksum": {pluginhost.Source{Kind: pluginhost.SourcePath, Place: local, SHA256: strings.Repeat("0", 64)}, "", codeDigest},
		"local missing":  {pluginhost.Source{Kind: pluginhost.SourcePath, Place: local + "x", Archive: "zip"}, "", "file_not_found"},
		"checksum":       {web("/good.tgz", "tar.gz", strings.Repeat("0", 64)), "", codeDigest},
		"symbolic link":  {web("/link.tgz", "tar.gz", ""), "", "bad_archive"},
		"hard link":      {web("/hard.tgz", "tar.gz", ""), "", "bad_archive"},
		"way out":        {web("/up.tgz", "tar.gz", ""), "", "bad_archive"},
		"two in one":     {web("/case.tgz", "tar.gz", ""), "", "bad_archive"},
		"bomb":           {web("/bomb.tgz", "tar.gz", ""), "", "bad_archive"},
		"web page":       {web("/html.tgz", "tar.gz", ""), "", "bad_archive"},
		"cut":            {web("/cut.tgz", "tar.gz", ""), "", "bad_archive"},
		"missing":        {web("/none.tgz", "tar.gz", ""), "", "plugin_not_found"},
		"private":        {web("/moved.tgz", "tar.gz", ""), "", "source_refused"},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := plainSources().Fetch(t.Context(), c.src, t.TempDir())
			if c.code != "" {
				if fault.As(err) == nil || fault.As(err).Code != c.code {
					t.Errorf("%v, want %s", err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(filepath.Join(path, c.file)); err != nil || !st.Mode().IsRegular() {
				t.Errorf("%s: %v", c.file, err)
			}
		})
	}
	small := plainSources()
	small.most = 10
	if _, err := small.Fetch(t.Context(), web("/plain", "", ""), t.TempDir()); fault.As(err).Code != "plugin_too_large" {
		t.Errorf("a file that is too large: %v", err)
	}
}

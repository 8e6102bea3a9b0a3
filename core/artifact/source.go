package artifact

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of the source of a plugin.
const (
	sourceTime    = 10 * time.Minute
	sourceBytes   = 1 << 30 // unpacked, or of a repository
	sourceEntries = 5_000
	watchEvery    = 100 * time.Millisecond
)

// Sources brings plugins from where their authors publish them. It implements pluginhost.Fetcher.
type Sources struct {
	client    func(s pluginhost.Source) *http.Client
	protocols string // that git may use, as GIT_ALLOW_PROTOCOL has it
	most      int64  // bytes of a file or repository
}

// NewSources returns the fetcher of plugins. The host that a source names may be anywhere; where that redirects to must be https and
// public.
func NewSources() *Sources {
	return &Sources{protocols: "https", most: sourceBytes, client: func(s pluginhost.Source) *http.Client {
		return egress.NewClient(egress.Options{Own: func(u *url.URL) bool { return config.SameOrigin(s.Place, u) }, Remedy: "download the file and give its path"})
	}}
}

var _ pluginhost.Fetcher = (*Sources)(nil)

// Fetch implements pluginhost.Fetcher.
func (s *Sources) Fetch(ctx context.Context, src pluginhost.Source, dir string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTime)
	defer cancel()
	var path string
	var err error
	switch src.Kind {
	case pluginhost.SourceGit:
		path, err = dir, s.clone(ctx, src, dir)
	case pluginhost.SourceHTTP:
		path = filepath.Join(dir, "download")
		err = s.download(ctx, src, path)
	case pluginhost.SourcePath:
		if path, err = src.Place, nil; src.SHA256 != "" {
			err = sameSum(ctx, src)
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return "", fault.New(fault.Unavailable, "source_timeout", "%s did not arrive within %v; try again later.", src, sourceTime)
	}
	if err != nil || src.Archive == "" {
		return path, err
	}
	return s.unpack(ctx, src, path, dir)
}

// download fetches a file.
func (s *Sources) download(ctx context.Context, src pluginhost.Source, to string) error {
	req, err := newRequest(ctx, http.MethodGet, src.Place, "", nil)
	if err != nil {
		return err
	}
	res, err := s.client(src).Do(req)
	if err != nil {
		return unreachable(req.URL.Host, err)
	}
	defer res.Body.Close()
	switch c := res.StatusCode; {
	case c == http.StatusNotFound || c == http.StatusGone:
		return fault.New(fault.NotFound, "plugin_not_found", "%s has no such file (status %d); check the address of the plugin.", req.URL.Host, c)
	case c != http.StatusOK:
		return fault.New(fault.Unavailable, "source_unavailable", "%s answered with the status %d; check the address of the plugin, or try again later.", req.URL.Host, c)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("keep the download: %w", err)
	}
	sum := sha256.New()
	n, err := copyContext(ctx, io.MultiWriter(f, sum), io.LimitReader(res.Body, s.most+1), nil)
	if err = errors.Join(err, f.Close()); err != nil {
		if _, ours := errors.AsType[*writeError](err); ours || ctx.Err() != nil {
			return err
		}
		return fault.New(fault.Unavailable, "source_cut", "The connection to %s broke (%v); try again.", req.URL.Host, err)
	}
	if n > s.most {
		return tooMuch(src, s.most)
	}
	return checkSum(src, hex.EncodeToString(sum.Sum(nil)))
}

func tooMuch(src pluginhost.Source, most int64) error {
	return fault.New(fault.Invalid, "plugin_too_large", "%s has more than %s; that is no plugin.", src, contract.Bytes(most))
}

func checkSum(src pluginhost.Source, got string) error {
	if src.SHA256 != "" && src.SHA256 != got {
		return fault.New(fault.Conflict, codeDigest, "%s is not what its checksum says: its sha256 is %s; nothing was installed.", src, got)
	}
	return nil
}

// sameSum compares a file of this machine with its checksum.
func sameSum(ctx context.Context, src pluginhost.Source) error {
	f, err := openRegular(src.Place)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "file_not_found", "There is no file %s.", src.Place)
	}
	if err != nil {
		return fault.New(fault.Invalid, "file_unreadable", "The file %s cannot be read: %w.", src.Place, err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := copyContext(ctx, sum, f, nil); err != nil {
		return err
	}
	return checkSum(src, hex.EncodeToString(sum.Sum(nil)))
}

// unpack unpacks an archive into a folder in dir, with the bounds and refusals that archives of engines have.
func (s *Sources) unpack(ctx context.Context, src pluginhost.Source, archive, dir string) (string, error) {
	st, err := os.Stat(archive)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fault.New(fault.NotFound, "file_not_found", "There is no file %s.", src.Place)
	case err != nil || !st.Mode().IsRegular():
		return "", fault.New(fault.Invalid, "file_unreadable", "%s is no file that can be read.", src.Place)
	}
	to := filepath.Join(dir, "unpacked")
	if err := os.Mkdir(to, 0o700); err != nil {
		return "", fmt.Errorf("unpack the plugin: %w", err)
	}
	step := &vendor.ExtractStep{Into: ".", MaxBytes: s.most, MaxEntries: sourceEntries}
	return to, extract(ctx, archive, st.Size(), to, step, false, func(int64) {})
}

// clone checks out one commit of a repository, without its history.
func (s *Sources) clone(ctx context.Context, src pluginhost.Source, dir string) error {
	git, err := exec.LookPath("git")
	if err != nil || !filepath.IsAbs(git) {
		return fault.New(fault.Unavailable, "no_git", "git is needed for %s and not installed; install it, or give the address of an archive.", src)
	}
	home, err := os.MkdirTemp("", "apiary-git-")
	if err != nil {
		return fmt.Errorf("make a folder for git: %w", err)
	}
	defer func() { _ = os.RemoveAll(home) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var large bool
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		large = s.watch(ctx, stop, dir)
	}()
	ref := cmp.Or(src.Ref, "HEAD")
	for _, args := range [][]string{
		{"init", "-q", "--template=", dir},
		{"-C", dir, "fetch", "-q", "--depth=1", "--no-tags", "--no-recurse-submodules", "--end-of-options", src.Place, ref},
		{"-C", dir, "checkout", "-q", "--detach", "FETCH_HEAD"},
	} {
		if err = s.git(ctx, git, home, args); err != nil {
			break
		}
	}
	stop()
	<-watched
	switch said, ok := errors.AsType[*gitError](err); {
	case large:
		return tooMuch(src, s.most)
	case ok:
		return fault.New(fault.Unavailable, "git_failed", "git could not bring %s: %s. Check the address and the ref; no password is asked for, and redirects are not followed.", src, said)
	}
	return err
}

// gitError is what git said before it failed.
type gitError struct{ text string }

func (e *gitError) Error() string { return e.text }

// git runs git with nothing of this machine's or the user's configuration: no hooks, no helpers, no questions.
func (s *Sources) git(ctx context.Context, git, home string, args []string) error {
	settings := []string{"credential.helper=", "core.hooksPath=/dev/null", "core.askPass=", "core.fsmonitor=false", "http.followRedirects=false", "http.lowSpeedLimit=1000",
		"http.lowSpeedTime=30", "transfer.fsckObjects=true", "fetch.recurseSubmodules=false", "gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false"}
	var all []string
	for _, v := range settings {
		all = append(all, "-c", v)
	}
	cmd := exec.CommandContext(ctx, git, append(all, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + home, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "SSH_ASKPASS=/bin/false",
		"GIT_ALLOW_PROTOCOL=" + s.protocols, "GIT_ATTR_NOSYSTEM=1", "GIT_OPTIONAL_LOCKS=0"}
	// The last of the same name counts. git does not know Go's names of certificates.
	for _, as := range [][2]string{{"HTTPS_PROXY", "HTTPS_PROXY"}, {"https_proxy", "https_proxy"}, {"NO_PROXY", "NO_PROXY"}, {"no_proxy", "no_proxy"},
		{"SSL_CERT_FILE", "GIT_SSL_CAINFO"}, {"SSL_CERT_DIR", "GIT_SSL_CAPATH"}, {"GIT_SSL_CAINFO", "GIT_SSL_CAINFO"}, {"GIT_SSL_CAPATH", "GIT_SSL_CAPATH"}} {
		if v := os.Getenv(as[0]); v != "" {
			cmd.Env = append(cmd.Env, as[1]+"="+v)
		}
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // and what it started
	cmd.WaitDelay = 2 * time.Second
	var said bytes.Buffer
	cmd.Stderr = &limited{w: &said, left: 16 << 10}
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	lines := strings.FieldsFunc(said.String(), func(r rune) bool { return r == '\n' || r == '\r' })
	text := err.Error()
	if len(lines) > 0 {
		text = oneLine(lines[len(lines)-1])
	}
	return &gitError{strings.TrimSuffix(text, ".")}
}

// limited takes all and keeps what comes first.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	_, err := l.w.Write(p[:n])
	return len(p), err
}

// watch stops what fills dir when that has too much in it, and reports whether it did.
func (s *Sources) watch(ctx context.Context, stop func(), dir string) bool {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if size, files := measure(dir); size > s.most || files > 4*sourceEntries {
			stop()
			return true
		}
		select {
		case <-ctx.Done():
			size, files := measure(dir) // it may have been faster than the clock
			return size > s.most || files > 4*sourceEntries
		case <-tick.C:
		}
	}
}

// measure is how much there is below dir. What vanishes meanwhile does not count.
func measure(dir string) (size int64, files int) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // git removes files while it works
		}
		files++
		if st, err := e.Info(); err == nil && !e.IsDir() {
			size += st.Size()
		}
		return nil
	})
	return size, files
}

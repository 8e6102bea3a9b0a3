package artifact

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/builtin"
	"github.com/apiary-dev/apiary/vendors/local"
)

// The variables that make this test's executable the process that is killed.
const (
	crashHome = "APIARY_TEST_CRASH_HOME"
	crashURL  = "APIARY_TEST_CRASH_REGISTRY"
	crashAt   = "APIARY_TEST_CRASH_AT"
)

func TestMain(m *testing.M) {
	playLauncher()
	if home := os.Getenv(crashHome); home != "" {
		os.Exit(crashChild(home))
	}
	useMemory()
	os.Exit(m.Run())
}

// playLauncher is the launcher exec-child, where this executable is called as it.
func playLauncher() {
	if len(os.Args) > 2 && os.Args[1] == "exec-child" {
		fmt.Fprintln(os.Stderr, process.ExecChild(os.Args[2:]))
		os.Exit(127)
	}
}

// useMemory puts the folders of tests on a file system in memory, where there is a large one. Every test syncs dozens of
// files, which takes most of the time on a disk; a process that is killed loses nothing that it has written either way.
func useMemory() {
	const shm = "/dev/shm"
	if free, err := folder.Free(shm); err != nil || free < 2*contract.GiB || os.Getenv("TMPDIR") != "" {
		return
	}
	if dir, err := os.MkdirTemp(shm, "apiary-test-"); err == nil && os.Remove(dir) == nil { // it can be written to
		_ = os.Setenv("TMPDIR", shm)
	}
}

// scenario uses everything that changes the disk. It can be run again after it was killed anywhere.
func scenario(ctx context.Context, s *Store, home string) error {
	if _, err := s.PullModel(ctx, story, nil); err != nil {
		return fmt.Errorf("pull builtin: %w", err)
	}
	if _, err := s.InstallEngine(ctx, enginePackage, nil, nil); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	mine := filepath.Join(home, "mine.gguf")
	for fill := range byte(2) { // the second time it has changed
		if err := os.WriteFile(mine, ggufFile(fill+1, 0, 1, 100+int(fill)), 0o600); err != nil {
			return err
		}
		if _, err := s.PullModel(ctx, "file:"+mine, nil); err != nil {
			return fmt.Errorf("pull in place: %w", err)
		}
	}
	if _, err := s.PullModel(ctx, "wheel:x", nil); err != nil {
		return fmt.Errorf("pull out of an archive: %w", err)
	}
	for _, ref := range []string{story, "wheel:x"} {
		if err := s.RemoveModel(ref); err != nil {
			return fmt.Errorf("remove model: %w", err)
		}
	}
	if err := s.RemoveEngine(enginePackage); err != nil {
		return fmt.Errorf("remove engine: %w", err)
	}
	return nil
}

// occurrence names the n-th time of a step. Steps are not counted through, because how often bytes arrive differs from run to run.
func occurrence(point string, n int) string { return point + "#" + strconv.Itoa(n) }

// crashChild runs the scenario and kills itself at the step and occurrence in crashAt. It prints the steps.
func crashChild(home string) int {
	s, err := Open(crashOptions(home, os.Getenv(crashURL)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var mu sync.Mutex
	seen := map[string]int{}
	s.at = func(point string) {
		mu.Lock()
		defer mu.Unlock()
		seen[point]++
		fmt.Println(point)
		if occurrence(point, seen[point]) == os.Getenv(crashAt) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if err := scenario(context.Background(), s, home); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestKillAnywhere kills a process at every step of a scenario. Whatever is in the catalogs afterwards is whole, nothing that
// is not whole is visible, and running the scenario again ends well and leaves nothing behind.
func TestKillAnywhere(t *testing.T) {
	onLinux(t)
	r := newRegistry(t, "linux-x64")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(home, at string) (string, error) {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), crashHome+"="+home, crashURL+"="+r.URL, crashAt+"="+at)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		if s := errs.String(); s != "" && err != nil {
			err = fmt.Errorf("%w: %s", err, s)
		}
		return out.String(), err
	}
	steps, err := run(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Split(strings.TrimSpace(steps), "\n")
	for _, p := range []string{"part grows", "part complete", "blob verified", "blob renamed", "json written", "json synced", "json renamed",
		"member grows", "member complete", "engine grows", "engine unpacked", "engine tested", "engine renamed", "engine dropped", "old entry dropped", "model dropped", "blob removed"} {
		if !strings.Contains(steps, p) {
			t.Errorf("the scenario does not come to the step %q", p)
		}
	}
	seen := map[string]int{}
	for i, p := range points {
		if seen[p]++; seen[p] > 6 {
			continue // the same step of the same loop
		}
		at := occurrence(p, seen[p])
		t.Run(fmt.Sprintf("%d %s", i+1, p), func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			_, err := run(home, at)
			if err == nil && strings.HasSuffix(p, " grows") && !strings.HasSuffix(at, "#1") {
				return // the bytes came in fewer pieces this time
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the process was not killed: %v", err)
			}
			s, err := Open(crashOptions(home, r.URL))
			if err != nil {
				t.Fatal(err)
			}
			checkWhole(t, s)
			// What was removed may have to be removed again, so a second run does everything.
			if err := scenario(t.Context(), s, home); err != nil {
				t.Fatalf("run again: %v", err)
			}
			checkWhole(t, s)
			ms, _ := s.Models()
			es, _ := s.Engines()
			if len(ms) != 1 || len(es) != 0 || !strings.HasPrefix(ms[0].ID, "file:") {
				t.Errorf("in the catalogs: %v %v", ms, es)
			}
			for _, dir := range []string{"blobs", "engines", "quarantine"} {
				if left := files(t, s, dir); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
}

// crashOptions are those of the parent and of the child.
func crashOptions(home, url string) Options {
	b := builtin.New()
	archive := memory(wheel())
	packed := &webVendor{scheme: "wheel", man: vendor.Manifest{Reference: "wheel:x@1", Format: "gguf", Files: []vendor.File{{
		Path: "m.gguf", Size: -1, Sources: []vendor.Source{{URL: "wheel:"}}, Member: &vendor.ArchiveMember{Match: "*.gguf", Archive: vendor.Digests{SHA256: sum256(archive)}, Size: -1},
	}}}}
	return Options{
		Home: home, Vendors: []vendor.Vendor{b, local.New(), packed}, Openers: map[string]vendor.Opener{builtin.Scheme: b, "wheel": archive},
		Provisioners: []vendor.Provisioner{npmAt(url, NewHost(HostOptions{HTTP: ownClient(impatient)}))},
		HTTP:         ownClient(impatient),
	}
}

// wheel is an archive with a model.
func wheel() []byte {
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	w, err := zw.Create("pkg/m.gguf")
	if err == nil {
		_, err = w.Write(ggufFile(7, 0, 1, 100))
	}
	if err = errors.Join(err, zw.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// memory opens itself.
type memory []byte

func (m memory) Open(context.Context, string) (io.ReadCloser, int64, error) {
	return io.NopCloser(bytes.NewReader(m)), int64(len(m)), nil
}

// checkWhole opens everything that the catalogs list.
func checkWhole(t *testing.T, s *Store) {
	t.Helper()
	ms, err := s.Models()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		p, err := s.ModelPath(t.Context(), m)
		if err != nil {
			if m.Files[0].InPlace != nil { // the scenario changes the file before it pulls it again
				continue
			}
			t.Errorf("listed, and not usable: %v", err)
			continue
		}
		if b, err := os.ReadFile(p); err != nil || sum256(b) != m.Files[0].SHA256 {
			t.Errorf("%s has other bytes than its entry says (%v)", m.ID, err)
		}
	}
	es, err := s.Engines()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		for _, f := range []string{"libllama.so", "libggml.so", "libggml-base.so"} {
			if b, err := os.ReadFile(filepath.Join(s.EngineDir(e), f)); err != nil || len(b) == 0 {
				t.Errorf("%s lacks %s: %v", e.ID, f, err)
			}
		}
	}
	// What lies in the place of blobs has the digest that its name says.
	_ = filepath.WalkDir(s.path("blobs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if b, err := os.ReadFile(p); err != nil || sum256(b) != filepath.Base(p) {
				t.Errorf("a blob with other bytes: %s", p)
			}
		}
		return err
	})
}

// An installation that is cancelled in its last step leaves nothing visible.
func TestCancelledInstallation(t *testing.T) {
	onLinux(t)
	r := newRegistry(t, "linux-x64")
	s := openStore(t, t.TempDir(), r.use)
	s.opts.SelfTest = func(ctx context.Context, dir string) (SelfTestReport, error) {
		<-ctx.Done()
		return SelfTestReport{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.InstallEngine(ctx, enginePackage, nil, func(action, _ string, _ *contract.Progress) {
		if action == "self-test" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if left := append(files(t, s, "engines"), files(t, s, "catalog")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

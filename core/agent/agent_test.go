package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
)

func TestLockIsExclusiveAndReleased(t *testing.T) {
	home := t.TempDir()
	if locked, err := Locked(home); err != nil || locked {
		t.Fatalf("a fresh folder: locked %v, error %v", locked, err)
	}
	first, err := lockHome(home)
	if err != nil {
		t.Fatal(err)
	}
	if locked, err := Locked(home); err != nil || !locked {
		t.Fatalf("a held folder: locked %v, error %v", locked, err)
	}
	_, err = lockHome(home)
	if e := fault.As(err); e == nil || e.Code != CodeAlreadyRunning || fault.ExitCode(err) != 4 {
		t.Fatalf("the second holder got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockHome(home)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	_ = again.Close()
}

// S14: an agent neither starts nor is looked for through links inside the data folder.
func TestLinkedFolders(t *testing.T) {
	home := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(home, "run")); err != nil {
		t.Fatal(err)
	}
	_, lock := lockHome(home)
	_, locked := Locked(home)
	_, read := ReadRunFile(home)
	for what, err := range map[string]error{"lock": lock, "locked": locked, "read": read} {
		if f := fault.As(err); f == nil || f.Code != folder.CodeUnsafe || !strings.Contains(f.Message, filepath.Join(home, "run")) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A FIFO, a device or a folder in the place of one of the agent's files is refused by name, at once.
func TestIrregularFiles(t *testing.T) {
	for _, file := range []string{"node.json", "run/lock", "run/agent.json"} {
		for kind, make := range map[string]func(string) error{
			"FIFO": func(p string) error { return syscall.Mkfifo(p, 0o600) }, "folder": func(p string) error { return os.Mkdir(p, 0o700) },
		} {
			home := t.TempDir()
			path := filepath.Join(home, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), make(path)); err != nil {
				t.Fatal(err)
			}
			errs := map[string]error{}
			switch file {
			case "node.json":
				_, errs["node id"] = nodeID(home)
			case "run/lock":
				_, errs["lock"] = lockHome(home)
				_, errs["locked"] = Locked(home)
			case "run/agent.json":
				_, errs["read"] = ReadRunFile(home)
			}
			for what, err := range errs {
				if f := fault.As(err); f == nil || f.Code != folder.CodeUnsafeFile || !strings.Contains(f.Message, path) || !strings.Contains(f.Message, kind) {
					t.Errorf("%s, %s: %v", kind, what, err)
				}
			}
		}
	}
}

func TestNodeIDIsStable(t *testing.T) {
	home := t.TempDir()
	first, err := nodeID(home)
	if err != nil || !nodeIDForm.MatchString(first) {
		t.Fatalf("id %q, error %v", first, err)
	}
	if second, err := nodeID(home); err != nil || second != first {
		t.Errorf("the second start has %q after %q, error %v", second, first, err)
	}
	if other, _ := nodeID(t.TempDir()); other == first {
		t.Error("two folders have the same id")
	}
	if err := os.WriteFile(filepath.Join(home, "node.json"), []byte(`{"id":"../x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nodeID(home); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a damaged file gave %v", err)
	}
}

func TestRunFileRoundTrip(t *testing.T) {
	home := t.TempDir()
	if _, err := ReadRunFile(home); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a missing file gave %v", err)
	}
	me, err := self()
	if err != nil {
		t.Fatal(err)
	}
	want := RunFile{NodeID: "n", Process: me, Roles: []string{"queen"}, Queen: "http://127.0.0.1:1"}
	if err := os.MkdirAll(filepath.Join(home, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(runPath(home, "agent.json"), want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRunFile(home)
	if err != nil || got.Process != want.Process || got.Queen != want.Queen {
		t.Errorf("got %+v, error %v", got, err)
	}
	if !alive(got.Process) {
		t.Error("this process does not count as alive")
	}
	other := got.Process
	other.StartTicks++
	if alive(other) {
		t.Error("a process with another start time counts as the same")
	}
}

// TestStopSparesAnotherProcess: the number of a process that ended was given to another one.
func TestStopSparesAnotherProcess(t *testing.T) {
	me, err := self()
	if err != nil {
		t.Fatal(err)
	}
	me.StartTicks-- // this very test would be the victim
	if stopped, err := Stop(context.Background(), RunFile{Process: me}, time.Second); err != nil || stopped {
		t.Errorf("stopped %v, error %v", stopped, err)
	}
}

func refuse(w http.ResponseWriter, _ *http.Request, err error) { w.WriteHeader(fault.HTTPStatus(err)) }

func TestDrainWaitsForRequestsAndRefusesNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDrain()
		finish := make(chan struct{})
		slow := d.counted(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-finish }), refuse)
		readyz := d.readiness(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), refuse)
		call := func(h http.Handler) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			return w.Code
		}
		first := make(chan int, 1)
		go func() { first <- call(slow) }()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.run(ctx, time.Minute) }()
		synctest.Wait()
		if code := call(readyz); code != http.StatusOK {
			t.Errorf("readiness before the stop is %d", code)
		}
		cancel()
		synctest.Wait()
		if code := call(readyz); code != http.StatusServiceUnavailable {
			t.Errorf("readiness while draining is %d", code)
		}
		if code := call(slow); code != http.StatusServiceUnavailable {
			t.Errorf("a new request while draining got %d", code)
		}
		select {
		case <-done:
			t.Fatal("it did not wait for the running request")
		default:
		}
		close(finish)
		time.Sleep(linger)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("it still waits")
		}
		if code := <-first; code != http.StatusOK {
			t.Errorf("the running request got %d", code)
		}
	})
}

func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDrain()
		if !d.enter() {
			t.Fatal("refused before the stop")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if err := d.run(ctx, time.Minute); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != time.Minute {
			t.Errorf("it gave up after %v", waited)
		}
		d.leave() // late, and still counted
	})
}

func TestGuard(t *testing.T) {
	const admin, hive = "the admin key of this node", "the secret of this hive"
	g := guard{admin: admin, hive: hive, loopback: true}
	open := g
	open.loopback = false
	const (
		allowed = 0
		denied  = http.StatusUnauthorized
	)
	for _, c := range []struct {
		name  string
		check func(httpd.Class, *http.Request) error
		class httpd.Class
		token string
		want  int
	}{
		{"inference is open", g.queen, httpd.ClassInference, "", allowed},
		{"inference ignores keys", g.queen, httpd.ClassInference, "sk-whatever", allowed},
		{"admin needs a key", g.queen, httpd.ClassAdmin, "", denied},
		{"admin needs the right key", g.queen, httpd.ClassAdmin, hive, denied},
		{"admin", g.queen, httpd.ClassAdmin, admin, allowed},
		{"metrics on loopback", g.queen, httpd.ClassMetrics, "", allowed},
		{"metrics off loopback", open.queen, httpd.ClassMetrics, "", denied},
		{"metrics off loopback with the key", open.queen, httpd.ClassMetrics, admin, allowed},
		{"a beat without a secret", g.queen, httpd.ClassWorker, "", denied},
		{"a beat's secret is the queen's to compare", g.queen, httpd.ClassWorker, "x", allowed},
		{"a queen without a secret", g.queen, httpd.ClassQueen, "", denied},
		{"another queen's secret is the queen's to compare", g.queen, httpd.ClassQueen, "x", allowed},
		{"a hive is no queen", g.hiveServer, httpd.ClassQueen, hive, denied},
		{"no class", g.queen, "", admin, denied},
		{"hive without a secret", g.hiveServer, httpd.ClassHive, "", denied},
		{"hive with the admin key", g.hiveServer, httpd.ClassHive, admin, denied},
		{"hive", g.hiveServer, httpd.ClassHive, hive, allowed},
		{"hive does not serve inference", g.hiveServer, httpd.ClassInference, admin, denied},
		{"hive's profile with the hive secret", g.hiveServer, httpd.ClassAdmin, hive, denied},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		err := c.check(c.class, r)
		if got := fault.HTTPStatus(err); (err == nil) != (c.want == allowed) || err != nil && got != c.want {
			t.Errorf("%s: %v (%d)", c.name, err, got)
		}
	}
	// Once a key was made.
	keyed := g
	keyed.keys, keyed.required = &keys.Table{}, func() bool { return true }
	shown := map[string]string{"": "", "admin.key": admin, "unknown": "apk_aaaaaaaa_" + strings.Repeat("a", 43)}
	var list []contract.APIKey
	for _, class := range []string{contract.KeyInference, contract.KeyMetrics, contract.KeyAdmin} {
		key, k, err := keys.Make(contract.NewKey{Name: class, Class: class}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		shown[class], list = key.Reveal(), append(list, k)
	}
	keyed.keys.Set(list)
	for class, want := range map[httpd.Class]map[string]int{
		httpd.ClassInference: {"": denied, "unknown": denied, contract.KeyMetrics: http.StatusForbidden},
		httpd.ClassMetrics:   {"": denied, "unknown": denied, contract.KeyInference: http.StatusForbidden},
		httpd.ClassAdmin:     {"": denied, "unknown": denied, contract.KeyInference: http.StatusForbidden, contract.KeyMetrics: http.StatusForbidden},
	} {
		for name, token := range shown {
			for _, header := range []string{"Authorization", "X-Api-Key", "Api-Key", "Cookie", "Basic", "query"} {
				target := "/"
				if header == "query" {
					target = "/?key=" + url.QueryEscape(token)
				}
				r := httptest.NewRequest(http.MethodGet, target, nil)
				expect := want[name]
				switch header {
				case "Authorization":
					r.Header.Set(header, "Bearer "+token)
				case "Basic":
					r.SetBasicAuth("", token)
					expect = denied
				case "X-Api-Key":
					r.Header.Set(header, token)
				default:
					r.Header.Set(header, token)
					expect = denied
				}
				err := keyed.queen(class, r)
				if got := fault.HTTPStatus(err); (err == nil) != (expect == allowed) || err != nil && got != expect {
					t.Errorf("%s with %q in %s: %v (%d)", class, name, header, err, got)
				}
			}
		}
	}
	if err := (guard{}).queen(httpd.ClassAdmin, httptest.NewRequest(http.MethodGet, "/", nil)); err == nil {
		t.Error("an agent without an admin key lets everybody in")
	}
}

func TestNativeExecutable(t *testing.T) {
	home := t.TempDir()
	n := &nativeExecutable{home: home, version: "v1", own: filepath.Join(home, "apiary"), carried: []byte("#!/bin/sh\nexit 0\n")}
	path, err := n.Path()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o700 || !strings.HasPrefix(path, filepath.Join(home, "engines", nativeWorker, "v1-")) {
		t.Fatalf("%s: %v %v", path, st, err)
	}
	// A file that lost its bytes is written again by the next agent.
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	fresh := &nativeExecutable{home: home, version: "v1", own: n.own, carried: n.carried}
	if again, err := fresh.Path(); err != nil || again != path {
		t.Fatalf("%s, error %v", again, err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, n.carried) {
		t.Errorf("the damaged file was kept: %q, error %v", b, err)
	}
	// Without one inside, it lies beside the executable, or is missed in one sentence.
	beside := &nativeExecutable{home: home, own: n.own}
	if _, err := beside.Path(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a missing one gave %v", err)
	}
	if err := os.WriteFile(filepath.Join(home, nativeWorker), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := beside.Path(); err != nil || got != filepath.Join(home, nativeWorker) {
		t.Errorf("%s, error %v", got, err)
	}
}

// TestSelfTest runs a stand-in for the launcher, which is called as "<own> exec-child [--sandbox=POLICY] -- <path> selftest --engine-dir DIR".
func TestSelfTest(t *testing.T) {
	dir := t.TempDir()
	script := func(body string) *nativeExecutable {
		own := filepath.Join(dir, "apiary")
		if err := os.WriteFile(own, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
		return &nativeExecutable{home: dir, version: "v", own: own, carried: []byte("x")}
	}
	t.Setenv("HF_TOKEN", "canary")
	report, err := script(`[ "$1" = exec-child ] || exit 9
case "$2" in --sandbox=*) shift ;; esac
[ "$2 $4 $5 $6" = "-- selftest --engine-dir /e" ] || exit 9
[ -z "$HF_TOKEN" ] || exit 8
echo '{"build":"b1","devices":[{"id":"cpu0"}]}'`).selfTest(t.Context(), "/e")
	if err != nil || report.Build != "b1" || len(report.Devices) != 1 {
		t.Errorf("report %+v, error %v", report, err)
	}
	_, err = script("echo progress >&2; printf 'cannot load libllama.so\\n\\033[2J\\n' >&2; exit 1").selfTest(t.Context(), "/e")
	if e := fault.As(err); e == nil || e.Kind != fault.Unavailable || !strings.Contains(e.Message, "[2J") || strings.Contains(e.Message, "\x1b") {
		t.Errorf("a failing engine gave %q", err)
	}
	_, err = script("echo garbage").selfTest(t.Context(), "/e")
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("an unreadable report gave %v", err)
	}
}

func TestTailIsBounded(t *testing.T) {
	var b tail
	for range 100 {
		if n, err := b.Write(bytes.Repeat([]byte("x"), 10_000)); n != 10_000 || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = b.Write([]byte("\nlast words\n"))
	if b.Len() > 64<<10 || b.lastLine() != "last words" {
		t.Errorf("%d bytes kept, last line %q", b.Len(), b.lastLine())
	}
}

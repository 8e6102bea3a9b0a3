package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func openStore(t *testing.T) (*Store, string) {
	t.Helper()
	home := t.TempDir()
	s, err := OpenStore(home)
	if err != nil {
		t.Fatal(err)
	}
	return s, filepath.Join(home, "secrets")
}

func TestStoreOfFirstAgent(t *testing.T) {
	s, dir := openStore(t)
	for name, read := range map[string]func() error{
		"root":      func() error { _, err := s.Root(); return err },
		"authority": func() error { _, err := s.Authority(); return err },
		"identity":  func() error { _, err := s.Identity(nil); return err },
	} {
		if err := read(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of an empty folder: %v", name, err)
		}
	}
	a, err := s.CreateCluster()
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.CreateCluster()
	if err != nil || !again.IsRoot() || !again.Root().Equal(a.Root()) || !again.key.Equal(a.key) {
		t.Fatalf("the second call gives another cluster: %v", err)
	}
	k, err := s.NodeKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, entry, err := a.IssueOwn(k, "aaaaaaaaaaaa", "tower", []string{RoleQueen, RoleHive}, []string{"10.0.0.5", "tower.lan"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveNode(chain); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(a.Root(), clockAt(noon), nil)
	id, err := s.Identity(v)
	if err != nil {
		t.Fatal(err)
	}
	if p := id.Peer(); p.NodeID != "aaaaaaaaaaaa" || p.Key != entry.Key || !p.Has(RoleQueen) || !p.Has(RoleHive) {
		t.Errorf("the identity is %+v", p)
	}
	for _, host := range []string{"10.0.0.5", "tower.lan", "localhost", "127.0.0.1", "::1"} {
		if err := chain[0].VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Errorf("the folder has %v, %v", files, err)
	}
	for _, f := range files {
		if st, err := f.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s has the mode %v, %v", f.Name(), st.Mode(), err)
		}
	}
	// A certificate that has expired is still this node's: it renews itself.
	if _, err := s.Identity(NewVerifier(a.Root(), clockAt(noon.Add(48*time.Hour)), nil)); err != nil {
		t.Error(err)
	}
}

func TestIssueOwnChecksNames(t *testing.T) {
	c, k := newCluster(t), key(t)
	for _, bad := range [][4]string{{"x", "tower", RoleHive, "10.0.0.5"}, {"aaaaaaaaaaaa", "a b", RoleHive, "10.0.0.5"}, {"aaaaaaaaaaaa", "tower", "admin", "10.0.0.5"}, {"aaaaaaaaaaaa", "tower", RoleHive, "0.0.0.0"}} {
		if _, _, err := c.root.IssueOwn(k, bad[0], bad[1], []string{bad[2]}, []string{bad[3]}, noon); err == nil {
			t.Errorf("%v is issued", bad)
		}
	}
}

// A crash between the two files of a new cluster leaves none, and the next start makes one.
func TestCreateClusterCutOff(t *testing.T) {
	s, dir := openStore(t)
	if _, err := s.CreateCluster(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, rootFile)); err != nil {
		t.Fatal(err)
	}
	a, err := s.CreateCluster()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.Authority(); err != nil || !b.Root().Equal(a.Root()) {
		t.Error(err)
	}
}

func TestStoreOfQueenThatJoined(t *testing.T) {
	c := newCluster(t)
	s, _ := openStore(t)
	if _, err := s.CreateCluster(); err != nil { // it was alone before
		t.Fatal(err)
	}
	a := Applicant{NodeID: "bbbbbbbbbbbb", Name: "second", Roles: []string{RoleQueen}}
	var err error
	if a.Key, err = s.NodeKey(); err != nil {
		t.Fatal(err)
	}
	if a.IssuerKey, err = s.IssuerKey(); err != nil {
		t.Fatal(err)
	}
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveJoined(j); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(retiredKeyFile, true); err != nil {
		t.Errorf("the key of the former root is gone: %v", err)
	}
	if _, err := s.CreateCluster(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a member makes a cluster of its own: %v", err)
	}
	auth, err := s.Authority()
	if err != nil || auth.IsRoot() || auth.nodeID != "bbbbbbbbbbbb" {
		t.Fatalf("the authority is %v, %v", auth, err)
	}
	id, err := s.Identity(c.verifier)
	if err != nil || !id.Peer().Has(RoleQueen) {
		t.Fatal(err)
	}
	// The same again, as a hive: it cannot issue any more.
	if err := s.SaveJoined(Joined{Root: j.Root, Chain: j.Chain}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authority(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.ForgetNodeKey(); err != nil {
		t.Fatal(err)
	}
	if k, err := s.NodeKey(); err != nil || k.Equal(a.Key) {
		t.Errorf("the key is the former one, %v", err)
	}
	if err := s.ForgetNodeKey(); err != nil {
		t.Fatal(err)
	}
	if err := s.ForgetNodeKey(); err != nil {
		t.Errorf("there is nothing to forget: %v", err)
	}
}

// Every file that is cut off anywhere, changed, replaced by another one or readable is told of by its name.
func TestStoreDamaged(t *testing.T) {
	c := newCluster(t)
	s, dir := openStore(t)
	a := Applicant{NodeID: "bbbbbbbbbbbb", Name: "second", Roles: []string{RoleQueen}}
	a.Key, _ = s.NodeKey()
	a.IssuerKey, _ = s.IssuerKey()
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveJoined(j); err != nil {
		t.Fatal(err)
	}
	other := newCluster(t)
	otherKey, err := encodeKey(other.root.key)
	if err != nil {
		t.Fatal(err)
	}
	use := func() error {
		root, err := s.Root()
		if err != nil {
			return err
		}
		if _, err := s.Authority(); err != nil {
			return err
		}
		_, err = s.Identity(NewVerifier(root, c.clock, nil))
		return err
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{rootFile, issuerFile, issuerKeyFile, nodeFile, nodeKeyFile} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		wrong := EncodeChain(other.root.Root())
		if strings.HasSuffix(name, ".key") {
			wrong = otherKey
		}
		bad := map[string][]byte{
			"empty": {}, "of another cluster": wrong, "twice": append(whole[:len(whole):len(whole)], whole...), "other type": []byte(strings.ReplaceAll(string(whole), "E", "F")),
			"text before": append([]byte("hello\n"), whole...), "headers": []byte(strings.Replace(string(whole), "-----\n", "-----\nA: b\n\n", 1)),
			"large": append(whole[:len(whole):len(whole)], make([]byte, maxPEM)...),
		}
		for i := 1; i < len(whole)-1; i += 37 {
			bad[fmt.Sprintf("cut off at %d", i)] = whole[:i]
		}
		for what, text := range bad {
			if name == nodeFile && what == "twice" {
				continue // six certificates
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			err := use()
			if name == rootFile && what == "of another cluster" {
				if code(err) != CodeDamaged {
					t.Errorf("%s %s: %v", name, what, err)
				}
				continue // the others do not fit it
			}
			want(t, err, CodeDamaged)
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %s: the message does not name it: %v", name, what, err)
			}
		}
		for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602} {
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			wanted := CodeReadable
			if !strings.HasSuffix(name, ".key") && mode&0o022 == 0 {
				wanted = "" // a certificate is no secret
			}
			want(t, use(), wanted)
		}
		_ = os.Remove(path)
		elsewhere := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(elsewhere, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, path); err != nil {
			t.Fatal(err)
		}
		want(t, use(), "unsafe_file")
		_ = os.Remove(path)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, use(), "unsafe_file")
		_ = os.Remove(path)
		if err := use(); err == nil {
			t.Errorf("%s is missing, and nobody notices", name)
		} else if strings.HasSuffix(name, ".key") {
			want(t, err, CodeDamaged)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
}

func TestStoreOfOthers(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "secrets"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(home, "secrets"), 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := OpenStore(home)
	if err == nil {
		t.Error("a folder that everybody may write to holds secrets")
	}
}

// A file is there as a whole or not at all, also when the write fails.
func TestStoreWriteFails(t *testing.T) {
	s, dir := openStore(t)
	if _, err := s.CreateCluster(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, nodeFile), 0o700); err != nil { // nothing can be renamed onto a folder
		t.Fatal(err)
	}
	if err := s.SaveNode([]*x509.Certificate{newCluster(t).root.Root()}); err == nil {
		t.Error("the certificate is written where a folder is")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, rootFile)); err != nil || string(after) != string(before) {
		t.Error("another file has changed")
	}
}

func TestRenewIn(t *testing.T) {
	c := newCluster(t)
	id := c.member("aaaaaaaaaaaa", "tower")
	for _, tc := range []struct {
		at     time.Duration
		jitter float64
		want   time.Duration
	}{
		{0, 0.5, 16 * time.Hour}, {0, 0, 15 * time.Hour}, {0, 1, 17 * time.Hour}, {10 * time.Hour, 0.5, 6 * time.Hour},
		{20 * time.Hour, 0.5, 0},
	} {
		c.hand.set(noon)
		c.hand.move(tc.at)
		id.verifier.clock = NewClock(c.hand.now)
		if got := id.RenewIn(tc.jitter); got > tc.want || got < tc.want-time.Minute {
			t.Errorf("after %v with jitter %v it waits %v, want %v", tc.at, tc.jitter, got, tc.want)
		}
	}
	// A clock that jumps out of the certificate's time does not make it renew all the time, and one within it counts.
	c.hand.set(noon)
	id.verifier.clock = NewClock(c.hand.now)
	for to, wanted := range map[time.Duration]time.Duration{-1000 * time.Hour: 16 * time.Hour, 1e5 * time.Hour: 16 * time.Hour, time.Hour: 15 * time.Hour} {
		c.hand.set(noon.Add(to))
		if got := id.RenewIn(0.5); got > wanted || got < wanted-time.Minute {
			t.Errorf("the clock jumped by %v: it waits %v, want %v", to, got, wanted)
		}
	}
	c.hand.set(noon.Add(100 * time.Hour))
	id.verifier.clock = NewClock(c.hand.now)
	if got := id.RenewIn(0.5); got != 0 {
		t.Errorf("one that has expired waits %v", got)
	}
}

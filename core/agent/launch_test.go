package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestUnitOf(t *testing.T) {
	for groups, want := range map[string]struct {
		unit string
		user bool
	}{
		"0::/system.slice/apiary.service\n":                                                    {"apiary.service", false},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/apiary.service\n":          {"apiary.service", true},
		"12:cpu:/system.slice/cron.service\n1:name=systemd:/system.slice/bees.service\n0::/\n": {"bees.service", false},
		"0::/user.slice/user-1000.slice/session-3.scope\n":                                     {"", false},
		"0::/user.slice/user-1000.slice/user@1000.service\n":                                   {"", false},
		"": {"", false},
	} {
		if unit, user := unitOf(groups); unit != want.unit || user != want.user {
			t.Errorf("%q: %q %v", groups, unit, user)
		}
	}
}

// TestKeepProgram: an agent that is upgraded leaves a copy of its program where the file is not what it was, and only then.
func TestKeepProgram(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	same, err := LookAt(own)
	if err != nil {
		t.Fatal(err)
	}
	replaced := same
	replaced.Size++
	kept := func(p Program) bool {
		t.Helper()
		if err := keepProgram(home, &Launch{Program: p}); err != nil {
			t.Error(err)
		}
		now, err := LookAt(KeptProgram(home))
		if err == nil && now.Size != same.Size {
			t.Errorf("%d bytes of %d were kept", now.Size, same.Size)
		}
		return err == nil
	}
	if kept(replaced) {
		t.Error("it was kept without an upgrade")
	}
	if err := (Upgrade{Program: own}).Begin(home); err != nil {
		t.Fatal(err)
	}
	if kept(same) {
		t.Error("it was kept although it is there")
	}
	if !kept(replaced) {
		t.Error("it was not kept")
	}
	if err := EndUpgrade(home, false); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadUpgrade(home); !errors.Is(err, fs.ErrNotExist) || KeptProgram(home) != filepath.Join(home, "run", "apiary-before") {
		t.Errorf("after the end there is a record: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Join(home, "run")); len(files) != 0 {
		t.Errorf("files are left: %v", files)
	}
}

func TestLockUpgrade(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := LockUpgrade(home)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockUpgrade(home); fault.As(err).Code != CodeUpgrading {
		t.Errorf("a second one gets %v", err)
	}
	_ = first.Close()
	again, err := LockUpgrade(home)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

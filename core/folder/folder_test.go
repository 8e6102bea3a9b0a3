package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

// S14: links inside the data folder are refused, wherever on the way they are; the data folder itself may be one.
func TestLinks(t *testing.T) {
	for _, folder := range []string{"run", "secrets", "secrets/credentials", "blobs", "blobs/sha256", "partial", "quarantine", "catalog", "catalog/models", "catalog/engines", "views", "engines", "workers", "blobs/sha256/ab", "engines/llama.cpp", "workers/wk-1"} {
		t.Run(folder, func(t *testing.T) {
			real, elsewhere := t.TempDir(), t.TempDir()
			dir := filepath.Join(t.TempDir(), "home")
			if err := os.Symlink(real, dir); err != nil {
				t.Fatal(err)
			}
			if err := Make(dir, folder); err != nil {
				t.Fatal(err)
			}
			if err := CheckAll(dir); err != nil {
				t.Fatal(err)
			}
			at := filepath.Join(dir, folder)
			if st, err := os.Lstat(at); err != nil || st.Mode() != fs.ModeDir|0o700 {
				t.Errorf("%v, %v", st, err)
			}
			if err := errors.Join(os.Remove(at), os.Symlink(elsewhere, at)); err != nil {
				t.Fatal(err)
			}
			for name, err := range map[string]error{"all": CheckAll(dir), "check": Check(dir, folder+"/x"), "make": Make(dir, folder+"/x")} {
				if f := fault.As(err); f == nil || f.Code != CodeUnsafe || f.Kind != fault.Conflict || !strings.Contains(err.Error(), at+" is a symbolic link") {
					t.Errorf("%s: %v", name, err)
				}
			}
			if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
				t.Errorf("made elsewhere: %v, %v", left, err)
			}
			if err := errors.Join(os.Remove(at), os.WriteFile(at, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := Check(dir, folder); fault.As(err) == nil || !strings.Contains(err.Error(), "needs a folder") {
				t.Errorf("a file: %v", err)
			}
		})
	}
}

func TestSecretsAreOurs(t *testing.T) {
	dir := t.TempDir()
	if err := Make(dir, "secrets/credentials", "views"); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"secrets", "secrets/credentials", "views"} {
		for _, mode := range []fs.FileMode{0o720, 0o702, 0o777} {
			if err := os.Chmod(filepath.Join(dir, folder), mode); err != nil {
				t.Fatal(err)
			}
			err := CheckAll(dir)
			if private := folder != "views"; private && (fault.As(err) == nil || fault.As(err).Code != CodeUnsafe || !strings.Contains(err.Error(), "chmod 700")) || !private && err != nil {
				t.Errorf("%s with %v: %v", folder, mode, err)
			}
		}
		if err := os.Chmod(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give folders away")
	}
	if err := os.Chown(filepath.Join(dir, "secrets"), 12345, -1); err != nil {
		t.Skip(err)
	}
	if err := CheckAll(dir); fault.As(err) == nil || !strings.Contains(err.Error(), "another user (uid 12345)") {
		t.Errorf("got %v", err)
	}
}

func TestFull(t *testing.T) {
	dir := t.TempDir()
	write := &fs.PathError{Op: "write", Path: dir + "/.tmp-123", Err: syscall.ENOSPC}
	err := Full(fmt.Errorf("publish: %w", write), dir, "the model", 3<<20)
	f := fault.As(err)
	if f.Code != "no_space" || f.Kind != fault.Exhausted || strings.Contains(err.Error(), ".tmp-") || !strings.Contains(err.Error(), dir+" is full: the model needs 3.0 MiB more, and ") || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if again := Full(fmt.Errorf("x: %w", err), "/", "y", 1); again.Error() != err.Error() {
		t.Errorf("got %v", again)
	}
	if err := Full(syscall.EDQUOT, "/nonexistent", "it", 0); !strings.Contains(err.Error(), "it needs more space; free") {
		t.Errorf("got %v", err)
	}
	if err := Full(syscall.EIO, dir, "x", 1); err != syscall.EIO {
		t.Errorf("got %v", err)
	}
	if err := Full(nil, dir, "x", 1); err != nil {
		t.Errorf("got %v", err)
	}
}

// What is no regular file is refused by name, and opening it does not wait for somebody at the other end of a FIFO.
func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("file"), []byte("12345"), 0o600), os.Mkdir(at("dir"), 0o700), syscall.Mkfifo(at("fifo"), 0o600),
		os.Symlink("file", at("link")), os.Symlink("fifo", at("to-fifo")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{at("dir"), at("fifo"), at("to-fifo"), "/dev/null"} {
		for _, flag := range []int{os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREATE, os.O_RDWR | os.O_CREATE | syscall.O_NOFOLLOW} {
			f, err := OpenFile(path, flag, 0o600)
			if e := fault.As(err); err == nil || e.Kind != fault.Conflict || e.Code != CodeUnsafeFile || !strings.Contains(e.Message, path) {
				t.Errorf("%s with %x: %v, %v", path, flag, f, err)
			}
		}
	}
	if _, err := OpenFile(at("link"), os.O_RDONLY|syscall.O_NOFOLLOW, 0); fault.As(err).Code != CodeUnsafeFile {
		t.Errorf("a link: %v", err)
	}
	if b, err := ReadFile(at("link"), 5); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := ReadFile(at("file"), 4); fault.As(err).Code != CodeUnsafeFile {
		t.Errorf("a file that is too large: %v", err)
	}
	if _, err := ReadFile(at("none"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing one: %v", err)
	}
}

package config

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

// TestRecipeIsARegularFile: a recipe that never ends is not waited for.
func TestRecipeIsARegularFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "recipe.hcl")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	for _, path := range []string{fifo, "/dev/zero", t.TempDir()} {
		read := make(chan error, 1)
		go func() { _, err := ReadRecipe(path); read <- err }()
		select {
		case err := <-read:
			if fault.As(err).Code != "recipe_invalid" || !strings.Contains(err.Error(), "no regular file") || strings.Contains(err.Error(), "nil") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s is waited for", path)
		}
	}
}

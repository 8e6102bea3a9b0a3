// Package preflight says in one sentence what is missing when apiary-llama cannot start. The package github.com/jupiterrider/ffi
// opens libffi while it is initialised and panics without it, before main runs. Go initialises packages that do not depend on
// each other in the order of their import paths, so this one, imported by main, comes first and can say what to install.
// It does nothing else.
package preflight

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/ebitengine/purego"
)

// Passed is true in every process that gets as far as main.
var Passed = check(libffi(), os.Stderr, os.Exit)

func libffi() string {
	if runtime.GOOS == "darwin" {
		return "libffi.8.dylib" // carried by the ffi package itself: a fault there is not ours to explain
	}
	return "libffi.so.8"
}

func check(name string, out io.Writer, exit func(int)) bool {
	if runtime.GOOS == "darwin" {
		return true
	}
	if _, err := purego.Dlopen(name, purego.RTLD_LAZY); err != nil {
		fmt.Fprintf(out, "apiary-llama cannot start because the library %s cannot be loaded (%v); install it (Debian, Ubuntu: apt install libffi8; Fedora: dnf install libffi; Arch: pacman -S libffi) and try again.\n", name, err)
		exit(1)
		return false
	}
	return true
}

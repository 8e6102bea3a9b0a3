package process

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/sandbox"
)

// longestShebang is how much of the first line of a script is read; kernels read less.
const longestShebang = 4096

// command is the argument vector that starts the plugin, whose program is kept as program and whose private folder is room.
func (s Spec) command(program, room string) ([]string, error) {
	for _, dir := range s.Write { // what is not there when it starts cannot be permitted
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a folder for the plugin %s: %w", s.Name, err)
		}
	}
	policy := sandbox.Policy{
		Read:    slices.Concat(sandbox.System(s.Home), []string{program}, interpreter(program, s.Home), s.Read),
		Write:   append([]string{room}, s.Write...),
		Devices: sandbox.Plain(),
		Bind:    []uint16{0}, // one that speaks over TCP, with certificates
		Connect: []uint16{},  // it reaches others through the host
	}
	return s.Sandbox.With(policy).Launch(s.ExecChild, program, s.Args)
}

// interpreter returns what the interpreter of a script reads, where the first line of the program names one: that of the system needs
// nothing else, one of a virtual environment for Python its folder, and the installation that it was made of.
func interpreter(program, home string) []string {
	f, err := os.Open(program)
	if err != nil {
		return nil // so says the start
	}
	defer func() { _ = f.Close() }()
	line, _ := bufio.NewReader(io.LimitReader(f, longestShebang)).ReadString('\n')
	rest, ok := strings.CutPrefix(line, "#!")
	if fields := strings.Fields(rest); !ok || len(fields) == 0 || !filepath.IsAbs(fields[0]) {
		return nil
	} else {
		rest = fields[0]
	}
	out := []string{rest}
	environment := filepath.Dir(filepath.Dir(rest))
	settings, err := os.ReadFile(filepath.Join(environment, "pyvenv.cfg"))
	if err != nil {
		return append(out, installation(rest, home)...)
	}
	out = append(out, sandbox.Without(environment, home)...)
	for setting := range strings.Lines(string(settings)) {
		name, value, _ := strings.Cut(setting, "=")
		if bin := strings.TrimSpace(value); strings.TrimSpace(name) == "home" && filepath.IsAbs(bin) {
			out = append(out, installation(filepath.Join(bin, "python3"), home)...)
		}
	}
	return append(out, installation(rest, home)...)
}

// installation returns an interpreter without its links, and the libraries beside the folder that it is in.
func installation(path, home string) []string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil
	}
	out := []string{real}
	for _, lib := range []string{"lib", "lib64"} {
		out = append(out, sandbox.Without(filepath.Join(filepath.Dir(filepath.Dir(real)), lib), home)...)
	}
	return out
}

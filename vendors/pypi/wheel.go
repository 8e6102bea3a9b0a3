package pypi

import (
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// wheel is a file of a project, by the parts of its name: NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl.
type wheel struct {
	file
	version   version
	python    string
	platforms []string
}

// parseWheel reads the name of a file. It is false for other files than wheels of the project.
func parseWheel(f file, name string) (wheel, bool) {
	stem, ok := strings.CutSuffix(f.Filename, ".whl")
	parts := strings.Split(stem, "-")
	n := len(parts)
	if !ok || n != 5 && n != 6 || normalise(parts[0]) != name || len(f.Filename) > 512 {
		return wheel{}, false
	}
	v, ok := parseVersion(parts[1])
	return wheel{file: f, version: v, python: parts[n-3], platforms: strings.Split(parts[n-1], ".")}, ok
}

// fit says how well a wheel suits a machine; 0: not at all. A wheel for every machine is the best, since it is the same for
// everybody.
func (w wheel) fit(on vendor.Platform) int {
	best := 0
	for _, p := range w.platforms {
		fit := 0
		switch {
		case p == "any":
			fit = 30
		case on.OS == "linux" && (strings.HasPrefix(p, "manylinux") || strings.HasPrefix(p, "linux_")) && strings.HasSuffix(p, "_"+machine(on)):
			fit = 20
		case on.OS == "linux" && strings.HasPrefix(p, "musllinux") && strings.HasSuffix(p, "_"+machine(on)):
			fit = 10 // another C library, which a model does not need
		case on.OS == "darwin" && strings.HasPrefix(p, "macosx_") && (strings.HasSuffix(p, "_"+machine(on)) || strings.HasSuffix(p, "_universal2")):
			fit = 20
		case on.OS == "windows" && p == "win_"+on.Arch:
			fit = 20
		}
		best = max(best, fit)
	}
	if best > 0 && strings.Contains("."+w.python+".", ".py3.") {
		best++ // rather than one for a certain interpreter
	}
	return best
}

// machine is the processor as the names of wheels have it.
func machine(on vendor.Platform) string {
	switch {
	case on.Arch == "amd64":
		return "x86_64"
	case on.Arch == "arm64" && on.OS == "linux":
		return "aarch64"
	}
	return on.Arch
}

// choose returns the wheel that suits a machine best, nil if none does. Where several are as good, the last by name: the
// choice must not change with the order of a list.
func choose(wheels []wheel, on vendor.Platform) *wheel {
	var best *wheel
	for i := range wheels {
		w := &wheels[i]
		f := w.fit(on)
		if f > 0 && (best == nil || f > best.fit(on) || f == best.fit(on) && w.Filename > best.Filename) {
			best = w
		}
	}
	return best
}

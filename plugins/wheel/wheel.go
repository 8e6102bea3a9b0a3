package wheel

import (
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Wheel is a file of a project, by the parts of its name: NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl.
type Wheel struct {
	File
	Version   Version
	Python    string
	Platforms []string
}

// parseWheel reads the name of a file. It is false for other files than wheels of the project.
func parseWheel(f File, name string) (Wheel, bool) {
	stem, ok := strings.CutSuffix(f.Filename, ".whl")
	parts := strings.Split(stem, "-")
	n := len(parts)
	if !ok || n != 5 && n != 6 || Normalise(parts[0]) != name || len(f.Filename) > 512 {
		return Wheel{}, false
	}
	v, ok := ParseVersion(parts[1])
	return Wheel{File: f, Version: v, Python: parts[n-3], Platforms: strings.Split(parts[n-1], ".")}, ok
}

// FitData says how well a wheel that holds data suits a machine; 0: not at all. A wheel for every machine is the best, since it is
// the same for everybody.
func FitData(w Wheel, on vendor.Platform) int {
	best := 0
	for _, p := range w.Platforms {
		fit := 0
		switch {
		case p == "any":
			fit = 30
		case native(p, on):
			fit = 20
		case on.OS == "linux" && strings.HasPrefix(p, "musllinux") && strings.HasSuffix(p, "_"+machine(on)):
			fit = 10 // another C library, which data does not need
		case on.OS == "windows" && p == "win_"+on.Arch:
			fit = 20
		}
		best = max(best, fit)
	}
	return best + anyPython(w, best)
}

// FitProgram says how well a wheel that holds a program suits a machine; 0: not at all. One that wants an older C library is better,
// since more machines have it; whether this one has it is not known.
func FitProgram(w Wheel, on vendor.Platform) int {
	best := 0
	for _, p := range w.Platforms {
		if !native(p, on) {
			continue
		}
		fit := 1000
		if parts := strings.Split(p, "_"); len(parts) > 2 && parts[0] == "manylinux" {
			if minor, err := strconv.Atoi(parts[2]); err == nil && minor >= 0 && minor < 400 {
				fit -= 2 * minor
			}
		}
		best = max(best, fit)
	}
	return best + anyPython(w, best)
}

// anyPython is what makes a wheel for every Python better than one for a certain interpreter.
func anyPython(w Wheel, fit int) int {
	if fit > 0 && strings.Contains("."+w.Python+".", ".py3.") {
		return 1
	}
	return 0
}

// native reports whether a platform of a wheel is this machine's, with its usual C library.
func native(p string, on vendor.Platform) bool {
	switch on.OS {
	case "linux":
		return (strings.HasPrefix(p, "manylinux") || strings.HasPrefix(p, "linux_")) && strings.HasSuffix(p, "_"+machine(on))
	case "darwin":
		return strings.HasPrefix(p, "macosx_") && (strings.HasSuffix(p, "_"+machine(on)) || strings.HasSuffix(p, "_universal2"))
	}
	return false
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

// Choose returns the wheel that suits a machine best by fit, nil if none does. Where several are as good, the last by name: the
// choice must not change with the order of a list.
func Choose(wheels []Wheel, on vendor.Platform, fit func(Wheel, vendor.Platform) int) *Wheel {
	var best *Wheel
	for i := range wheels {
		w := &wheels[i]
		f := fit(*w, on)
		if f > 0 && (best == nil || f > fit(*best, on) || f == fit(*best, on) && w.Filename > best.Filename) {
			best = w
		}
	}
	return best
}

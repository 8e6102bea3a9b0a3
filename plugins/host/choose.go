package host

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Bounds of a folder in which a plugin is looked for.
const (
	maxLooked = 10_000 // files
	maxDepth  = 16
	maxNamed  = 8 // in a message
)

// CodeNoPlugin is the code of the error for a folder without a plugin.
const CodeNoPlugin = "no_plugin"

// Chosen is the file of a plugin among those that a source brought, with the same for other platforms.
type Chosen struct {
	Path   string // on this machine
	Member string // its place in the source; "": it is the source
	Others []Variant
}

// Variant is the file of the same plugin for another platform.
type Variant struct{ Path, Platform string }

// Package is the entry of the lock file for it.
func (v Variant) Package(ctx context.Context) (config.Package, error) {
	f, err := openRegular(v.Path, v.Path)
	if err != nil {
		return config.Package{}, err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(untilDone{ctx, f}, MaxProgram+1))
	if err == nil && n > MaxProgram {
		err = tooLarge("The file " + v.Path)
	}
	if err != nil {
		return config.Package{}, fmt.Errorf("read the plugin for %s: %w", v.Platform, err)
	}
	return config.Package{Platform: v.Platform, Size: contract.Bytes(n), SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// candidate is a file that may be a plugin.
type candidate struct {
	member, platform string
	script           bool
}

// Choose finds the plugin in what was brought to root: inside it, in the file or folder of that name, where one is given. In a folder it
// is the one WASM module, or else the one program for platform; where names differ only in the system and the architecture, the others
// come along. In a folder of this machine only its own files count, since sources may lie below. Transport chooses between a module and a
// program in a folder; "": the module. Where several files are left, the error names them.
func Choose(s Source, root, transport, platform string) (Chosen, error) {
	at := filepath.Join(root, filepath.FromSlash(s.Inside))
	lstat := os.Lstat
	if s.Kind == SourcePath && s.Archive == "" {
		lstat = os.Stat // the user's own links lead where the user wants
	}
	st, err := lstat(root)
	if err != nil {
		return Chosen{}, notThere(s, err)
	}
	if st.IsDir() && s.Inside != "" {
		if st, err = lstatInside(root, s.Inside); err != nil {
			return Chosen{}, notThere(s, err)
		}
	}
	switch {
	case st.Mode().IsRegular():
		return Chosen{Path: at, Member: s.Inside}, nil
	case !st.IsDir():
		return Chosen{}, fault.New(fault.Invalid, "not_a_plugin", "%s is neither a file nor a folder, and links are not followed.", s)
	}
	all, err := look(at, s.Kind == SourcePath && s.Archive == "")
	if err != nil {
		return Chosen{}, err
	}
	return pick(s, at, all, transport, platform)
}

func notThere(s Source, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "file_not_found", "There is no file or folder that %s names.", s)
	}
	return fault.New(fault.Invalid, "file_unreadable", "What %s names cannot be read: %w.", s, err)
}

// lstatInside looks at a path below root without following a link on the way.
func lstatInside(root, inside string) (fs.FileInfo, error) {
	at := root
	var st fs.FileInfo
	for part := range strings.SplitSeq(inside, "/") {
		at = filepath.Join(at, part)
		var err error
		if st, err = os.Lstat(at); err != nil {
			return nil, err
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("%s is a link, which is not followed", part)
		}
	}
	return st, nil
}

// look lists what may be a plugin in dir and, unless it is to be shallow, below it.
func look(dir string, shallow bool) ([]candidate, error) {
	var out []candidate
	files := 0
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir() && (e.Name() == ".git" || shallow && rel != "."), e.IsDir() && strings.Count(rel, string(filepath.Separator)) > maxDepth:
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		if files++; files > maxLooked {
			return fault.New(fault.Invalid, "too_many_files", "A plugin was looked for among more than %d files; name it: SOURCE//FILE.", maxLooked)
		}
		if c, ok := candidateOf(p); ok {
			c.member = filepath.ToSlash(rel)
			out = append(out, c)
		}
		return nil
	})
	return out, err
}

// candidateOf says what kind of plugin a file could be, by its first bytes.
func candidateOf(file string) (candidate, bool) {
	f, err := os.Open(file)
	if err != nil {
		return candidate{}, false
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return candidate{}, false
	}
	switch {
	case string(head) == "\x00asm":
		return candidate{platform: config.PlatformWASM}, true
	case string(head) == elf.ELFMAG:
		x, err := elf.NewFile(f)
		if err != nil || x.Type != elf.ET_EXEC && x.Type != elf.ET_DYN || x.Entry == 0 {
			return candidate{}, false // an object or a library
		}
		return candidate{platform: elfPlatform(x)}, true
	case string(head[:2]) == "#!":
		st, err := f.Stat()
		return candidate{script: true}, err == nil && st.Mode()&0o111 != 0 && filepath.Ext(file) == ""
	}
	if x, err := macho.NewFile(f); err == nil && x.Type == macho.TypeExec {
		return candidate{platform: machoPlatform(x)}, true
	}
	return candidate{}, false
}

func elfPlatform(x *elf.File) string {
	return "linux_" + map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64"}[x.Machine]
}

func machoPlatform(x *macho.File) string {
	return "darwin_" + map[macho.Cpu]string{macho.CpuAmd64: "amd64", macho.CpuArm64: "arm64"}[x.Cpu]
}

// pick chooses among the candidates below at.
func pick(s Source, at string, all []candidate, transport, platform string) (Chosen, error) {
	of := func(fits func(candidate) bool) []candidate {
		return slices.DeleteFunc(slices.Clone(all), func(c candidate) bool { return !fits(c) })
	}
	modules := of(func(c candidate) bool { return c.platform == config.PlatformWASM })
	programs := of(func(c candidate) bool { return c.platform == platform })
	scripts := of(func(c candidate) bool { return c.script })
	found := modules
	if transport == config.TransportProcess || transport == "" && len(found) == 0 {
		if found = programs; len(found) == 0 {
			found = scripts
		}
	}
	switch len(found) {
	case 1:
	case 0:
		if others := of(func(c candidate) bool { return c.platform != "" && c.platform != config.PlatformWASM }); len(others) > 0 && transport != config.TransportWASM {
			return Chosen{}, fault.New(fault.Invalid, "wrong_platform", "%s has programs for other machines than %s: %s.", s, platform, names(others))
		}
		return Chosen{}, fault.New(fault.NotFound, CodeNoPlugin, "There is neither a WASM module nor a program in %s; name the file if it is one: %s.", s, s.With("FILE"))
	default:
		return Chosen{}, fault.New(fault.Conflict, "several_plugins", "There are several plugins in %s: %s; name the one that you want: %s.", s, names(found), s.With(found[0].member))
	}
	one := found[0]
	c := Chosen{Path: filepath.Join(at, filepath.FromSlash(one.member)), Member: path.Join(s.Inside, one.member)}
	if one.platform != platform {
		return c, nil
	}
	for _, other := range all {
		if other.platform != platform && other.member == renamed(one.member, platform, other.platform) {
			c.Others = append(c.Others, Variant{Path: filepath.Join(at, filepath.FromSlash(other.member)), Platform: other.platform})
		}
	}
	return c, nil
}

// renamed is the name of a file for one platform as it is for another one.
func renamed(name, from, to string) string {
	fromOS, fromArch, _ := strings.Cut(from, "_")
	toOS, toArch, ok := strings.Cut(to, "_")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(strings.ReplaceAll(name, fromOS, toOS), fromArch, toArch)
}

func names(all []candidate) string {
	var out []string
	for _, c := range all[:min(len(all), maxNamed)] {
		out = append(out, fmt.Sprintf("%q", c.member))
	}
	if more := len(all) - maxNamed; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, ", ")
}

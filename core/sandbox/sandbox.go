// Package sandbox says which files and ports a child process may use, and has the kernel hold it to that with Landlock, where the
// kernel can. It starts nothing: core/process has a launcher that calls it between fork and exec.
//
// Landlock only ever permits: what a policy does not name is refused, and there is no way to take a part of a permitted folder out
// again. So folders of the system that hold the data folder are named by their parts.
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

// Newest is the newest version of Landlock's interface whose restrictions are asked for. What later ones can restrict was not tried.
const Newest = 7

// abiPorts is the version of the interface from which on TCP ports can be restricted.
const abiPorts = 4

// Policy is what a process, and all that it starts, may use. Paths are absolute, or relative to the working folder of the process;
// those that do not exist are passed over.
type Policy struct {
	ABI     int      `json:"abi"`               // version of Landlock's interface that is to be in force; 0: nothing is
	Read    []string `json:"read,omitempty"`    // files and folders to read, and to execute
	Write   []string `json:"write,omitempty"`   // folders, and files, to read and to change
	Devices []string `json:"devices,omitempty"` // device files, and folders of them
	// Bind and Connect are the TCP ports at which it may listen and to which it may connect; 0 in Bind is a port that the kernel
	// chooses. nil: any; empty: none.
	Bind    []uint16 `json:"bind"`
	Connect []uint16 `json:"connect"`
}

// encode writes the policy as one argument of the launcher.
func (p Policy) encode() (string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode what a process may use: %w", err)
	}
	return string(b), nil
}

// Launch is the argument vector by which a launcher with the options that it is given here puts the policy in force and becomes path with
// args. Without a launcher it is path and args.
func (p Policy) Launch(launcher []string, path string, args []string) ([]string, error) {
	if len(launcher) == 0 {
		return slices.Concat([]string{path}, args), nil
	}
	var option []string
	if p.ABI > 0 {
		encoded, err := p.encode()
		if err != nil {
			return nil, err
		}
		option = []string{"--sandbox=" + encoded}
	}
	return slices.Concat(launcher, option, []string{"--", path}, args), nil
}

// Decode reads the policy of an argument that Launch made.
func Decode(s string) (Policy, error) {
	var p Policy
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fault.New(fault.Invalid, "invalid_arguments", "What the process may use cannot be read (%w); it is written by the agent, not by people.", err)
	}
	return p, nil
}

// Support is what the kernel of this machine can do.
type Support struct {
	ABI int    // version of Landlock's interface that is put in force for children, at most Newest; 0: none
	Why string // one sentence: why there is none; "" where there is
}

// With returns the policy for a kernel with this support.
func (s Support) With(p Policy) Policy {
	p.ABI = s.ABI
	return p
}

// support is what a kernel's answer to the question for its version means.
func support(version int, err error) Support {
	switch {
	case err == nil && version > 0:
		return Support{ABI: min(version, Newest)}
	case isDisabled(err):
		return Support{Why: "Landlock is built into this kernel and switched off; add landlock to the kernel's parameter lsm= to confine what workers and plugins may read and write."}
	case isMissing(err):
		return Support{Why: "This kernel has no Landlock; one of Linux 5.13 or newer that was built with it confines what workers and plugins may read and write."}
	case err != nil:
		return Support{Why: fmt.Sprintf("The kernel does not say whether it has Landlock (%v), so what workers and plugins may read and write is not confined.", err)}
	}
	return Support{Why: "The kernel has no version of Landlock, so what workers and plugins may read and write is not confined."}
}

// System returns the folders and files of the machine that programs need to start and to find their libraries, without any that
// holds the folder home. They hold nothing that belongs to a user.
func System(home string) []string {
	out := []string{}
	for _, pattern := range []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/run/opengl-driver", "/run/current-system",
		"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/locale.alias", "/etc/nsswitch.conf",
		"/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/protocols", "/etc/services", "/etc/passwd", "/etc/group", "/etc/mime.types",
		"/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/etc/pki/ca-trust", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/static",
		"/run/systemd/resolve",
		"/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version", "/proc/filesystems",
		"/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/net/core/somaxconn", "/proc/sys/fs/pipe-max-size", "/proc/sys/crypto/fips_enabled",
		"/sys/kernel/mm/transparent_hugepage", "/sys/devices/system", "/sys/fs/cgroup",
	} {
		out = append(out, Without(pattern, home)...)
	}
	return out
}

// Graphics returns the files and folders of the machine, beside those of System, that drivers and libraries of GPUs read.
func Graphics(home string) []string {
	out := []string{"/proc/driver", "/proc/devices", "/proc/modules", "/sys/bus", "/sys/class", "/sys/dev", "/sys/devices", "/sys/module",
		"/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/etc/drirc", "/etc/nvidia", "/etc/cufile.json"}
	for _, pattern := range []string{"/opt/rocm*", "/opt/cuda*", "/opt/amdgpu*", "/opt/intel*"} {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		for _, dir := range found {
			out = append(out, Without(dir, home)...)
		}
	}
	return out
}

// Plain are the devices that every program may expect.
func Plain() []string {
	return []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}
}

// GPUs are the device files of GPUs that there are now.
func GPUs() []string {
	out := []string{"/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/nvidia-caps"}
	found, _ := filepath.Glob("/dev/nvidia*") // the pattern is well formed
	for _, f := range found {
		if st, err := os.Lstat(f); err == nil && st.Mode()&os.ModeDevice != 0 {
			out = append(out, f)
		}
	}
	return out
}

// Without returns dir, or, where the folder inside lies in it, what is beside inside in dir and its folders. It is empty where dir lies
// in inside, or is it. Links are followed.
func Without(dir, inside string) []string {
	if inside == "" {
		return []string{dir}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return []string{dir} // it does not exist, or cannot be entered by the process either
	}
	kept := inside
	if r, err := filepath.EvalSymlinks(inside); err == nil {
		kept = r
	}
	switch {
	case within(real, kept):
		return nil
	case !within(kept, real):
		return []string{dir}
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return nil
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, Without(filepath.Join(real, e.Name()), kept)...)
	}
	return out
}

// maxLinks bounds the links of a folder that are followed.
const maxLinks = 1000

// Followed returns a file or folder and what the links in it lead to, because the right to read a folder is not one to read what a link
// in it names.
func Followed(at string) ([]string, error) {
	out := []string{at}
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // the process finds out, and says so
		}
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 {
			return nil
		}
		to, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil // it leads nowhere, for the process as well
		}
		if rel, err := filepath.Rel(at, to); err == nil && filepath.IsLocal(rel) {
			return nil
		}
		if len(out) > maxLinks {
			return fmt.Errorf("more than %d links lead out of %s", maxLinks, at)
		}
		out = append(out, to)
		return nil
	})
	return out, err
}

// within reports whether path is dir or lies in it. Both are clean.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

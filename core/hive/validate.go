package hive

import (
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Bounds of what a spawn may ask for.
const (
	maxArgs     = 64
	maxArg      = 4096
	maxEnv      = 64
	maxQueens   = 16
	maxDevices  = 16
	maxContext  = 1 << 24
	maxThreads  = 1024
	maxKey      = 512
	maxLogLines = 10_000
)

// patterns are the forms of names (S13) and arguments.
type patterns struct{ name, device, flag, env *regexp.Regexp }

func newPatterns() patterns {
	return patterns{
		name:   regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`),
		device: regexp.MustCompile(`^(cpu|cuda|vulkan|metal|rocm)[0-9]{1,3}$`),
		flag:   regexp.MustCompile(`^--[a-z][a-z0-9-]*(=.*)?$`),
		env:    regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`),
	}
}

func invalid(param, format string, args ...any) error {
	return fault.New(fault.Invalid, "invalid_"+param, format, args...).WithParam(param)
}

// plain reports whether s may become an argument's value and be shown: it cannot be read as an option, holds nothing that is
// hidden, and is no longer than n bytes. Nothing passes a shell, so all else is harmless.
func plain(s string, n int) bool {
	return s != "" && len(s) <= n && s[0] != '-' && !contract.HasHidden(s)
}

func checkName(p patterns, param, s string) error {
	if !p.name.MatchString(s) || strings.Contains(s, "..") {
		return invalid(param, "The name %q is not allowed as %s: use at most 64 small letters, digits, dots, underscores and hyphens, beginning with a letter or digit.", s, param)
	}
	return nil
}

func checkReference(s string) error {
	if !plain(s, maxArg) {
		return invalid("reference", "The reference %q is not allowed: it must not be empty, begin with a hyphen or hold control or format characters.", s)
	}
	return nil
}

// checkSpawn validates all that a spawn puts on a command line or into an environment.
func checkSpawn(p patterns, s contract.WorkerSpawn) error {
	if err := checkName(p, "worker_id", s.WorkerID); err != nil {
		return err
	}
	if !plain(s.Model, maxArg) {
		return invalid("model", "The model reference %q is not allowed: it must not be empty, begin with a hyphen or hold control or format characters.", s.Model)
	}
	if s.Worker.Source != "" && !plain(s.Worker.Source, maxArg) {
		return invalid("worker", "The engine reference %q is not allowed: it must not begin with a hyphen or hold control or format characters.", s.Worker.Source)
	}
	if s.SpawnKey != "" && !plain(s.SpawnKey, maxKey) {
		return invalid("spawn_key", "The spawn key %q is not allowed: it must be at most %d characters, not begin with a hyphen and hold no control or format characters.", s.SpawnKey, maxKey)
	}
	if len(s.Devices) > maxDevices {
		return invalid("devices", "A worker can have at most %d devices; %d were asked for.", maxDevices, len(s.Devices))
	}
	for i, d := range s.Devices {
		if !p.device.MatchString(d) {
			return invalid("devices", "There is no device called %q; `apiary device list` shows the names, such as cpu0 and cuda0.", d)
		}
		if slices.Contains(s.Devices[:i], d) {
			return invalid("devices", "The device %s is named twice; a worker has each of its devices once.", d)
		}
	}
	for _, n := range []struct {
		param    string
		is, most int
	}{{"context", s.Context, maxContext}, {"slots", s.Slots, contract.MaxSlots}, {"threads", s.Threads, maxThreads}} {
		if n.is < 0 || n.is > n.most {
			return invalid(n.param, "The value %d of %s is not allowed; it must be between 0 and %d.", n.is, n.param, n.most)
		}
	}
	if s.Generation < 0 || s.Generation > contract.MaxGeneration {
		return invalid("generation", "The generation %d is not allowed; it counts up from 0, to %d at most.", s.Generation, contract.MaxGeneration)
	}
	if len(s.QueenURLs) > maxQueens {
		return invalid("queen_urls", "A worker can beat to at most %d queens; %d were named.", maxQueens, len(s.QueenURLs))
	}
	for _, q := range s.QueenURLs {
		if u, err := url.Parse(q); err != nil || !plain(q, maxKey) || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return invalid("queen_urls", "The queen's address %q is not a URL such as http://127.0.0.1:7833.", q)
		}
	}
	if err := checkPeers(s.Peers); err != nil {
		return err
	}
	if err := checkEnv(p, s.Env); err != nil {
		return err
	}
	return checkArgs(p, s.Args)
}

// checkPeers validates the hives that a queen names. Tickets are not shown.
func checkPeers(peers []contract.Peer) error {
	if len(peers) > contract.MaxPeers {
		return invalid("peers", "At most %d other hives can be named; %d were.", contract.MaxPeers, len(peers))
	}
	for _, p := range peers {
		u, err := url.Parse(p.URL)
		switch {
		case err != nil || !plain(p.URL, maxKey) || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
			return invalid("peers", "The address %q of another hive is not a URL such as http://10.0.0.2:7835.", cut(p.URL, 80))
		case !plain(p.HiveID, maxKey) || p.Name != "" && !plain(p.Name, maxKey) || !plain(p.Model, maxArg) || p.Model != peers[0].Model:
			return invalid("peers", "The hive %q is not named with its id, its name and the model that all of them have.", cut(p.HiveID, 64))
		case !plain(p.Ticket, maxArg):
			return invalid("peers", "The ticket for the hive %q is missing, too long, or holds characters that no ticket has.", cut(p.HiveID, 64))
		}
	}
	return nil
}

func checkEnv(p patterns, env map[string]string) error {
	if len(env) > maxEnv {
		return invalid("env", "A worker can have at most %d environment variables; %d were given.", maxEnv, len(env))
	}
	for k, v := range env {
		upper := strings.ToUpper(k)
		loader := strings.HasPrefix(upper, "LD_") || strings.HasPrefix(upper, "DYLD_") || strings.HasPrefix(upper, "GLIBC_") || upper == "GCONV_PATH"
		switch {
		case !p.env.MatchString(k):
			return invalid("env", "%q is not the name of an environment variable.", k)
		case upper == "LD_LIBRARY_PATH" && absoluteList(v):
			// Folders of a driver's libraries, as CUDA needs them.
		case loader, slices.Contains([]string{"PATH", "HOME", "TMPDIR", "BASH_ENV", "ENV", "IFS", "GODEBUG"}, upper):
			return invalid("env", "The environment variable %s may not be set for a worker: it changes what is executed, or the hive decides it.", k)
		case len(v) > maxArg || strings.ContainsRune(v, 0):
			return invalid("env", "The value of the environment variable %s is too long or holds a NUL byte.", k)
		}
	}
	return nil
}

func absoluteList(v string) bool {
	for _, dir := range strings.Split(v, ":") {
		if !filepath.IsAbs(dir) {
			return false
		}
	}
	return true
}

// checkArgs validates extra arguments. They are "--name", "--name=value" or a value of the option before; the short form is
// refused because "-m/etc/passwd" would pass as a value of nobody.
func checkArgs(p patterns, args []string) error {
	if len(args) > maxArgs {
		return invalid("args", "A worker can have at most %d extra arguments; %d were given.", maxArgs, len(args))
	}
	for i, a := range args {
		switch {
		case len(a) > maxArg || strings.ContainsFunc(a, func(r rune) bool { return r < 0x20 || r == 0x7f }):
			return invalid("args", "The extra argument %q is too long or holds control characters.", cut(a, 80))
		case !strings.HasPrefix(a, "-"):
			if i == 0 || !strings.HasPrefix(args[i-1], "--") || strings.Contains(args[i-1], "=") {
				return invalid("args", "The extra argument %q is the value of no option; write --name=value.", a)
			}
		case !p.flag.MatchString(a):
			return invalid("args", "The extra argument %q is not allowed; write --name or --name=value.", a)
		default:
			name, _, _ := strings.Cut(a[2:], "=")
			if contract.IsReservedArg(name) {
				return invalid("args", "The argument --%s may not be given: the hive decides it.", name)
			}
		}
	}
	return nil
}

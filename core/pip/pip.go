// Package pip finds out which Python package registry the user's pip is configured for, and which password it has for it. It
// fetches nothing. Only the main index counts: what pip would add as an extra one is not looked at, since then two registries
// could answer for one name.
package pip

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	askTimeout = 15 * time.Second // for what pip takes to print its help
	maxConfig  = 1 << 20          // bytes of a pip.conf
)

// Environment is where the configuration of pip is looked for. A nil function means that there is nothing.
type Environment struct {
	Getenv   func(name string) string
	OS       string // as GOOS
	Home     string // the user's home folder; empty: none
	ReadFile func(path string) ([]byte, error)
	// AskPip runs `pip install --help`, which names the index that pip would use, and returns what it prints.
	AskPip func(ctx context.Context) (string, error)
}

// SystemEnvironment is the environment of this process.
func SystemEnvironment() Environment {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return Environment{Getenv: os.Getenv, OS: runtime.GOOS, Home: home, ReadFile: readSmall, AskPip: func(ctx context.Context) (string, error) {
		return askPip(ctx, home)
	}}
}

func readSmall(path string) ([]byte, error) {
	if st, err := os.Stat(path); err != nil {
		return nil, err
	} else if st.Size() > maxConfig || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a configuration file of at most %d bytes", path, maxConfig)
	}
	return os.ReadFile(path)
}

// askPip runs the first pip that is found, by its absolute name, in the home folder: the current one must not choose the
// registry.
func askPip(ctx context.Context, home string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var errs []error
	for _, try := range [][]string{{"pip3"}, {"pip"}, {"python3", "-I", "-m", "pip"}} {
		bin, err := exec.LookPath(try[0])
		if err == nil {
			bin, err = filepath.Abs(bin)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cmd := exec.CommandContext(ctx, bin, append(try[1:], "install", "--help")...)
		cmd.Dir = home
		cmd.Env = append(os.Environ(), "COLUMNS=4000", "PIP_NO_COLOR=1", "PIP_DISABLE_PIP_VERSION_CHECK=1") // an address is not to be wrapped
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err == nil {
			return string(out), nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// Index is the registry of the user's pip. Its methods may be called concurrently.
type Index struct {
	configured string
	env        Environment

	mu sync.Mutex
	// mu guards the field below. It is not held while the registry is looked for.
	found *found
}

type found struct {
	address *url.URL // without user and password
	auth    secret.Secret
}

// New returns the index at configured, the address in Apiary's own configuration; when that is empty, the one of env. It is
// looked for when it is first needed.
func New(configured string, env Environment) *Index {
	return &Index{configured: configured, env: env}
}

// URL returns the address of the simple index, without password and without a slash at its end. It reads, in this order:
// Apiary's configuration, PIP_INDEX_URL, the files that pip reads, and what pip itself says. A failure is looked into again the
// next time.
func (x *Index) URL(ctx context.Context) (string, error) {
	x.mu.Lock()
	f := x.found
	x.mu.Unlock()
	if f == nil {
		var err error
		if f, err = discover(ctx, x.configured, x.env); err != nil {
			return "", err
		}
		x.mu.Lock()
		x.found = f
		x.mu.Unlock()
	}
	return f.address.String(), nil
}

// Credential returns what pip would authenticate with towards host (host or host:port): a whole value of an Authorization
// header. It is empty for other hosts than that of the index, and before the first URL.
func (x *Index) Credential(host string) secret.Secret {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.found == nil || !strings.EqualFold(host, x.found.address.Host) {
		return ""
	}
	return x.found.auth
}

// Own reports whether u is of the index: the same host, and the same scheme or https. It is false before the first URL.
func (x *Index) Own(u *url.URL) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.found != nil && strings.EqualFold(u.Host, x.found.address.Host) && (u.Scheme == x.found.address.Scheme || u.Scheme == "https")
}

// discover looks for the address. The current folder is never looked at.
func discover(ctx context.Context, configured string, env Environment) (*found, error) {
	if env.Getenv == nil {
		env.Getenv = func(string) string { return "" }
	}
	for _, from := range []struct{ name, value string }{
		{"`registry` of vendor \"pypi\"", configured},
		{"PIP_INDEX_URL", env.Getenv("PIP_INDEX_URL")},
	} {
		if from.value != "" {
			return address(from.name, from.value)
		}
	}
	name, value, err := inFiles(env)
	if err != nil {
		return nil, err
	}
	if value != "" {
		return address(name, value)
	}
	if env.AskPip != nil {
		out, err := env.AskPip(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if value := fromHelp(out); err == nil && value != "" {
			return address("the index that pip names", value)
		}
	}
	return nil, fault.New(fault.Invalid, "no_registry", "No Python package registry is configured and pip could not be asked; install pip, set PIP_INDEX_URL, or set `registry` in the block vendor \"pypi\" of config.hcl.")
}

// address takes an address apart. Messages do not repeat it, since it may hold a password.
func address(from, raw string) (*found, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "invalid_registry", "%s is not the address of a Python package registry: %s; write for example https://pypi.example.org/simple.", from, why)
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case err != nil:
		return nil, bad("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, bad("it must start with https:// or http:// and name a host")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, bad("it must end with its path")
	}
	f := &found{}
	if u.User != nil {
		name := u.User.Username()
		password, _ := u.User.Password()
		if strings.Trim(name+password, "*") == "" || password != "" && strings.Trim(password, "*") == "" {
			return nil, bad("its password is hidden, as pip shows it; set PIP_INDEX_URL")
		}
		f.auth = secret.Secret("Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password)))
		u.User = nil
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	f.address = u
	return f, nil
}

// fromHelp finds the index in the help of `pip install`.
func fromHelp(help string) string {
	_, rest, ok := strings.Cut(help, "--index-url")
	if !ok {
		return ""
	}
	rest, _, _ = strings.Cut(rest, "--extra-index-url")
	_, rest, ok = strings.Cut(strings.Join(strings.Fields(rest), " "), "(default")
	value, _, ok2 := strings.Cut(rest, ")")
	if !ok || !ok2 {
		return ""
	}
	return strings.TrimLeft(value, ": ")
}

// configFiles lists the files that pip reads, the one that counts most last.
func configFiles(env Environment) []string {
	own := env.Getenv("PIP_CONFIG_FILE")
	if own == os.DevNull {
		return nil // pip's way to say that no file is read
	}
	var files []string
	if env.OS == "darwin" {
		files = append(files, "/Library/Application Support/pip/pip.conf")
	} else {
		dirs := env.Getenv("XDG_CONFIG_DIRS")
		if dirs == "" {
			dirs = "/etc/xdg"
		}
		for _, d := range filepath.SplitList(dirs) {
			if filepath.IsAbs(d) {
				files = append(files, filepath.Join(d, "pip", "pip.conf"))
			}
		}
		files = append(files, "/etc/pip.conf")
	}
	if env.Home != "" {
		files = append(files, filepath.Join(env.Home, ".pip", "pip.conf"))
		conf := env.Getenv("XDG_CONFIG_HOME")
		if conf == "" || env.OS == "darwin" {
			conf = filepath.Join(env.Home, ".config")
		}
		files = append(files, filepath.Join(conf, "pip", "pip.conf"))
		if env.OS == "darwin" {
			files = append(files, filepath.Join(env.Home, "Library", "Application Support", "pip", "pip.conf"))
		}
	}
	if venv := env.Getenv("VIRTUAL_ENV"); filepath.IsAbs(venv) {
		files = append(files, filepath.Join(venv, "pip.conf"))
	}
	if own != "" {
		files = append(files, own)
	}
	return files
}

// inFiles looks into the files of pip. A section [install] counts more than [global], wherever it is.
func inFiles(env Environment) (name, value string, err error) {
	if env.ReadFile == nil {
		return "", "", nil
	}
	best := ""
	for _, file := range configFiles(env) {
		b, err := env.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // pip leaves them out too
		}
		if err != nil {
			return "", "", fault.New(fault.Invalid, "invalid_registry", "The configuration of pip cannot be read: %w", err)
		}
		for section, v := range indexes(string(b)) {
			if section == "install" || best != "install" {
				best, name, value = section, "index-url in "+file, v
			}
		}
	}
	return name, value, nil
}

// indexes reads index-url of the sections global and install of a pip.conf, which is an ini file.
func indexes(text string) map[string]string {
	out := map[string]string{}
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			section, _, _ = strings.Cut(line[1:], "]")
			continue
		}
		i := strings.IndexAny(line, "=:")
		if i < 0 || section != "global" && section != "install" {
			continue
		}
		key := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(line[:i])), "_", "-")
		if value := strings.TrimSpace(line[i+1:]); strings.TrimLeft(key, "-") == "index-url" && value != "" {
			out[section] = value
		}
	}
	return out
}

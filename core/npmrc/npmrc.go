// Package npmrc finds out which npm package registries the user's npm is configured for, and which tokens it has for them. It
// fetches nothing.
package npmrc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// askTimeout bounds how long npm may take to print one option.
const askTimeout = 15 * time.Second

// maxConfig bounds an .npmrc.
const maxConfig = 1 << 20

// Environment is where the npm configuration of the user is looked for. A nil function means that there is nothing.
type Environment struct {
	Getenv   func(name string) string
	Home     string // the user's home folder; empty: none
	ReadFile func(path string) ([]byte, error)
	// AskNpm runs `npm config get registry` outside any project and returns what it prints.
	AskNpm func(ctx context.Context) (string, error)
}

// SystemEnvironment is the environment of this process.
func SystemEnvironment() Environment {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return Environment{Getenv: os.Getenv, Home: home, ReadFile: readSmall, AskNpm: func(ctx context.Context) (string, error) {
		return askNpm(ctx, home)
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

// askNpm runs npm, found on PATH by its absolute name, in the home folder: a project's .npmrc must not choose the registry.
func askNpm(ctx context.Context, home string) (string, error) {
	bin, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "config", "get", "registry")
	cmd.Dir = home
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return string(out), err
}

// Registries are the registries of the user's npm. Its methods may be called concurrently.
type Registries struct {
	configured string
	env        Environment

	mu sync.Mutex
	// mu guards the field below. It is not held while the registries are looked for.
	found *settings
}

// New returns the registries with configured, the address in Apiary's own configuration, for every package; when that is empty,
// those of env. They are looked for when they are first needed.
func New(configured string, env Environment) *Registries {
	return &Registries{configured: configured, env: env}
}

// Addresses returns the address of the registry, and those of scopes ("@name") that have one of their own, each without a slash
// at its end. The first is empty where nothing is configured and npm could not be asked. A failure is looked into again the next
// time.
func (r *Registries) Addresses(ctx context.Context) (base string, scopes map[string]string, err error) {
	r.mu.Lock()
	found := r.found
	r.mu.Unlock()
	if found == nil {
		if found, err = discover(ctx, r.configured, r.env); err != nil {
			return "", nil, err
		}
		if found.base != "" || len(found.scopes) > 0 {
			r.mu.Lock()
			r.found = found
			r.mu.Unlock()
		}
	}
	return found.base, maps.Clone(found.scopes), nil
}

// Credential returns the token that the user's npm configuration holds for host (host or host:port). It is empty before the first
// Addresses.
func (r *Registries) Credential(host string) secret.Secret {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found == nil {
		return ""
	}
	return r.found.token(host)
}

// Own reports whether u is of one of the registries: the same host, and the same scheme or https. It is false before the first
// Addresses.
func (r *Registries) Own(u *url.URL) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found != nil && r.found.own(u)
}

// settings is what was found.
type settings struct {
	base   string            // address of the registry, without a slash at the end
	scopes map[string]string // "@scope" → address
	tokens map[string]secret.Secret
}

// token returns the token for a host ("name" or "name:port").
func (s *settings) token(host string) secret.Secret { return s.tokens[strings.ToLower(host)] }

// own reports whether u is of one of the registries.
func (s *settings) own(u *url.URL) bool {
	for _, raw := range append(slices.Collect(maps.Values(s.scopes)), s.base) {
		if conf, err := url.Parse(raw); err == nil && raw != "" && sameHost(conf, u) {
			return true
		}
	}
	return false
}

// sameHost reports whether at is of the configured host and no less safe.
func sameHost(conf, at *url.URL) bool {
	return strings.EqualFold(at.Host, conf.Host) && (at.Scheme == conf.Scheme || at.Scheme == "https")
}

// discover reads, in this order: the address in Apiary's configuration, NPM_CONFIG_REGISTRY, the user's .npmrc, and what npm
// itself says. Tokens and scopes come from the .npmrc. The current folder is never looked at.
func discover(ctx context.Context, configured string, env Environment) (*settings, error) {
	getenv := env.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	s := &settings{scopes: map[string]string{}, tokens: map[string]secret.Secret{}}
	rc, err := readConfig(env, getenv)
	if err != nil {
		return nil, err
	}
	from := []struct{ name, value string }{
		{"`registry` of provisioner \"npm\"", configured},
		{"NPM_CONFIG_REGISTRY", getenv("NPM_CONFIG_REGISTRY")},
		{"npm_config_registry", getenv("npm_config_registry")},
		{"registry in .npmrc", rc["registry"]},
	}
	for _, f := range from {
		if f.value == "" {
			continue
		}
		if s.base, err = cleanRegistry(f.value); err != nil {
			return nil, fault.New(fault.Invalid, "invalid_registry", "%s is not the address of a package registry: %w", f.name, err)
		}
		break
	}
	for key, value := range rc {
		switch {
		case strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry") && configured == "":
			r, err := cleanRegistry(value)
			if err != nil {
				return nil, fault.New(fault.Invalid, "invalid_registry", "%s in .npmrc is not the address of a package registry: %w", key, err)
			}
			s.scopes[strings.TrimSuffix(key, ":registry")] = r
		case strings.HasPrefix(key, "//") && strings.HasSuffix(key, ":_authToken"):
			host, _, _ := strings.Cut(strings.TrimSuffix(key, ":_authToken")[2:], "/")
			s.tokens[strings.ToLower(host)] = secret.Secret(value)
		}
	}
	if s.base == "" && env.AskNpm != nil {
		// Not an error yet: a registry of the package's scope may do.
		if out, err := env.AskNpm(ctx); err == nil {
			if r, err := cleanRegistry(strings.TrimSpace(out)); err == nil {
				s.base = r
			}
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return s, nil
}

// cleanRegistry checks an address and takes the slash off its end.
func cleanRegistry(raw string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case err != nil:
		return "", errors.New("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return "", errors.New("it must start with https:// or http:// and name a host")
	case u.User != nil:
		return "", errors.New("it must not hold a password; put a token into .npmrc")
	case u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("it must end with its path")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// readConfig reads the user's .npmrc. A missing one is empty.
func readConfig(env Environment, getenv func(string) string) (map[string]string, error) {
	path := getenv("NPM_CONFIG_USERCONFIG")
	if path == "" {
		path = getenv("npm_config_userconfig")
	}
	if path == "" && env.Home != "" {
		path = filepath.Join(env.Home, ".npmrc")
	}
	if path == "" || env.ReadFile == nil {
		return nil, nil
	}
	b, err := env.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the npm configuration: %w", err)
	}
	return parseConfig(string(b), getenv), nil
}

// parseConfig reads the ini form of .npmrc: key = value, comments with ; and #, ${NAME} from the environment.
func parseConfig(text string, getenv func(string) string) map[string]string {
	conf := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == ';' || line[0] == '#' || line[0] == '[' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		conf[expand(strings.TrimSpace(key), getenv)] = expand(value, getenv)
	}
	return conf
}

// expand replaces ${NAME}; a variable that is not set leaves the text as it is, as npm does.
func expand(s string, getenv func(string) string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			break
		}
		j := strings.IndexByte(s[i:], '}')
		if j < 0 {
			break
		}
		b.WriteString(s[:i])
		if v := getenv(s[i+2 : i+j]); v != "" {
			b.WriteString(v)
		} else {
			b.WriteString(s[i : i+j+1])
		}
		s = s[i+j+1:]
	}
	b.WriteString(s)
	return b.String()
}

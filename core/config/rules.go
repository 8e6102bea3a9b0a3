package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

var (
	namePattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`) // S13
	agentPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	hostPattern   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
	devicePattern = regexp.MustCompile(`^(cpu|cuda|vulkan|metal|rocm)[0-9]{1,3}$`)
	envPattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	schemePattern = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:.`)
)

// checkName is S13 for one segment.
func checkName(s string) error {
	if !namePattern.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("%q is not a name here; a name has 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", begins with a letter or a digit and has no \"..\"", s)
	}
	return nil
}

// checkModelName is S13 with at most three segments.
func checkModelName(s string) error {
	parts := strings.Split(s, "/")
	if len(parts) > 3 {
		return fmt.Errorf("%q has more than three parts between slashes", s)
	}
	for _, p := range parts {
		if err := checkName(p); err != nil {
			return err
		}
	}
	return nil
}

// checkAlias allows whatever a client may send as the name of a model.
func checkAlias(s string) error {
	if s == "" || len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%q is not an alias; 1 to 200 visible ASCII characters without spaces are needed", s)
	}
	return nil
}

func checkAgentName(s string) error {
	if !agentPattern.MatchString(s) {
		return fmt.Errorf("%q is not a name for an agent; it has 1 to 64 letters, digits, \".\", \"_\" and \"-\" and begins with a letter or a digit", s)
	}
	return nil
}

// checkLabel is a name of S13, and short: all labels of an agent travel together.
func checkLabel(s string) error {
	if len(s) > 32 || checkName(s) != nil {
		return fmt.Errorf("%q is not a label; it has 1 to 32 of a-z, 0-9, \".\", \"_\" and \"-\" and begins with a letter or a digit", s)
	}
	return nil
}

func checkRole(s string) error {
	if s != RoleQueen && s != RoleHive {
		return fmt.Errorf("%q is not a role; the roles are \"queen\" and \"hive\".%s", s, suggest(s, []string{RoleQueen, RoleHive}))
	}
	return nil
}

func checkPath(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return errors.New("a path must not hold control characters")
	}
	return nil
}

func checkHost(s string) error {
	if net.ParseIP(strings.Trim(s, "[]")) == nil && !hostPattern.MatchString(s) {
		return fmt.Errorf("%q is neither a host name nor an address; write for example \"10.0.0.5\", without a port", s)
	}
	return nil
}

func checkJoin(s string) error {
	_, _, err := contract.SplitJoin(s)
	if err != nil {
		return fmt.Errorf("%q is no address: %w", s, err)
	}
	return nil
}

// checkBaseURL wants scheme, host and port and nothing else.
func checkBaseURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("the URL of a hive is http or https, a host and a port, for example \"http://127.0.0.1:7835\"")
	}
	return nil
}

// checkRegistry wants an http or https URL without credentials, which belong in a credential block.
func checkRegistry(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("the URL of a registry is http or https and a host, without a user, a query or a fragment, for example \"https://npm.example.org/\"")
	}
	return nil
}

// checkHostURL wants scheme and host alone.
func checkHostURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || checkRegistry(s) != nil || strings.Trim(u.Path, "/") != "" {
		return errors.New("the URL of this registry is http or https and a host, and nothing more, for example \"https://ollama.example.org\"")
	}
	return nil
}

// checkEndpoint is the same for the URL of a hub.
func checkEndpoint(s string) error {
	if checkRegistry(s) != nil {
		return errors.New("the URL of a hub is http or https and a host, without a user, a query or a fragment, for example \"https://hub.example.org\"")
	}
	return nil
}

// checkMirror wants scheme and host, and a port where it is not the usual one.
func checkMirror(s string) error {
	if u, err := url.Parse(s); err != nil || checkRegistry(s) != nil || strings.Trim(u.Path, "/") != "" {
		return errors.New("the URL of a mirror is http or https and a host, without a path, for example \"http://10.0.0.5:9000\"")
	}
	return nil
}

// laterAdapters are adapters that people may know but this build lacks.
var laterAdapters = map[string]bool{"llama-server": true, "vllm": true, "ollama": true, "openai": true}

func checkAdapter(s string) error {
	if laterAdapters[s] {
		return fmt.Errorf("the adapter %q is not part of this build; use \"native\" or \"echo\"", s)
	}
	if s != AdapterNative && s != AdapterEcho {
		return fmt.Errorf("%q is not an adapter; use \"native\" or \"echo\".%s", s, suggest(s, []string{AdapterNative, AdapterEcho}))
	}
	return nil
}

func checkReference(s string) error {
	if !schemePattern.MatchString(s) || len(s) > 4096 || contract.HasHidden(s) {
		return fmt.Errorf("%q is not a reference; it has the form scheme:rest, for example \"file:/models/a.gguf\"", s)
	}
	return nil
}

// checkScheme returns the check of a reference to a thing of that kind, which must have one of schemes.
// Where there are plugins it may have another one: which, only they know.
func checkScheme(c *Config, what string, schemes ...string) func(string) error {
	return func(s string) error {
		if err := checkReference(s); err != nil {
			return err
		}
		scheme, _, _ := strings.Cut(s, ":")
		if !slices.Contains(schemes, scheme) && !c.foreign {
			return fmt.Errorf("this build knows no %s with the scheme %q; the schemes are %s.%s", what, scheme, quoteAll(schemes), suggest(scheme, schemes))
		}
		return nil
	}
}

// checkTool wants the name of a program, which is looked for in fixed folders.
func checkTool(s string) error {
	if s == "" || len(s) > 64 || strings.ContainsAny(s, "/ \x00") {
		return fmt.Errorf("%q is not the name of a program; write it without its folder, for example \"cmake\"", s)
	}
	return nil
}

func checkDevice(s string) error {
	if !devicePattern.MatchString(s) {
		return fmt.Errorf("%q is not a device; `apiary device list` shows this machine's, for example \"cpu0\" or \"cuda0\"", s)
	}
	return nil
}

func checkEnv(key, value string) error {
	if !envPattern.MatchString(key) {
		return fmt.Errorf("%q is not the name of an environment variable", key)
	}
	if strings.ContainsRune(value, 0) {
		return fmt.Errorf("the value of %s holds a NUL character", key)
	}
	// What the loader obeys would run before the worker's own code (S12).
	if strings.HasPrefix(key, "LD_") || strings.HasPrefix(key, "DYLD_") {
		return fmt.Errorf("%s is refused, because it would change which code a worker runs; put libraries into the engine instead", key)
	}
	return nil
}

func checkArg(s string) error {
	if strings.ContainsRune(s, 0) {
		return errors.New("an argument must not hold a NUL character")
	}
	if strings.HasPrefix(s, "-") {
		name, _, _ := strings.Cut(strings.TrimLeft(s, "-"), "=")
		if contract.IsReservedArg(name) {
			return fmt.Errorf("the argument --%s may not be given, because the hive decides it; leave it out", name)
		}
	}
	return nil
}

// checkCredentialHost is a host with or without a port.
func checkCredentialHost(s string) error {
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		if n, err := parsePort(port); err == nil && n > 0 {
			host = h
		}
	}
	if checkHost(host) != nil {
		return fmt.Errorf("%q is not a host; write for example \"npm.example.org\" or \"npm.example.org:8443\", without a scheme or a path", s)
	}
	return nil
}

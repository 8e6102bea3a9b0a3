package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// Options says where a configuration comes from.
type Options struct {
	Path     string                      // --config; "" searches APIARY_CONFIG, APIARY_HOME/config.hcl, /etc/apiary/config.hcl
	Embedded []byte                      // config.hcl of this build, used when no file is found
	Env      func(string) (string, bool) // os.LookupEnv when nil
	Addr     string                      // host:port or URL that overrides queen.listen; "" does not. Commands that start an agent give APIARY_ADDR
	AddrFrom string                      // where Addr was given: "--addr"; "": APIARY_ADDR
}

const (
	systemPath   = "/etc/apiary/config.hcl"
	embeddedName = "config.hcl (built in)"
	// maxFile bounds a configuration file. HCL's parser recurses once for each open bracket, so the bound also keeps its stack
	// within what Go allows.
	maxFile = 256 << 10
)

// Load finds and reads the configuration. It returns either a complete Config or an error, never both, so that a caller
// which reloads keeps what it had. Mistakes in the file come all at once: the error is a *fault.Error of kind Invalid whose
// message shows each of them, and it wraps Diagnostics.
func Load(o Options) (*Config, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	if dir, _ := o.Env("APIARY_HOME"); dir != "" {
		if err := folder.CheckHome(dir); err != nil {
			return nil, err // its configuration could not be read either
		}
	}
	src, path, err := find(o, systemPath)
	if err != nil {
		return nil, err
	}
	name := path
	if path == "" {
		name = embeddedName
	}
	c, diags := parse(src, name, path, o.Env)
	if len(diags) > 0 {
		return nil, mistakes(name, diags)
	}
	if c.Home, err = home(o.Env, c); err != nil {
		return nil, err
	}
	if err := folder.CheckHome(c.Home); err != nil {
		return nil, err
	}
	c.Agent.DataDir = c.Home
	if err := c.gitHubEnvironment(o.Env); err != nil {
		return nil, err
	}
	if err := c.hubEnvironment(o.Env); err != nil {
		return nil, err
	}
	if o.Addr != "" {
		if err := c.move(o.Addr, cmp.Or(o.AddrFrom, "APIARY_ADDR")); err != nil {
			return nil, err
		}
	}
	if c.Agent.Name == "" {
		c.Agent.Name = hostName()
	}
	return c, nil
}

// Mistakes is the error of Load for mistakes that were found in c after it was loaded; nil for none.
func (c *Config) Mistakes(diags Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	return mistakes(cmp.Or(c.Path, embeddedName), diags)
}

func mistakes(name string, diags Diagnostics) error {
	count := "a mistake"
	if len(diags) > 1 {
		count = fmt.Sprintf("%d mistakes", len(diags))
	}
	return fault.New(fault.Invalid, "config_invalid", "The configuration %s has %s; correct it and try again.\n\n%w", name, count, diags)
}

// move makes the queen listen at addr. The usual port of the hive is then another agent's, so unless the file sets hive.listen the
// hive takes a free one.
func (c *Config) move(addr, from string) error {
	listen, err := listenAddress(addr, from)
	if err != nil {
		return err
	}
	c.Queen.Listen, c.AddrFrom = listen, from
	if !c.Gossip.BindSet { // likewise
		host, _, _ := net.SplitHostPort(c.Gossip.Bind)
		c.Gossip.Bind = net.JoinHostPort(host, "0")
	}
	if c.Hive.ListenSet {
		return nil
	}
	host, _, _ := net.SplitHostPort(c.Hive.Listen)
	c.Hive.Listen = net.JoinHostPort(host, "0")
	if !c.Queen.HivesSet && c.Agent.Has(RoleHive) {
		c.Queen.Hives = nil // the default names the usual port
	}
	return nil
}

// listenAddress turns host:port or a base URL into the host:port to listen on.
func listenAddress(addr, from string) (string, error) {
	hostPort := addr
	if strings.Contains(addr, "://") {
		u, err := url.Parse(addr)
		if err != nil || u.Scheme != "http" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			return "", fault.New(fault.Invalid, "address_invalid", "%s is %q, which is no address to listen on; write for example 127.0.0.1:7833.", from, addr)
		}
		hostPort = u.Host
	}
	if err := checkAddress(hostPort); err != nil {
		return "", fault.New(fault.Invalid, "address_invalid", "%s is %q, which is no address to listen on; write for example 127.0.0.1:7833.", from, addr)
	}
	return hostPort, nil
}

// find returns the text of the configuration and its path, "" for the embedded one. A file that was asked for by name must
// exist; the others are looked for.
func find(o Options, system string) ([]byte, string, error) {
	if o.Path != "" {
		src, err := read(o.Path)
		return src, o.Path, explain(err, "", o.Path)
	}
	if p, _ := o.Env("APIARY_CONFIG"); p != "" {
		src, err := read(p)
		return src, p, explain(err, ", which APIARY_CONFIG names", p)
	}
	var places []string
	if p, _ := o.Env("APIARY_HOME"); p != "" {
		places = append(places, filepath.Join(p, "config.hcl"))
	} else if p, err := platformHome(o.Env); err == nil {
		places = append(places, filepath.Join(p, "config.hcl"))
	}
	for _, p := range append(places, system) {
		src, err := read(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return src, p, explain(err, "", p)
	}
	return o.Embedded, "", nil
}

// Missing is the fault for a configuration file that was asked for and is not there: NotFound with the code config_missing.
func Missing(path string) error { return missing(path, "") }

func missing(path, asked string) error {
	return fault.New(fault.NotFound, "config_missing", "There is no configuration file %s%s; correct the path or leave it out.", path, asked)
}

func explain(err error, asked, path string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return missing(path, asked)
	}
	return fault.New(fault.Invalid, "config_unreadable", "The configuration %s cannot be read: %w.", path, err)
}

// read returns the text of a regular file of at most maxFile bytes.
func read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO that took its place must not block
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	err = errors.Join(err, f.Close())
	if err == nil && len(b) > maxFile {
		err = errors.New("it is larger than 256 KiB")
	}
	return b, err
}

// home returns the absolute data folder.
func home(env func(string) (string, bool), c *Config) (string, error) {
	dir, _ := env("APIARY_HOME")
	if dir == "" && c.Agent.DataDir != "" {
		dir = c.Agent.DataDir
		if rest, ok := strings.CutPrefix(dir, "~/"); ok {
			user, _ := env("HOME")
			dir = filepath.Join(user, rest)
		}
		if !filepath.IsAbs(dir) && c.Path != "" {
			dir = filepath.Join(filepath.Dir(c.Path), dir)
		}
	}
	if dir == "" {
		var err error
		if dir, err = platformHome(env); err != nil {
			return "", err
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data folder: %w", err)
	}
	return abs, nil
}

// platformHome returns the data folder of a user of this operating system.
func platformHome(env func(string) (string, bool)) (string, error) {
	if d, _ := env("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "apiary"), nil
	}
	user, _ := env("HOME")
	if user == "" {
		return "", fault.New(fault.Invalid, "home_unknown", "There is no data folder, because neither APIARY_HOME nor HOME is set; set APIARY_HOME to a folder that Apiary may write to.")
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(user, "Library", "Application Support", "apiary"), nil
	}
	return filepath.Join(user, ".local", "share", "apiary"), nil
}

// hostName returns the machine's name without what a name here may not hold.
func hostName() string {
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	h = strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z') {
			return r
		}
		return '-'
	}, h)
	h = strings.TrimLeft(h, "._-")
	if checkAgentName(h) != nil {
		return "localhost"
	}
	return h
}

// checkAddress says why s is not host:port. Port 0 lets the system choose.
func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not an address and a port; write for example \"127.0.0.1:7833\"", s)
	}
	if net.ParseIP(strings.TrimSuffix(host, "%"+zone(host))) == nil && !hostPattern.MatchString(host) {
		return fmt.Errorf("%q is neither an address nor a host name; write for example \"127.0.0.1:7833\"", host)
	}
	if n, err := parsePort(port); err != nil || n < 0 {
		return fmt.Errorf("%q is not a port; a number from 0 to 65535 is needed", port)
	}
	return nil
}

func zone(host string) string {
	_, z, _ := strings.Cut(host, "%")
	return z
}

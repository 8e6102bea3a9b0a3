// Package remote looks after one agent on another machine, through the system's ssh and the user's own keys and settings: it
// looks at the machine, installs the program with its settings and its service, starts and stops it, and takes it away again.
// It makes no cryptography of its own, keeps nothing on this machine, and does not know queens: who calls it says what the
// hive's configuration is and when the hive counts as there.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/apiary-dev/apiary/core/fault"
)

// Options says how to reach a machine.
type Options struct {
	Host   string // as ssh takes it: user@host, host, or a name of the user's ssh configuration
	Port   int    // 0: as ssh decides
	Config string // an ssh configuration file instead of the user's; "": the user's
	// Ask is called before ssh may ask whoever sits at the terminal, for a password or about an unknown host key. nil: nobody does.
	Ask func()
}

// Bounds of a connection.
const (
	connectTimeout = 10 * time.Second // for TCP and the key exchange, by ssh itself
	loginTimeout   = 30 * time.Second // until the first command has run, where nobody is asked
	askTimeout     = 3 * time.Minute  // the same, where somebody types
	scriptTimeout  = time.Minute      // for one step on the machine that only changes files
	maxOutput      = 256 << 10        // bytes that are kept of what a command says
)

// Conn is one authenticated connection, which all steps share, so that a password is typed once. Close ends it. It may be
// used from one goroutine at a time.
type Conn struct {
	o    Options
	ssh  string // the program
	dir  string // 0700, holds the control socket
	path string // the control socket
}

// CheckHost says why a text cannot be what ssh connects to. What begins with a hyphen would be an option, and what a shell
// would interpret may come to one by way of the user's ssh configuration.
func CheckHost(host string) error {
	bad := strings.HasPrefix(host, "-") || strings.Contains(host, "@-") || host == "" || len(host) > 255 ||
		strings.ContainsAny(host, "'\"`$;&|<>(){}*?!#\\=,")
	for _, r := range host {
		bad = bad || r > unicode.MaxASCII || !unicode.IsPrint(r) || r == ' '
	}
	if bad {
		return fault.New(fault.Invalid, "bad_host", "%q is not a machine that ssh can connect to; write host, user@host, or a name of your ssh configuration.", host)
	}
	return nil
}

// Dial connects. First nobody is asked anything; only where that is refused, and Options.Ask is there, ssh may ask at the terminal.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	if err := CheckHost(o.Host); err != nil {
		return nil, err
	}
	path, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "no_ssh", "The program ssh is not on this machine; install it (Debian, Ubuntu: apt install openssh-client) and try again.")
	}
	c := &Conn{o: o, ssh: path}
	if c.dir, err = controlFolder(); err != nil {
		return nil, err
	}
	c.path = filepath.Join(c.dir, "s")
	err = c.login(ctx, false)
	if code := fault.As(err); err != nil && o.Ask != nil && (code.Code == "ssh_denied" || code.Code == "ssh_host_unknown") {
		o.Ask()
		err = c.login(ctx, true)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// controlFolder makes the folder of the control socket. A socket's path ends at about a hundred bytes.
func controlFolder() (string, error) {
	parent := os.TempDir()
	if len(parent) > 60 || strings.Contains(parent, "%") {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "apiary-ssh-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the connection: %w", err)
	}
	return dir, nil
}

// login makes the connection that later commands use, by running a command that does nothing. ssh keeps the connection in the
// background, and ends it by itself if this process dies.
func (c *Conn) login(ctx context.Context, ask bool) error {
	limit := loginTimeout
	if ask {
		limit = askTimeout
	}
	_, err := c.exec(ctx, limit, ask, []string{"-o", "ControlMaster=yes", "-o", "ControlPersist=120"}, script{body: ":"}, nil)
	return err
}

// Close ends the connection.
func (c *Conn) Close() {
	if _, err := os.Stat(c.path); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, c.ssh, append(c.args(false), "-O", "exit", "--", c.o.Host)...)
		cmd.WaitDelay = time.Second
		_ = cmd.Run()
	}
	_ = os.RemoveAll(c.dir)
}

// args are the options of every call of ssh. What the user's configuration says about forwarding, commands and terminals is
// not for us.
func (c *Conn) args(ask bool) []string {
	batch := "yes"
	if ask {
		batch = "no"
	}
	args := []string{"-T", "-o", "BatchMode=" + batch, "-o", "ConnectTimeout=" + strconv.Itoa(int(connectTimeout.Seconds())),
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR", "-o", "ControlPath=" + c.path,
		"-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "PermitLocalCommand=no",
		"-o", "RemoteCommand=none", "-o", "RequestTTY=no", "-o", "Tunnel=no"}
	if c.o.Config != "" {
		args = append(args, "-F", c.o.Config)
	}
	if c.o.Port != 0 {
		args = append(args, "-p", strconv.Itoa(c.o.Port))
	}
	return args
}

// run runs a script on the machine with stdin as its standard input, and returns what it wrote to standard output, also
// where it failed.
func (c *Conn) run(ctx context.Context, limit time.Duration, s script, stdin io.Reader) (string, error) {
	return c.exec(ctx, limit, false, []string{"-o", "ControlMaster=no"}, s, stdin)
}

func (c *Conn) exec(ctx context.Context, limit time.Duration, ask bool, options []string, s script, stdin io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	text := s.text()
	input := io.Reader(strings.NewReader(text))
	if stdin != nil {
		input = io.MultiReader(input, stdin)
	}
	args := append(append(c.args(ask), options...), "--", c.o.Host, s.command(len(text)))
	cmd := exec.CommandContext(ctx, c.ssh, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C") // its messages, and by SendEnv those of the other side, are read below
	cmd.WaitDelay = 2 * time.Second
	if !ask {
		// Ctrl-C is for us: what was begun is still taken back through the connection.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	stdout, stderr := &bounded{}, &bounded{}
	cmd.Stdin, cmd.Stdout = input, stdout
	// A file, because the connection in the background may keep it open.
	file, err := os.CreateTemp(c.dir, "err-*")
	if err != nil {
		return "", fmt.Errorf("make a file for the messages of ssh: %w", err)
	}
	defer func() { _ = os.Remove(file.Name()); _ = file.Close() }()
	cmd.Stderr = file
	err = cmd.Run()
	if b, rerr := os.ReadFile(file.Name()); rerr == nil {
		_, _ = stderr.Write(b)
	}
	_, said, begun := strings.Cut(stdout.String(), began+"\n")
	if err == nil && begun {
		return said, nil
	}
	if ctx.Err() != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", fault.New(fault.Unavailable, "ssh_timeout", "The machine %s did not answer within %v; check the network, or try `ssh %s` by hand.", c.o.Host, limit, c.o.Host)
		}
		return "", ctx.Err()
	}
	exit, isExit := errors.AsType[*exec.ExitError](err)
	switch {
	case isExit && exit.ExitCode() == 255 || isExit && exit.ExitCode() < 0:
		return "", connectionFailure(c.o.Host, stderr.String())
	case !begun:
		return "", noShell(c.o.Host, stdout.String()+"\n"+stderr.String())
	case isExit:
		return said, scriptFailure(c.o.Host, s.what, stderr.String())
	}
	return "", fmt.Errorf("start ssh: %w", err)
}

// bounded keeps the first maxOutput bytes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// script is something to do on the machine. It travels on standard input, so that neither its text nor what it is given is an
// argument that other users of the machine could see, and no login shell gets to interpret it.
type script struct {
	what string // in the form "write the key", for errors
	as   string // the account that runs it; "": the one that ssh logs in to
	vars []string
	body string
}

// set gives the script a variable.
func (s script) set(name, value string) script {
	s.vars = append(s.vars[:len(s.vars):len(s.vars)], name+"="+quote(value))
	return s
}

// quote makes a text one word of the POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

const began = "apiary-begins"

// prelude comes before every script. What is printed before the mark is from the login shell.
const prelude = `set -eu
umask 077
LC_ALL=C
export LC_ALL
PATH="${PATH:-}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
cd /
fail() { printf 'apiary:%s:%s\n' "$1" "$2" >&2; exit 3; }
sum() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1" | cut -c1-64
  elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1" | cut -c1-64
  elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r <"$1" | cut -c1-64
  else fail no_sha256 'it has none of sha256sum, shasum and openssl, so what is copied cannot be verified; install coreutils'
  fi
}
# put PATH MODE SHA256: publishes standard input by rename, once it is what it should be, and says whether that changed anything.
put() {
  if [ -f "$1" ] && [ "$(sum "$1")" = "$3" ]; then cat >/dev/null; chmod "$2" "$1"; echo put=same; return; fi
  new="$1.apiary-new"
  trap 'rm -f "$new"' EXIT
  rm -f "$new"
  cat >"$new"
  [ "$(sum "$new")" = "$3" ] || fail incomplete "$1 did not arrive whole; try again"
  chmod "$2" "$new"
  if [ -e "$1" ]; then
    rm -f "$1.apiary-old"
    ln "$1" "$1.apiary-old" 2>/dev/null || cp -p "$1" "$1.apiary-old"
    echo put=replaced
  else echo put=new
  fi
  mv -f "$new" "$1"
  trap - EXIT
}
# back PATH: undoes put.
back() { rm -f "$1.apiary-new"; if [ -e "$1.apiary-old" ]; then mv -f "$1.apiary-old" "$1"; else rm -f "$1"; fi; }
# folder PATH MODE: makes a folder and those above it, and says which.
folder() {
  [ -d "$1" ] && return
  folder "$(dirname "$1")" 0755
  mkdir -m "$2" "$1"
  echo "made=$1"
}
printf '%s\n' ` + began + "\n"

func (s script) text() string {
	return prelude + strings.Join(append(s.vars, s.body), "\n") + "\n"
}

// command is what the login shell of the machine is given: the same few characters for every script, without anything that
// shells, also csh and fish, understand differently. dd reads no further than the script; what follows is its input.
func (s script) command(size int) string {
	as := ""
	if s.as != "" {
		as = "runuser -u " + s.as + " -- "
	}
	return "exec " + as + `sh -c 'eval "$(dd bs=1 count=` + strconv.Itoa(size) + ` 2>/dev/null)"'`
}

// fields reads what a script said as name=value lines.
func fields(out string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "="); ok {
			m[k] = v
		}
	}
	return m
}

// all returns every value of a name, in order.
func all(out, name string) (values []string) {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), name+"="); ok {
			values = append(values, v)
		}
	}
	return values
}

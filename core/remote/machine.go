package remote

import (
	"cmp"
	"context"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Services that run an agent.
const (
	ServiceSystem = "system" // a unit of the machine's systemd; the agent has an account of its own
	ServiceUser   = "user"   // a unit of the user's systemd
	ServiceNone   = "none"   // no systemd: a process in a session of its own, until the next boot
)

// account is who runs the agent where the service is the machine's.
const account = "apiary"

// Machine is what another machine is, before anything is changed on it.
type Machine struct {
	Host     string // as the user calls it
	Platform string // as Go writes it: "linux-arm64"
	Name     string // the machine's own name
	User     string
	Root     bool
	Home     string         // of the user
	Address  string         // its own, to which ssh connected; "": not known
	Service  string         // ServiceSystem, ServiceUser or ServiceNone
	Disk     contract.Bytes // free where the program goes
	Missing  string         // what the native worker will lack, as a sentence; "": nothing
	Groups   []string       // those of video and render that exist: who may use GPUs
	Account  bool           // the account of the service exists
	Layout   Layout
	Existing *Existing // nil: nothing of ours is there
}

// Layout is where everything is on a machine.
type Layout struct {
	Bin     string // the program
	Data    string // APIARY_HOME
	Config  string
	Unit    string // "" without systemd
	Record  string // what was installed, so that later commands find it
	Service string
}

// Existing is an earlier installation.
type Existing struct {
	Layout
	Running      bool
	Stale        bool   // the agent that runs was started before the program there was written
	SHA256       string // of the program; "": it is gone
	Version      string // what it says of itself; "": it does not run
	ConfigSHA    string // of the configuration as it was written
	ConfigBefore string // of the one before, which may still be there after an installation that was cut off
	Insecure     bool
}

// Places are the folders that the user chose; "": the usual ones.
type Places struct{ BinDir, DataDir string }

// plainPath is what the paths may consist of: they stand in a unit, in HCL and in messages.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9/._@+-]+$`)

const probeScript = `say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr -d '\r' | tr '\n' ' ')"; }
say os "$(uname -s)"
say arch "$(uname -m)"
say name "$(uname -n)"
uid=$(id -u)
say uid "$uid"
say user "$(id -un)"
say home "${HOME:-}"
set -- ${SSH_CONNECTION:-}
say address "${3:-}"
service=none
if command -v systemctl >/dev/null 2>&1; then
  if [ "$uid" = 0 ]; then
    systemctl show --property=Version >/dev/null 2>&1 && service=system
  else
    XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$uid}"
    export XDG_RUNTIME_DIR
    systemctl --user show --property=Version >/dev/null 2>&1 && service=user
  fi
fi
say service "$service"
for group in video render; do
  if grep -q "^$group:" /etc/group 2>/dev/null; then echo "group=$group"; fi
done
if id ` + account + ` >/dev/null 2>&1; then echo account=1; fi
libc=
for file in /lib/ld-linux* /lib64/ld-linux* /usr/lib/ld-linux* /usr/lib64/ld-linux*; do
  if [ -e "$file" ]; then libc=glibc; fi
done
say libc "$libc"
ffi=
if ldconfig -p 2>/dev/null | grep -q 'libffi\.so\.8'; then ffi=1; fi
for file in /lib/libffi.so.8 /usr/lib/libffi.so.8 /lib64/libffi.so.8 /usr/lib64/libffi.so.8 /usr/lib/*/libffi.so.8; do
  if [ -e "$file" ]; then ffi=1; fi
done
say ffi "$ffi"
if [ "$uid" = 0 ]; then record=/etc/apiary/installed; else record="${HOME:-}/.config/apiary/installed"; fi
if [ -f "$record" ]; then
  echo record=1
  sed -n 's/^\([a-z0-9_]*=\)/record_\1/p' "$record"
  bin=$(sed -n 's/^bin=//p' "$record")
  data=$(sed -n 's/^data=//p' "$record")
  if [ -f "$bin" ]; then
    say sha256 "$(sum "$bin")"
    say version "$("$bin" version 2>/dev/null | head -n 1 || true)"
  fi
  pid=$(sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p' "$data/run/agent.json" 2>/dev/null | head -n 1 || true)
  if [ -n "$pid" ] && grep -q agent "/proc/$pid/cmdline" 2>/dev/null; then
    echo running=1
    if [ "$bin" -nt "$data/run/agent.json" ]; then echo stale=1; fi
  fi
fi
`

// spaceScript says how much room there is where a file would go.
const spaceScript = `dir=$bin
while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
df -Pk "$dir" | sed -n '2s/^.* \([0-9][0-9]*\)  *[0-9][0-9]*% .*$/free=\1/p'
`

// Look finds out what the machine is and what is installed there. It changes nothing.
func (c *Conn) Look(ctx context.Context, p Places) (Machine, error) {
	out, err := c.run(ctx, scriptTimeout, script{what: "look around", body: probeScript}, nil)
	if err != nil {
		return Machine{}, err
	}
	m, err := read(c.o.Host, out)
	if err != nil {
		return m, err
	}
	if err := m.lay(p); err != nil {
		return m, err
	}
	out, err = c.run(ctx, scriptTimeout, script{what: "look at the disk", body: spaceScript}.set("bin", m.Layout.Bin), nil)
	if err != nil {
		return m, err
	}
	if kib, err := strconv.ParseUint(fields(out)["free"], 10, 53); err == nil {
		m.Disk = contract.Bytes(kib << 10)
	}
	return m, nil
}

// read makes a Machine of what the probe said.
func read(host, out string) (Machine, error) {
	f := fields(out)
	m := Machine{Host: host, Name: f["name"], User: f["user"], Root: f["uid"] == "0", Home: f["home"], Address: f["address"], Service: f["service"],
		Groups: all(out, "group"), Account: f["account"] == "1"}
	arch := map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[f["arch"]]
	if f["os"] != "Linux" || arch == "" {
		return m, fault.New(fault.Invalid, "unsupported_platform", "The machine %s is %s on %s; a hive runs on Linux, on x86_64 or aarch64.", host, cmp.Or(f["os"], "an unknown system"), cmp.Or(f["arch"], "an unknown processor"))
	}
	m.Platform = "linux-" + arch
	switch {
	case f["libc"] == "":
		m.Missing = "It has no glibc, which the native worker needs: echo workers run there, models do not."
	case f["ffi"] == "":
		m.Missing = "It lacks libffi 8, which the native worker needs: install it there (Debian, Ubuntu: apt install libffi8; Fedora: dnf install libffi)."
	}
	if f["record"] != "" {
		m.Existing = &Existing{Layout: Layout{Bin: f["record_bin"], Data: f["record_data"], Config: f["record_config"], Unit: f["record_unit"], Service: f["record_service"]},
			Running: f["running"] == "1", Stale: f["stale"] == "1", SHA256: f["sha256"], Version: strings.TrimSpace(f["version"]), ConfigSHA: f["record_config_sha256"], ConfigBefore: f["record_config_before"], Insecure: f["record_insecure"] == "true"}
	}
	return m, nil
}

// lay decides where everything goes, or is.
func (m *Machine) lay(p Places) error {
	l := Layout{Service: m.Service}
	if m.Root {
		l.Bin, l.Data, l.Config, l.Record = "/usr/local/bin/apiary", "/var/lib/apiary", "/etc/apiary/config.hcl", "/etc/apiary/installed"
	} else {
		l.Bin, l.Data, l.Record = path.Join(m.Home, ".local/bin/apiary"), path.Join(m.Home, ".local/share/apiary"), path.Join(m.Home, ".config/apiary/installed")
	}
	if e := m.Existing; e != nil {
		l.Bin, l.Data = e.Bin, e.Data
		if e.Config == "" || e.Bin == "" || e.Data == "" || e.Service == "" {
			return fault.New(fault.Conflict, "damaged_record", "The file %s on %s does not say what is installed there; remove it, and install again.", l.Record, m.Host)
		}
	}
	if p.BinDir != "" {
		l.Bin = path.Join(p.BinDir, "apiary")
	}
	if p.DataDir != "" {
		l.Data = path.Clean(p.DataDir)
	}
	if e := m.Existing; e != nil && (l.Bin != e.Bin || l.Data != e.Data) {
		return fault.New(fault.Conflict, "installed_elsewhere", "The machine %s has an installation with the program %s and the data folder %s; uninstall it first, or leave --bin-dir and --data-dir out.", m.Host, e.Bin, e.Data)
	}
	if !m.Root {
		l.Config = path.Join(l.Data, "config.hcl")
	}
	switch l.Service {
	case ServiceSystem:
		l.Unit = "/etc/systemd/system/apiary.service"
	case ServiceUser:
		l.Unit = path.Join(m.Home, ".config/systemd/user/apiary.service")
	}
	for _, file := range []string{l.Bin, l.Data, l.Config, l.Record} {
		if !plainPath.MatchString(file) {
			return fault.New(fault.Invalid, "bad_path", "The machine %s has the folder %q, and only letters, digits and / . _ @ + - may be in a path here; choose others with --bin-dir and --data-dir.", m.Host, file)
		}
	}
	m.Layout = l
	return nil
}

// as is the account that owns the data folder, where it is not the one that ssh logs in to.
func (l Layout) as() string {
	if l.Service == ServiceSystem {
		return account
	}
	return ""
}

package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

// serviceScript comes before scripts that know a layout. own runs a program as the account that owns the data folder.
const serviceScript = `ctl() {
  if [ "$service" = system ]; then systemctl "$@"
  else
    XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
    export XDG_RUNTIME_DIR
    systemctl --user "$@"
  fi
}
own() {
  APIARY_HOME=$data
  APIARY_CONFIG=$config
  export APIARY_HOME APIARY_CONFIG
  if [ -n "$account" ]; then runuser -u "$account" -- "$@"; else "$@"; fi
}
agent_pid() { own sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p' "$data/run/agent.json" 2>/dev/null | head -n 1; }
running() { p=$(agent_pid); [ -n "$p" ] && grep -q agent "/proc/$p/cmdline" 2>/dev/null; }
nap() { sleep 0.1 2>/dev/null || sleep 1; }
`

// startScript starts the agent and waits until it has opened its ports, which it says in run/agent.json. What it logged since is
// the reason when it does not.
const startScript = `log="$data/agent.log"
from=$(own wc -c "$log" 2>/dev/null | sed 's/^ *\([0-9]*\).*/\1/')
from=${from:-0}
said() {
  own tail -c "+$((from + 1))" "$log" 2>/dev/null | tail -n 10
  if [ "$service" = system ]; then journalctl -q -o cat -n 5 -u apiary.service 2>/dev/null
  elif [ "$service" = user ]; then journalctl -q -o cat -n 5 --user -u apiary.service 2>/dev/null
  fi
}
not_started() {
  last=$(said | tr '\n' ' ')
  fail not_started "the agent $1${last:+; the end of its log is: $last}"
}
if [ "$service" != none ]; then
  ctl reset-failed apiary.service 2>/dev/null || true
  ctl start apiary.service || not_started 'was not started by systemd'
elif ! running; then
  launcher=nohup
  if command -v setsid >/dev/null 2>&1; then launcher=setsid; fi
  APIARY_HOME=$data
  APIARY_CONFIG=$config
  export APIARY_HOME APIARY_CONFIG
  "$launcher" "$bin" agent --background ${insecure:+"$insecure"} </dev/null >>"$log" 2>&1 &
  child=$!
fi
tries=0
until running; do
  tries=$((tries + 1))
  if [ "$service" != none ]; then ctl is-active --quiet apiary.service || not_started 'ended at once'
  else kill -0 "$child" 2>/dev/null || not_started 'ended at once'
  fi
  [ "$tries" -lt 150 ] || { [ "$service" != none ] || kill "$child"; not_started 'did not become ready'; }
  nap
done
`

// stopScript ends the agent and leaves its workers. It does not ask the program to do that: the one that is there now may be another one
// than the one that runs, and no good.
const stopScript = `if [ "$service" != none ]; then ctl stop apiary.service
elif running; then
  pid=$(agent_pid)
  kill "$pid"
  tries=0
  while grep -q agent "/proc/$pid/cmdline" 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" = 1400 ]; then kill "$pid" 2>/dev/null || true; fi
    [ "$tries" -lt 1600 ] || fail not_stopped "the agent (process $pid) does not end"
    nap
  done
fi
`

// agent reads which agent runs.
func (c *Conn) agent(ctx context.Context, l Layout) (Agent, error) {
	out, err := c.run(ctx, scriptTimeout, l.script("ask which agent runs", `own cat "$data/run/agent.json"`), nil)
	if err != nil {
		return Agent{}, err
	}
	var r struct {
		NodeID  string `json:"node_id"`
		Hive    string `json:"hive"`
		Process struct {
			PID int `json:"pid"`
		} `json:"process"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.NodeID == "" || r.Hive == "" {
		return Agent{}, fault.New(fault.Unavailable, "no_hive", "The agent on %s does not say where its hive is; look at %s/agent.log there.", c.o.Host, l.Data)
	}
	return Agent{NodeID: r.NodeID, URL: r.Hive, PID: r.Process.PID}, nil
}

// URL is where the hive of an installation is reached, as its configuration says: "" where that is not known.
func (c *Conn) URL(ctx context.Context, m Machine) string {
	out, err := c.run(ctx, scriptTimeout, m.Layout.script("read the configuration",
		`sed -n 's/^ *advertise *= *"\([^"]*\)".*/advertise=\1/p; s/^ *listen *= *"\([^"]*\)".*/listen=\1/p' "$config"`), nil)
	if err != nil {
		return ""
	}
	f := fields(out)
	_, port, err := net.SplitHostPort(f["listen"])
	if err != nil || f["advertise"] == "" {
		return ""
	}
	return "http://" + net.JoinHostPort(f["advertise"], port)
}

// NotInstalled says that there is nothing to start, stop or take away.
func NotInstalled(m Machine) error {
	return fault.New(fault.NotFound, "not_installed", "There is no hive on %s that `apiary hive install` has put there, for the user %s; install one first, or name the user that it was installed for.", m.Host, m.User)
}

// Start starts the agent of a machine that Look has looked at, and says whether it was started now.
func (c *Conn) Start(ctx context.Context, m Machine) (Agent, bool, error) {
	if m.Existing == nil {
		return Agent{}, false, NotInstalled(m)
	}
	if !m.Existing.Running {
		if _, err := c.run(ctx, startTimeout, m.Layout.script("start the agent", startScript).set("insecure", flag(m.Existing.Insecure)), nil); err != nil {
			return Agent{}, false, err
		}
	}
	a, err := c.agent(ctx, m.Layout)
	return a, !m.Existing.Running, err
}

// Stop ends the agent and, unless they are kept, its workers. It returns what the program there said, line by line.
func (c *Conn) Stop(ctx context.Context, m Machine, keepWorkers bool) ([]string, error) {
	if m.Existing == nil {
		return nil, NotInstalled(m)
	}
	body := stopScript
	if !keepWorkers {
		body = `if [ -x "$bin" ]; then own "$bin" stop 2>&1; fi
if [ "$service" != none ]; then ctl stop apiary.service; fi
`
	}
	out, err := c.run(ctx, startTimeout, m.Layout.script("stop the agent", body), nil)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines, nil
}

// Uninstall stops the agent and its workers and removes the unit, the program, the configuration as it was written, and the record.
// With purge the data folder goes too: models, logs, keys, and the account of a system service. It returns what stays, as sentences.
func (c *Conn) Uninstall(ctx context.Context, m Machine, purge bool) (notes []string, err error) {
	if m.Existing == nil {
		return nil, NotInstalled(m)
	}
	if _, err := c.Stop(ctx, m, false); err != nil {
		return nil, err
	}
	l := m.Layout
	out, err := c.run(ctx, startTimeout, l.script("remove the hive", `if [ -n "$unit" ] && [ -e "$unit" ]; then
  ctl disable apiary.service >/dev/null 2>&1 || true
  rm -f "$unit"
  ctl daemon-reload || true
fi
rm -f "$bin"
if [ -e "$config" ]; then
  is=$(sum "$config")
  if [ "$is" = "$was" ] || [ "$is" = "$before" ]; then rm -f "$config"
  else echo kept=config
  fi
fi
if [ -n "$purge" ]; then
  rm -rf -- "$data"
  if [ -n "$account" ]; then userdel "$account" >/dev/null 2>&1 || echo kept=account; fi
fi
rm -f "$record"
rmdir "$(dirname "$record")" 2>/dev/null || true
`+cleanScript).set("was", m.Existing.ConfigSHA).set("before", m.Existing.ConfigBefore).set("purge", map[bool]string{true: "1"}[purge]), nil)
	if err != nil {
		return nil, err
	}
	if !purge {
		notes = append(notes, fmt.Sprintf("Models, logs and keys stay on %s in %s; --purge removes them.", m.Host, l.Data))
	}
	for _, kept := range all(out, "kept") {
		switch kept {
		case "config":
			if purge && strings.HasPrefix(l.Config, l.Data+"/") {
				continue // it went with the folder
			}
			notes = append(notes, fmt.Sprintf("The configuration %s was changed since it was written, and stays.", l.Config))
		case "account":
			notes = append(notes, "The account "+account+" could not be removed, and stays.")
		}
	}
	return notes, nil
}

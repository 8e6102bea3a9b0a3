package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// Plan is what to install on a machine.
type Plan struct {
	Program []byte // the executable for the machine's platform
	Version string // of the program, for the story
	Config  string // config.hcl of the agent
	Key     secret.Secret
	// GossipKey is what Config has read from Layout.GossipKeyPath; "": it does not.
	GossipKey secret.Secret
	Insecure  bool // the agent is started with --insecure-i-know
	// Answers waits until the agent that was started counts as there, and says why it does not. What it refuses is undone.
	Answers func(ctx context.Context, done Installed) error
	// Before is told which agent runs, before Upgrade changes anything. It may be nil.
	Before func(ctx context.Context, a Agent) error
	// Say is told what is being done. It may be nil.
	Say func(contract.Narration)
}

// Agent is an agent that was started on a machine.
type Agent struct {
	NodeID string
	URL    string // of its hive API
	PID    int    // of its process, there
}

// Installed is what an installation did.
type Installed struct {
	Agent
	Program   string   // "new", "replaced" or "same"
	Config    string   // the same, or "kept": it was changed since it was written
	Restarted bool     // the agent was started, or started again
	Notes     []string // sentences that the user should read
}

// cleanScript removes what was kept to go back to, and what a run that was cut off has left.
const cleanScript = `for file in "$bin" "$config" "$record" "${unit:-$bin}"; do rm -f "$file.apiary-old" "$file.apiary-new" "$file.apiary-try"; done
`

// Bounds of the longer steps.
const (
	copyTimeout  = 30 * time.Minute // for the program; a connection that is dead ends it within seconds
	startTimeout = 3 * time.Minute  // until an agent has ended in order and the next one runs
	undoTimeout  = 4 * time.Minute
	spare        = contract.Bytes(64 << 20) // of disk, beside the program
)

// Steps says what Install would do, in its order.
func Steps(m Machine, p Plan) []string {
	l := m.Layout
	var steps []string
	add := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	if l.Service == ServiceSystem && !m.Account {
		add("make the system account %s", account)
	}
	add("make the data folder %s, readable by its owner alone", l.Data)
	add("write the cluster key to %s/secrets/%s", l.Data, secret.ClusterKeyFile)
	if p.GossipKey != "" {
		add("write the gossip key to %s", l.GossipKeyPath())
	}
	same := m.Existing != nil && m.Existing.SHA256 == digest(p.Program)
	if same {
		add("leave %s as it is: it is this program already", l.Bin)
	} else {
		add("copy apiary %s for %s (%s) to %s", p.Version, m.Platform, contract.Bytes(len(p.Program)), l.Bin)
	}
	add("write the configuration %s:\n%s", l.Config, indent(p.Config))
	if l.Unit != "" {
		add("write the unit %s and enable it", l.Unit)
	}
	if m.Existing != nil && m.Existing.Running {
		add("restart the agent; its workers go on")
	} else {
		add("start the agent")
	}
	return steps
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// installation is one run of Install.
type installation struct {
	c    *Conn
	m    Machine
	p    Plan
	l    Layout
	r    Installed
	undo []undoing // in the order in which it was made
	// newKey: the gossip key there was none or another one
	newKey bool
}

type undoing struct {
	what string // "remove the program"
	do   func(ctx context.Context) error
}

// Install puts an agent on a machine that Look has looked at, starts it and waits until it answers. Where an earlier
// installation is there it is brought to the same state: only what differs is written, the agent is restarted only if something
// was, and workers go on in any case. When a step fails, what was done is undone in reverse order and the error says so.
func (c *Conn) Install(ctx context.Context, m Machine, p Plan) (Installed, error) {
	in := &installation{c: c, m: m, p: p, l: m.Layout}
	return in.carryOut(ctx, in.account, in.folders, in.key, in.gossipKey, in.record, in.config, in.program, in.unit, in.start, in.answers)
}

// carryOut takes steps, and undoes them where one fails.
func (in *installation) carryOut(ctx context.Context, steps ...func(context.Context) error) (Installed, error) {
	if in.p.Say == nil {
		in.p.Say = func(contract.Narration) {}
	}
	if need := contract.Bytes(len(in.p.Program)) + spare; in.m.Disk > 0 && in.m.Disk < need {
		return in.r, fault.New(fault.Exhausted, "disk_full", "The machine %s has %s free where %s goes, and %s are needed; free some space, or choose another folder with --bin-dir.", in.m.Host, in.m.Disk, in.l.Bin, need)
	}
	err := in.all(ctx, steps)
	if err == nil {
		in.say("clean", "removing what was kept to go back")
		_, err := in.c.run(context.WithoutCancel(ctx), scriptTimeout, in.script("remove old files", cleanScript), nil)
		if err != nil {
			in.note("Files that end in .apiary-old could not be removed there.")
		}
		in.forgetOldKey(context.WithoutCancel(ctx))
		return in.r, nil
	}
	return in.r, in.back(ctx, err)
}

func (in *installation) all(ctx context.Context, steps []func(context.Context) error) error {
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// back undoes what was done, last first, and tells of it in the error.
func (in *installation) back(ctx context.Context, cause error) error {
	if len(in.undo) == 0 {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var failed []string
	for _, u := range slices.Backward(in.undo) {
		in.say("undo", "undoing: "+u.what)
		if err := u.do(ctx); err != nil {
			failed = append(failed, u.what)
		}
	}
	e := *fault.As(cause)
	e.Err = cause
	if !strings.HasSuffix(e.Message, "\n") {
		e.Message += " "
	}
	if len(failed) == 0 {
		e.Message += "What was done on " + in.m.Host + " was undone."
		return &e
	}
	e.Message += fmt.Sprintf("It was not possible to undo everything on %s; left to do: %s. The same command again repairs it.", in.m.Host, strings.Join(failed, ", "))
	return &e
}

func (in *installation) say(action, message string) {
	in.p.Say(contract.Narration{Level: "info", Action: action, Message: message})
}

func (in *installation) note(text string) { in.r.Notes = append(in.r.Notes, text) }

// script is a script that knows the layout.
func (in *installation) script(what, body string) script { return in.l.script(what, body) }

func (l Layout) script(what, body string) script {
	return script{what: what, body: serviceScript + body}.set("bin", l.Bin).set("data", l.Data).set("config", l.Config).
		set("unit", l.Unit).set("record", l.Record).set("service", l.Service).set("account", l.as())
}

// later remembers how to undo a step: by a script, whose variables are those of the layout.
func (in *installation) later(what, as, body string) {
	s := in.script(what, body)
	s.as = as
	in.undo = append(in.undo, undoing{what, func(ctx context.Context) error {
		_, err := in.c.run(ctx, startTimeout, s, nil)
		return err
	}})
}

func (in *installation) account(ctx context.Context) error {
	if in.l.Service != ServiceSystem || in.m.Account {
		return nil
	}
	in.say("account", "making the account "+account)
	_, err := in.c.run(ctx, scriptTimeout, in.script("make the account "+account,
		`useradd --system --no-create-home --home-dir "$data" --shell /usr/sbin/nologin "$account"`), nil)
	if err == nil {
		in.later("remove the account "+account, "", `userdel "$account"`)
	}
	return err
}

func (in *installation) folders(ctx context.Context) error {
	in.say("folders", "making folders")
	out, err := in.c.run(ctx, scriptTimeout, in.script("make the folders", cleanScript+`# It may be removed as a whole one day, so it must be nobody else's.
if [ -d "$data" ] && [ -n "$(ls -A "$data")" ] && [ ! -e "$data/node.json" ] && [ ! -e "$data/secrets" ] && [ ! -e "$data/config.hcl" ]; then
  fail not_ours "the folder $data is not empty and no data folder of Apiary; choose another one with --data-dir"
fi
folder "$(dirname "$bin")" 0755
if [ -n "$account" ]; then folder "$(dirname "$config")" 0755; fi
folder "$(dirname "$record")" 0755
if [ -n "$unit" ]; then folder "$(dirname "$unit")" 0755; fi
folder "$data" 0700
if [ -n "$account" ]; then chown -h "$account:" "$data"; fi
`), nil)
	if made := all(out, "made"); len(made) > 0 { // also where it could not make them all
		in.later("remove the folders that were made", "", removeFolders(in.l, made))
	}
	return err
}

// removeFolders removes folders that an installation made: the data folder with what the agent has put there, others if empty.
func removeFolders(l Layout, made []string) string {
	var b strings.Builder
	for _, dir := range slices.Backward(made) {
		if dir == l.Data {
			b.WriteString("rm -rf -- \"$data\"\n")
		} else {
			b.WriteString("rmdir -- " + quote(dir) + " 2>/dev/null || true\n")
		}
	}
	return b.String()
}

// key writes the cluster key, as the account that owns the data folder, so that nothing which that account has put there leads
// root elsewhere.
func (in *installation) key(ctx context.Context) error {
	in.say("key", "writing the cluster key")
	content := in.p.Key.Reveal() + "\n"
	s := in.script("write the cluster key", `folder "$data/secrets" 0700
key="$data/secrets/`+secret.ClusterKeyFile+`"
if [ -e "$key" ] && [ "$(sum "$key")" != "$want" ]; then
  fail other_cluster "its data folder $data has the key of another cluster; uninstall that hive with --purge, or choose another folder with --data-dir"
fi
put "$key" 0600 "$want"
`).set("want", digest([]byte(content)))
	s.as = in.l.as()
	out, err := in.c.run(ctx, scriptTimeout, s, strings.NewReader(content))
	if err == nil && fields(out)["put"] == "new" {
		in.later("remove the cluster key", in.l.as(), `rm -f "$data/secrets/`+secret.ClusterKeyFile+`"`+"\n"+`rmdir "$data/secrets" 2>/dev/null || true`)
	}
	return err
}

// record says what is installed, before it is, so that an installation that is cut off can be taken away too.
func (in *installation) record(ctx context.Context) error {
	before := ""
	if e := in.m.Existing; e != nil {
		before = e.ConfigSHA
		if digest([]byte(in.p.Config)) == before {
			before = e.ConfigBefore
		}
	}
	text := fmt.Sprintf("# Written by `apiary hive install`, read by the other commands about hives.\nbin=%s\ndata=%s\nconfig=%s\nconfig_sha256=%s\nconfig_before=%s\nunit=%s\nservice=%s\ninsecure=%v\n",
		in.l.Bin, in.l.Data, in.l.Config, digest([]byte(in.p.Config)), before, in.l.Unit, in.l.Service, in.p.Insecure)
	put, err := in.write(ctx, "write down what is installed", in.l.Record, "0644", text)
	if err == nil && put != "same" {
		in.later("take back the record", "", `back "$record"`)
	}
	return err
}

// write publishes a small file and says "new", "replaced" or "same".
func (in *installation) write(ctx context.Context, what, path, mode, content string) (string, error) {
	s := in.script(what, `put "$path" "$mode" "$want"`).set("path", path).set("mode", mode).set("want", digest([]byte(content)))
	out, err := in.c.run(ctx, scriptTimeout, s, strings.NewReader(content))
	return fields(out)["put"], err
}

func (in *installation) program(ctx context.Context) error {
	want := digest(in.p.Program)
	if e := in.m.Existing; e != nil && e.SHA256 == want {
		in.r.Program = "same"
		if e.Stale { // an installation that was cut off has put it there, and perhaps kept the one before
			in.later("take back the program", "", `if [ -e "$bin.apiary-old" ]; then back "$bin"; fi`)
		}
		return nil
	}
	total := uint64(len(in.p.Program))
	message := "copying apiary " + in.p.Version
	body := &counted{r: bytes.NewReader(in.p.Program), told: func(done uint64) {
		in.p.Say(contract.Narration{Level: "info", Action: "copy", Message: message, Progress: &contract.Progress{Done: done, Total: total, Unit: "bytes"}})
	}}
	// It is tried where it will be, under another name: a file system that runs no programs is found out before anything changes.
	s := in.script("copy the program", `new="$bin.apiary-try"
trap 'rm -f "$new"' EXIT
rm -f "$new"
cat >"$new"
[ "$(sum "$new")" = "$want" ] || fail incomplete "$bin did not arrive whole; try again"
chmod 0755 "$new"
code=0
said=$("$new" version 2>&1) || code=$?
case "$code" in
0) ;;
126) case "$said" in
  *'ermission denied'*) fail noexec "the file system of $bin does not let programs run (noexec); choose another folder with --bin-dir" ;;
  *) fail wrong_arch "the program is for another processor than $(uname -m): $said" ;;
  esac ;;
*) fail wrong_arch "the program does not run there, it ended with $code${said:+: $said}" ;;
esac
if [ -e "$bin" ]; then
  if [ -z "$stale" ] || [ ! -e "$bin.apiary-old" ]; then
    rm -f "$bin.apiary-old"
    ln "$bin" "$bin.apiary-old" 2>/dev/null || cp -p "$bin" "$bin.apiary-old"
  fi
  echo put=replaced
else echo put=new
fi
mv -f "$new" "$bin"
trap - EXIT
`).set("want", want).set("stale", "")
	if e := in.m.Existing; e != nil && e.Stale {
		s = s.set("stale", "1") // what runs is older than what is there
	}
	in.later("remove what arrived", "", `rm -f "$bin.apiary-try"`)
	out, err := in.c.run(ctx, copyTimeout, s, body)
	if err != nil {
		return err
	}
	in.r.Program = fields(out)["put"]
	in.later("take back the program", "", `back "$bin"`)
	return nil
}

// counted tells how much was read.
type counted struct {
	r    io.Reader
	done uint64
	told func(done uint64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(len(p), 64<<10)])
	c.done += uint64(n)
	c.told(c.done)
	return n, err
}

// config writes the configuration, unless somebody has changed it since it was written.
func (in *installation) config(ctx context.Context) error {
	in.say("config", "writing the configuration")
	mode := "0600"
	if in.l.Service == ServiceSystem {
		mode = "0644" // the account of the service reads it; there are no secrets in it
	}
	was, before := "", ""
	if e := in.m.Existing; e != nil {
		was, before = e.ConfigSHA, e.ConfigBefore
	}
	want := digest([]byte(in.p.Config))
	s := in.script("write the configuration", `if [ -e "$config" ]; then
  is=$(sum "$config")
  if [ "$is" != "$want" ] && [ "$is" != "$was" ] && [ "$is" != "$before" ]; then
    if [ -n "$was" ]; then cat >/dev/null; echo put=kept; exit 0; fi
    fail own_config "it has a configuration of its own, $config; move it away, or choose another folder with --data-dir"
  fi
fi
put "$config" "$mode" "$want"
`).set("want", want).set("was", was).set("before", before).set("mode", mode)
	out, err := in.c.run(ctx, scriptTimeout, s, strings.NewReader(in.p.Config))
	if err != nil {
		return err
	}
	switch in.r.Config = fields(out)["put"]; in.r.Config {
	case "kept":
		in.note(fmt.Sprintf("The configuration %s there was changed by somebody and was left as it is.", in.l.Config))
		return nil
	case "new", "replaced":
		in.later("take back the configuration", "", `back "$config"`)
	}
	return nil
}

func (in *installation) unit(ctx context.Context) error {
	if in.l.Unit == "" {
		in.note("There is no systemd that can be used there: the agent does not start by itself after a boot; `apiary hive start " + in.m.Host + "` starts it.")
		return nil
	}
	in.say("unit", "writing the unit")
	text := Unit(in.l, in.p.Insecure, in.m.Groups)
	put, err := in.write(ctx, "write the unit", in.l.Unit, "0644", text)
	if err != nil {
		return err
	}
	if put != "same" {
		in.r.Restarted = true
		in.later("take back the unit", "", `if [ ! -e "$unit.apiary-old" ]; then ctl disable apiary.service >/dev/null 2>&1 || true; fi
back "$unit"
ctl daemon-reload`)
	}
	out, err := in.c.run(ctx, scriptTimeout, in.script("enable the unit", `ctl daemon-reload
ctl enable apiary.service >/dev/null 2>&1 || fail not_enabled 'systemd does not enable the unit; look with systemctl status apiary'
if [ "$service" = user ]; then
  if [ "$(loginctl show-user "$(id -un)" --property=Linger 2>/dev/null)" = Linger=yes ]; then :
  elif loginctl enable-linger >/dev/null 2>&1; then echo linger=made
  else echo linger=no
  fi
fi
`), nil)
	if err != nil {
		return err
	}
	switch fields(out)["linger"] {
	case "made":
		in.later("disable lingering", "", `loginctl disable-linger`)
	case "no":
		in.note(fmt.Sprintf("The agent ends when %s logs out there, because lingering is not allowed: `sudo loginctl enable-linger %s` on it changes that.", in.m.User, in.m.User))
	}
	return nil
}

// start starts the agent, or restarts one that runs with something else than is there now.
func (in *installation) start(ctx context.Context) error {
	e := in.m.Existing
	running := e != nil && e.Running
	changed := running && e.Stale || in.r.Program != "same" || in.r.Config == "new" || in.r.Config == "replaced" || in.newKey || in.r.Restarted || running && e.Insecure != in.p.Insecure
	if !running || changed {
		in.say("start", "starting the agent")
		in.r.Restarted = true
		if running {
			// What was there before is started again, once the files are back.
			first := undoing{"start the agent that ran before", func(ctx context.Context) error {
				_, err := in.c.run(ctx, startTimeout, in.script("start the agent", startScript).set("insecure", flag(e.Insecure)), nil)
				return err
			}}
			in.undo = slices.Insert(in.undo, 0, first)
		}
		in.later("stop the agent", "", stopScript)
		if running {
			if _, err := in.c.run(ctx, startTimeout, in.script("stop the agent", stopScript), nil); err != nil {
				return err
			}
		}
		if _, err := in.c.run(ctx, startTimeout, in.script("start the agent", startScript).set("insecure", flag(in.p.Insecure)), nil); err != nil {
			return err
		}
	} else {
		in.r.Restarted = false
	}
	a, err := in.c.agent(ctx, in.l)
	in.r.Agent = a
	return err
}

func (in *installation) answers(ctx context.Context) error {
	if in.p.Answers == nil {
		return nil
	}
	in.say("wait", "waiting until the hive answers")
	err := in.p.Answers(ctx, in.r)
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	e := *fault.As(err)
	if lines, lerr := in.c.run(context.WithoutCancel(ctx), scriptTimeout, in.script("read the log", `tail -n 5 "$data/agent.log"`), nil); lerr == nil && strings.TrimSpace(lines) != "" {
		e.Message += " The end of the hive's log:\n" + indent(lines) + "\n"
	}
	return &e
}

func flag(insecure bool) string {
	if insecure {
		return "--insecure-i-know"
	}
	return ""
}

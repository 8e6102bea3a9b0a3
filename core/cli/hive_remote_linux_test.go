package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gossip"
	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

func freePort(t *testing.T) string {
	t.Helper()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func wants(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("this lacks %q:\n%s", part, text)
		}
	}
}

// TestHiveLifecycle goes the whole way with a machine without systemd, over a loopback address.
func TestHiveLifecycle(t *testing.T) {
	t.Parallel()
	far := newFarMachine(t, farOptions{})
	q := newQueen(t, "127.0.0.1")
	at := []string{"--ssh-config", far.config}
	listen := "127.0.0.1:" + freePort(t)
	install := append([]string{"hive", "install", "far", "--listen", listen}, at...)

	before := far.files()
	out, errs := q.apiary(0, append(install, "--dry-run")...)
	wants(t, out, "/home/bee/.local/bin/apiary", "/home/bee/.local/share/apiary", `roles     = ["hive"]`, "start the agent")
	wants(t, errs, "Nothing was changed on far.")
	if after := far.files(); after != before {
		t.Errorf("a dry run left %s", after)
	}

	_, errs = q.apiary(0, install...)
	wants(t, errs, "installed and started", "http://"+listen, "was added to queen.hives", "lists the hive as alive", "no systemd")
	if strings.Contains(errs, "gossip") {
		t.Errorf("on one machine nobody needs more gossip: %s", errs)
	}
	wants(t, far.there("stat -c %a%U /home/bee/.local/share/apiary/secrets/cluster.key /home/bee/.local/share/apiary /home/bee/.local/bin/apiary"), "600bee", "700bee", "755bee")
	key, err := os.ReadFile(filepath.Join(q.home, "secrets", "cluster.key"))
	if err != nil || far.there("cat /home/bee/.local/share/apiary/secrets/cluster.key") != string(key) {
		t.Errorf("the key there is another one: %v", err)
	}
	if files := far.files(); strings.Contains(files, ".apiary-") {
		t.Errorf("files of the installation were left: %s", files)
	}

	// The queen has it at once, and a worker runs there.
	out, _ = q.apiary(0, append(install, "--json")...)
	wants(t, out, `"listed": true`, `"restarted": false`, `"program": "same"`, `"config": "same"`)
	id, _ := q.apiary(0, "worker", "spawn", "echo:far", "--worker", "echo")
	worker := strings.TrimSpace(id)
	workers := far.processes()
	wants(t, workers, worker)

	// A damaged program is repaired, and the worker goes on.
	far.there("cd /home/bee/.local/bin; cp -p apiary new; printf x >>new; mv new apiary")
	out, _ = q.apiary(0, append(install, "--json")...)
	wants(t, out, `"listed": true`, `"restarted": true`, `"program": "replaced"`)
	if now := far.processes(); !strings.Contains(now, worker) {
		t.Errorf("the worker did not go on: %s", now)
	}

	// A configuration that was changed there is left alone.
	far.there("echo '# mine' >>/home/bee/.local/share/apiary/config.hcl")
	_, errs = q.apiary(0, install...)
	wants(t, errs, "was up to date", "was left as it is")

	_, errs = q.apiary(0, append([]string{"hive", "stop", "far", "--keep-workers"}, at...)...)
	wants(t, errs, "stopped")
	wants(t, far.processes(), worker)
	_, errs = q.apiary(0, append([]string{"hive", "start", "far"}, at...)...)
	wants(t, errs, "started")
	_, errs = q.apiary(0, append([]string{"hive", "start", "far"}, at...)...)
	wants(t, errs, "runs already")
	_, errs = q.apiary(0, append([]string{"hive", "stop", "far"}, at...)...)
	wants(t, errs, worker)
	if left := far.processes(); left != "" {
		t.Errorf("after stop there runs %s", left)
	}

	q.apiary(0, append([]string{"hive", "start", "far"}, at...)...)
	_, errs = q.apiary(0, append([]string{"hive", "uninstall", "far"}, at...)...)
	wants(t, errs, "removed from", "stay on far in /home/bee/.local/share/apiary", "was changed since it was written", "was removed from queen.hives")
	files := far.files()
	if strings.Contains(files, "bin/apiary") || !strings.Contains(files, "secrets/cluster.key") || far.processes() != "" {
		t.Errorf("after uninstall there are %s %s", files, far.processes())
	}
	if out, _ := q.apiary(0, "hive", "list", "--json"); strings.Contains(out, listen) {
		t.Errorf("the queen still lists it: %s", out)
	}
	_, errs = q.apiary(fault.ExitCode(&fault.Error{Kind: fault.NotFound}), append([]string{"hive", "uninstall", "far"}, at...)...)
	wants(t, errs, "There is no hive on far")

	// What stayed is taken up again, with the data folder's identity; purged, nothing is left.
	far.there("rm /home/bee/.local/share/apiary/config.hcl")
	q.apiary(0, install...)
	_, errs = q.apiary(fault.ExitCode(&fault.Error{Kind: fault.Denied}), append([]string{"hive", "uninstall", "--purge", "far"}, at...)...)
	wants(t, errs, "--yes")
	q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes", "far"}, at...)...)
	if files := far.files(); strings.Contains(files, "apiary") || far.processes() != "" {
		t.Errorf("after a purge there are %s %s", files, far.processes())
	}
}

// exitOf is the exit code of a kind of failure.
func exitOf(k fault.Kind) int { return fault.ExitCode(&fault.Error{Kind: k}) }

// TestHiveInstallFailures breaks each step. What was done is undone.
func TestHiveInstallFailures(t *testing.T) {
	t.Parallel()
	tools := t.TempDir()
	if err := os.Chmod(filepath.Dir(tools), 0o755); err != nil {
		t.Fatal(err)
	}
	slowCat(t, tools)
	far := newFarMachine(t, farOptions{setEnv: tools + ":/usr/local/bin:/usr/bin:/bin",
		setup: "mkdir -p /home/bee/full /home/bee/noexec /home/bee/small; chown bee: /home/bee/full\nmount -t tmpfs -o size=8k,uid=20001 tmpfs /home/bee/full; head -c 8192 /dev/zero >/home/bee/full/x || true\n" +
			"mount -t tmpfs -o size=512m,noexec,uid=20001 tmpfs /home/bee/noexec; mount -t tmpfs -o size=8m,uid=20001 tmpfs /home/bee/small"})
	q := newQueen(t, "127.0.0.1")
	at := []string{"--ssh-config", far.config}
	before := far.files()
	port := freePort(t)
	listen := []string{"--listen", "127.0.0.1:" + port}
	try := func(name string, kind fault.Kind, want string, args ...string) {
		t.Helper()
		_, errs := q.apiary(exitOf(kind), append(append([]string{"hive", "install"}, at...), args...)...)
		if !strings.Contains(errs, want) {
			t.Errorf("%s: this lacks %q:\n%s", name, want, errs)
		}
		if after := far.files(); after != before {
			t.Errorf("%s: files were left:\n%s", name, after)
		}
		if left := far.processes(); left != "" {
			t.Errorf("%s: processes were left: %s", name, left)
		}
	}
	far2 := append([]string{"far"}, listen...)
	try("wrong key", fault.Denied, "does not let you in", append([]string{"farstranger"}, listen...)...)
	try("an option for ssh", fault.Invalid, "is not a machine", append(listen, "--", "-oProxyCommand=false")...)
	try("off loopback", fault.Invalid, "say --insecure-i-know", "far", "--listen", "0.0.0.0:"+port)
	try("wrong port", fault.Unavailable, "refused the connection", append(far2, "-p", freePort(t))...)
	known, err := os.ReadFile(filepath.Join(far.dir, "known"))
	if err != nil {
		t.Fatal(err)
	}
	far.write("known", "", 0o600)
	try("unknown host key", fault.Denied, "host key of far is not known", far2...)
	stranger, err := os.ReadFile(filepath.Join(far.dir, "stranger.pub"))
	if err != nil {
		t.Fatal(err)
	}
	far.write("known", fmt.Sprintf("[%s]:%d %s", far.addr, far.port, stranger), 0o600)
	try("changed host key", fault.Denied, "is not the one that this machine knows", far2...)
	far.write("known", string(known), 0o600)

	try("full disk for the program", fault.Exhausted, "free where", append(far2, "--bin-dir", "/home/bee/small/bin")...)
	try("full disk for the data", fault.Exhausted, "the disk is full", append(far2, "--data-dir", "/home/bee/full/data")...)
	try("somebody's folder", fault.Conflict, "is not empty and no data folder", append(far2, "--data-dir", "/home/bee/full")...)
	try("noexec", fault.Invalid, "noexec", append(far2, "--bin-dir", "/home/bee/noexec/bin")...)
	try("not permitted", fault.Denied, "the account may not", append(far2, "--bin-dir", "/opt/apiary/bin")...)
	try("some folders only", fault.Denied, "What was done on far was undone.", append(far2, "--data-dir", "/opt/apiary/data")...)
	try("another program", fault.Invalid, "does not run there", append(far2, "--binary", "/bin/false")...)
	arm := filepath.Join(t.TempDir(), "arm")
	program, err := os.ReadFile(filepath.Join(built, "apiary"))
	if err != nil {
		t.Fatal(err)
	}
	program[18] ^= 0xff // the processor in its header
	if err := os.WriteFile(arm, program, 0o755); err != nil {
		t.Fatal(err)
	}
	try("wrong processor", fault.Invalid, "is for the processor", append(far2, "--binary", arm)...)

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	try("taken port", fault.Unavailable, "cannot listen", "far", "--listen", taken.Addr().String())
	try("no way to the hive", fault.Unavailable, "does not answer at http://127.0.0.2:", append(far2, "--advertise", "127.0.0.2")...)

	// Every ssh process is killed in the middle of the copy.
	hold := filepath.Join(tools, "hold")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(tools, "midway", "here")); err == nil {
				break
			}
		}
		killSSH(far, q)
		_ = os.Remove(hold)
	}()
	try("killed midway", fault.Unavailable, "The connection to far was lost; try again. What was done on far was undone.", far2...)

	// Ctrl-C in the middle of the copy: what was done is undone before the command ends.
	if err := errors.Join(os.Remove(filepath.Join(tools, "midway", "here")), os.WriteFile(hold, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	interrupted := exec.Command(filepath.Join(built, "apiary"), append(append([]string{"hive", "install"}, at...), far2...)...)
	interrupted.Env = q.env
	if err := interrupted.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(tools, "midway", "here")); err == nil {
			break
		}
	}
	_ = interrupted.Process.Signal(os.Interrupt)
	time.AfterFunc(2*time.Second, func() { _ = os.Remove(hold) })
	if err := interrupted.Wait(); interrupted.ProcessState.ExitCode() != 130 {
		t.Errorf("an interrupted installation ends with %v", err)
	}
	if after := far.files(); after != before {
		t.Errorf("after an interrupt there are\n%s", after)
	}

	// Another cluster's data folder, and one with a configuration of its own, are not touched.
	far.there("mkdir -p /home/bee/.local/share/apiary/secrets; echo other >/home/bee/.local/share/apiary/secrets/cluster.key; chown -R bee: /home/bee/.local")
	before = far.files()
	try("another cluster", fault.Conflict, "the key of another cluster", far2...)
	far.there("rm -r /home/bee/.local/share/apiary/secrets; echo 'agent {}' >/home/bee/.local/share/apiary/config.hcl")
	before = far.files()
	try("a configuration of its own", fault.Conflict, "has a configuration of its own", far2...)
	far.there("rm -r /home/bee/.local")

	// An upgrade that fails leaves what was there running, with its workers.
	q.apiary(0, append(append([]string{"hive", "install"}, at...), far2...)...)
	id, _ := q.apiary(0, "worker", "spawn", "echo:far", "--worker", "echo")
	before = far.files()
	for name, args := range map[string][]string{"another program": append(far2, "--binary", "/bin/false"), "another port that is taken": {"far", "--listen", taken.Addr().String()}} {
		kind := map[bool]fault.Kind{true: fault.Invalid, false: fault.Unavailable}[name == "another program"]
		_, errs := q.apiary(exitOf(kind), append(append([]string{"hive", "install"}, at...), args...)...)
		wants(t, errs, "was undone")
		if after := far.files(); after != before {
			t.Errorf("%s: before\n%s\nafter\n%s", name, before, after)
		}
		if runs := far.processes(); !strings.Contains(runs, "apiary agent") || !strings.Contains(runs, strings.TrimSpace(id)) {
			t.Errorf("%s: there runs %s", name, runs)
		}
		out, _ := q.apiary(0, append(append([]string{"hive", "install", "--json"}, at...), far2...)...)
		wants(t, out, `"restarted": false`, `"listed": true`)
	}
	q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes", "far"}, at...)...)
}

// slowCat makes a cat that waits in the middle of what is copied, while a file called hold is there, and then goes on.
func slowCat(t *testing.T, dir string) {
	t.Helper()
	midway := filepath.Join(dir, "midway")
	if err := os.Mkdir(midway, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(midway, 0o777), os.WriteFile(filepath.Join(dir, "cat"), []byte(fmt.Sprintf(`#!/bin/sh
if [ -e %[1]s/hold ]; then
  /usr/bin/head -c 1000000
  case "$(readlink /proc/self/fd/1 2>/dev/null; ls -l /proc/$$/fd/1)" in *apiary-try*) ;; *) exec /bin/cat "$@" ;; esac
  : >%[1]s/midway/here
  while [ -e %[1]s/hold ]; do sleep 0.05; done
fi
exec /bin/cat "$@"
`, dir)), 0o755), os.Chmod(filepath.Join(dir, "cat"), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
}

// killSSH kills every ssh of a queen's commands, also the one in the background, towards a machine.
func killSSH(far *farMachine, q *queenHome) {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range entries {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), far.config) && !strings.Contains(string(b), q.home+"/apiary-ssh-") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		args := strings.Split(string(b), "\x00")
		if err == nil && (strings.HasSuffix(args[0], "/ssh") || strings.HasPrefix(args[0], "ssh: ")) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
}

// TestHiveInstallWithPassword: at a terminal ssh asks about an unknown host key and for the password, once each.
func TestHiveInstallWithPassword(t *testing.T) {
	t.Parallel()
	far := newFarMachine(t, farOptions{password: "honey"})
	q := newQueen(t, "127.0.0.1")
	far.write("known", "", 0o600)
	n := &node{t: t, home: q.home, addr: q.addr}
	s := n.onScreen("hive", "install", "far", "--ssh-config", far.config, "--listen", "127.0.0.1:"+freePort(t))
	s.wait("continue connecting")
	s.typed("yes\n")
	s.wait("password:")
	s.typed("honey\n")
	n.until(2*time.Minute, "the installation ends", func() bool {
		return strings.Contains(s.shows(), "was added to queen.hives") || strings.Contains(s.shows(), "Error:")
	})
	if code := s.exit(); code != 0 || strings.Count(s.shows(), "password:") != 1 || !strings.Contains(s.shows(), "█") {
		t.Errorf("it ends with %d; the screen is\n%q", code, s.shows())
	}
}

// TestHiveInstallWithoutShell says what is wrong with an account that runs no commands.
func TestHiveInstallWithoutShell(t *testing.T) {
	t.Parallel()
	nologin, err := exec.LookPath("/usr/sbin/nologin")
	if err != nil {
		t.Skip("there is no nologin here")
	}
	far := newFarMachine(t, farOptions{shell: nologin})
	q := newQueen(t, "127.0.0.1")
	_, errs := q.apiary(exitOf(fault.Unavailable), "hive", "install", "far", "--ssh-config", far.config)
	wants(t, errs, "The machine far let you in but ran no command", "login shell")
}

// TestHiveOfAnotherNetwork installs where only an address off loopback leads.
func TestHiveOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	far := newFarMachine(t, farOptions{network: 1})
	here := strings.TrimSuffix(far.addr, "2") + "1"
	at := []string{"--ssh-config", far.config}
	q := newQueen(t, "127.0.0.1")
	_, errs := q.apiary(exitOf(fault.Invalid), append([]string{"hive", "install", "far"}, at...)...)
	wants(t, errs, "would listen at "+far.addr+":7835", "say --insecure-i-know")
	_, errs = q.apiary(exitOf(fault.Conflict), append([]string{"hive", "install", "far", "--insecure-i-know"}, at...)...)
	wants(t, errs, "where the workers of other machines cannot reach it")

	// The gossip here is on loopback: the queen is told of the hive, without a restart.
	q = newQueen(t, here)
	install := append([]string{"hive", "install", "far", "--insecure-i-know"}, at...)
	_, errs = q.apiary(0, install...)
	wants(t, errs, "was added to queen.hives", "lists the hive as alive", "The gossip of this agent is on loopback", "set gossip.bind")
	out, _ := q.apiary(0, append(install, "--json")...)
	wants(t, out, `"listed": true`, `"restarted": false`, `"address": "http://`+far.addr+`:7835"`)
	q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes", "far"}, at...)...)
	if files := far.files(); strings.Contains(files, "apiary") || far.processes() != "" {
		t.Errorf("after a purge there are %s %s", files, far.processes())
	}
}

// TestHiveByGossip: where the gossip can be reached a hive that is installed joins it, and the queen needs no restart and no list.
func TestHiveByGossip(t *testing.T) {
	t.Parallel()
	far := newFarMachine(t, farOptions{network: 2})
	here := strings.TrimSuffix(far.addr, "2") + "1"
	at := []string{"--ssh-config", far.config}
	key := gossip.NewKey()
	q := newQueenWith(t, here, fmt.Sprintf("\ngossip {\n  bind = %q\n  key  = %q\n}\n", here+":7834", key.Reveal()))
	configured, err := os.ReadFile(filepath.Join(q.home, "config.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	install := append([]string{"hive", "install", "far", "--insecure-i-know"}, at...)
	out, _ := q.apiary(0, append(install, "--dry-run")...)
	wants(t, out, "write the gossip key to /home/bee/.local/share/apiary/secrets/gossip.key", "gossip {", `bind = "`+far.addr+`:7834"`, `join = ["`+here+`:7834"]`)
	if strings.Contains(out, key.Reveal()) {
		t.Error("a dry run shows the key")
	}

	// A gossip port that is closed: the hive answers over HTTP and is not heard, so it is taken away again.
	if _, err := exec.LookPath("nft"); err == nil {
		before := far.files()
		far.there("nft add table inet closed; nft add chain inet closed in '{ type filter hook input priority 0; }'; nft add chain inet closed out '{ type filter hook output priority 0; }'; " +
			"nft add rule inet closed in meta l4proto '{ tcp, udp }' th dport 7834 drop; nft add rule inet closed out meta l4proto '{ tcp, udp }' th dport 7834 drop")
		_, errs := q.apiary(exitOf(fault.Unavailable), install...)
		wants(t, errs, "is not heard by gossip here; let TCP and UDP through", "there is no answer; let TCP and UDP through to the gossip port", "was undone")
		if after := far.files(); after != before || far.processes() != "" {
			t.Errorf("there are %s %s", after, far.processes())
		}
		far.there("nft delete table inet closed")
	}

	_, errs := q.apiary(0, install...)
	wants(t, errs, "installed and started", "lists the hive as alive")
	if strings.Contains(errs, "queen.hives") || strings.Contains(errs, "loopback") {
		t.Errorf("it says %s", errs)
	}
	if now, err := os.ReadFile(filepath.Join(q.home, "config.hcl")); err != nil || string(now) != string(configured) {
		t.Errorf("the queen's configuration is now %s", now)
	}
	const there = "/home/bee/.local/share/apiary"
	wants(t, far.there("stat -c %a%U "+there+"/secrets/gossip.key"), "600bee")
	if got := far.there("cat " + there + "/secrets/gossip.key"); got != key.Reveal()+"\n" {
		t.Error("the gossip key there is another one")
	}
	list, _ := q.apiary(0, "member", "list")
	wants(t, list, far.addr+":7834", "alive")
	id, _ := q.apiary(0, "worker", "spawn", "echo:far", "--worker", "echo")
	worker := strings.TrimSpace(id)

	// Nothing has changed: nothing is done. The key has: it is delivered, and the worker goes on.
	out, _ = q.apiary(0, append(install, "--json")...)
	wants(t, out, `"listed": true`, `"restarted": false`, `"program": "same"`, `"config": "same"`, `"gossip": "`+far.addr+`:7834"`)
	next := filepath.Join(t.TempDir(), "next.key")
	second := gossip.NewKey()
	if err := os.WriteFile(next, []byte(second.Reveal()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	q.apiary(0, "member", "key", "add", next)
	q.apiary(0, "member", "key", "use", gossip.Fingerprint(second))
	out, _ = q.apiary(0, append(install, "--json")...)
	wants(t, out, `"listed": true`, `"restarted": true`, `"config": "same"`)
	if got := far.there("cat " + there + "/secrets/gossip.key"); got != second.Reveal()+"\n" {
		t.Error("the new gossip key is not there")
	}
	wants(t, far.processes(), worker)
	if files := far.files(); strings.Contains(files, ".apiary-") {
		t.Errorf("files of the installation were left: %s", files)
	}

	// Settings that somebody changed there stay.
	far.there("echo '# mine' >>" + there + "/config.hcl")
	out, _ = q.apiary(0, append(install, "--json", "--gossip", far.addr+":7899")...)
	wants(t, out, `"listed": true`, `"config": "kept"`)

	// Other gossip settings of this cluster are brought there.
	far.there("sed -i '/^# mine$/d' " + there + "/config.hcl")
	out, _ = q.apiary(0, append(install, "--json", "--gossip", far.addr+":7899")...)
	wants(t, out, `"listed": true`, `"config": "replaced"`, `"restarted": true`)
	list, _ = q.apiary(0, "member", "list")
	wants(t, list, far.addr+":7899")
	wants(t, far.processes(), worker)

	_, errs = q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes", "far"}, at...)...)
	wants(t, errs, "removed from")
	list, _ = q.apiary(0, "member", "list")
	wants(t, list, "left")
	if files := far.files(); strings.Contains(files, "apiary") || far.processes() != "" {
		t.Errorf("after a purge there are %s %s", files, far.processes())
	}
}

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// systemctl stands in for systemd where there is none. It does what the commands about hives need with the one unit, which it reads as
// it stands: start, stop, enable and the questions. Each call is noted.
const systemctl = `#!/bin/sh
echo "$*" >>/home/calls
user=no
if [ "$1" = --user ]; then user=yes; shift; fi
unit=/etc/systemd/system/apiary.service
if [ $user = yes ]; then unit=$HOME/.config/systemd/user/apiary.service; fi
state=/home/state
value() { sed -n "s/^$1=//p" "$unit" | head -n 1; }
alive() { [ -s $state/pid ] && kill -0 "$(cat $state/pid)" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$(cat $state/pid)/status" 2>/dev/null; }
case "$1" in
show | reset-failed) ;;
daemon-reload) rm -f $state/loaded; if [ -e "$unit" ]; then cp "$unit" $state/loaded; fi ;;
enable) [ -e "$unit" ] && : >$state/enabled ;;
disable) rm -f $state/enabled ;;
is-active) alive ;;
start)
  cmp -s "$unit" $state/loaded || { echo "the unit is not loaded" >&2; exit 5; }
  alive && exit 0
  run=
  if [ -n "$(value User)" ]; then run="runuser -u $(value User) --"; fi
  setsid $run env $(value Environment) $(value ExecStart) </dev/null >>$state/journal 2>&1 &
  echo $! >$state/pid
  sleep 0.3
  ;;
stop)
  alive || exit 0
  kill "$(cat $state/pid)"
  while alive; do sleep 0.05; done
  ;;
*) echo "systemctl $*: not known" >&2; exit 1 ;;
esac
`

const loginctl = `#!/bin/sh
echo "loginctl $*" >>/home/calls
case "$1" in
show-user) if [ -e /home/state/linger ]; then echo Linger=yes; else echo Linger=no; fi ;;
enable-linger) : >/home/state/linger ;;
disable-linger) rm -f /home/state/linger ;;
esac
`

const journalctl = "#!/bin/sh\nexec tail -n 5 /home/state/journal\n"

// TestHiveUnderSystemd installs a unit for a user and for the machine.
func TestHiveUnderSystemd(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"far", "farroot"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			tools := filepath.Join("/tmp", filepath.Base(t.TempDir())+host+"-tools")
			if err := os.Mkdir(tools, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(tools) })
			for name, text := range map[string]string{"systemctl": systemctl, "loginctl": loginctl, "journalctl": journalctl} {
				if err := os.WriteFile(filepath.Join(tools, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			far := newFarMachine(t, farOptions{setEnv: tools + ":/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", setup: "mkdir -m 777 /home/state; : >/home/calls; chmod 666 /home/calls"})
			q := newQueen(t, "127.0.0.1")
			at := []string{host, "--ssh-config", far.config}
			install := append([]string{"hive", "install", "--json", "--listen", "127.0.0.1:" + freePort(t)}, at...)
			unit, owner := "/home/bee/.config/systemd/user/apiary.service", "bee"
			if host == "farroot" {
				unit, owner = "/etc/systemd/system/apiary.service", "apiary"
			}
			before := far.files() + far.there("cat /etc/passwd")

			// A start that fails is undone, the account and lingering too.
			_, errs := q.apiary(5, append([]string{"hive", "install", "--listen", "127.0.0.1:" + strings.TrimPrefix(q.addr, "127.0.0.1:")}, at...)...)
			wants(t, errs, "cannot listen", "was undone")
			if after := far.files() + far.there("cat /etc/passwd"); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			if state := far.there("ls /home/state"); strings.Contains(state, "linger") || strings.Contains(state, "enabled") {
				t.Errorf("what is left of systemd's state: %s", state)
			}

			q.apiary(0, install...)
			wants(t, far.there("cat "+unit), "KillMode=process", "NoNewPrivileges=yes")
			wants(t, far.there("ps -C apiary -o user=,args="), owner, "agent --background")
			wants(t, far.there("ls /home/state"), "enabled", map[string]string{"far": "linger", "farroot": "pid"}[host])
			q.stop()
			q.start()
			out, _ := q.apiary(0, install...)
			wants(t, out, `"listed": true`, `"restarted": false`)
			id, _ := q.apiary(0, "worker", "spawn", "echo:far", "--worker", "echo")
			worker := strings.TrimSpace(id)

			// Another unit text is written, and the agent restarted; its worker goes on.
			out, _ = q.apiary(0, append(install, "--insecure-i-know")...)
			wants(t, out, `"restarted": true`, `"program": "same"`, `"listed": true`)
			wants(t, far.processes(), worker, "agent --background --insecure-i-know")

			q.apiary(0, append([]string{"hive", "stop", "--keep-workers"}, at...)...)
			wants(t, far.processes(), worker)
			q.apiary(0, append([]string{"hive", "start"}, at...)...)
			q.apiary(0, append([]string{"hive", "stop"}, at...)...)
			if left := far.processes(); left != "" {
				t.Errorf("after stop there runs %s", left)
			}
			q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes"}, at...)...)
			if after := far.files() + far.there("cat /etc/passwd"); strings.Contains(strings.ReplaceAll(after, "/home/bee/.config", ""), "apiary") {
				t.Errorf("after a purge there are %s", after)
			}
			if state := far.there("ls /home/state"); strings.Contains(state, "enabled") {
				t.Errorf("the unit is still enabled: %s", state)
			}
		})
	}
}

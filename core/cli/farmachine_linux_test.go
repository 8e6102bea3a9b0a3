package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// farMachine is another machine as ssh sees one: a real sshd in namespaces of its own (mounts, processes and, where it has another address,
// the network), with a file system of which the places that an installation uses are its own. Nothing of this machine's ssh is
// used or changed, and everything that runs there ends with it.
type farMachine struct {
	t      *testing.T
	dir    string // of keys and settings
	addr   string
	port   int
	init   int    // the process outside that is 1 inside
	config string // for ssh
	log    string // of sshd
}

// farOptions says how the machine is.
type farOptions struct {
	network  int    // from 1, each test its own: it has an address of its own, 10.78.<n>.2, and this machine is 10.78.<n>.1; 0: it has none
	home     string // mount options of the home folder of bee; "": size=512m
	shell    string // of bee; "": /bin/sh
	setup    string // more commands, run as root inside before sshd starts
	password string // of bee, who then has no key; "": the key alone
	setEnv   string // PATH that sessions get; "": the usual one
}

// newFarMachine starts one, or skips the test with the reason why it cannot.
func newFarMachine(t *testing.T, o farOptions) *farMachine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("another machine is made of namespaces, which needs root")
	}
	sshd := "/usr/sbin/sshd"
	for _, program := range []string{sshd, "ssh", "ssh-keygen", "unshare", "mount", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not here (Debian: openssh-server, openssh-client, util-linux)", program)
		}
	}
	if err := exec.Command("unshare", "--mount", "--pid", "--fork", "true").Run(); err != nil {
		t.Skipf("there can be no namespaces here: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", "apiary-far-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // bee reads its keys
		t.Fatal(err)
	}
	m := &farMachine{t: t, dir: dir, addr: "127.0.0.1", config: filepath.Join(dir, "ssh_config"), log: filepath.Join(dir, "sshd.log")}
	for _, key := range []string{"host", "user", "stranger"} {
		m.local("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	if o.shell == "" {
		o.shell = "/bin/sh"
	}
	if o.home == "" {
		o.home = "size=512m"
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	hash, passwords := "*", "no"
	if o.password != "" {
		out, err := exec.Command("openssl", "passwd", "-6", o.password).Output()
		if err != nil {
			t.Skipf("openssl makes no password: %v", err)
		}
		hash, passwords = strings.TrimSpace(string(out)), "yes"
	}
	shadow := "root:*:19000:0:99999:7:::\nbee:" + hash + ":19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n"
	m.write("passwd", string(passwd)+"bee:x:20001:20001::/home/bee:"+o.shell+"\n", 0o644)
	m.write("group", string(group)+"bee:x:20001:\n", 0o644)
	m.write("shadow", shadow, 0o600)
	pub, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if o.password != "" {
		pub = nil
	}
	m.write("authorized", string(pub), 0o644)
	if o.network > 0 {
		n := (2*os.Getpid() + o.network) % 250
		m.addr = fmt.Sprintf("10.78.%d.2", n)
	}
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	m.port, _ = strconv.Atoi(port)
	setEnv := ""
	if o.setEnv != "" {
		setEnv = "SetEnv PATH=" + o.setEnv + "\n"
	}
	m.write("sshd_config", fmt.Sprintf(`Port %d
ListenAddress %s
HostKey %s/host
AuthorizedKeysFile %s/authorized
StrictModes no
UsePAM no
PasswordAuthentication %s
KbdInteractiveAuthentication no
PidFile none
LogLevel ERROR
%s`, m.port, m.addr, dir, dir, passwords, setEnv), 0o600)
	// 127.0.0.1 is also the network of this machine, unless it has one of its own.
	m.write("init", fmt.Sprintf(`set -eu
mount -t proc proc /proc
for dir in /home /usr/local/bin /var/lib/apiary-far /etc/apiary /etc/systemd/system /root; do
  mkdir -p "$dir" 2>/dev/null || true
done
mount -t tmpfs -o mode=755 tmpfs /home
mkdir /home/bee
mount -t tmpfs -o mode=755,%s tmpfs /home/bee
chown 20001:20001 /home/bee
mount -t tmpfs -o mode=755,size=512m tmpfs /usr/local/bin
mount -t tmpfs -o mode=755,size=512m tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd
mount -t tmpfs -o mode=700 tmpfs /root
cp -a /etc %s/etc
mount --bind %s/etc /etc
rm -rf /etc/apiary /etc/systemd/system
mkdir /etc/systemd/system
cp %s/passwd /etc/passwd; cp %s/group /etc/group; cp %s/shadow /etc/shadow
%s
echo up >%s/up
exec %s -D -e -f %s/sshd_config
`, o.home, dir, dir, dir, dir, dir, o.setup, dir, sshd, dir), 0o600)
	args := []string{"--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation", "private"}
	if o.network > 0 {
		args = append(args, "--net")
	}
	script := "exec sh " + dir + "/init"
	if o.network > 0 {
		script = fmt.Sprintf("while [ ! -e %s/net ]; do sleep 0.02; done; ip link set lo up; ", dir) + script
	}
	cmd := exec.Command("unshare", append(args, "sh", "-c", script)...)
	logFile, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logFile.Close() }()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.init = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(m.log)
			t.Logf("sshd said:\n%s", b)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if o.network > 0 {
		m.connectNetwork(o.network)
	}
	m.write("ssh_config", fmt.Sprintf(`Host far
  HostName %s
  Port %d
  User bee
  IdentityFile %s/user
Host farroot
  HostName %s
  Port %d
  User root
  IdentityFile %s/user
Host farstranger
  HostName %s
  Port %d
  User bee
  IdentityFile %s/stranger
Host *
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile %s/known
  GlobalKnownHostsFile /dev/null
`, m.addr, m.port, dir, m.addr, m.port, dir, m.addr, m.port, dir, dir), 0o600)
	hostKey, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	m.write("known", fmt.Sprintf("[%s]:%d %s", m.addr, m.port, hostKey), 0o600)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.DialTimeout("tcp", net.JoinHostPort(m.addr, port), time.Second); err == nil {
			_ = conn.Close()
			return m
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(m.log)
			t.Fatalf("the other machine did not come up: %s", b)
		}
	}
}

// connectNetwork joins the networks of the two machines by a cable.
func (m *farMachine) connectNetwork(n int) {
	m.t.Helper()
	here := strings.TrimSuffix(m.addr, "2") + "1"
	near, far := fmt.Sprintf("apn%d.%d", os.Getpid()%100000, n), fmt.Sprintf("apf%d.%d", os.Getpid()%100000, n)
	inside := ""
	for deadline := time.Now().Add(10 * time.Second); inside == ""; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.init, m.init)); err == nil {
			inside = strings.TrimSpace(string(b))
		}
		if time.Now().After(deadline) {
			m.t.Fatal("the other machine has no process")
		}
	}
	if out, err := exec.Command("ip", "link", "add", near, "type", "veth", "peer", "name", far).CombinedOutput(); err != nil {
		m.t.Skipf("there can be no second network here: %v %s", err, out)
	}
	m.t.Cleanup(func() { _ = exec.Command("ip", "link", "del", near).Run() })
	m.local("ip", "link", "set", far, "netns", inside)
	m.local("ip", "addr", "add", here+"/24", "dev", near)
	m.local("ip", "link", "set", near, "up")
	m.local("nsenter", "-t", inside, "-n", "ip", "addr", "add", m.addr+"/24", "dev", far)
	m.local("nsenter", "-t", inside, "-n", "ip", "link", "set", far, "up")
	m.write("net", "", 0o600)
}

func (m *farMachine) write(name, content string, mode os.FileMode) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m *farMachine) local(program string, args ...string) {
	m.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// there runs a command on the machine as root, past ssh.
func (m *farMachine) there(command string) string {
	m.t.Helper()
	inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.init, m.init))
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := exec.Command("nsenter", "-t", strings.TrimSpace(string(inside)), "-m", "-p", "-n", "sh", "-c", command).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// files lists what the machine has where an installation puts things, but for what a running agent remembers from time to time.
func (m *farMachine) files() string {
	return m.there(`find /home/bee /usr/local/bin /var/lib /etc/apiary /etc/systemd/system -mindepth 1 ! -type s ! -path '*/apiary/state/*' 2>/dev/null | sort`)
}

// processes lists what runs there of ours.
func (m *farMachine) processes() string {
	return m.there(`ps -e -o args= | grep -E '[a]piary (agent|worker|exec-child)|[s]etsid' || true`)
}

// queenHome is the data folder of a queen on this machine.
type queenHome struct {
	t    *testing.T
	home string
	addr string
	env  []string
}

// newQueen starts a queen without a hive.
func newQueen(t *testing.T, at string) *queenHome { return newQueenWith(t, at, "") }

// newQueenWith is newQueen with more in its configuration.
func newQueenWith(t *testing.T, at, more string) *queenHome {
	t.Helper()
	home := t.TempDir()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	q := &queenHome{t: t, home: home, addr: net.JoinHostPort(at, port)}
	if err := os.WriteFile(filepath.Join(home, "config.hcl"), []byte(fmt.Sprintf("agent {\n  roles = [\"queen\"]\n}\n\nqueen {\n  listen = %q\n  hives  = []\n}\n%s", q.addr, more)), 0o600); err != nil {
		t.Fatal(err)
	}
	q.env = []string{"TMPDIR=" + home, "APIARY_HOME=" + home, "HOME=" + home, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	q.start()
	t.Cleanup(q.stop)
	return q
}

func (q *queenHome) start() {
	q.t.Helper()
	cmd := exec.Command(filepath.Join(built, "apiary"), "agent", "--background", "--insecure-i-know")
	cmd.Env = q.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		q.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if code, err := get(context.Background(), "http://"+q.addr+"/healthz"); err == nil && code == 200 {
			return
		}
		if time.Now().After(deadline) {
			q.t.Fatal("the queen did not start")
		}
	}
}

func (q *queenHome) stop() {
	cmd := exec.Command(filepath.Join(built, "apiary"), "stop", "--keep-workers")
	cmd.Env = q.env
	_ = cmd.Run()
}

// apiary runs a command and wants its exit code. It returns what it wrote to both outputs.
func (q *queenHome) apiary(code int, args ...string) (stdout, stderr string) {
	q.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(built, "apiary"), args...)
	cmd.Env = q.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		q.t.Fatal(err)
	}
	if got != code {
		q.t.Fatalf("apiary %s ended with %d, not %d\n%s%s", strings.Join(args, " "), got, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

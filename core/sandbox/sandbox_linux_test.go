package sandbox

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary plays the launcher and then, under the policy, the hostile program: "launch POLICY FOLDER PID".
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "launch" {
		policy, err := Decode(os.Args[2])
		if err == nil {
			err = Restrict(policy)
		}
		if err == nil {
			err = unix.Exec(os.Args[0], []string{os.Args[0], "try", os.Args[3], os.Args[4], "now"}, []string{"GORACE=atexit_sleep_ms=0"})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) == 5 && os.Args[1] == "try" {
		_ = json.NewEncoder(os.Stdout).Encode(try(os.Args[2], os.Args[3]))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// try makes every attempt and says which succeeded: reading and writing below the folder root, and what the process pid has.
func try(root, pid string) map[string]bool {
	done := map[string]bool{}
	read := func(name, path string) {
		_, err := os.ReadFile(path)
		done[name] = err == nil
	}
	write := func(name, path string) { done[name] = os.WriteFile(path, []byte("x"), 0o600) == nil }
	read("read secret", filepath.Join(root, "secrets", "admin.key"))
	read("read own", filepath.Join(root, "own", "model"))
	read("read through a link", filepath.Join(root, "own", "link"))
	read("read library", "/proc/self/status")
	read("read environment", "/proc/"+pid+"/environ")
	read("read own scratch", filepath.Join(root, "scratch", "kept"))
	write("write scratch", filepath.Join(root, "scratch", "new"))
	write("write own", filepath.Join(root, "own", "model2"))
	write("write elsewhere", filepath.Join(root, "elsewhere"))
	write("change secret", filepath.Join(root, "secrets", "admin.key"))
	write("write null", "/dev/null")
	done["move out of scratch"] = os.Rename(filepath.Join(root, "scratch", "moved"), filepath.Join(root, "taken")) == nil
	_ = os.Mkdir(filepath.Join(root, "scratch", "folder"), 0o700)
	done["move in scratch"] = os.Rename(filepath.Join(root, "scratch", "new"), filepath.Join(root, "scratch", "folder", "new")) == nil
	done["list home"] = func() bool { _, err := os.ReadDir(root); return err == nil }()
	var number int
	_, _ = fmt.Sscan(pid, &number)
	done["signal"] = unix.Kill(number, 0) == nil
	if f, err := os.Open("/proc/" + pid + "/mem"); err == nil {
		done["open memory"] = true
		_ = f.Close()
	}
	done["trace"] = unix.PtraceAttach(number) == nil
	for _, port := range []string{"port", "other"} {
		b, _ := os.ReadFile(filepath.Join(root, "own", port))
		var n int
		_, _ = fmt.Sscan(string(b), &n)
		done["connect "+port] = tcp(n, unix.Connect) == nil
	}
	done["listen"] = tcp(0, unix.Bind) == nil
	return done
}

func tcp(port int, use func(int, unix.Sockaddr) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return use(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

// place makes the folders of the attempts, two listeners, and a process to look at.
func place(t *testing.T) (root, pid string, ports [2]uint16) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"secrets", "own", "scratch"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{"secrets/admin.key": "canary", "own/model": "model", "scratch/kept": "x", "scratch/moved": "x"}
	for i, name := range []string{"own/port", "own/other"} {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		port := l.Addr().(*net.TCPAddr).Port
		ports[i], files[name] = uint16(port), fmt.Sprint(port)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(root, "secrets", "admin.key"), filepath.Join(root, "own", "link")); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("/bin/sleep", "600")
	sleep.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	return root, fmt.Sprint(sleep.Process.Pid), ports
}

func attempt(t *testing.T, policy Policy, root, pid string) map[string]bool {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := policy.encode()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd := exec.Command(own, "launch", encoded, root, pid)
	cmd.Env, cmd.Stderr = []string{"GORACE=atexit_sleep_ms=0"}, &stderr
	out, err := cmd.Output()
	done := map[string]bool{}
	if err != nil || json.Unmarshal(out, &done) != nil {
		t.Fatalf("%v, answered %q, %s", err, out, stderr.String())
	}
	return done
}

// permitted is what the policy of the test leaves to the hostile program.
var permitted = []string{"read own", "read library", "read own scratch", "write scratch", "write null", "move in scratch", "connect port"}

// TestRestrict has a hostile program try everything: without a policy, where each attempt must succeed, or it proves nothing, and
// with one.
func TestRestrict(t *testing.T) {
	root, pid, _ := place(t)
	for name, ok := range attempt(t, Policy{}, root, pid) {
		if !ok && (os.Geteuid() == 0 || name != "trace") { // a kernel may keep the users of a machine from tracing
			t.Errorf("without a policy: %q fails, so that it says nothing below", name)
		}
	}
	have := Kernel()
	if have.ABI == 0 {
		t.Skip("the rest is skipped: " + have.Why)
	}
	own, _ := os.Executable()
	for abi := 1; abi <= have.ABI; abi++ {
		t.Run(fmt.Sprint("version ", abi), func(t *testing.T) {
			root, pid, ports := place(t)
			done := attempt(t, Policy{ABI: abi, Read: append(System(root), own, filepath.Join(root, "own")), Write: []string{filepath.Join(root, "scratch")},
				Devices: Plain(), Bind: []uint16{}, Connect: ports[:1]}, root, pid)
			allowed := slices.Clone(permitted)
			if abi < 2 {
				allowed = slices.DeleteFunc(allowed, func(s string) bool { return s == "move in scratch" })
			}
			if abi < 4 {
				allowed = append(allowed, "connect other", "listen")
			}
			if abi < 6 {
				allowed = append(allowed, "signal")
			}
			for name, ok := range done {
				if want := slices.Contains(allowed, name); ok != want {
					t.Errorf("%q: succeeded %v, want %v", name, ok, want)
				}
			}
		})
	}
	t.Run("more than there is", func(t *testing.T) {
		if err := Restrict(Policy{ABI: have.ABI + 100}); err == nil {
			t.Error("a version that the kernel does not have was taken for put in force")
		}
	})
}

func TestSupport(t *testing.T) {
	for _, c := range []struct {
		version int
		err     error
		abi     int
		says    string
	}{
		{6, nil, 6, ""},
		{Newest + 5, nil, Newest, ""},
		{-1, unix.ENOSYS, 0, "This kernel has no Landlock"},
		{-1, unix.EOPNOTSUPP, 0, "lsm="},
		{-1, unix.EPERM, 0, "does not say"},
		{0, nil, 0, "no version"},
	} {
		s := support(c.version, c.err)
		if s.ABI != c.abi || (s.Why == "") != (c.says == "") || !strings.Contains(s.Why, c.says) {
			t.Errorf("version %d, %v: %+v", c.version, c.err, s)
		}
	}
}

func TestPolicyAsAnArgument(t *testing.T) {
	p := Policy{ABI: 4, Read: []string{"/a b;$(id)"}, Write: []string{"."}, Devices: []string{"/dev/null"}, Bind: []uint16{}, Connect: nil}
	s, err := p.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(s)
	if err != nil || fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", p) {
		t.Errorf("%s became %#v, %v", s, got, err)
	}
	for _, bad := range []string{"", "{", `{"abi":"x"}`, `{"unknown":1}`} {
		if _, err := Decode(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestWithout: a folder of the system that holds the data folder is permitted but for the way to that.
func TestWithout(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"usr/lib", "usr/local/apiary/secrets", "usr/local/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(root, "usr/local/apiary"), filepath.Join(root, "home")); err != nil {
		t.Fatal(err)
	}
	at := func(paths ...string) []string {
		for i := range paths {
			paths[i] = filepath.Join(root, paths[i])
		}
		return paths
	}
	for _, c := range []struct {
		dir, inside string
		want        []string
	}{
		{"usr", "usr/local/apiary", at("usr/lib", "usr/local/lib")},
		{"usr", "home", at("usr/lib", "usr/local/lib")},
		{"usr/lib", "usr/local/apiary", at("usr/lib")},
		{"usr/local/apiary/secrets", "home", nil},
		{"home", "usr/local/apiary", nil},
		{"not there", "home", at("not there")},
	} {
		if got := Without(filepath.Join(root, c.dir), filepath.Join(root, c.inside)); !slices.Equal(got, c.want) {
			t.Errorf("%s without %s: %q, want %q", c.dir, c.inside, got, c.want)
		}
	}
}

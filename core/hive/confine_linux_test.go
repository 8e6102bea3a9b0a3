package hive

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/sandbox"
)

// setuidProgram is below the data folder: a program that is root's and runs as root, where the test could make one.
const setuidProgram = "models/setuid"

// hostile is a worker whose engine was taken over: it tries what it may not and writes what succeeded beside its log. Its parent is the
// agent; the data folder is three above its working folder.
func hostile(args []string) int {
	if args[0] == "trace" {
		pid, err := strconv.Atoi(args[1])
		if err != nil || unix.PtraceSeize(pid) != nil {
			return 1
		}
		return 0
	}
	home, err := filepath.Abs("../../..")
	if err != nil {
		return 1
	}
	done := map[string]bool{}
	read := func(name, path string) {
		b, err := os.ReadFile(path)
		done[name] = err == nil && len(b) > 0
	}
	write := func(name, path string) { done[name] = os.WriteFile(path, []byte("x"), 0o600) == nil }
	agent := os.Getppid()
	read("its model", args[slices.Index(args, "--model-path")+1])
	read("its model's other file", filepath.Join(home, "models", "shard2"))
	read("its engine", filepath.Join(args[slices.Index(args, "--engine-dir")+1], "libengine.so"))
	read("a library that its engine links to", filepath.Join(args[slices.Index(args, "--engine-dir")+1], "libother.so"))
	read("memory information", "/proc/meminfo")
	write("its temporary folder", "scratch")
	write("beside its log", "../note")

	read("the admin key", filepath.Join(home, "secrets", "admin.key"))
	read("a credential", filepath.Join(home, "secrets", "credentials", "huggingface"))
	read("the shared state", filepath.Join(home, "state", "shared.json"))
	read("the configuration", filepath.Join(home, "config.hcl"))
	read("the log of another worker", filepath.Join(home, "workers", "w-other", "worker.log"))
	read("a plugin", filepath.Join(home, "plugins", "store", "x"))
	read("another model", filepath.Join(home, "models", "another"))
	read("passwords", "/etc/shadow")
	_, err = os.ReadDir(home)
	done["the list of the data folder"] = err == nil
	for _, name := range []string{"environ", "maps", "mem"} {
		if f, err := os.Open(fmt.Sprintf("/proc/%d/%s", agent, name)); err == nil {
			b := make([]byte, 1)
			_, err := f.Read(b)
			done["the agent's "+name] = err == nil || name == "mem" // nothing is mapped at 0
			_ = f.Close()
		}
	}
	done["a trace of the agent"] = exec.Command(os.Args[0], "hostile", "trace", strconv.Itoa(agent)).Run() == nil // which ends with its tracer
	_, err = os.Readlink(fmt.Sprintf("/proc/%d/fd/0", agent))
	done["the agent's files"] = err == nil
	write("the configuration, changed", filepath.Join(home, "config.hcl"))
	write("an executable, changed", filepath.Join(home, "engines", "e", "libengine.so"))
	write("its model, changed", args[slices.Index(args, "--model-path")+1])
	write("the folder of another worker", filepath.Join(home, "workers", "w-other", "x"))
	write("a folder of somebody else", filepath.Join(home, "elsewhere", "x"))
	done["a link to a secret"] = os.Symlink(filepath.Join(home, "secrets", "admin.key"), "link") == nil && func() bool { _, err := os.ReadFile("link"); return err == nil }()
	done["a signal to the agent"] = unix.Kill(agent, 0) == nil
	out, err := exec.Command(filepath.Join(home, setuidProgram), "-u").Output()
	done["another user, by a program that is root's"] = err == nil && strings.TrimSpace(string(out)) != strconv.Itoa(os.Geteuid())
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	done["another port"] = err == nil && unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}) == nil

	b, _ := json.Marshal(done)
	if os.WriteFile("../tried.tmp", b, 0o600) != nil || os.Rename("../tried.tmp", "../tried") != nil {
		return 1
	}
	l, err := net.Listen("tcp4", "127.0.0.1:"+args[slices.Index(args, "--port")+1])
	if err != nil {
		return 1
	}
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	time.Sleep(time.Minute) // nothing stays behind
	return 0
}

// TestHostileWorker is T55 for a worker that is taken over, with and without Landlock: without, most of what it tries succeeds, or the
// test would show nothing.
func TestHostileWorker(t *testing.T) {
	mine := []string{"its model", "its model's other file", "its engine", "a library that its engine links to", "memory information", "its temporary folder", "beside its log"}
	// What the user's rights or no_new_privs refuse without Landlock.
	never := []string{"another user, by a program that is root's"}
	for name, support := range map[string]sandbox.Support{"without": {Why: "The test switched it off."}, "with": sandbox.Kernel()} {
		t.Run(name+" Landlock", func(t *testing.T) {
			if support.ABI == 0 && name == "with" {
				t.Skip("skipped: " + support.Why)
			}
			a := serve(t, func(o *Options) { o.Sandbox = &support })
			store := a.hive.opts.Artifacts.(*store)
			home := a.hive.opts.Home
			for _, f := range []string{"secrets/admin.key", "secrets/credentials/huggingface", "state/shared.json", "config.hcl", "workers/w-other/worker.log", "plugins/store/x",
				"models/another", "models/shard1", "models/shard2", "engines/e/libengine.so", "elsewhere/libother.so"} {
				path := filepath.Join(home, f)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("canary"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(filepath.Join(home, "elsewhere", "libother.so"), filepath.Join(home, "engines", "e", "libother.so")); err != nil {
				t.Fatal(err)
			}
			setuid(t, filepath.Join(home, setuidProgram))
			spec := recorderSpawn("w-1")
			spec.Worker = contract.WorkerKind{Name: "hostile", Adapter: "hostile", Source: "path:e"}
			shard := func(name string) contract.File {
				return contract.File{Path: name, SizeBytes: 6, InPlace: &contract.InPlace{Path: filepath.Join(home, "models", name)}}
			}
			store.models[spec.Model] = contract.Model{ID: spec.Model, Files: []contract.File{shard("shard1"), shard("shard2")}}
			store.engines["path:e"] = contract.Engine{ID: "path:e", Dir: filepath.Join(home, "engines", "e"), Devices: []contract.Device{{ID: "cpu0", Kind: "cpu"}}}
			a.spawn(spec)
			b, err := os.ReadFile(filepath.Join(a.hive.workerDir("w-1"), "tried"))
			done := map[string]bool{}
			if err != nil || json.Unmarshal(b, &done) != nil || len(done) < 20 {
				log, _ := os.ReadFile(filepath.Join(a.hive.workerDir("w-1"), logName))
				t.Fatalf("%v, %s, log %s", err, b, log)
			}
			for what, ok := range done {
				want := slices.Contains(mine, what)
				if support.ABI == 0 {
					if os.Geteuid() != 0 && slices.Contains([]string{"passwords", "a trace of the agent", "the agent's mem", "the agent's environ", "the agent's maps"}, what) {
						continue // the user's rights and the kernel's settings decide
					}
					want = !slices.Contains(never, what)
				}
				if what == "another port" && support.ABI < 4 || what == "a signal to the agent" && support.ABI < 6 {
					want = true
				}
				if ok != want {
					t.Errorf("%s: succeeded %v, want %v", what, ok, want)
				}
			}
			list := a.list()
			if len(list) != 1 || list[0].Protection.Landlock != support.ABI || !list[0].Protection.NoNewPrivs {
				t.Errorf("the process list says %+v", list)
			}
			if inv, err := a.hive.inventory(t.Context()); err != nil || *inv.Protection != (contract.Protection{NoNewPrivs: true, Landlock: support.ABI, Reason: support.Why}) {
				t.Errorf("the inventory says %+v, %v", inv.Protection, err)
			}
		})
	}
}

// setuid makes a program that says who runs it, and is another user's with the bit that makes who runs it that user.
func setuid(t *testing.T, path string) {
	t.Helper()
	const nobody = 65534
	id, err := exec.LookPath("id")
	if err != nil || os.Geteuid() != 0 {
		t.Log("no program of another user is tried: that needs root and the program id")
		return
	}
	b, err := os.ReadFile(id)
	if err == nil {
		err = os.WriteFile(path, b, 0o755)
	}
	if err == nil {
		err = os.Chown(path, nobody, nobody)
	}
	if err == nil {
		err = os.Chmod(path, 0o755|os.ModeSetuid)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "-u").Output(); err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(nobody) {
		t.Logf("the program of another user runs as %q (%v), so that it shows nothing", out, err)
	}
}

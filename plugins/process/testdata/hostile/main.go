// A plugin that is as bad as its argument says, for tests.
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func init() { sdk.Register(&hostile{}) }

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	socket := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s")
	switch mode {
	case "":
		sdk.Main()
	case "hang":
		forever()
	case "exit":
		fmt.Fprintln(os.Stderr, "cannot find the library that I need")
		os.Exit(3)
	case "garbage":
		for range 1000 {
			fmt.Println("welcome to this plugin")
		}
		forever()
	case "endless":
		for {
			if _, err := os.Stdout.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				os.Exit(1)
			}
		}
	case "version":
		fmt.Println("1|7|unix|" + socket + "|grpc|")
		forever()
	case "outside":
		fmt.Println("1|1|unix|/var/run/other.sock|grpc|")
		forever()
	case "certificate":
		fmt.Println("1|1|unix|" + socket + "|grpc|" + strings.Repeat("MIIB", 40))
		forever()
	case "no-certificate", "mute":
		l, err := net.Listen("unix", socket)
		if err != nil {
			panic(err)
		}
		fmt.Println("1|1|unix|" + socket + "|grpc|")
		for {
			if _, err := l.Accept(); err != nil { // and not a word
				panic(err)
			}
		}
	}
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

type hostile struct {
	calls atomic.Int32
	host  vendor.Host
}

func (*hostile) Info() vendor.Info        { return vendor.Info{Name: "hostile", Version: "1.0.0"} }
func (*hostile) Supports(ref string) bool { return true }
func (*hostile) Schema() vendor.Schema    { return vendor.Schema{} }
func (h *hostile) Configure(_ context.Context, c vendor.Configuration) error {
	h.host = c.Host
	return nil
}

func (h *hostile) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	n := h.calls.Add(1)
	what, argument, _ := strings.Cut(req.Reference, ":")
	m := &vendor.Manifest{Reference: what, Meta: map[string]string{}}
	switch what {
	case "panic":
		panic("no such luck")
	case "crash":
		go func() { panic("in the background") }()
		forever()
	case "third":
		if n == 3 {
			os.Exit(7)
		}
	case "sleep":
		forever()
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	case "large":
		m.Format = strings.Repeat("x", 100<<20)
	case "environment":
		for _, e := range os.Environ() {
			name, value, _ := strings.Cut(e, "=")
			m.Meta[name] = value
		}
	case "flood":
		line := append(bytes.Repeat([]byte("flood "), 20), '\n')
		block := bytes.Repeat(line, 500)
		for _, out := range []*os.File{os.NewFile(1, "1"), os.NewFile(2, "2")} {
			for sent := 0; sent < 512<<20; sent += len(block) {
				if _, err := out.Write(block); err != nil {
					return nil, err
				}
			}
		}
		for range 1000 {
			fmt.Fprintln(os.Stderr, "through the library")
		}
	case "grandchild", "session": // the second one leaves the group; the argument tells them from others
		cmd := exec.Command("/bin/sleep", argument)
		cmd.Stdout, cmd.Stderr = os.NewFile(1, "1"), os.NewFile(2, "2")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: what == "session"}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
	case "try": // what it may not; the argument is the data folder and the agent, and the answer what succeeded
		home, agent, _ := strings.Cut(argument, ":")
		m.Format = strings.Join(try(home, agent), ",")
	case "get":
		value, err := h.host.Get(ctx, argument)
		if err != nil {
			return nil, err
		}
		m.Format = string(value)
	case "many":
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { _, _ = h.host.Get(ctx, "slow") })
		}
		wg.Wait()
	case "http":
		resp, err := h.host.HTTP(ctx, vendor.HTTPRequest{URL: argument})
		if err != nil {
			return nil, err
		}
		m.Format = fmt.Sprint(len(resp.Body))
	case "deadline":
		deadline, ok := ctx.Deadline()
		m.Format = fmt.Sprint(ok && time.Until(deadline) < time.Minute)
	}
	return m, nil
}

// try makes every attempt and returns those that succeeded.
func try(home, agent string) []string {
	done := []string{}
	note := func(name string, ok bool) {
		if ok {
			done = append(done, name)
		}
	}
	read := func(name, path string) {
		b, err := os.ReadFile(path)
		note(name, err == nil && len(b) > 0)
	}
	write := func(name, path string) { note(name, os.WriteFile(path, []byte("x"), 0o600) == nil) }
	own, _ := os.Executable()
	read("read itself", own)
	write("write its folder", "scratch")
	write("write its temporary folder", filepath.Join(os.Getenv("TMPDIR"), "scratch"))
	read("read the admin key", filepath.Join(home, "secrets", "admin.key"))
	read("read another plugin", filepath.Join(home, "plugins", "store", "other"))
	read("read another plugin's state", filepath.Join(home, "plugins", "state", "other.json"))
	read("read the configuration", filepath.Join(home, "config.hcl"))
	read("read the user's home", filepath.Join(home, "..", "id_ed25519"))
	read("read the agent's environment", "/proc/"+agent+"/environ")
	write("write elsewhere", filepath.Join(home, "x"))
	write("change itself", own)
	note("connect", func() bool {
		c, err := net.DialTimeout("tcp", os.Getenv("TRY_ADDRESS"), time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}())
	note("read the agent's memory", func() bool {
		f, err := os.Open("/proc/" + agent + "/mem")
		if err == nil {
			_ = f.Close()
		}
		return err == nil
	}())
	note("list the agent's files", func() bool { _, err := os.Readlink("/proc/" + agent + "/fd/0"); return err == nil }())
	return done
}

package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/sandbox"
)

const nativeWorker = "apiary-llama"

// nativeExecutable finds the executable of the native worker: carried inside this one and written to the data folder on
// first use, or else beside this one.
type nativeExecutable struct {
	home    string
	version string
	own     string // this executable
	carried []byte // nil: this build carries none

	mu   sync.Mutex // guards the field below; held while the file is written, so that it is written once
	path string
}

// Path returns the executable's absolute path.
func (n *nativeExecutable) Path() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.path != "" {
		return n.path, nil
	}
	path, err := n.find()
	if err != nil {
		return "", err
	}
	n.path = path
	return path, nil
}

func (n *nativeExecutable) find() (string, error) {
	if n.carried == nil {
		path := filepath.Join(filepath.Dir(n.own), nativeWorker)
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			return "", fault.New(fault.Unavailable, "native_worker_missing",
				"This build of apiary does not carry the native worker and there is no %s beside it; build with `make build`.", nativeWorker)
		}
		return path, nil
	}
	sum := sha256.Sum256(n.carried)
	dir := filepath.Join(n.home, "engines", nativeWorker, n.version+"-"+hex.EncodeToString(sum[:])[:12])
	path := filepath.Join(dir, nativeWorker)
	// The file is compared as a whole: a machine that lost power may have kept its name and lost its bytes.
	if b, err := folder.ReadFile(path, contract.Bytes(len(n.carried))); err == nil && bytes.Equal(b, n.carried) {
		return path, nil
	}
	if err := folder.Make(n.home, "engines/"+nativeWorker+"/"+filepath.Base(dir)); err != nil {
		return "", folder.Full(err, n.home, "the native worker", int64(len(n.carried)))
	}
	return path, publish(path, n.carried, 0o700)
}

// selfTestTimeout bounds the loading of an engine's libraries and the listing of its devices; a GPU driver may take seconds.
const selfTestTimeout = 60 * time.Second

// selfTest loads an engine in a child process and reports its build and its devices. What is wrong with the engine comes
// back as a fault of kind Unavailable with the child's own last words; its text goes on after the name of the engine.
func (n *nativeExecutable) selfTest(ctx context.Context, engineDir string) (artifact.SelfTestReport, error) {
	var report artifact.SelfTestReport
	path, err := n.Path()
	if err != nil {
		return report, err
	}
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	engine, err := sandbox.Followed(engineDir)
	if err != nil {
		return report, err
	}
	policy := sandbox.Policy{
		Read: slices.Concat(sandbox.System(n.home), sandbox.Graphics(n.home), engine, []string{path}), Devices: slices.Concat(sandbox.Plain(), sandbox.GPUs()),
		Bind: []uint16{}, Connect: []uint16{},
	}
	for _, dir := range filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")) {
		policy.Read = append(policy.Read, sandbox.Without(dir, n.home)...)
	}
	args, err := sandbox.Kernel().With(policy).Launch([]string{n.own, "exec-child"}, path, []string{"selftest", "--engine-dir", engineDir})
	if err != nil {
		return report, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LANG=C.UTF-8"}
	for _, name := range []string{"CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.WaitDelay = 2 * time.Second
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return report, fault.New(fault.Unavailable, "self_test_failed", "its self-test did not end within %v.", selfTestTimeout)
	case ctx.Err() != nil:
		return report, ctx.Err()
	case err != nil:
		return report, fault.New(fault.Unavailable, "self_test_failed", "its self-test failed (%v): %s", err, stderr.lastLine())
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		return report, fault.New(fault.Unavailable, "self_test_failed", "its self-test gave an answer that cannot be read: %w", err)
	}
	return report, nil
}

// tail keeps the last 64 KiB of what is written to it.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	const limit = 64 << 10
	n := len(p)
	if over := t.Len() + n - limit; over > 0 {
		t.Next(min(over, t.Len()))
		p = p[max(0, n-limit):]
	}
	_, _ = t.Buffer.Write(p)
	return n, nil
}

var _ io.Writer = (*tail)(nil)

// lastLine returns the last line with something on it, without control characters.
func (t *tail) lastLine() string {
	lines := strings.FieldsFunc(t.String(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := len(lines) - 1; i >= 0; i-- {
		clean := strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return -1
			}
			return r
		}, lines[i]))
		if clean != "" {
			return clean
		}
	}
	return "it said nothing"
}

// Package process runs a plugin as a process of its own: started from a verified file with an environment of its own, reached
// over gRPC with mutual TLS, bounded in what it may send and how long it may take, and ended with everything that it started. It
// does not start a plugin again; plugins/host does.
package process

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/plugins/sdk/wire"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// TLSNone is the TLS of a plugin that speaks plainly, on a socket in a folder of this user alone.
const TLSNone = "none"

// Codes of the errors of this package. All but CodeDigest are of kind Unavailable or Internal.
const (
	CodeDigest      = "plugin_digest"       // the file is not the one that was pinned
	CodeStart       = "plugin_start"        // it could not be started, or ended before it was ready
	CodeHandshake   = "plugin_handshake"    // it did not say what a plugin says
	CodeVersion     = "plugin_version"      // it was built for another version of the contract
	CodeStartTime   = "plugin_start_time"   // it was not ready in time
	CodeExited      = "plugin_exited"       // it ended while it was used
	CodeTime        = "plugin_time"         // a call took too long
	CodeReplyLarge  = "plugin_reply_large"  // an answer has more than 16 MiB
	CodeUnreachable = "plugin_unreachable"  // it runs and cannot be talked to
	CodeUnkillable  = "plugin_not_killable" // it does not end
)

// Bounds.
const (
	startTime    = 10 * time.Second
	graceTime    = 3 * time.Second  // for an orderly end
	killTime     = 5 * time.Second  // for the kernel to end what was killed
	answerTime   = time.Second      // for a sign of life after a deadline
	cancelTime   = 5 * time.Second  // for one after a call was cancelled
	maxCall      = 15 * time.Minute // where the caller has no deadline
	maxErrorText = 4 << 10
)

// Spec says what to start.
type Spec struct {
	Name      string   // of the plugin, for errors and the log
	Path      string   // absolute path of the program
	Args      []string // after the path
	SHA256    string   // of the program, lower-case hex; "": whatever it is
	Store     string   // folder of this user alone in which programs that were verified are kept, and executed
	Env       []string // besides PATH, HOME, TMPDIR and LANG: nothing of the agent's environment is passed on
	TLS       string   // TLSNone, or "" for mutual TLS
	ExecChild []string // launcher that gives up privileges and then becomes the program; it is given "--" and the program
	Host      vendor.Invoker
	Log       *slog.Logger

	// Sandbox is what the kernel can hold the plugin to, which the launcher puts in force: it reads its program, its interpreter, the
	// system's libraries and Read, and changes its own private folder and Write. Home is the data folder, of which it sees nothing else.
	Sandbox sandbox.Support
	Home    string
	Read    []string
	Write   []string

	StartTimeout time.Duration // 0: 10 s
	RunDir       string        // where the private folder of the process is made; "": the system's folder for temporary files
}

// Process is a running plugin. Its methods may be called concurrently.
type Process struct {
	spec   Spec
	child  *child
	client *plugin.Client
	conn   *grpc.ClientConn
	room   *room

	alive   context.Context // ends with the process
	closing atomic.Bool
	probing atomic.Bool
	cleaned chan struct{} // closed when nothing of the process is left

	work    sync.WaitGroup // goroutines that use conn
	mu      sync.Mutex     // guards the fields below
	stopped bool           // no more work begins
	dialed  *grpc.ClientConn
}

// Start starts the plugin and waits until it is ready: at most StartTimeout, or until ctx ends. The caller closes the Process,
// also when Done is closed already. The errors have the codes of this package, or KindInvalid for a Spec that makes no sense.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if !filepath.IsAbs(spec.Path) || !filepath.IsAbs(spec.Store) || spec.Log == nil || (spec.TLS != "" && spec.TLS != TLSNone) {
		return nil, fault.New(fault.Invalid, "bad_plugin_spec", "The plugin %s cannot be started: its program and its store need absolute paths, and tls is \"none\" or left out.", spec.Name)
	}
	if spec.StartTimeout <= 0 {
		spec.StartTimeout = startTime
	}
	program, err := verify(spec)
	if err != nil {
		return nil, err
	}
	room, err := newRoom(spec.RunDir)
	if err != nil {
		return nil, err
	}
	p := &Process{spec: spec, room: room, cleaned: make(chan struct{})}
	command, err := spec.command(program, room.dir)
	if err != nil {
		room.remove()
		return nil, err
	}
	p.child = newChild(spec, command, room.home)
	if err := p.connect(ctx); err != nil {
		p.child.kill()
		p.clean()
		return nil, err
	}
	alive, ended := context.WithCancel(context.Background())
	p.alive = alive
	go func() {
		<-p.child.exited
		ended()
		p.clean()
	}()
	p.begin(p.serveHost)
	return p, nil
}

// connect starts the process and shakes hands. What it reads is foreign, and go-plugin waits for it without a context: the end
// of the time kills the process, which ends every wait.
func (p *Process) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.spec.StartTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, p.child.kill)()

	var secure *tls.Config
	var extra []string
	if p.spec.TLS != TLSNone {
		config, certificate, err := mutualTLS()
		if err != nil {
			return err
		}
		secure, extra = config, []string{"PLUGIN_CLIENT_CERT=" + certificate}
	}
	config := &plugin.ClientConfig{
		HandshakeConfig:  wire.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{wire.Version: {wire.Name: nil}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		TLSConfig:        secure,
		SkipHostEnv:      true,
		StartTimeout:     2 * p.spec.StartTimeout, // ours comes first, and says more
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       p.child.output("stdout"),
		SyncStderr:       p.child.output("stderr"),
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: p.room.dir},
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxFrame), grpc.MaxCallSendMsgSize(wire.MaxFrame)),
			grpc.WithMaxHeaderListSize(256 << 10),
			grpc.WithStreamInterceptor(p.remember),
		},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, sockets string) (runner.Runner, error) {
			p.child.prepare(slices.Concat(cmd.Env, extra), sockets)
			return p.child, nil
		},
	}
	p.client = plugin.NewClient(config)
	if _, err := p.client.Start(); err != nil {
		return p.startError(ctx, err)
	}
	if secure != nil && secure.RootCAs == nil {
		return fault.New(fault.Internal, CodeHandshake, "The plugin %s answered without a certificate; a plugin that has none says \"tls\": \"none\" in its manifest, or its block in the configuration tls = \"none\".", p.spec.Name)
	}
	client, err := p.client.Client()
	if err != nil {
		return p.startError(ctx, err)
	}
	grpcClient, ok := client.(*plugin.GRPCClient)
	if !ok {
		return fault.New(fault.Internal, CodeHandshake, "The plugin %s does not speak gRPC.", p.spec.Name)
	}
	p.conn = grpcClient.Conn
	if ctx.Err() != nil {
		return p.startError(ctx, ctx.Err())
	}
	return nil
}

// remember keeps the connection that go-plugin made: where its first stream fails, go-plugin closes it no more.
func (p *Process) remember(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	p.mu.Lock()
	p.dialed = conn
	p.mu.Unlock()
	return streamer(ctx, desc, conn, method, opts...)
}

// begin runs f, unless the process is being cleaned up.
func (p *Process) begin(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.work.Go(f)
	}
}

// startError says why the plugin did not start, by what was seen of it.
func (p *Process) startError(ctx context.Context, cause error) error {
	name, said := p.spec.Name, p.child.said()
	if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
		return fmt.Errorf("start the plugin %s: %w", name, err)
	}
	line, whole := p.child.handshake.seen()
	ended := p.child.endedItself()
	doctor := "; `apiary plugin doctor " + name + "` looks for the cause."
	kind, code, text := fault.Unavailable, CodeStart, ""
	switch {
	case ctx.Err() != nil:
		code, text = CodeStartTime, fmt.Sprintf("The plugin %s was not ready after %v%s", name, p.spec.StartTimeout, said)
	case p.child.pid() == 0:
		text = fmt.Sprintf("The plugin %s could not be started: %v", name, cause)
	case !whole && line[0] == "" && ended:
		text = fmt.Sprintf("The plugin %s ended before it was ready (%s)%s", name, p.child.state(), said)
	case !whole || len(line) < 5 || line[0] != fmt.Sprint(plugin.CoreProtocolVersion):
		kind, code, text = fault.Internal, CodeHandshake, fmt.Sprintf("The program of the plugin %s does not begin with what a plugin says%s", name, said)
	case line[1] != fmt.Sprint(wire.Version):
		kind, code, text = fault.Internal, CodeVersion, fmt.Sprintf("The plugin %s keeps version %.20q of the contract and this agent version %d", name, line[1], wire.Version)
	case ended:
		text = fmt.Sprintf("The plugin %s ended before it was ready (%s)%s", name, p.child.state(), said)
	default:
		kind, code, text = fault.Internal, CodeHandshake, fmt.Sprintf("The plugin %s cannot be talked to: %s%s", name, cut(cause.Error(), maxErrorText), said)
	}
	return because(cause, kind, code, "%s", text+doctor)
}

// because is an error whose cause is kept and not shown.
func because(cause error, kind fault.Kind, code, format string, args ...any) *fault.Error {
	e := fault.New(kind, code, format, args...)
	e.Err = cause
	return e
}

// Invoke implements vendor.Invoker. It returns when ctx ends, whatever the plugin does; a plugin that then shows no sign of
// life for a second is killed. An answer has at most 16 MiB.
func (p *Process) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	return wire.Client(func(ctx context.Context, method string, request, reply wire.Message) error {
		return p.failure(ctx, method, p.conn.Invoke(ctx, method, request, reply))
	}).Invoke(ctx, method, request)
}

// failure tells what the plugin meant from what failed on the way.
func (p *Process) failure(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if e := wire.Error(method, err); e != nil {
		e.Message = cut(e.Message, maxErrorText)
		return e
	}
	name, code := p.spec.Name, status.Code(err)
	if code == codes.Canceled || code == codes.DeadlineExceeded { // the plugin's clock may be a little ahead of ours
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 50*time.Millisecond {
			<-ctx.Done()
		}
	}
	if cause := ctx.Err(); cause != nil {
		p.watch(cause)
		if errors.Is(cause, context.DeadlineExceeded) {
			return because(cause, fault.Unavailable, CodeTime, "The plugin %s did not answer %s in time; try again, or look for its lines in the agent's log.", name, filepath.Base(method))
		}
		return fmt.Errorf("call %s of the plugin %s: %w", method, name, cause)
	}
	if (code == codes.Unavailable || code == codes.Canceled) && p.child.waitExit(time.Second) {
		return p.exitError()
	}
	switch code {
	case codes.ResourceExhausted:
		return because(err, fault.Internal, CodeReplyLarge, "The plugin %s answered %s with more than %d MiB; tell its author.", name, filepath.Base(method), wire.MaxMessage>>20)
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return because(err, fault.Unavailable, CodeUnreachable, "The plugin %s runs and cannot be reached; try again.", name)
	}
	return fault.New(fault.Internal, "plugin_failed", "The plugin %s failed to answer %s: %s.", name, filepath.Base(method), cut(status.Convert(err).Message(), maxErrorText))
}

func (p *Process) exitError() error {
	return fault.New(fault.Unavailable, CodeExited, "The plugin %s ended while it was used (%s)%s; try again, and `apiary plugin doctor %s` when it happens again.", p.spec.Name, p.child.state(), p.child.said(), p.spec.Name)
}

// watch expects a sign of life of a plugin that let the time of a call pass.
func (p *Process) watch(cause error) {
	if p.alive.Err() != nil || p.closing.Load() || !p.probing.CompareAndSwap(false, true) {
		return
	}
	bound := cancelTime
	if errors.Is(cause, context.DeadlineExceeded) {
		bound = answerTime
	}
	p.begin(func() {
		defer p.probing.Store(false)
		ctx, cancel := context.WithTimeout(p.alive, bound)
		defer cancel()
		err := wire.Probe(ctx, p.conn)
		if ctx.Err() != nil && p.alive.Err() == nil && err != nil && !p.closing.Load() {
			p.spec.Log.Warn("plugin killed: it does not answer any more", "plugin", p.spec.Name, "waited", bound)
			p.child.kill()
		}
	})
}

// Done is closed when the process has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.child.exited }

// Err says why the process ended; nil while it runs, and after Close.
func (p *Process) Err() error {
	select {
	case <-p.child.exited:
	default:
		return nil
	}
	if p.closing.Load() {
		return nil
	}
	return p.exitError()
}

// PID is the id of the process, and of its group.
func (p *Process) PID() int { return p.child.pid() }

// Alone reports whether the process has a process table of its own: then nothing that it started can outlive it, or the agent.
// Elsewhere what left the group of the process can.
func (p *Process) Alone() bool { return p.child.isAlone() }

// Close asks the plugin to end, kills it with all that it started after 3 s, and removes its folder. It returns when nothing is
// left, or with an Unavailable of CodeUnkillable after further 5 s. It may be called again.
func (p *Process) Close() error {
	if !p.closing.Swap(true) {
		go p.client.Kill() // it waits for the plugin, without a bound
	}
	if !p.child.waitExit(graceTime) {
		p.child.kill()
	}
	timer := time.NewTimer(killTime)
	defer timer.Stop()
	select {
	case <-p.cleaned:
		return nil
	case <-timer.C:
		return fault.New(fault.Unavailable, CodeUnkillable, "The plugin %s (process %d) does not end although it was killed; the kernel holds it.", p.spec.Name, p.PID())
	}
}

// clean removes what is left when the process has ended, or was never started.
func (p *Process) clean() {
	if p.child.pid() != 0 && !p.child.waitExit(killTime) {
		p.spec.Log.Warn("plugin does not end", "plugin", p.spec.Name, "pid", p.PID())
		return
	}
	p.mu.Lock()
	p.stopped = true
	dialed := p.dialed
	p.mu.Unlock()
	if p.client != nil {
		p.client.Kill() // the process is gone: this ends its goroutines
	}
	if dialed != nil {
		_ = dialed.Close()
	}
	p.work.Wait()
	p.child.wait()
	p.room.remove()
	close(p.cleaned)
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

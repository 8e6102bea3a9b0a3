//go:build !wasip1

package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	pb "google.golang.org/protobuf/proto"

	"github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	"github.com/apiary-dev/apiary/plugins/sdk/wire"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// ErrByHand is the error of a plugin that was not started by an agent. Its text is for the person who did.
var ErrByHand = errors.New("this program is a plugin of Apiary, which the agent starts: install it with `apiary plugin install`")

// Bounds of a plugin process.
const (
	parentPoll = 500 * time.Millisecond // how soon a plugin notices that its agent is gone, where the kernel does not end it
	late       = time.Second            // how long a call may go on after its deadline before the process ends itself
	cancelled  = 10 * time.Second       // the same after a call was cancelled
)

// Main serves the registered plugin until the agent that started this process ends it. In a WASM module it does nothing.
func Main() {
	err := ServeInvoker(func(host vendor.Invoker) vendor.Invoker { return Dispatch(registered, HostClient(host)) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// ServeInvoker serves the Invoker that start returns as a plugin process, until the agent that started this process ends it or
// is gone. It calls start once, before the agent is connected; calls to the host wait for that. It takes over standard output,
// which belongs to the handshake. A call that goes on for a second after its deadline ends the process: its agent starts it again.
// The error is ErrByHand where no agent started the process.
func ServeInvoker(start func(host vendor.Invoker) vendor.Invoker) error {
	handshake := wire.Handshake()
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		return ErrByHand
	}
	go leaveWithParent(os.Getppid())
	link := newLink()
	s := &server{invoker: start(wire.Client(link.call)), link: link, stderr: os.Stderr, exit: os.Exit}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: map[int]plugin.PluginSet{wire.Version: {wire.Name: s}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.MaxRecvMsgSize(wire.MaxFrame), grpc.MaxSendMsgSize(wire.MaxFrame))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr, JSONFormat: false}),
	})
	return nil
}

// leaveWithParent ends the process when its parent is another one than at the start.
func leaveWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(parentPoll)
	}
	os.Exit(0)
}

// server is the plugin as go-plugin sees it.
type server struct {
	plugin.NetRPCUnsupportedPlugin
	invoker vendor.Invoker
	link    *link
	stderr  *os.File
	exit    func(int)
}

// GRPCClient implements plugin.GRPCPlugin for the agent's side, which is not here.
func (*server) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin has no client")
}

// GRPCServer implements plugin.GRPCPlugin.
func (s *server) GRPCServer(_ *plugin.GRPCBroker, on *grpc.Server) error {
	services := map[string]*grpc.ServiceDesc{}
	for _, name := range []string{
		vendor.MethodGetInfo, vendor.MethodGetSchema, vendor.MethodConfigure, vendor.MethodResolve, vendor.MethodSearch, vendor.MethodRefreshSources,
		vendor.MethodPlan, vendor.MethodList, vendor.MethodLaunch, vendor.MethodPin,
	} {
		service, method, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
		if services[service] == nil {
			services[service] = &grpc.ServiceDesc{ServiceName: service}
		}
		services[service].Methods = append(services[service].Methods, grpc.MethodDesc{MethodName: method,
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return s.serve(ctx, name, decode)
			}})
	}
	service, method, _ := strings.Cut(strings.TrimPrefix(pluginv1.Plugin_Host_FullMethodName, "/"), "/")
	services[service].Streams = slices.Concat(services[service].Streams, []grpc.StreamDesc{{StreamName: method, ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error { return s.link.run(stream) }}})
	for _, d := range services {
		on.RegisterService(d, nil)
	}
	return nil
}

func (s *server) serve(ctx context.Context, method string, decode func(any) error) (any, error) {
	done := make(chan struct{})
	defer close(done)
	stop := context.AfterFunc(ctx, func() { s.expect(ctx, method, done) })
	defer stop()
	reply, err := wire.Serve(ctx, s.invoker, method, func(m pb.Message) error { return decode(m) })
	if err != nil {
		return nil, wire.Status(err)
	}
	return reply, nil
}

// expect ends the process when a call whose time is over does not end.
func (s *server) expect(ctx context.Context, method string, done <-chan struct{}) {
	bound := cancelled
	if deadline, ok := ctx.Deadline(); ok {
		bound = min(bound, max(time.Until(deadline), 0)+late)
	}
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		fmt.Fprintf(s.stderr, "the call of %s goes on %v after it was to end: the process ends\n", method, bound)
		s.exit(3)
	}
}

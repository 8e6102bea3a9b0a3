//go:build !wasip1

package sdk

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	pb "google.golang.org/protobuf/proto"

	"github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	"github.com/apiary-dev/apiary/plugins/sdk/wire"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// serveProcess serves what a plugin process serves, on a connection in memory, and answers its calls with host.
func serveProcess(t *testing.T, start func(host vendor.Invoker) vendor.Invoker, exit func(int)) (vendor.Invoker, *grpc.ClientConn) {
	t.Helper()
	l := newLink()
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	s := &server{invoker: start(wire.Client(l.call)), link: l, stderr: stderr, exit: exit}
	on := grpc.NewServer(grpc.MaxRecvMsgSize(wire.MaxFrame), grpc.MaxSendMsgSize(wire.MaxFrame))
	if err := s.GRPCServer(nil, on); err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- on.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxFrame)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		on.Stop()
		<-served
		_ = stderr.Close()
	})
	inv := wire.Client(func(ctx context.Context, method string, request, reply pb.Message) error {
		if err := conn.Invoke(ctx, method, request, reply); err != nil {
			if e := wire.Error(method, err); e != nil {
				return e
			}
			return err
		}
		return nil
	})
	return inv, conn
}

// answer serves h on the stream that a plugin calls its host on.
func answer(ctx context.Context, t *testing.T, conn *grpc.ClientConn, h vendor.Host) {
	t.Helper()
	stream, err := pluginv1.NewPluginClient(conn).Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			call, err := stream.Recv()
			if err != nil {
				return
			}
			reply := &pluginv1.HostReply{Id: call.GetId()}
			m, err := wire.Serve(ctx, HostDispatch(h), call.GetMethod(), func(m pb.Message) error { return wire.Decode(call.GetRequest(), m) })
			if e, ok := errors.AsType[*vendor.Error](err); ok {
				reply.Error = wire.Detail(e)
			} else if err == nil {
				reply.Reply, _ = wire.Encode(m)
			}
			if stream.Send(reply) != nil {
				return
			}
		}
	}()
}

func TestProcessServes(t *testing.T) {
	v := &index{features: all()}
	v.resolve = func(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
		resp, err := v.host.HTTP(ctx, vendor.HTTPRequest{URL: strings.TrimPrefix(req.Reference, "index:"), Body: []byte("body")})
		if err != nil {
			return nil, err
		}
		v.host.Log("info", "asked")
		return &vendor.Manifest{Reference: resp.URL, Format: string(resp.Body), Files: []vendor.File{{Size: -1}}}, nil
	}
	inv, conn := serveProcess(t, func(host vendor.Invoker) vendor.Invoker { return Dispatch(v, HostClient(host)) }, nil)
	host := &fakeHost{}
	ctx := t.Context()
	answer(ctx, t, conn, host)
	if info, err := Call[vendor.Info](ctx, inv, vendor.MethodGetInfo, nil); err != nil || info.Name != "index" {
		t.Fatalf("GetInfo: %+v, %v", info, err)
	}
	if _, err := Call[struct{}](ctx, inv, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: `{}`}); err != nil {
		t.Fatal(err)
	}
	m, err := Call[vendor.Manifest](ctx, inv, vendor.MethodResolve, vendor.ResolveRequest{Reference: "index:there"})
	if err != nil || m.Reference != "there" || m.Format != "body" || m.Files[0].Size != -1 {
		t.Errorf("Resolve: %+v, %v", m, err)
	}
	if host.logged != "info asked" {
		t.Errorf("logged %q", host.logged)
	}
	_, err = Call[vendor.Manifest](ctx, inv, vendor.MethodResolve, vendor.ResolveRequest{Reference: "index:"})
	if code(err) != "not_granted" || kind(err) != vendor.KindDenied {
		t.Errorf("an error of the host comes through the plugin as %v", err)
	}
	for _, method := range []string{vendor.MethodPlan, "/plugin.v1.Plugin/Host", vendor.MethodHTTPBody} {
		if _, err := inv.Invoke(ctx, method, nil); code(err) != vendor.CodeUnimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	if err := conn.Invoke(ctx, "/vendor.v1.Vendor/Later", &pluginv1.GetInfoRequest{}, &pluginv1.Info{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method of a later version: %v", err)
	}
	second, err := pluginv1.NewPluginClient(conn).Host(ctx)
	if err == nil {
		_, err = second.Recv()
	}
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("a second stream: %v", err)
	}
}

// TestHostIsLost: a call to the host ends when the agent's stream does, and when the call does that it is part of.
func TestHostIsLost(t *testing.T) {
	hosts := make(chan vendor.Host, 1)
	_, conn := serveProcess(t, func(host vendor.Invoker) vendor.Invoker { hosts <- HostClient(host); return nil }, nil)
	host := <-hosts
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := host.Get(ended, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call before there is a stream: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := pluginv1.NewPluginClient(conn).Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := host.Get(t.Context(), "k")
		failed <- err
	}()
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; code(err) != "host_gone" {
		t.Errorf("a call without an answer: %v", err)
	}
	if _, err := host.Get(t.Context(), "k"); code(err) != "host_gone" {
		t.Errorf("a call after the end: %v", err)
	}
}

// TestStuckCallEndsTheProcess: what does not end with its time is ended with its process.
func TestStuckCallEndsTheProcess(t *testing.T) {
	exited, release := make(chan int, 1), make(chan struct{})
	stuck := InvokerFunc(func(context.Context, string, []byte) ([]byte, error) { <-release; return []byte("{}"), nil })
	inv, _ := serveProcess(t, func(vendor.Invoker) vendor.Invoker { return stuck }, func(code int) { exited <- code })
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := inv.Invoke(ctx, vendor.MethodGetInfo, nil); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the call ended with %v", err)
	}
	if code := <-exited; code != 3 {
		t.Errorf("exit code %d", code)
	}
}

// TestByHand: a person who runs a plugin reads what it is.
func TestByHand(t *testing.T) {
	if err := ServeInvoker(nil); !errors.Is(err, ErrByHand) || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("%v", err)
	}
}

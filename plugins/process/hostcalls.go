package process

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	"github.com/apiary-dev/apiary/plugins/sdk/wire"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of the calls of a plugin to its host.
const (
	hostCalls    = 16
	hostCallTime = 35 * time.Second
)

// serveHost opens the stream on which the plugin calls its host, and answers until the process ends. A plugin that has none
// calls nobody.
func (p *Process) serveHost() {
	if p.spec.Host == nil {
		return
	}
	ctx, cancel := context.WithCancel(p.alive)
	defer cancel()
	err := p.answerHostCalls(ctx)
	if status.Code(err) == codes.Unimplemented || errors.Is(err, io.EOF) || p.alive.Err() != nil || p.closing.Load() || p.child.waitExit(time.Second) {
		return
	}
	p.spec.Log.Warn("plugin killed: its calls to the host ended", "plugin", p.spec.Name, "error", err)
	p.child.kill()
}

func (p *Process) answerHostCalls(ctx context.Context) error {
	stream, err := pluginv1.NewPluginClient(p.conn).Host(ctx)
	if err != nil {
		return err
	}
	var (
		calls   sync.WaitGroup
		sending sync.Mutex // held while a message is sent
		slots   = make(chan struct{}, hostCalls)
	)
	ctx, cancel := context.WithCancel(ctx)
	defer calls.Wait()
	defer cancel()
	for {
		call, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		calls.Go(func() {
			defer func() { <-slots }()
			reply := p.answerHostCall(ctx, call)
			sending.Lock()
			defer sending.Unlock()
			_ = stream.Send(reply) // the end of the stream is seen above
		})
	}
}

func (p *Process) answerHostCall(ctx context.Context, call *pluginv1.HostCall) *pluginv1.HostReply {
	ctx, cancel := context.WithTimeout(ctx, hostCallTime)
	defer cancel()
	reply := &pluginv1.HostReply{Id: call.GetId()}
	m, err := wire.Serve(ctx, p.spec.Host, call.GetMethod(), func(m wire.Message) error { return wire.Decode(call.GetRequest(), m) })
	if err == nil {
		reply.Reply, err = wire.Encode(m)
	}
	if err == nil && len(reply.GetReply()) > wire.MaxMessage {
		reply.Reply = nil
		err = &vendor.Error{Kind: vendor.KindExhausted, Code: "reply_too_large", Message: "The answer of the host has more than 16 MiB."}
	}
	if err != nil {
		e, ok := errors.AsType[*vendor.Error](err)
		if !ok {
			e = &vendor.Error{Kind: vendor.KindInternal, Code: "host_failed", Message: "The host failed: " + err.Error() + "."}
		}
		reply.Error = wire.Detail(e)
	}
	return reply
}

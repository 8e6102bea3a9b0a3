//go:build !wasip1

package sdk

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	"github.com/apiary-dev/apiary/plugins/sdk/wire"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// attachTime is how long a call to the host waits for the agent to open the stream.
const attachTime = 10 * time.Second

// link carries the calls of this process to its host over the one stream that the agent opens.
type link struct {
	attached chan struct{} // closed when there is a stream
	lost     chan struct{} // closed when there is none any more

	sending sync.Mutex // held while a message is sent

	mu      sync.Mutex                          // guards the fields below
	stream  grpc.ServerStream                   // set once, before attached is closed
	pending map[uint64]chan *pluginv1.HostReply // calls without an answer
	last    uint64
}

func newLink() *link {
	return &link{attached: make(chan struct{}), lost: make(chan struct{}), pending: map[uint64]chan *pluginv1.HostReply{}}
}

// run reads answers until the agent ends the stream.
func (l *link) run(stream grpc.ServerStream) error {
	l.mu.Lock()
	if l.stream != nil {
		l.mu.Unlock()
		return status.Error(codes.AlreadyExists, "the stream for calls to the host is open already")
	}
	l.stream = stream
	l.mu.Unlock()
	close(l.attached)
	defer close(l.lost)
	for {
		reply := &pluginv1.HostReply{}
		if err := stream.RecvMsg(reply); err != nil {
			return nil
		}
		l.mu.Lock()
		answer := l.pending[reply.GetId()]
		delete(l.pending, reply.GetId())
		l.mu.Unlock()
		if answer != nil {
			answer <- reply
		}
	}
}

// call implements wire.Caller.
func (l *link) call(ctx context.Context, method string, request, into pb.Message) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	raw, err := wire.Encode(request)
	if err != nil {
		return err
	}
	if len(raw) > wire.MaxMessage {
		return &vendor.Error{Kind: vendor.KindExhausted, Code: "request_too_large", Message: "A request to the host has at most 16 MiB."}
	}
	answer := make(chan *pluginv1.HostReply, 1)
	l.mu.Lock()
	l.last++
	id := l.last
	l.pending[id] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pending, id)
	}()
	l.sending.Lock()
	err = l.stream.SendMsg(&pluginv1.HostCall{Id: id, Method: method, Request: raw})
	l.sending.Unlock()
	if err != nil {
		return hostGone()
	}
	select {
	case reply := <-answer:
		if e := reply.GetError(); e != nil {
			return wire.FromDetail(e)
		}
		return wire.Decode(reply.GetReply(), into)
	case <-ctx.Done():
		return ctx.Err()
	case <-l.lost:
		return hostGone()
	}
}

func (l *link) wait(ctx context.Context) error {
	timer := time.NewTimer(attachTime)
	defer timer.Stop()
	select {
	case <-l.attached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("the agent opened no stream for calls to the host")
	}
}

func hostGone() error {
	return &vendor.Error{Kind: vendor.KindUnavailable, Code: "host_gone", Message: "The agent that started this plugin ended the stream for calls to it."}
}

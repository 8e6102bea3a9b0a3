// Package wire is what the two ends of a process plugin share: the handshake, the limits, how errors travel, and the protobuf
// form of calls. It opens no connection. A plugin in another language follows it by hand:
//
//   - The program prints one line to standard output, "1|1|unix|/path/of/its/socket|grpc|CERTIFICATE", and then serves gRPC
//     there. The folder for the socket is in the variable PLUGIN_UNIX_SOCKET_DIR.
//   - With mutual TLS the agent's certificate is in PLUGIN_CLIENT_CERT (PEM), and CERTIFICATE is the plugin's own in DER, as
//     base64 without padding. Without, both are empty.
//   - It serves grpc.health.v1.Health for the service "plugin", plugin.v1.Plugin and the service of its kind.
package wire

import (
	"context"
	"errors"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	pb "google.golang.org/protobuf/proto"

	"github.com/apiary-dev/apiary/plugins/proto"
	"github.com/apiary-dev/apiary/plugins/proto/pluginv1"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Version is the major version of the contract, which the handshake agrees on.
const Version = 1

// Name is the name of the plugin in the sets of go-plugin.
const Name = "plugin"

// MaxMessage bounds the message of a call in bytes, and MaxFrame what carries it.
const (
	MaxMessage = 16 << 20
	MaxFrame   = MaxMessage + 64<<10
)

// Handshake is what both ends must have in common before they talk. The cookie keeps people from running a plugin by hand and
// protects nothing.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: Version, MagicCookieKey: "APIARY_PLUGIN", MagicCookieValue: "plugin.v1"}
}

// Status makes the gRPC form of an error: an *Error travels as the detail of the status, whose code is only for onlookers.
func Status(err error) error {
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok {
		if s, ok := status.FromError(err); ok {
			return s.Err()
		}
		return status.FromContextError(err).Err()
	}
	s := status.New(codeOf(e), e.Message)
	if d, err := s.WithDetails(protoadapt.MessageV1Of(Detail(e))); err == nil {
		s = d
	}
	return s.Err()
}

func codeOf(e *vendor.Error) codes.Code {
	if e.Code == vendor.CodeUnimplemented {
		return codes.Unimplemented
	}
	switch e.Kind {
	case vendor.KindInvalid:
		return codes.InvalidArgument
	case vendor.KindNotFound:
		return codes.NotFound
	case vendor.KindUnavailable:
		return codes.Unavailable
	case vendor.KindExhausted:
		return codes.ResourceExhausted
	case vendor.KindDenied:
		return codes.PermissionDenied
	case vendor.KindInternal:
	}
	return codes.Internal
}

// Error returns the *Error that the other side meant by a gRPC error, nil for an error of the transport. A method that a
// server does not have is Unimplemented, also where the server says so by the code alone.
func Error(method string, err error) *vendor.Error {
	s := status.Convert(err)
	for _, d := range s.Details() {
		if d, ok := d.(*pluginv1.ErrorDetail); ok {
			return FromDetail(d)
		}
	}
	if s.Code() == codes.Unimplemented {
		return unimplemented(method)
	}
	return nil
}

func unimplemented(method string) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindInvalid, Code: vendor.CodeUnimplemented, Message: "There is no method " + method + " on the other side."}
}

// Detail is the message of an *Error.
func Detail(e *vendor.Error) *pluginv1.ErrorDetail {
	return &pluginv1.ErrorDetail{Kind: string(e.Kind), Code: e.Code, Message: e.Message, Param: e.Param, HelpUrl: e.HelpURL,
		Candidates: e.Candidates, RetryAfterMs: e.RetryAfterMS}
}

// FromDetail is the *Error of a message.
func FromDetail(d *pluginv1.ErrorDetail) *vendor.Error {
	return &vendor.Error{Kind: vendor.Kind(d.GetKind()), Code: d.GetCode(), Message: d.GetMessage(), Param: d.GetParam(), HelpURL: d.GetHelpUrl(),
		Candidates: d.GetCandidates(), RetryAfterMS: d.GetRetryAfterMs()}
}

// Message is a message of the contract.
type Message = pb.Message

// Caller sends a message to a method and fills reply.
type Caller func(ctx context.Context, method string, request, reply Message) error

// Client makes an Invoker of a caller that speaks protobuf.
func Client(call Caller) vendor.Invoker {
	return client{call}
}

type client struct{ call Caller }

func (c client) Invoke(ctx context.Context, method string, raw []byte) ([]byte, error) {
	request, reply, err := proto.Messages(method)
	if err != nil {
		return nil, unimplemented(method)
	}
	if len(raw) > 0 {
		if err := proto.FromJSON(raw, request); err != nil {
			return nil, &vendor.Error{Kind: vendor.KindInternal, Code: "bad_request", Message: "The request of " + method + " does not follow the contract: " + err.Error() + "."}
		}
	}
	if err := c.call(ctx, method, request, reply); err != nil {
		return nil, err
	}
	return proto.ToJSON(reply)
}

// Serve answers a call that came as protobuf with inv. It decodes the request with decode.
func Serve(ctx context.Context, inv vendor.Invoker, method string, decode func(Message) error) (Message, error) {
	request, reply, err := proto.Messages(method)
	if err != nil {
		return nil, unimplemented(method)
	}
	if err := decode(request); err != nil {
		return nil, err
	}
	raw, err := proto.ToJSON(request)
	if err != nil {
		return nil, err
	}
	answer, err := inv.Invoke(ctx, method, raw)
	if err != nil {
		return nil, err
	}
	if len(answer) > 0 {
		if err := proto.FromJSON(answer, reply); err != nil {
			return nil, &vendor.Error{Kind: vendor.KindInternal, Code: "bad_reply", Message: "The answer of " + method + " does not follow the contract: " + err.Error() + "."}
		}
	}
	return reply, nil
}

// Probe asks a plugin for a sign of life. A plugin that answers with an error gives one.
func Probe(ctx context.Context, conn grpc.ClientConnInterface) error {
	err := conn.Invoke(ctx, vendor.MethodGetInfo, &pluginv1.GetInfoRequest{}, &pluginv1.Info{})
	if ctx.Err() == nil {
		return nil
	}
	return err
}

// Encode and Decode are the binary form of messages inside HostCall and HostReply.
func Encode(m Message) ([]byte, error) { return pb.Marshal(m) }

// Decode reads what Encode wrote.
func Decode(raw []byte, m Message) error { return pb.Unmarshal(raw, m) }

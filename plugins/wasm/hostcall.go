package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

const (
	// maxHostCalls is how often a guest may call the host in one call of its own.
	maxHostCalls = 10_000
	maxMethod    = 256              // bytes of a method's name
	maxBody      = 4 * MaxMessage   // bytes of the body of an HTTP answer
	hostPrefix   = "/host.v1.Host/" // of all methods of the host
)

// hostCall is the import "call".
func hostCall(ctx context.Context, mod api.Module, stack []uint64) {
	in := ctx.Value(instanceKey{}).(*instance)
	in.stopIfDone()
	reply, err := in.ask(ctx, mod.Memory(), uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3]))
	in.stopIfDone()
	if err != nil {
		in.reply = errorJSON(err)
		stack[0] = api.EncodeI64(-int64(len(in.reply)))
		return
	}
	in.reply = reply
	stack[0] = uint64(len(reply))
}

// hostReply is the import "reply". It gives the guest what the last call answered, once: the host has no use for it then.
func hostReply(ctx context.Context, mod api.Module, stack []uint64) {
	in := ctx.Value(instanceKey{}).(*instance)
	in.stopIfDone()
	if !mod.Memory().Write(uint32(stack[0]), in.reply) {
		panic(protocol("The plugin wants the answer of the host in memory that it does not have; report it to its author."))
	}
	in.reply = nil
}

// ask reads a call out of the guest's memory and answers it. It never runs the guest, so calls do not nest.
func (in *instance) ask(ctx context.Context, mem api.Memory, method, methodLen, request, requestLen uint32) ([]byte, *vendor.Error) {
	if in.hostCalls <= 0 {
		return nil, &vendor.Error{Kind: vendor.KindExhausted, Code: "host_calls", Message: fmt.Sprintf("The plugin called the host more than %d times in one call, or outside of one.", maxHostCalls)}
	}
	in.hostCalls--
	if methodLen > maxMethod || requestLen > MaxMessage {
		return nil, tooLarge("The plugin's request to the host has %d bytes; at most %d are allowed.", requestLen, MaxMessage)
	}
	nameView, ok := mem.Read(method, methodLen)
	requestView, ok2 := mem.Read(request, requestLen)
	if !ok || !ok2 {
		return nil, protocol("The plugin's request to the host is not in its memory.")
	}
	name := string(nameView)
	switch {
	case name == vendor.MethodHTTPBody:
		return in.body, nil
	case !strings.HasPrefix(name, hostPrefix) || in.m.o.Host == nil:
		return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: vendor.CodeUnimplemented, Message: fmt.Sprintf("The host has no method %q.", name)}
	}
	// The memory is the guest's, and the host may keep what it is given.
	reply, err := in.m.o.Host.Invoke(ctx, name, append([]byte(nil), requestView...))
	if err == nil && name == vendor.MethodHTTPDo {
		reply, err = in.detach(reply)
	}
	if err == nil && len(reply) > MaxMessage {
		err = tooLarge("The host's answer to %s has %d bytes; at most %d are allowed.", name, len(reply), MaxMessage)
	}
	if err == nil {
		return reply, nil
	}
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return nil, e
	}
	in.m.o.Log.Warn("a call of a plugin to the host failed", "method", name, "error", err)
	return nil, &vendor.Error{Kind: vendor.KindInternal, Code: "host_failed", Message: fmt.Sprintf("The host could not answer %s.", name)}
}

// detach keeps the body of an HTTP answer for HttpBody, which spares the guest a third more bytes and their decoding.
func (in *instance) detach(reply []byte) ([]byte, error) {
	in.body = nil
	var answer vendor.HTTPResponse
	if err := json.Unmarshal(reply, &answer); err != nil {
		return nil, fmt.Errorf("read the answer to %s: %w", vendor.MethodHTTPDo, err)
	}
	if len(answer.Body) > maxBody {
		return nil, tooLarge("The answer has %d bytes; at most %d are allowed.", len(answer.Body), maxBody)
	}
	in.body, answer.Body = answer.Body, nil
	return json.Marshal(answer)
}
